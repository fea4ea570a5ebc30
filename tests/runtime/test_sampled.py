"""What a few images say: inputs of layers and outputs, against loops and networks in numpy."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import toy as toys
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from deepsz_caffe.dsz.layout import ChangedBlob
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.features import Features, Pass, compute_features
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.sampled import (
    measure_divergence,
    measure_moments,
    unfolded,
)
from deepsz_caffe.steps.divergence import Divergence, divergences
from deepsz_caffe.steps.encode import encode_layer

LAYERS = ("conv", *toys.FC_LAYERS)
IMAGES = 130


@pytest.fixture(scope="module")
def caffe():
    with CaffePool(1) as pool:
        yield lambda job, *arguments: pool.submit(job, *arguments).result()


@pytest.fixture(scope="module")
def folder(toy, caffe, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("features"))
    caffe(compute_features, Pass(str(toy.network), str(toy.weights), LAYERS, place, "key"))
    return place


@pytest.fixture(scope="module")
def plain(toy):
    """Give the toy network's blobs for the sampled images, by numpy, with some weights changed."""
    model = read_caffemodel(toy.weights)
    data = toy.arrays()["data"]
    # The place of each image in the stored order.
    stored = data[np.argsort(np.random.default_rng(0).permutation(len(data)))]

    def blobs(count=IMAGES, **changed):
        images = stored[:count]

        def matrix(name):
            return changed.get(name, model[name].matrix).astype(np.float64)

        def bias(name):
            return model[name].blobs[1].data.reshape(-1).astype(np.float64)

        places = [
            images[:, 0, i : i + 3, j : j + 3] for i in range(0, 9, 2) for j in range(0, 9, 2)
        ]
        seen = np.stack(places, axis=1).reshape(count, 25, 9).astype(np.float64)
        conv = np.maximum(seen @ matrix("conv").T + bias("conv"), 0).transpose(0, 2, 1)
        flat = conv.reshape(count, -1)
        left = np.maximum(flat @ matrix("left").T + bias("left"), 0)
        right = np.tanh(flat @ matrix("right"))
        both = np.concatenate((left, right), axis=1)
        scores = both @ matrix("ip").T + bias("ip")
        return SimpleNamespace(
            conv=seen.reshape(-1, 9), left=flat, right=flat, ip=both, scores=scores
        )

    return blobs


def coarse(toy, *names):
    model = read_caffemodel(toy.weights)
    return {n: np.rint(model[n].matrix / 0.2).astype(np.float32) * np.float32(0.2) for n in names}


@pytest.mark.parametrize(("each", "images"), [(5_000, 256), (8 << 20, 128), (100 << 20, 32)])
def test_of_deep_networks_fewer_images_are_taken(each, images):
    features = Features("f", "key", 200, 200, each, 1, ("a", "b"), 0, 0)
    assert features.sampled == images
    assert features.deep == (each > 6_000_000)


@pytest.mark.parametrize(("crops", "rows"), [(1, 12), (10, 10)])
def test_parts_are_of_about_a_size_and_keep_crops_together(crops, rows):
    features = Features("f", "key", 200, 200, 1_000, crops, ("a", "b"), 0, 0)
    parts = features.parts(12_900)
    assert [part.start for part in parts] == list(range(0, 200, rows))
    assert [part.stop for part in parts] == [*range(rows, 200, rows), 200]
    assert features.parts(1)[0] == slice(0, crops)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("changed", [(), ("conv",), ("conv", "left")])
