"""The same networks in OpenCV's dnn module: compressed against dense."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import toy as toys

from deepsz_caffe import expand, load_net, write_dsz
from deepsz_caffe.errors import FormatError, ModelError
from deepsz_caffe.running.opencv import opencv_net
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.steps.encode import encode

ROOT = Path(__file__).resolve().parents[2]


def outputs(net, images):
    net.setInput(images)
    return net.forward()


def scores(deploy, weights, images):
    net = load_net(deploy, weights, trial=False)
    net.blobs["data"].reshape(*images.shape)
    net.blobs["data"].data[...] = images
    return net.forward()["ip"].copy()


def test_lenet_5_gives_what_its_dense_weights_give(tmp_path):
    deploy = str(ROOT / "prototxt" / "lenet_5" / "deploy.prototxt")
    path = ROOT / "models" / "lenet_5" / "paper.dsz"
    expand(path, tmp_path / "dense.caffemodel")
    dense = cv2.dnn.readNetFromCaffe(deploy, str(tmp_path / "dense.caffemodel"))
    ours = opencv_net(deploy, path)
    for batch in (1, 16):
        images = np.random.default_rng(batch).random((batch, 1, 28, 28), np.float32)
        expected = outputs(dense, images)
        np.testing.assert_allclose(outputs(ours, images), expected, rtol=1e-4, atol=1e-5)
    types = {name: ours.getLayer(ours.getLayerId(name)).type for name in ("conv1", "ip1", "ip2")}
    assert types == {
        "conv1": "Convolution",
        "ip1": "CompressedInnerProduct",
        "ip2": "CompressedInnerProduct",
    }


def test_a_network_of_branches_with_a_layer_that_stays_dense(toy, tmp_path):
    bounds = {name: 0.02 for name in toys.FC_LAYERS if name != "left"}
    write_dsz(tmp_path / "x.dsz", encode(toy.network, toy.weights, bounds, "small"))
    expand(tmp_path / "x.dsz", tmp_path / "dense.caffemodel")
    images = toy.arrays()["data"][:5]
    ours = opencv_net(toy.deploy, tmp_path / "x.dsz")
    again = opencv_net(toy.deploy, tmp_path / "x.dsz", cache=tmp_path / "cache")
    found = outputs(ours, images)
    assert np.array_equal(found, outputs(again, images))
    # OpenCV does not know transposed weights: the truth is Caffe's.
    truth = run_in_caffe(scores, str(toy.deploy), str(tmp_path / "dense.caffemodel"), images)
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named(toy, tmp_path):
    with pytest.raises(FormatError, match=r"not a \.dsz file"):
        opencv_net(toy.deploy, toy.weights)
    write_dsz(tmp_path / "x.dsz", encode(toy.network, toy.weights, {"ip": 0.02}, "small"))
    network = tmp_path / "net.prototxt"
    network.write_text(toy.deploy.read_text().replace("num_output: 10", "num_output: 11"))
    with pytest.raises(ModelError, match="layer ip"):
        opencv_net(network, tmp_path / "x.dsz")
    network.write_text(toy.deploy.read_text().replace('"TanH"', '"NoSuch"'))
    with pytest.raises(ModelError, match="NoSuch"):
        opencv_net(network, tmp_path / "x.dsz")
