"""Biases that make good mean errors: against the outputs of layers for the inputs themselves."""

import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from plain import NumpyEvaluator, setup

from deepsz_caffe import Preprocessing, compare, compress, expand, open_pictures
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import InputError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.assess.tester import Tester, check_biases
from deepsz_caffe.steps.biases import (
    BiasPlace,
    OutputError,
    bias_place,
    corrected,
    rounded,
    scaling_blobs,
)
from deepsz_caffe.steps.evaluator import Moments

ROWS, COLUMNS, GROUPS = 12, 20, 3


@pytest.fixture
def inputs():
    return np.random.default_rng(3).gamma(1.0, size=(GROUPS, 500, COLUMNS))


def outputs(weights, inputs):
    parts = weights.reshape(GROUPS, -1, COLUMNS).astype(np.float64)
    return np.einsum("grc,gnc->ngr", parts, inputs).reshape(len(inputs[0]), -1)


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_the_mean_of_each_output_is_kept_but_for_the_grid(inputs, scale):
    random = np.random.default_rng(4)
    before = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    after = before + random.uniform(-0.2, 0.25, before.shape).astype(np.float32)
    old = random.standard_normal(ROWS).astype(np.float32)
    matrices = np.matmul(inputs.transpose(0, 2, 1), inputs) / inputs.shape[1]
    moments = Moments(matrices.astype("f4"), inputs.mean(axis=1).astype("f4"), inputs.shape[1])
    error = OutputError.of(before, after, moments)
    found = corrected(BiasPlace("x", 1, scale), old, before, after, moments, error)
    new = np.frombuffer(found.values, "<f4")
    assert np.abs(new.astype(np.float64) - old).max() <= found.error_bound
    change = outputs(after, inputs) - outputs(before, inputs)
    # A bias is added, a mean subtracted and stored times a factor.
    left = change.mean(axis=0) + (new - old) / scale
    varying = (change - change.mean(axis=0)).var(axis=0).mean()
    assert error.squared == pytest.approx(varying, rel=1e-3)
    assert error.relative**2 == pytest.approx(
        varying / outputs(before, inputs).var(axis=0).mean(), rel=1e-3
    )
    assert np.abs(change.mean(axis=0)).max() > 0.3
    assert (left**2).mean() <= 0.03 * varying
    # On a coarse grid: the last two bytes of each are 0.
    assert not np.frombuffer(found.values, np.uint8).reshape(-1, 4)[:, :2].any()


def test_weights_as_they_were_leave_the_bias_alone(inputs):
    weights = np.ones((ROWS, COLUMNS), np.float32)
    moments = Moments(np.ones((1, COLUMNS, COLUMNS), "f4"), np.ones((1, COLUMNS), "f4"), 1)
    place = BiasPlace("x", 1)
    error = OutputError.of(weights, weights, moments)
    assert error == OutputError(0.0, 0.0)
    assert corrected(place, np.ones(ROWS, "f4") / 3, weights, weights, moments, error) is None
    assert rounded("x", 0, np.ones(ROWS, "f4") / 3, error.relative) is None


@given(
    hnp.arrays("f4", st.integers(1, 50), elements=st.floats(width=32, allow_nan=False)),
    st.floats(1e-9, 3.0),
)
def test_what_scales_outputs_changes_by_a_part_of_itself(values, error):
    found = rounded("bn", 1, values, error)
    if found is None:
        return
    new = np.frombuffer(found.values, "<f4")
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    change = np.abs(new.astype(np.float64) - values)
    # Uniform errors of up to this have a twelfth of its square, four times, as their mean square.
    most = max(np.sqrt(12 * 0.02) * error, 2**-22)
    assert (change[normal] <= most * np.abs(values[normal].astype(np.float64))).all()
    assert change.max() == found.error_bound
    assert (np.sign(new[normal]) == np.sign(values[normal])).all()
    assert not new[values == 0].any()


def test_variances_of_any_size_are_rounded_to_few_bits():
    values = np.random.default_rng(0).lognormal(0, 6, 2000).astype("f4")
    found = rounded("bn", 1, values, 0.05)
    new = np.frombuffer(found.values, "<f4").astype(np.float64)
    relative = new / values - 1
    assert (relative**2).mean() <= 0.02 * 0.05**2
    assert abs(relative.mean()) < 2e-4
    assert not np.frombuffer(found.values, np.uint8).reshape(-1, 4)[:, :2].any()


NET = """
layer { name: "own" type: "Convolution" bottom: "data" top: "own"
  convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "conv" type: "Convolution" bottom: "own" top: "conv"
  convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "fc"
  inner_product_param { num_output: 2 bias_term: false } }
layer { name: "relu" type: "ReLU" bottom: "fc" top: "fc" }
layer { name: "late" type: "BatchNorm" bottom: "fc" top: "late" }
"""


