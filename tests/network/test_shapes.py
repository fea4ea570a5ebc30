"""Shapes that the definition says are those that Caffe computes."""

import pytest

from deepsz_caffe import ModelError, encode
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.network.shapes import bottom_shapes
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

# One layer of each kind, with parameters that are not the usual ones.
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 17 dim: 13 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 6 group: 2 kernel_h: 5 kernel_w: 3 stride: 2 pad_h: 1 pad_w: 2 } }
layer { name: "dilated" type: "Convolution" bottom: "conv" top: "dilated" convolution_param {
  num_output: 8 kernel_size: 3 dilation: 2 pad: 2 } }
layer { name: "relu" type: "ReLU" bottom: "dilated" top: "dilated" }
layer { name: "pool" type: "Pooling" bottom: "dilated" top: "pool" pooling_param {
  kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "wide" type: "Deconvolution" bottom: "pool" top: "wide" convolution_param {
  num_output: 4 kernel_size: 4 stride: 3 pad: 1 } }
layer { name: "lrn" type: "LRN" bottom: "wide" top: "lrn" }
layer { name: "slice" type: "Slice" bottom: "lrn" top: "one" top: "two" slice_param { axis: 2 slice_point: 3 } }
layer { name: "concat" type: "Concat" bottom: "one" bottom: "two" bottom: "one" top: "concat" concat_param { axis: -2 } }
layer { name: "flat" type: "Flatten" bottom: "concat" top: "flat" flatten_param { axis: 2 } }
layer { name: "shaped" type: "Reshape" bottom: "flat" top: "shaped" reshape_param { shape { dim: 0 dim: -1 dim: 2 } } }
layer { name: "fc1" type: "InnerProduct" bottom: "shaped" top: "fc1" inner_product_param { num_output: 7 axis: 2 } }
layer { name: "eltwise" type: "Eltwise" bottom: "fc1" bottom: "fc1" top: "eltwise" }
layer { name: "fc2" type: "InnerProduct" bottom: "eltwise" top: "fc2" inner_product_param { num_output: 5 transpose: true } }
layer { name: "global" type: "Pooling" bottom: "conv" top: "global" pooling_param { global_pooling: true pool: AVE } }
layer { name: "fc3" type: "InnerProduct" bottom: "global" top: "fc3" inner_product_param { num_output: 3 axis: -3 } }
"""  # noqa: E501


def shapes_in_caffe(path):
    """Build the network in this (Caffe) process: each layer's first bottom's shape."""
    caffe = import_caffe()
    net = caffe.Net(path, caffe.TEST)
    net.save(f"{path}.caffemodel")
    return {
        name: tuple(net.blobs[bottoms[0]].data.shape)
        for name, bottoms in net.bottom_names.items()
        if bottoms and "split" not in name
    }


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "net.prototxt"
    path.write_text(NET)
    return path, run_in_caffe(shapes_in_caffe, str(path))


def test_shapes_are_those_that_caffe_computes(network):
    path, caffe = network
    net = phase(read_prototxt(path), "TEST")
    assert bottom_shapes(net) == caffe


def test_what_is_not_known_stays_unknown(network):
    net = phase(read_prototxt(network[0]), "TEST")
    whole = bottom_shapes(net)
    net.layer[1].type = "Unknown"
    part = bottom_shapes(net)
    assert part["conv"] == whole["conv"]
    assert part["dilated"] is None
    assert part["relu"] == (None, 8, None, None)
    assert bottom_shapes(net, ["data"])["conv"] is None
    assert all(
        a is None or all(x in (None, y) for x, y in zip(a, whole[name], strict=True))
        for name, a in part.items()
    )


def test_of_layers_of_one_name_the_one_with_weights_counts(network):
    net = phase(read_prototxt(network[0]), "TEST")
    whole = bottom_shapes(net)
    for layer in net.layer:
        layer.name = {"relu": "fc2", "eltwise": "fc1"}.get(layer.name, layer.name)
    shared = bottom_shapes(net)
    assert (shared["fc1"], shared["fc2"]) == (whole["fc1"], whole["fc2"])


def test_weights_for_another_input_are_refused(network, tmp_path):
    path, _ = network
    bounds = {"fc1": 0.1, "fc2": 0.1, "fc3": 0.1}
    weights = f"{path}.caffemodel"
    encode(path, weights, bounds)
    other = tmp_path / "other.prototxt"
    for old, new, layer in (
        ("dim: 17 dim: 13", "dim: 17 dim: 21", "fc2"),
        ("dim: 2 dim: 4 dim", "dim: 2 dim: 6 dim", "conv"),
        ("dim: -1 dim: 2", "dim: -1 dim: 1", "fc1"),
    ):
        other.write_text(NET.replace(old, new))
        with pytest.raises(ModelError, match=f"layer {layer}: weights of .* with the input"):
            encode(other, weights, bounds)
    # Behind a layer that this Caffe does not know everything fits.
    other.write_text(NET.replace('"LRN"', '"Normalize"').replace("dim: 13", "dim: 21"))
    with pytest.warns(match="Normalize"):
        encode(other, weights, {"fc1": 0.1})
