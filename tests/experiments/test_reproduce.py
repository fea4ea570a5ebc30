"""Runs of the LeNets with a retraining of a few iterations: every step is real, the figures aren't
worth reporting."""

import contextlib
import json
import multiprocessing
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from deepsz_caffe.cli.experiments import report_runs
from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DataError, DeepSZError, InputError
from deepsz_caffe.experiments import results
from deepsz_caffe.experiments.folder import Folder
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.experiments.pages import tables
from deepsz_caffe.experiments.plan import plan
from deepsz_caffe.experiments.reproduce import (
    RUN,
    pruned_of,
    reproduce,
    reproduce_all,
    runs_in,
    with_shipped,
)
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate


@pytest.fixture(scope="module")
def finished(lenet, tmp_path_factory):
    """One task and its run, DeepSZ alone, on few digits."""
    with contextlib.chdir(lenet.folder):
        (task,) = quick(tmp_path_factory.mktemp("runs"))
        return task, reproduce(task, lambda text, fraction: None)


def quick(out, seeds=1):
    (first,) = plan(network("lenet-300-100"), out, from_models=True, max_loss=0.3)
    return [
        replace(first, out=out / f"seed-{seed}", seed=seed, iterations=40, baselines=False)
        for seed in range(1, seeds + 1)
    ]


def test_a_run_holds_what_its_file_and_the_evaluator_say(finished, few_digits):
    task, run = finished
    with DszFile(task.out / "paper.dsz") as file:
        assert run.deepsz().bytes == file.summary()["fc_bytes"]
        assert [layer.name for layer in run.layers] == ["ip1", "ip2", "ip3"]
    score = evaluate(task.network.path("train_val.prototxt"), task.out / "paper.dsz")
    test = run.deepsz().test
    assert (test.total, test.top1, test.top5) == (
        score.total,
        score.top1_correct,
        score.top5_correct,
    )
    dense = evaluate(task.network.path("train_val.prototxt"), task.dense)
    assert (run.dense.total, run.dense.top1) == (500, dense.top1_correct)
    assert run.dense.loss(test) <= 0.3
    for layer, keep in zip(run.layers, task.network.keep.values(), strict=True):
        assert layer.nonzeros <= round(keep * layer.shape[0] * layer.shape[1])


def test_a_second_run_only_reads(finished, few_digits):
    task, run = finished
    files = {path: path.stat().st_mtime_ns for path in task.out.rglob("*.*")}
    assert reproduce(task, lambda text, fraction: None) == run
    files.pop(task.out / RUN)
    assert files == {
        path: path.stat().st_mtime_ns for path in task.out.rglob("*.*") if path.name != RUN
    }


def test_an_interrupted_run_goes_on_where_it_was(finished, few_digits):
    task, run = finished
    lost = task.out / "measured" / "scores.json"
    scores = json.loads(lost.read_text())
    lost.unlink()
    pruned = (task.out / "pruned.caffemodel").stat().st_mtime_ns
    assert reproduce(task, lambda text, fraction: None) == run
    assert json.loads(lost.read_text()) == scores
    assert (task.out / "pruned.caffemodel").stat().st_mtime_ns == pruned


def test_with_the_body_frozen_pruning_leaves_the_convolutions(few_digits, tmp_path):
    (first,) = plan(network("lenet-5"), tmp_path, from_models=True)
    task = replace(first, iterations=40, freeze_body=tmp_path / "features")
    pruned = pruned_of(task, task.dense, Folder(tmp_path), lambda text, fraction: None)
    before, after = read_caffemodel(task.dense), read_caffemodel(pruned)
    for layer, same in (("conv1", True), ("conv2", True), ("ip1", False), ("ip2", False)):
        assert np.array_equal(before[layer].blobs[0].data, after[layer].blobs[0].data) == same
    assert len(list((tmp_path / "features").glob("train-*/files.txt"))) == 1


def test_runs_are_found_below_a_folder(finished):
    task, run = finished
    assert runs_in(task.out.parent) == [run]


