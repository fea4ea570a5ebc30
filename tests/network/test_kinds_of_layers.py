"""Layers of every kind that has weights are compressed, and come back where Caffe expects them."""

import cv2
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from deepsz_caffe import encode, expand, write_dsz
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import (
    check_selection,
    check_weights,
    compressible_layers,
    is_compressible,
    stored_layers,
)
from deepsz_caffe.network.shapes import bottom_shapes
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.worker import import_caffe

FILLER = 'weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "gaussian" std: 0.1 }'
#: groups, depthwise, 1 × 1, dilation, sides that differ, without a bias; two that share theirs
IMAGES = f"""
layer {{ name: "data" type: "Input" top: "data" input_param {{
  shape {{ dim: 2 dim: 3 dim: 13 dim: 13 }} }} }}
layer {{ name: "first" type: "Convolution" bottom: "data" top: "first"
  convolution_param {{ num_output: 8 kernel_size: 3 stride: 2 pad: 1 {FILLER} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "first" top: "first" }}
layer {{ name: "groups" type: "Convolution" bottom: "first" top: "groups"
  convolution_param {{ num_output: 12 kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 group: 4
    {FILLER} }} }}
layer {{ name: "depthwise" type: "Convolution" bottom: "groups" top: "depthwise"
  convolution_param {{ num_output: 12 kernel_size: 3 pad: 1 group: 12 bias_term: false
    {FILLER} }} }}
layer {{ name: "point" type: "Convolution" bottom: "depthwise" top: "point"
  convolution_param {{ num_output: 6 kernel_size: 1 {FILLER} }} }}
layer {{ name: "dilated" type: "Convolution" bottom: "point" top: "dilated"
  param {{ name: "w" }} param {{ name: "b" }}
  convolution_param {{ num_output: 6 kernel_size: 3 dilation: 2 pad: 2 {FILLER} }} }}
layer {{ name: "again" type: "Convolution" bottom: "dilated" top: "again"
  param {{ name: "w" }} param {{ name: "b" }}
  convolution_param {{ num_output: 6 kernel_size: 3 dilation: 2 pad: 2 {FILLER} }} }}
layer {{ name: "up" type: "Deconvolution" bottom: "again" top: "up"
  convolution_param {{ num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 2 {FILLER} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "up" top: "ip"
  inner_product_param {{ num_output: 5 {FILLER} }} }}
"""
CONVOLUTIONS = ("first", "groups", "depthwise", "point", "dilated", "again", "up")
#: rows and columns of blob 0: of a deconvolution its inputs × outputs of a group · kernel
SHAPES = {
    "first": (8, 27),
    "groups": (12, 6),
    "depthwise": (12, 9),
    "point": (6, 12),
    "dilated": (6, 54),
    "again": (6, 54),
    "up": (6, 32),
    "ip": (5, 784),
}
WORDS = f"""
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
layer {{ name: "words" type: "Embed" bottom: "data" top: "words"
  embed_param {{ input_dim: 20 num_output: 7 {FILLER} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "words" top: "ip"
  inner_product_param {{ num_output: 5 {FILLER} }} }}
"""


@pytest.fixture(scope="module")
def caffe():
    """Give a process with Caffe: ``caffe(function, *arguments)``."""
    with CaffePool(1) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def make(folder, text):
    """Write a network with random weights, half of them 0; runs in a Caffe process."""
    caffe = import_caffe()
    caffe.set_random_seed(11)
    (folder / "net.prototxt").write_text(text)
    net = caffe.Net(str(folder / "net.prototxt"), caffe.TEST)
    random = np.random.default_rng(1)
    for name in net.params:
        weights = net.params[name][0].data
        weights[random.random(weights.shape) < 0.5] = 0
    net.save(str(folder / "net.caffemodel"))


def outputs(folder, weights, images):
    caffe = import_caffe()
    net = caffe.Net(str(folder / "net.prototxt"), weights, caffe.TEST)
    net.blobs["data"].data[...] = images
    return next(iter(net.forward().values())).copy()


