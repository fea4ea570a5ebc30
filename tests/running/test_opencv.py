"""The same networks in OpenCV's dnn module: compressed against dense, of memory and of files."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy as toys

from deepsz_caffe import expand, load_net, write_dsz
from deepsz_caffe.errors import DeepSZWarning, FormatError, ModelError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.outline import read_outline
from deepsz_caffe.running.opencv import dense_net, opencv_net
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
    dense = opencv_net(toy.deploy, tmp_path / "x.dsz", compressed=False)
    np.testing.assert_allclose(outputs(dense, images), truth, rtol=1e-4, atol=1e-5)


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


def test_dense_layers_come_from_memory(tmp_path, monkeypatch):
    """Convolutions and fc layers out of a `.dsz` file, and no file is made on the way."""
    deploy = ROOT / "prototxt" / "lenet_5" / "deploy.prototxt"
    dense = ROOT / "models" / "lenet_5" / "dense.caffemodel"
    bounds = dict.fromkeys(("conv1", "conv2", "ip1", "ip2"), 0.02)
    write_dsz(tmp_path / "x.dsz", encode(None, dense, bounds))
    expand(tmp_path / "x.dsz", tmp_path / "dense.caffemodel")
    images = np.random.default_rng(3).random((4, 1, 28, 28), np.float32)
    truth = cv2.dnn.readNetFromCaffe(str(deploy), str(tmp_path / "dense.caffemodel"))
    before = cv2.dnn.readNetFromCaffe(str(deploy), str(dense))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass
    ours = opencv_net(deploy, tmp_path / "x.dsz", compressed=False)
    model = read_caffemodel(tmp_path / "dense.caffemodel")
    also = dense_net(read_outline(deploy), model, deploy)
    packed = opencv_net(deploy, ROOT / "models" / "lenet_5" / "paper.dsz")
    assert outputs(packed, images).shape == (4, 10)
    assert np.array_equal(outputs(ours, images), outputs(truth, images))
    assert np.array_equal(outputs(also, images), outputs(truth, images))
    assert not np.array_equal(outputs(ours, images), outputs(before, images))


def test_where_caffe_does_not_know_a_layer_all_are_dense(tmp_path):
    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text(
        'input: "data" input_shape { dim: 1 dim: 4 dim: 2 dim: 2 }\n'
        'layer { name: "n" type: "Normalize" bottom: "data" top: "n"\n'
        "  norm_param { across_spatial: false channel_shared: false } }\n"
        'layer { name: "fc" type: "InnerProduct" bottom: "n" top: "fc"\n'
        "  inner_product_param { num_output: 3 } }\n"
    )
    random = np.random.default_rng(5)
    weights = random.standard_normal((3, 16)).astype(np.float32)
    model = schema_pb2.NetParameter()
    for name, arrays in (("n", [np.full(4, 2)]), ("fc", [weights, np.zeros(3)])):
        layer = model.layer.add(name=name.encode(), type=b"InnerProduct" if name == "fc" else b"N")
        for array in arrays:
            layer.blobs.add(data=array.astype("<f4").tobytes()).shape.dim.extend(array.shape)
    (tmp_path / "x.caffemodel").write_bytes(model.SerializeToString())
    write_dsz(tmp_path / "x.dsz", encode(None, tmp_path / "x.caffemodel", {"fc": 0.01}))
    with pytest.warns(DeepSZWarning, match="run dense: .*norm_param"):
        net = opencv_net(deploy, tmp_path / "x.dsz")
    images = random.random((1, 4, 2, 2), np.float32)
    normal = 2 * images / np.sqrt((images**2).sum(axis=1, keepdims=True))
    expected = normal.reshape(1, 16) @ weights.T
    np.testing.assert_allclose(outputs(net, images), expected, atol=0.01 * normal.sum() + 1e-4)
