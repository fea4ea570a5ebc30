"""The commands of steps 2 and 3: their JSON, their exit codes, their one line of error."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy as toys
from assessments import assessment

from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.assess.journal import Journal, journal_key
from deepsz_caffe.steps.encode import encode
from deepsz_caffe.steps.evaluator import Outcome
from deepsz_caffe.steps.optimize import optimize


@pytest.fixture
def output_of(deepsz):
    def run(*arguments):
        done = deepsz(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_eval_gives_counts(toy):
    command = [Path(sys.executable).with_name("deepsz"), "eval", toy.network, toy.weights, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    score = json.loads(run.stdout)
    assert score.keys() == {"total", "top1_correct", "top5_correct"}
    assert score["total"] == 2030


def test_eval_of_layers_that_run_compressed_gives_the_same_counts(toy, tmp_path, output_of):
    file = tmp_path / "x.dsz"
    write_dsz(file, encode(toy.network, toy.weights, dict.fromkeys(toys.FC_LAYERS, 0.02), "fast"))
    dense = output_of("eval", toy.network, file)
    assert output_of("eval", toy.network, file, "--compressed") == dense


def test_eval_of_a_stage_for_people(toy, deepsz):
    assert "1,510" in deepsz("eval", toy.network, toy.weights, "--stage", "validation").stdout


def test_assess_optimize_report_and_compress(toy, tmp_path, output_of):
    a = tmp_path / "A.json"
    options = ("--profile", "paper")
    document = output_of(
        "assess", toy.network, toy.weights, "--out", a, "--max-loss", "0.02", *options
    )
    assert document == json.loads(a.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A.json", "A.json.journal"]
    plan = output_of("optimize", a, "--max-loss", "0.02", "--out", tmp_path / "plan.json")
    assert plan == json.loads((tmp_path / "plan.json").read_text())
    assert set(plan["bounds"]) == set(toys.FC_LAYERS)
    assert [Path(p).name for p in output_of("report", a)] == ["A.png", "A.html"]
    out = tmp_path / "x.dsz"
    result = output_of("compress", toy.network, toy.weights, out, "--max-loss", "0.02", *options)
    keys = {"file_bytes", "fc_bytes", "fc_dense_bytes", "ratio", "layers"}
    assert keys | {"top1_before", "top1_after"} <= result.keys()
    assert result["file_bytes"] == out.stat().st_size
    score = output_of("eval", toy.network, out)
    assert (score["total"], score["top1_correct"]) == (result["total"], result["top1_after"])


@pytest.mark.parametrize(
    ("profile", "search", "codecs"),
    [("fast", "default", {"mixing", "packed"}), ("small", "divergence", {"mixing-step"})],
)
def test_compress_takes_convolutions_where_they_are_asked_for(
    toy, tmp_path, deepsz, profile, search, codecs
):
    out = tmp_path / "x.dsz"
    options = ("--profile", profile, "--layers", "all", "--search", search, "--max-loss", "0.02")
    said = deepsz("compress", toy.network, toy.weights, out, *options).stdout
    with DszFile(out) as file:
        assert [layer.name for layer in file.layers] == ["conv", *toys.FC_LAYERS]
        assert {layer.data_codec for layer in file.layers} <= codecs
        summary = file.summary()
    assert summary["caffemodel_bytes"] == toy.weights.stat().st_size
    assert f"layers conv, left, right, ip: {summary['fc_dense_bytes']:,} → " in said
    assert f"whole file: {summary['caffemodel_bytes']:,} bytes in {out.stat().st_size:,}, " in said
    assert f", {summary['file_ratio']:.1f}×;" in said


def test_optimize_says_how_far_off_it_was_where_the_whole_was_measured(tmp_path, deepsz, output_of):
    a = tmp_path / "A.json"
    assessed = replace(assessment(), digests={"network": "n", "weights": "w", "data": "d"})
    assessed.save(a)
    assert "measured_loss" not in output_of("optimize", a, "--max-loss", "0.02")
    plan = optimize(assessed, max_loss=0.02)
    journal = Journal(f"{a}.journal", journal_key(assessed.digests, assessed.profile))
    lost = plan.loss + 7
    journal.add_whole(plan.bounds, "w", Outcome(1000, 900 - lost, 990, lost, 0, lost, 0))
    assert output_of("optimize", a, "--max-loss", "0.02")["measured_loss"] == lost
    said = deepsz("optimize", a, "--max-loss", "0.02").stdout
    assert f"measured as a whole: {lost} images lost, 7 more than expected" in said
    assert "expected: layers a, b in" in said


def test_what_is_implausible_is_said_and_the_file_written(tmp_path, deepsz):
    """Images that are all black: the network can't know anything of them."""
    random = np.random.default_rng(1)
    arrays = {"data": np.zeros((20, 6), np.float32), "label": random.integers(0, 3, 20)}
    np.savez(tmp_path / "x.npz", **arrays)
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"'
        " inner_product_param { num_output: 3 bias_term: false } }"
    )
    weights = tmp_path / "w.caffemodel"
    run_in_caffe(save_random, str(net), str(weights))
    done = deepsz(
        "compress",
        net,
        weights,
        tmp_path / "o.dsz",
        "--max-loss",
        0.5,
        "--data",
        tmp_path / "x.npz",
    )
    assert done.returncode == 0, done.stderr
    assert "gets 0 of 20 images right, no more than always answering" in done.stderr
    assert "layer fc:" in done.stdout
    assert (tmp_path / "o.dsz").exists()