def test_the_row_is_printed_beside_the_papers(finished, capsys):
    task, run = finished
    report_runs([run], [task.out], as_json=False)
    printed = capsys.readouterr().out
    for word in (
        f"{run.dense.top1 / 500:.2%}".replace("%", " %"),
        "98.35 %",
        "55.8×",
        f"deepsz inspect {task.out}",
    ):
        assert word in printed
    report_runs([run], [task.out], as_json=True)
    (document,) = json.loads(capsys.readouterr().out)
    assert document["dense"] == {
        "total": 500,
        "top1": run.dense.top1,
        "top5": run.dense.top5,
    }


def test_a_network_that_the_paper_does_not_have_is_printed_alone(finished, capsys):
    task, run = finished
    report_runs([replace(run, network="alexnet-cifar10")], [task.out], as_json=False)
    said = capsys.readouterr().out
    assert "AlexNet/CIFAR-10" in said
    assert "55.8×" not in said


def test_shipped_runs_stand_in_for_networks_that_were_not_run(finished, tmp_path):
    _, run = finished
    shipped = replace(run, network="alexnet-cifar10")
    (tmp_path / "alexnet_cifar10").mkdir()
    results.save(shipped, tmp_path / "alexnet_cifar10" / RUN)
    found = with_shipped([run], tmp_path)
    assert found == [run, replace(shipped, shipped=True)]
    titles = {row[0] for row in tables.main(tables.groups(found)).rows}
    assert titles == {
        "LeNet-300-100",
        "LeNet-300-100, paper",
        "AlexNet/CIFAR-10 (as shipped)",
    }
    own = replace(shipped, command="run here")
    assert with_shipped([own], tmp_path) == [own]


@pytest.mark.parametrize("name", ["alexnet", "vgg-16"])
def test_without_imagenet_it_says_what_is_missing_and_how_to_get_it(name, tmp_path):
    with pytest.raises(InputError) as error:
        plan(network(name), tmp_path)
    said = str(error.value)
    for word in ("--weights", "--data", "image-net.org", "convert_imageset", "--generated"):
        assert word in said


def test_tables_without_runs_say_what_to_do_first(tmp_path):
    with pytest.raises(DataError, match="first: deepsz reproduce"):
        runs_in(tmp_path)


def test_generated_is_refused_for_lenets(tmp_path):
    command = ["reproduce", "lenet-5", "--generated", "--out", str(tmp_path)]
    assert isinstance(CliRunner().invoke(deepsz, command).exception, InputError)


@pytest.mark.slow
def test_several_seeds_at_a_time(checkout, tmp_path):
    said = {}

    def lane(name):
        said[name] = []
        return lambda text, fraction: said[name].append(text)

    one, two = reproduce_all(quick(tmp_path, seeds=2), lane, jobs=2)
    assert (one.seed, two.seed) == (1, 2)
    assert set(said) == {"seed-1", "seed-2"}
    for lines in said.values():
        assert "pruning and retraining" in lines
        assert "combinations of bounds" in lines


@pytest.mark.slow
def test_an_error_of_one_seed_ends_the_others(checkout, tmp_path):
    one, two = quick(tmp_path, seeds=2)
    two = replace(two, dense=tmp_path / "missing.caffemodel")
    with pytest.raises(DeepSZError, match="missing"):
        reproduce_all([one, two], lambda name: lambda text, fraction: None, jobs=2)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_demo_prints_the_row_and_reuses_everything(checkout, tmp_path):
    command = ["make", "demo", f"DEMO={tmp_path}"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "55.8×" in first.stdout
    run = results.load(tmp_path / "lenet-300-100-from-models" / RUN)
    assert run.ratio(run.deepsz()) >= 55.8
    assert run.dense.loss(run.deepsz().test) <= 0.002
    kept = (tmp_path / "lenet-300-100-from-models" / "pruned.caffemodel").stat().st_mtime_ns
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
    assert (tmp_path / "lenet-300-100-from-models" / "pruned.caffemodel").stat().st_mtime_ns == kept