SCALES = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "scaled" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "scaled" top: "scaled" }
layer { name: "after" type: "Scale" bottom: "scaled" top: "after" }
layer { name: "fc" type: "InnerProduct" bottom: "after" top: "fc" }
layer { name: "product" type: "Scale" bottom: "fc" bottom: "after" top: "product" }
layer { name: "one" type: "Convolution" bottom: "data" top: "one" }
layer { name: "shared" type: "Scale" bottom: "one" top: "one" param { name: "gain" } }
"""


def test_what_scales_a_layers_outputs_stands_right_behind_it(tmp_path):
    net = text_format.Parse(SCALES, caffe_pb2.NetParameter())
    sizes = {"conv": 1, "bn": 3, "scale": 2, "after": 1, "fc": 1, "one": 1, "shared": 1}
    model = stored(net, {name: (4,) * count for name, count in sizes.items()}, tmp_path)
    assert scaling_blobs(net, model, "conv") == (("bn", 1), ("scale", 0), ("scale", 1))
    assert scaling_blobs(net, model, "fc") == ()  # another blob scales it
    assert scaling_blobs(net, model, "one") == ()


def stored(net, sizes, folder):
    """Give weights of these sizes for a network: layer -> values of each blob, all of them 5."""
    written = caffe_pb2.NetParameter()
    written.CopyFrom(net)
    for layer in written.layer:
        for size in sizes.get(layer.name, ()):
            layer.blobs.add(data=[5.0] * size).shape.dim.append(size)
    path = folder / "net.caffemodel"
    path.write_bytes(written.SerializeToString())
    return read_caffemodel(path)


def test_the_bias_of_a_layer_may_be_the_means_behind_it(tmp_path):
    net = text_format.Parse(NET, caffe_pb2.NetParameter())
    values = {"own": (4, 2), "conv": (4,), "bn": (2, 2, 1), "fc": (4,), "late": (2, 2, 1)}
    model = stored(net, values, tmp_path)
    assert bias_place(net, model, "own") == BiasPlace("own", 1)
    assert bias_place(net, model, "conv") == BiasPlace("bn", 0, -5.0)
    assert bias_place(net, model, "fc") is None  # something stands between
    net.layer[2].batch_norm_param.use_global_stats = False
    assert bias_place(net, model, "conv") is None  # the means are those of the images


def test_outputs_suffer_less_where_biases_are_corrected():
    read = setup(layers=("ip1", "ip2", "ip3"))
    evaluator = NumpyEvaluator(read)
    bounds = {layer.name: layer.typical for layer in read.layers}
    exact, better = (
        Tester(read, evaluator, profile="small", rounded=True, biases=biases).encode_all(bounds)
        for biases in ("exact", "corrected")
    )
    assert not any(layer.changes for layer in exact.values())
    assert all(len(layer.changes) == 1 for layer in better.values())
    sizes = [sum(layer.bytes for layer in each.values()) for each in (exact, better)]
    assert sizes[1] < 1.02 * sizes[0]
    assert evaluator.diverge(better).mean < 0.95 * evaluator.diverge(exact).mean


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rounded", "divergence", "small"), "no treatment of biases"),
        (("corrected", "default", "small"), "not measured here"),
        (("corrected", "divergence", "fast"), "not measured here"),
    ],
)
def test_what_can_not_be_corrected_is_said(arguments, says):
    with pytest.raises(InputError, match=says):
        check_biases(*arguments)
    check_biases("corrected", "divergence", "balanced")
    check_biases("exact", "paper", "fast")


NORMALIZED = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 20 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 16 kernel_size: 3 bias_term: false
    weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv"
  batch_norm_param { moving_average_fraction: 0.0 } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv"
  scale_param { bias_term: true filler { type: "uniform" min: 0.5 max: 2 }
    bias_filler { type: "gaussian" std: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""


def make_normalized(folder):
    """Write a network whose statistics are those of generated images; runs in a Caffe process."""
    caffe = import_caffe()
    caffe.set_random_seed(2)
    (folder / "net.prototxt").write_text(NORMALIZED)
    net = caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)
    images = np.random.default_rng(7).gamma(2, 30, (20, 3, 8, 8)).clip(0, 255).astype(np.uint8)
    net.blobs["data"].data[...] = images
    net.forward()
    net.save(str(folder / "net.caffemodel"))
    np.savez(folder / "images.npz", data=images)


def test_a_normalized_network_is_measured_with_its_rounded_blobs(tmp_path):
    run_in_caffe(make_normalized, tmp_path)
    net, weights, out = (tmp_path / f"net.{end}" for end in ("prototxt", "caffemodel", "dsz"))
    data = open_pictures(tmp_path / "images.npz", Preprocessing(shape=(3, 8, 8)))
    options = {"max_change": 0.3, "profile": "small", "biases": "corrected"}
    result = compress(net, weights, out, data=data, **options)
    expand(out, tmp_path / "expanded.caffemodel")
    before, after = read_caffemodel(weights), read_caffemodel(tmp_path / "expanded.caffemodel")
    with DszFile(out) as file:
        bounds = {(each.layer, each.blob): each.error_bound for each in file.rest_bounds}
    assert set(bounds) == {("bn", 0), ("bn", 1), ("scale", 0), ("scale", 1), ("fc", 1)}
    for (layer, blob), bound in bounds.items():
        old, new = (model[layer].blobs[blob].data for model in (before, after))
        assert 0 < np.abs(old.astype(np.float64) - new).max() <= bound
    assert (after["bn"].blobs[1].data > 0).all()
    found = compare(net, weights, out, data=data)
    measured = result.changes["fc"].mean ** 0.5
    assert found.outputs[0].relative_change == pytest.approx(measured, rel=1e-4)
    assert measured <= 0.3