def compressed(caffe, folder, text, bounds):
    """Encode and expand; every weight is within its bound, all else bit for bit the same."""
    caffe(make, folder, text)
    contents = encode(folder / "net.prototxt", folder / "net.caffemodel", bounds)
    write_dsz(folder / "net.dsz", contents)
    expand(folder / "net.dsz", folder / "back.caffemodel")
    before, after = (read_caffemodel(folder / f"{n}.caffemodel") for n in ("net", "back"))
    for one, other in zip(before.layers, after.layers, strict=True):
        assert one.name == other.name
        for number, (a, b) in enumerate(zip(one.blobs, other.blobs, strict=True)):
            assert a.shape == b.shape
            if number or one.name not in bounds:
                assert a.data.tobytes() == b.data.tobytes()
            else:
                error = np.abs(b.data.astype(np.float64) - a.data).max()
                assert 0 < error <= bounds[one.name]
                assert not b.data[a.data == 0].any()


def definition(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def test_convolutions_of_every_kind_come_back_in_pycaffe_and_opencv(caffe, tmp_path):
    bounds = {name: 0.01 + 0.001 * number for number, name in enumerate(SHAPES)}
    bounds["again"] = bounds["dilated"]
    compressed(caffe, tmp_path, IMAGES, bounds)
    with DszFile(tmp_path / "net.dsz") as file:
        assert {layer.name: layer.shape for layer in file.layers} == SHAPES
        summary = file.summary()
    whole = (tmp_path / "back.caffemodel").stat().st_size
    assert summary["caffemodel_bytes"] == whole
    assert summary["file_ratio"] == whole / (tmp_path / "net.dsz").stat().st_size
    images = np.random.default_rng(2).standard_normal((2, 3, 13, 13), np.float32)
    # Of shared weights Caffe takes the last copy; both are the same here.
    exact, back = (
        caffe(outputs, tmp_path, str(tmp_path / f"{name}.caffemodel"), images)
        for name in ("net", "back")
    )
    assert 0 < np.abs(exact - back).max() < 0.2 * np.abs(exact).max()
    net = cv2.dnn.readNetFromCaffe(
        str(tmp_path / "net.prototxt"), str(tmp_path / "back.caffemodel")
    )
    net.setInput(images)
    np.testing.assert_allclose(net.forward(), back, rtol=1e-4, atol=1e-4)


def test_an_embedding_comes_back_in_pycaffe(caffe, tmp_path):
    compressed(caffe, tmp_path, WORDS, {"words": 0.02, "ip": 0.01})
    words = np.random.default_rng(2).integers(0, 20, (2, 3))
    exact, back = (
        caffe(outputs, tmp_path, str(tmp_path / f"{name}.caffemodel"), words)
        for name in ("net", "back")
    )
    assert 0 < np.abs(exact - back).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ("fc", ("ip",)),
        ("conv", CONVOLUTIONS),
        ("all", (*CONVOLUTIONS, "ip")),
        (("ip", "first"), ("first", "ip")),
    ],
)
def test_selections(selection, wanted):
    found = compressible_layers(definition(IMAGES), selection)
    assert tuple(layer.name for layer in found) == wanted


def test_an_embedding_is_in_no_group_but_all():
    net = definition(WORDS)
    assert [layer.name for layer in compressible_layers(net, "all")] == ["words", "ip"]
    assert not compressible_layers(net, "conv")
    assert [layer.name for layer in compressible_layers(net, ["words"])] == ["words"]
    assert is_compressible("Embed", "all")
    assert not is_compressible("BatchNorm", "all")


def test_a_selection_that_is_none_is_refused():
    for selection in ("fc", "conv", "all", ["fc"], ()):
        check_selection(selection)
    with pytest.raises(InputError, match=r"'convolutions'.*fc, conv, all"):
        check_selection("convolutions")
    with pytest.raises(ModelError, match=r"no such layer that can be compressed.*first, groups"):
        compressible_layers(definition(IMAGES), ["relu"])


def test_weights_of_convolutions_are_compared_with_the_definition(caffe, tmp_path):
    caffe(make, tmp_path, IMAGES)
    model = read_caffemodel(tmp_path / "net.caffemodel")
    assert stored_layers(model, "conv") == CONVOLUTIONS
    assert stored_layers(model, "all") == (*CONVOLUTIONS, "ip")
    assert stored_layers(model, ["up"]) == ("up",)
    net = definition(IMAGES)
    layers = compressible_layers(net, "all", shapes=bottom_shapes(net))
    assert {layer.name: layer.with_input for layer in layers} == SHAPES
    check_weights(layers, model)
    for text, wrong in (("num_output: 8", "num_output: 9"), ("bias_term: false", "")):
        changed = compressible_layers(definition(IMAGES.replace(text, wrong)), "all")
        with pytest.raises(ModelError, match=r"layer (first|depthwise)"):
            check_weights(changed, model)
