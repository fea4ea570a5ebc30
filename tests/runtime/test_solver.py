"""Training by the Caffe solver: equal to Caffe's own, choosable, resumable, with clear errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

from deepsz_caffe.errors import (
    CaffeError,
    DataError,
    DeepSZError,
    DeepSZWarning,
    InputError,
    ModelError,
)
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.solver import train
from deepsz_caffe.runtime.worker import import_caffe

DROPOUT = 'train_state { stage: "dropout" }\n'


def train_by_caffe(solver, seed):
    """Train with Caffe's own loop; runs in a Caffe process."""
    caffe = import_caffe()
    caffe.set_random_seed(seed)
    run = caffe.get_solver(str(solver))
    run.solve()
    return {name: [np.array(blob.data) for blob in blobs] for name, blobs in run.net.params.items()}


def weights_of(path):
    return {
        layer.name: [blob.data for blob in layer.blobs]
        for layer in read_caffemodel(path).layers
        if layer.blobs
    }


def test_training_is_caffes_own(lenet, tmp_path):
    plain = ("test_state", "test_iter", "test_interval", "snapshot")
    more = f'{DROPOUT}max_iter: 30\nsnapshot_prefix: "{tmp_path / "own"}"'
    solver = lenet.solver(tmp_path / "s.prototxt", more, (*plain, "max_iter"))
    trained = train(solver, tmp_path / "a.caffemodel")
    assert (trained.iterations, trained.chosen, trained.test_total) == (30, 30, 0)
    expected = run_in_caffe(train_by_caffe, solver, 1)
    ours = weights_of(tmp_path / "a.caffemodel")
    assert ours.keys() == expected.keys()
    for name, blobs in expected.items():
        for a, b in zip(ours[name], blobs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_best_state_on_the_validation_split_is_written(lenet, tmp_path):
    # The rate falls back to 0.1 after a disturbance, so the last state is not the best one.
    disturbed = 'lr_policy: "multistep"\nstepvalue: 70\ngamma: 30\n'
    solver = lenet.solver(tmp_path / "s.prototxt", disturbed, ("lr_policy", "power"))
    seen = {}
    trained = train(
        solver,
        tmp_path / "a.caffemodel",
        lenet.dense,
        progress=lambda now: seen.update({now.iteration: now}),
    )
    assert trained.chosen in (20, 40, 60)
    assert (seen[100].iterations, seen[100].test_total) == (100, 500)
    assert seen[100].test_correct < trained.test_correct
    score = evaluate(lenet.network, tmp_path / "a.caffemodel", stages=["validation"])
    assert (score.top1_correct, score.total) == (trained.test_correct, trained.test_total)


def test_a_test_set_does_not_decide(lenet, tmp_path):
    disturbed = 'lr_policy: "multistep"\nstepvalue: 70\ngamma: 30\n'
    without = ("lr_policy", "power", "test_state")
    solver = lenet.solver(tmp_path / "s.prototxt", disturbed, without)
    trained = train(solver, tmp_path / "a.caffemodel", lenet.dense)
    assert trained.chosen == 100
    score = evaluate(lenet.network, tmp_path / "a.caffemodel")
    assert (score.top1_correct, score.total) == (trained.test_correct, trained.test_total)


def test_masks_hold_throughout(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "s.prototxt")
    random = np.random.default_rng(1)
    masks = {"ip1": random.random((300, 784)) < 0.1, "ip3": random.random((10, 100)) < 0.5}
    train(solver, tmp_path / "a.caffemodel", lenet.dense, masks, iterations=30)
    ours = weights_of(tmp_path / "a.caffemodel")
    for name, mask in masks.items():
        assert not ours[name][0].view(np.uint32)[~mask].any()
    assert np.count_nonzero(ours["ip2"][0]) > 29_000
    # The same from scratch: nothing of what is masked is learned.
    train(solver, tmp_path / "b.caffemodel", None, masks, iterations=30)
    assert not weights_of(tmp_path / "b.caffemodel")["ip1"][0].view(np.uint32)[~masks["ip1"]].any()


def killed_in_the_middle(arguments, out, after):
    """Run `deepsz` until a snapshot of at least iteration `after` is there, and kill it."""
    command = [Path(sys.executable).with_name("deepsz"), *map(str, arguments), "--out", str(out)]
    state = out.with_name(out.name + ".snapshots") / "state.json"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if state.exists() and json.loads(state.read_bytes())["iteration"] >= after:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    return state


def network_with(lenet, path, *edits):
    """Write the network with changes to its text."""
    text = lenet.network.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


PRUNE = {
    "prune": ["--keep", "ip1=0.08,ip2=0.1"],
    "surgery": [
        "--keep",
        "all=0.2",
        "--layers",
        "ip2,ip3",
        "--schedule",
        "surgery",
        "--noise",
        "0.2",
    ],
    "iterative": ["--keep", "all=0.05", "--schedule", "iterative", "--bounds", "ip1=0.1,ip3=0.1"],
}


@pytest.mark.parametrize("steps", ["train", *PRUNE])
def test_a_killed_run_goes_on_to_the_same_bytes(lenet, tmp_path, steps):
    # No multiple of the batch is the validation split's size, nor test_iter × batch.
    net = network_with(lenet, tmp_path / "n.prototxt", ("batch_size: 100", "batch_size: 64"))
    more = f"{DROPOUT}max_iter: 200\ntest_iter: 3\ntest_interval: 7"
    without = ("max_iter", "test_iter", "test_interval")
    solver = lenet.solver(tmp_path / "s.prototxt", more, without, net)
    command = "train" if steps == "train" else "prune"
    arguments = [command, solver, "--weights", lenet.dense, "--threads", "1", *PRUNE.get(steps, ())]
    if steps == "surgery":
        arguments += ["--teacher", lenet.dense]
    out = tmp_path / "a.caffemodel"
    killed_in_the_middle(arguments, out, 60)
    command = [Path(sys.executable).with_name("deepsz"), *map(str, arguments), "--json"]
    documents = []
    for path in (out, tmp_path / "b.caffemodel"):
        run = subprocess.run([*command, "--out", path], capture_output=True, check=True)
        document = json.loads(run.stdout)
        documents.append(document.get("training", document))
    assert 60 <= documents[0]["resumed"] < 200
    assert documents[1]["resumed"] == 0
    for name in ("chosen", "test_correct", "test_total"):
        assert documents[0][name] == documents[1][name]
    assert documents[0]["test_total"] == 500
    assert out.read_bytes() == (tmp_path / "b.caffemodel").read_bytes()
    assert not list(tmp_path.glob("*.snapshots"))


def test_only_the_same_training_is_resumed(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "s.prototxt", f"{DROPOUT}max_iter: 200", ("max_iter",))
    out = tmp_path / "a.caffemodel"
    state = killed_in_the_middle(
        ["train", solver, "--weights", lenet.dense, "--threads", "1"], out, 20
    )
    kept = shutil.copytree(state.parent, tmp_path / "kept")
    with pytest.warns(DeepSZWarning, match="a training with other lr, iterations, seed; this one"):
        assert train(solver, out, lenet.dense, seed=2, iterations=20, lr=0.2).resumed == 0
    shutil.copytree(kept, state.parent)
    with pytest.warns(DeepSZWarning, match="a training with other iterations, weights; this one"):
        assert train(solver, out, iterations=20).resumed == 0
    shutil.move(kept, state.parent)
    assert train(solver, out, lenet.dense, resume=False, iterations=20).resumed == 0


TOP_5 = """
layer { name: "top5" type: "Accuracy" bottom: "ip3" bottom: "label" top: "top5"
  include { phase: TEST } accuracy_param { top_k: 5 } }
"""


def test_every_test_is_of_the_whole_split_and_of_top_1(lenet, tmp_path):
    net = network_with(lenet, tmp_path / "n.prototxt", ("batch_size: 100", "batch_size: 30"))
    text = net.read_text()
    where = text.rindex("layer {", 0, text.index('type: "Accuracy"'))
    net.write_text(text[:where] + TOP_5 + text[where:])
    solver = lenet.solver(tmp_path / "s.prototxt", "test_iter: 2", ("test_iter",), net)
    seen = []
    trained = train(solver, tmp_path / "a.caffemodel", progress=seen.append, iterations=40)
    assert {now.test_total for now in seen} <= {0, 500}
    score = evaluate(net, tmp_path / "a.caffemodel", stages=["validation"])
    assert (score.top1_correct, score.total) == (trained.test_correct, trained.test_total)
    assert score.top5_correct > score.top1_correct


def test_networks_may_be_named_one_by_one(lenet, tmp_path):
    two = f'train_net: "{lenet.network}"\ntest_net: "{lenet.network}"\n'
    solver = lenet.solver(tmp_path / "two.prototxt", two, ("net:",))
    ours, theirs = tmp_path / "two.caffemodel", tmp_path / "one.caffemodel"
    train(solver, ours, iterations=20)
    train(lenet.solver(tmp_path / "s.prototxt"), theirs, iterations=20)
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_stage_that_the_network_lacks_is_refused(lenet, tmp_path):
    wrong = 'test_state { stage: "valid" }'
    solver = lenet.solver(tmp_path / "s.prototxt", wrong, ("test_state",))
    with pytest.raises(InputError, match="'valid': no layer of the network names this stage"):
        train(solver, tmp_path / "a.caffemodel")


def caffemodel_without_ip2(lenet, path):
    from deepsz_caffe.network import schema_pb2

    net = schema_pb2.NetParameter.FromString(lenet.dense.read_bytes())
    kept = [layer for layer in net.layer if layer.name != b"ip2"]
    assert len(kept) == len(net.layer) - 1
    del net.layer[:]
    net.layer.extend(kept)
    path.write_bytes(net.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seed": -1}, InputError, "seed -1"),
        ({"lr": 0.0}, InputError, "lr 0.0"),
        ({"lr": float("nan")}, InputError, "lr nan"),
        ({"iterations": 0}, InputError, "iterations 0"),
        ({"lr": 1e12}, CaffeError, "loss became .*try a lower lr"),
        ({"masks": {"ip9": np.ones((2, 2), bool)}}, ModelError, "ip9"),
        ({"masks": {"ip3": np.ones((2, 2), bool)}}, ModelError, "ip3"),
        ({"weights": "none.caffemodel"}, ModelError, "none.caffemodel"),
    ],
)
def test_nonsense_is_said_and_nothing_is_left(lenet, tmp_path, options, error, said):
    solver = lenet.solver(tmp_path / "s.prototxt")
    with pytest.raises(error, match=said) as caught:
        train(solver, tmp_path / "a.caffemodel", **{"iterations": 30} | options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [solver]


def test_a_missing_layer_of_the_weights_is_not_made_up(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "s.prototxt")
    weights = caffemodel_without_ip2(lenet, tmp_path / "part.caffemodel")
    with pytest.raises(ModelError, match="ip2"):
        train(solver, tmp_path / "a.caffemodel", weights)


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ('type: "ReLU"', 'type: "NoSuchLayer"', CaffeError, "Unknown layer type: NoSuchLayer"),
        ('bottom: "ip2"', 'bottom: "pi2"', CaffeError, "Unknown bottom blob 'pi2'"),
        ("train_lmdb", "nowhere_lmdb", DataError, "nowhere_lmdb"),
        ("validation_lmdb", "empty_lmdb", DataError, "empty"),
    ],
)
def test_what_is_wrong_with_the_network_is_said(lenet, tmp_path, old, new, error, said):
    with lmdb.open(str(lenet.folder / "empty_lmdb")) as database:
        assert not database.stat()["entries"]
    network = tmp_path / "net.prototxt"
    network.write_text(lenet.network.read_text().replace(old, new))
    solver = lenet.solver(tmp_path / "s.prototxt", net=network)
    with pytest.raises(error, match=said) as caught:
        train(solver, tmp_path / "a.caffemodel")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [network, solver]


def test_what_is_wrong_with_the_solver_is_said(lenet, tmp_path):
    with pytest.raises(ModelError, match=r"none\.prototxt"):
        train(tmp_path / "none.prototxt", tmp_path / "a.caffemodel")
    solver = lenet.solver(tmp_path / "s.prototxt", net=tmp_path / "no_net.prototxt")
    with pytest.raises(ModelError, match=r"no_net\.prototxt"):
        train(solver, tmp_path / "a.caffemodel")
    solver = lenet.solver(tmp_path / "s.prototxt", without=("net:",))
    with pytest.raises(ModelError, match="names no network"):
        train(solver, tmp_path / "a.caffemodel")
    inline = 'net_param { name: "x" }\n'
    solver = lenet.solver(tmp_path / "s.prototxt", inline, ("net:",))
    with pytest.raises(ModelError, match="does not name its network"):
        train(solver, tmp_path / "a.caffemodel")
    with pytest.raises(DeepSZError, match="folder does not exist"):
        train(lenet.solver(tmp_path / "s.prototxt"), tmp_path / "no" / "a.caffemodel")