def save_random(net, weights):
    """Run in a Caffe process."""
    network = import_caffe().Net(net, 1)
    network.params["fc"][0].data[...] = np.random.default_rng(2).normal(size=(3, 6))
    network.save(weights)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("eval", "NET", "no.caffemodel"), 1, "no.caffemodel"),
        (("eval", "no.prototxt", "WEIGHTS"), 1, "no.prototxt"),
        (("eval", "WEIGHTS", "NET"), 1, "not a prototxt"),
        (("eval", "NET", "NET"), 1, "train_val.prototxt"),
        (("eval", "NET", "WEIGHTS", "--data", "no_lmdb"), 1, "no such LMDB"),
        (("eval", "NET", "WEIGHTS", "--gpu", "0"), 1, "built without CUDA"),
        (("eval", "NET"), 2, "Missing argument"),
        (("compress", "NET", "WEIGHTS", "x.dsz"), 2, "maximal loss or a target ratio"),
        (("compress", "NET", "WEIGHTS", "x.dsz", "--max-loss", "-1"), 2, "fraction"),
        (("compress", "NET", "WEIGHTS", "x.dsz", "--max-loss", "much"), 2, "much"),
        (
            ("compress", "NET", "WEIGHTS", "x.dsz", "--max-loss", "0.1", "--layers", "a"),
            1,
            "layer a",
        ),
        (("compress", "NET", "WEIGHTS", "x.dsz", "--max-loss", "0.1", "--profile", "a"), 2, "'a'"),
        (("optimize", "no.json", "--max-loss", "0.1"), 1, "no.json"),
        (("assess", "NET", "WEIGHTS", "--out", "A.json", "--bounds", "1,x"), 2, "not a list"),
    ],
)
def test_wrong_input_gets_one_line_and_its_exit_code(
    toy, tmp_path, monkeypatch, deepsz, arguments, code, said
):
    monkeypatch.chdir(tmp_path)
    names = {"NET": toy.network, "WEIGHTS": toy.weights}
    run = deepsz(*(names.get(argument, argument) for argument in arguments))
    assert run.returncode == code, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "x.dsz").exists()


@pytest.mark.parametrize("command", ["eval", "assess", "optimize", "compress", "report"])
def test_help_has_an_example(deepsz, command):
    run = deepsz(command, "--help")
    assert run.returncode == 0
    assert f"deepsz {command} " in run.stdout.split("Example:")[1]
