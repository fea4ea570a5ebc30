"""Others read what we write: pycaffe, the `caffe` tool and OpenCV, on the expanded LeNet-5."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepsz_caffe import decode, expand, write_dsz
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode
from deepsz_caffe.steps.prune import magnitude_mask

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "prototxt" / "lenet_5"
BOUNDS = {"ip1": 0.02, "ip2": 0.05}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """LeNet-5 without its small weights: the .dsz file, its expansion, and our decoded weights
    written into the pruned caffemodel."""
    folder = tmp_path_factory.mktemp("lenet_5")
    dense = read_caffemodel(ROOT / "models" / "lenet_5" / "dense.caffemodel")
    pruned = {
        name: dense[name].matrix * magnitude_mask(dense[name].matrix, keep)
        for name, keep in (("ip1", 0.3), ("ip2", 0.5))
    }
    write_caffemodel(folder / "pruned.caffemodel", dense, pruned)
    network = FOLDER / "train_val.prototxt"
    write_dsz(folder / "net.dsz", encode(network, folder / "pruned.caffemodel", BOUNDS))
    expand(folder / "net.dsz", folder / "expanded.caffemodel")
    model = read_caffemodel(folder / "pruned.caffemodel")
    write_caffemodel(folder / "replaced.caffemodel", model, decode(folder / "net.dsz"))
    return folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((16, 1, 28, 28), np.float32)


def scores_of(weights, deploy, images):
    caffe = import_caffe()
    net = caffe.Net(deploy, weights, caffe.TEST)
    net.blobs["data"].reshape(*images.shape)
    net.blobs["data"].data[...] = images
    return next(iter(net.forward().values())).copy()


def scores_with(weights, deploy, replaced, images):
    """Pycaffe with the pruned file, and our arrays put into its blobs by hand."""
    caffe = import_caffe()
    net = caffe.Net(deploy, weights, caffe.TEST)
    for name, matrix in replaced.items():
        net.params[name][0].data[...] = matrix
    net.blobs["data"].reshape(*images.shape)
    net.blobs["data"].data[...] = images
    return next(iter(net.forward().values())).copy()


def test_everything_but_the_fc_weights_is_bit_for_bit_the_same(files):
    before, after = (
        read_caffemodel(files / f"{name}.caffemodel") for name in ("pruned", "expanded")
    )
    assert [layer.name for layer in before.layers] == [layer.name for layer in after.layers]
    for one, other in zip(before.layers, after.layers, strict=True):
        for number, (a, b) in enumerate(zip(one.blobs, other.blobs, strict=True)):
            if one.name in BOUNDS and number == 0:
                error = np.abs(b.data.astype(np.float64) - a.data).max()
                assert 0 < error <= BOUNDS[one.name]
                assert not b.data[a.data == 0].any()
            else:
                assert a.data.tobytes() == b.data.tobytes()
    same = (files / "expanded.caffemodel").read_bytes()
    assert same == (files / "replaced.caffemodel").read_bytes()


def test_pycaffe_gives_the_same_scores(files, images):
    deploy = str(FOLDER / "deploy.prototxt")
    expanded = run_in_caffe(scores_of, str(files / "expanded.caffemodel"), deploy, images)
    by_hand = run_in_caffe(
        scores_with, str(files / "pruned.caffemodel"), deploy, decode(files / "net.dsz"), images
    )
    original = run_in_caffe(scores_of, str(files / "pruned.caffemodel"), deploy, images)
    np.testing.assert_array_equal(expanded, by_hand)
    assert not np.array_equal(expanded, original)
    assert expanded.shape == (16, 10)


def test_opencv_gives_the_scores_of_pycaffe(files, images):
    deploy = str(FOLDER / "deploy.prototxt")
    net = cv2.dnn.readNetFromCaffe(deploy, str(files / "expanded.caffemodel"))
    net.setInput(images)
    opencv = net.forward()
    expanded = run_in_caffe(scores_of, str(files / "expanded.caffemodel"), deploy, images)
    np.testing.assert_allclose(opencv, expanded, rtol=1e-4, atol=1e-5)
    hand = cv2.dnn.readNetFromCaffe(deploy, str(files / "replaced.caffemodel"))
    hand.setInput(images)
    np.testing.assert_array_equal(hand.forward(), opencv)


def test_the_caffe_tool_counts_the_same(files, checkout):
    network = FOLDER / "train_val.prototxt"
    command = [Path(sys.executable).with_name("caffe"), "test", "-model", network]
    command += ["-weights", files / "expanded.caffemodel", "-iterations", "100"]
    run = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GLOG_minloglevel": "0"},
    )
    said = dict(re.findall(r"\] (\w+) = ([\d.]+)", run.stderr))
    score = evaluate(network, files / "net.dsz")
    assert score.total == 10_000
    assert round(float(said["accuracy"]) * 10_000) == score.top1_correct
