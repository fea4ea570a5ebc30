"""A frozen body: the fc layers come out as if the solver had trained the whole network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe.api import prune
from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.graph import Version
from deepsz_caffe.runtime import frozen
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.frozen import train_frozen
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.solver import train
from deepsz_caffe.runtime.worker import import_caffe

BODY = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 5 stride: 3
    weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
"""


@pytest.fixture(scope="module")
def network(lenet, tmp_path_factory):
    """Put a convolution whose learning rate is 0 below LeNet-300-100, and train a little."""
    folder = tmp_path_factory.mktemp("frozen")
    text = lenet.network.read_text()
    first = text.index('name: "ip1"')
    start = text.rindex("layer", 0, first)
    tail = text[start:].replace('bottom: "data"', 'bottom: "conv"', 1)
    path = folder / "train_val.prototxt"
    path.write_text(text[:start] + BODY + tail)
    made = replace(lenet, network=path, dense=folder / "dense.caffemodel")
    train(made.solver(folder / "s.prototxt"), made.dense, iterations=40)
    return made


def blobs_of(path):
    model = read_caffemodel(path)
    return {x.name: [np.array(b.data) for b in x.blobs] for x in model.layers if x.blobs}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, blobs in first.items():
        for a, b in zip(blobs, second[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_the_fc_layers_are_trained_as_in_the_whole_network(network, tmp_path):
    solver = network.solver(tmp_path / "s.prototxt")
    whole = train(solver, tmp_path / "whole.caffemodel", network.dense)
    seen = []
    ours = train_frozen(
        solver,
        tmp_path / "ours.caffemodel",
        network.dense,
        tmp_path / "features",
        body_progress=lambda done, images: seen.append((done, images)),
    )
    assert_equal(blobs_of(tmp_path / "whole.caffemodel"), blobs_of(tmp_path / "ours.caffemodel"))
    assert (ours.chosen, ours.test_correct) == (whole.chosen, whole.test_correct)
    assert seen[-1] == (500, 500)
    assert (2_000, 2_000) in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features",
        "ours.caffemodel",
        "s.prototxt",
        "whole.caffemodel",
    ]


def test_pruning_holds_its_masks_and_leaves_the_body_alone(network, tmp_path):
    solver = network.solver(tmp_path / "s.prototxt")
    out = tmp_path / "p.caffemodel"
    keep = {"ip1": 0.2, "ip2": 0.1}
    pruned = prune(solver, network.dense, keep, out, freeze_body=tmp_path / "features")
    ours, theirs = blobs_of(out), blobs_of(network.dense)
    assert_equal({"conv": ours["conv"]}, {"conv": theirs["conv"]})
    assert [layer.nonzeros / layer.weights for layer in pruned.layers[:2]] == [0.2, 0.1]
    assert np.count_nonzero(ours["ip2"][0]) == 3_000
    score = evaluate(network.network, out, stages=["validation"])
    assert score.top1_correct == pruned.training.test_correct


@pytest.mark.parametrize("keep", [{"all": 0.2}, {"ip1": 0.5, "conv": 0.5}])
def test_a_layer_of_the_body_is_not_pruned_and_nothing_is_begun(network, tmp_path, keep):
    solver = network.solver(tmp_path / "s.prototxt")
    out, folder = tmp_path / "p.caffemodel", tmp_path / "features"
    with pytest.raises(InputError, match="layer conv: a frozen body stays as it is"):
        prune(solver, network.dense, keep, out, freeze_body=folder)
    assert not folder.exists()
    assert not out.exists()


def test_features_are_used_again_and_made_anew_for_another_body(network, tmp_path):
    solver = network.solver(tmp_path / "s.prototxt")
    folder, out = tmp_path / "features", tmp_path / "a.caffemodel"
    train_frozen(solver, out, network.dense, folder, iterations=3)
    first = out.read_bytes()

    def made(phase):
        found = sorted(folder.glob(f"{phase}-*/000-00000.h5"))
        return {path: path.stat().st_mtime_ns for path in found}

    before = made("train")
    assert len(before) == len(made("test")) == 1
    train_frozen(solver, out, network.dense, folder, iterations=3)
    assert made("train") == before
    assert out.read_bytes() == first
    other = tmp_path / "other.caffemodel"
    train(solver, other, iterations=1, seed=5)
    train_frozen(solver, out, other, folder, iterations=3)
    assert len(made("train")) == 2
    assert before.items() <= made("train").items()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_takes_whole_batches_until_it_is_full():
    version = Version(0, "x")
    batches = [{version: np.arange(*ends)} for ends in ((0, 5), (5, 10), (10, 12))]
    parts = [array for arrays in frozen._files(batches, [version], 7) for array in arrays.values()]
    assert [len(part) for part in parts] == [10, 2]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(12))


def test_fc_layers_that_the_weights_lack_start_anew(network, tmp_path):
    body = tmp_path / "body.caffemodel"
    run_in_caffe(_save_body, str(network.dense), str(body))
    solver = network.solver(tmp_path / "s.prototxt")
    out = tmp_path / "a.caffemodel"
    trained = train_frozen(solver, out, body, tmp_path / "features", iterations=100)
    assert_equal({"conv": blobs_of(out)["conv"]}, {"conv": blobs_of(body)["conv"]})
    assert trained.test_correct > 300


def test_a_network_without_fc_layers_is_refused(network, tmp_path):
    text = network.network.read_text()
    start = text.rindex("layer", 0, text.index('name: "ip1"'))
    data_only = tmp_path / "train_val.prototxt"
    data_only.write_text(text[:start])
    solver = network.solver(tmp_path / "s.prototxt", net=data_only)
    with pytest.raises(ModelError, match="no fc layer"):
        train_frozen(solver, tmp_path / "a.caffemodel", network.dense, tmp_path / "features")


def _save_body(weights, out):
    """Write a caffemodel of the layers below the fc layers; runs in a Caffe process."""
    import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter.FromString(Path(weights).read_bytes())
    kept = [layer for layer in net.layer if layer.type != "InnerProduct"]
    del net.layer[:]
    net.layer.extend(kept)
    Path(out).write_bytes(net.SerializeToString())
