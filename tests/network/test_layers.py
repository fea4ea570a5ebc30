"""What can be compressed is said by one table, and compared with the weights."""

import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network.layers import (
    check_weights,
    compressible_layers,
    matrix_shape,
    stored_layers,
)
from deepsz_caffe.network.shapes import bottom_shapes
from deepsz_caffe.network.weights import Blob, CaffeModel, LayerWeights

NET = text_format.Parse(
    """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 7 } param { name: "w" } }
layer { name: "turned" type: "InnerProduct" bottom: "fc" top: "turned"
  inner_product_param { num_output: 3 transpose: true bias_term: false } }
layer { name: "again" type: "InnerProduct" bottom: "conv" top: "again"
  inner_product_param { num_output: 7 } param { name: "w" } }
""",  # noqa: E501
    caffe_pb2.NetParameter(),
)
SHAPES = {
    "conv": [(6, 2, 3, 3), (6,)],
    "fc": [(7, 54), (7,)],
    "turned": [(7, 3)],
    "again": [(7, 54), (7,)],
}


def blob(shape):
    array = np.zeros(shape, np.float32)
    return Blob(shape, array.size, array.ravel)


def model(changed=None, types=None):
    shapes = SHAPES | (changed or {})
    kinds = {"conv": "Convolution"} | (types or {})
    stored = [
        LayerWeights(name, kinds.get(name, "InnerProduct"), tuple(map(blob, blobs)))
        for name, blobs in shapes.items()
    ]
    return CaffeModel("net.caffemodel", stored)


def test_fc_layers_are_listed_with_their_sides():
    shapes = bottom_shapes(NET)
    found = compressible_layers(NET, shapes=shapes)
    assert [(layer.name, layer.rows, layer.columns, layer.bias) for layer in found] == [
        ("fc", 7, None, True), ("turned", None, 3, False), ("again", 7, None, True),
    ]  # fmt: skip
    assert [layer.with_input for layer in found] == [(7, 54), (7, 3), (7, 54)]
    assert [layer.name for layer in compressible_layers(NET, ["again", "fc"])] == ["fc", "again"]
    check_weights(found, model())


def test_convolutions_are_another_group():
    (conv,) = compressible_layers(NET, "conv", shapes=bottom_shapes(NET))
    assert (conv.name, conv.with_input) == ("conv", (6, 18))
    assert matrix_shape("Convolution", (1, 1, 3, 3)) == (1, 9)
    assert len(compressible_layers(NET, "fc")) == 3
    both = compressible_layers(NET, ["conv", "fc"])
    assert [layer.name for layer in both] == ["conv", "fc"]
    check_weights(both, model())
    assert stored_layers(model(), "conv") == ("conv",)
    with pytest.raises(ModelError, match="layer conv: weights of 5 × 18, but num_output is 6"):
        check_weights(both, model({"conv": [(5, 2, 3, 3), (6,)]}))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fc": [(6, 54), (7,)]}, "weights of 6 × 54, but num_output is 7 .* number of rows"),
        ({"turned": [(7, 4)]}, "num_output is 3 .* number of columns"),
        ({"turned": [(6, 3)]}, "weights of 6 × 3, but with the input .* 7 × 3"),
        ({"fc": [(7, 54), (6,)]}, "6 biases"),
        ({"fc": [(7, 54)]}, "1 blobs where 2"),
        ({"turned": [(7, 3), (3,)]}, "2 blobs where 1"),
        ({"turned": []}, "is not in the weights file"),
    ],
)
def test_what_does_not_fit_is_named(changed, why):
    found = compressible_layers(NET, shapes=bottom_shapes(NET))
    with pytest.raises(ModelError, match=f"layer {next(iter(changed))}: .*{why}"):
        check_weights(found, model(changed))
    extra = next(iter(changed.values()))
    if len(extra) == 2 and "turned" in changed:
        check_weights(found, model(changed), extra_blobs=True)


def test_what_caffe_takes_fits():
    found = compressible_layers(NET, shapes=bottom_shapes(NET))
    check_weights(found, model({"fc": [(1, 1, 7, 54), (1, 1, 1, 7)]}))  # of 2013
    check_weights(found, model({"again": []}))  # shares the weights of fc
    check_weights(found, model(types={"fc": "CInnerProduct", "turned": "Convolution"}))


def test_without_a_definition_the_weights_say():
    assert stored_layers(model()) == ("fc", "turned", "again")
    assert stored_layers(model(types={"fc": "Sparse"})) == ("turned", "again")
    assert stored_layers(model(types={"fc": "Sparse"}), ["fc"]) == ("fc",)
    assert stored_layers(model(types={"fc": ""}), ["fc"]) == ("fc",)
    for name in ("none", "data"):
        with pytest.raises(ModelError, match=f"layer {name}.*it has conv, fc, turned, again"):
            stored_layers(model(), [name])
    with pytest.raises(ModelError, match=r"layer data.*it has conv, fc, turned, again"):
        compressible_layers(NET, ["data"])