def test_moments_are_those_of_the_inputs_with_the_layers_before_changed(
    toy, caffe, folder, plain, layer, changed
):
    others = {name: matrix for name, matrix in coarse(toy, *changed).items() if name != layer}
    found = caffe(measure_moments, folder, layer, others, IMAGES)
    # Fc layers behind layers as they are see all that is kept: here all images.
    count = IMAGES if others or layer == "conv" else len(toy.arrays()["data"])
    inputs = getattr(plain(count, **others), layer)
    assert found.count == len(inputs)
    assert found.matrices.dtype == np.float32
    expected = inputs.T @ inputs / len(inputs)
    np.testing.assert_allclose(found.matrices[0], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.means[0], inputs.mean(axis=0), rtol=1e-3, atol=1e-5)
    centered = np.cov(inputs.T, bias=True)
    np.testing.assert_allclose(found.centered[0], centered, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("changed", [("ip",), ("conv",), ("conv", "right"), LAYERS])
def test_a_divergence_is_that_of_the_scores(toy, caffe, folder, plain, changed):
    others = coarse(toy, *changed)
    found = caffe(measure_divergence, folder, others, IMAGES)
    wanted = Divergence.of(divergences(plain().scores, plain(**others).scores, "scores"))
    assert found.images == IMAGES
    assert found.mean == pytest.approx(wanted.mean, rel=1e-2)
    assert found.error == pytest.approx(wanted.error, rel=1e-2)
    assert found.mean > 0
    # What was put in before is not there any more.
    assert caffe(measure_divergence, folder, coarse(toy, "ip"), IMAGES) == caffe(
        measure_divergence, folder, coarse(toy, "ip"), IMAGES
    )


def test_a_changed_bias_is_in_the_network_while_its_weights_are(toy, caffe, folder):
    model = read_caffemodel(toy.weights)
    plain = encode_layer("ip", model["ip"].matrix, 1e-6)
    higher = model["ip"].blobs[1].data.astype("<f4").reshape(-1) + np.float32(1) * (
        np.arange(model["ip"].blobs[1].size) == 0
    )
    changed = replace(plain, changes=(ChangedBlob("ip", 1, 1.0, higher.astype("<f4").tobytes()),))
    before, with_change, after = (
        caffe(measure_divergence, folder, {"ip": layer}, IMAGES).mean
        for layer in (plain, changed, plain)
    )
    assert before == after < 1e-6 < 1e-3 < with_change


@pytest.mark.parametrize(
    ("text", "kernel", "stride", "pad", "dilation"),
    [
        ("num_output: 4 kernel_size: 3", (3, 3), (1, 1), (0, 0), 1),
        ("num_output: 4 kernel_size: 3 stride: 2 pad: 1 group: 2", (3, 3), (2, 2), (1, 1), 1),
        ("num_output: 6 kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 stride_h: 2 stride_w: 1 group: 6",
         (1, 3), (2, 1), (0, 1), 1),
        ("num_output: 4 kernel_size: 2 dilation: 2 pad: 1 stride: 2", (2, 2), (2, 2), (1, 1), 2),
        ("num_output: 4 kernel_size: 1", (1, 1), (1, 1), (0, 0), 1),
    ],
)  # fmt: skip
def test_what_a_convolution_sees_at_each_place(text, kernel, stride, pad, dilation):
    parameters = text_format.Parse(text, caffe_pb2.ConvolutionParameter())
    image = np.random.default_rng(1).standard_normal((6, 7, 8)).astype(np.float32)
    padded = np.pad(image, ((0, 0), (pad[0],) * 2, (pad[1],) * 2))
    groups = parameters.group or 1
    expected = []
    top = padded.shape[1] - dilation * (kernel[0] - 1)
    side = padded.shape[2] - dilation * (kernel[1] - 1)
    for group in range(groups):
        channels = range(group * 6 // groups, (group + 1) * 6 // groups)
        expected.append(
            [
                [
                    padded[c, y + dilation * i, x + dilation * j]
                    for c, i, j in itertools.product(channels, range(kernel[0]), range(kernel[1]))
                ]
                for y, x in itertools.product(range(0, top, stride[0]), range(0, side, stride[1]))
            ]
        )
    found = unfolded(image, parameters, np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_of_a_large_image_some_places_are_taken():
    parameters = caffe_pb2.ConvolutionParameter(kernel_size=[1])
    image = np.arange(900, dtype=np.float32).reshape(1, 30, 30)
    found = unfolded(image, parameters, np.random.default_rng(0))
    assert found.shape == (1, 400, 1)
    assert np.unique(found).size == 400
