"""Networks of ten years pass through reader and writer and load in pycaffe."""

from dataclasses import replace

import numpy as np
import pytest
from architectures import make, scores

from deepsz_caffe import decode, expand, write_dsz
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode
from deepsz_caffe.steps.prune import magnitude_mask


def pass_through(deploy, dense, layers, folder):
    """Prune, encode, expand: everything but these weights is the same, those are in bounds."""
    source = read_caffemodel(dense)
    write_caffemodel(folder / "rewritten.caffemodel", source, {})
    assert (folder / "rewritten.caffemodel").read_bytes() == dense.read_bytes()
    pruned = {
        name: source[name].matrix * magnitude_mask(source[name].matrix, 0.1) for name in layers
    }
    write_caffemodel(folder / "pruned.caffemodel", source, pruned)
    bounds = dict.fromkeys(layers, 0.01)
    write_dsz(folder / "net.dsz", encode(deploy, folder / "pruned.caffemodel", bounds))
    expand(folder / "net.dsz", folder / "expanded.caffemodel")
    before, after = (
        read_caffemodel(folder / f"{name}.caffemodel") for name in ("pruned", "expanded")
    )
    assert [layer.name for layer in before.layers] == [layer.name for layer in after.layers]
    for one, other in zip(before.layers, after.layers, strict=True):
        for number, (a, b) in enumerate(zip(one.blobs, other.blobs, strict=True)):
            if one.name in layers and number == 0:
                assert np.abs(b.data.astype(np.float64) - a.data).max() <= bounds[one.name]
            else:
                assert a.data.tobytes() == b.data.tobytes()
    files = [str(folder / f"{name}.caffemodel") for name in ("pruned", "expanded")]
    by_hand = run_in_caffe(scores, str(deploy), files[0], decode(folder / "net.dsz"))
    np.testing.assert_array_equal(run_in_caffe(scores, str(deploy), files[1], {}), by_hand)
    assert by_hand.size == 1000
    assert np.isfinite(by_hand).all()


@pytest.mark.parametrize(
    ("architecture", "layers", "weights"),
    # The published numbers of weights, biases included: 7.0 million, and 25.6 million with those
    # of batch normalization, which Caffe's Scale layers hold.
    [
        ("googlenet", ["conv1", "3a/r3", "3a/5x5", "classifier"], 6_998_552),
        ("resnet_50", ["conv1", "res2a_short", "res3a_1", "fc1000"], 25_557_032),
    ],
)
def test_a_deep_network_passes_through(architecture, layers, weights, tmp_path):
    run_in_caffe(make, architecture, tmp_path, 1)
    dense = tmp_path / "dense.caffemodel"
    learned = [each for each in read_caffemodel(dense).layers if not each.name.endswith("_bn")]
    assert sum(blob.data.size for each in learned for blob in each.blobs) == weights
    pass_through(tmp_path / "deploy.prototxt", dense, layers, tmp_path)


def draw_weights(deploy, path):
    """Write random weights for a definition without fillers; runs in a Caffe process."""
    net = import_caffe().Net(str(deploy), 0)
    random = np.random.default_rng(3)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = random.normal(0, 0.02, blob.data.shape)
    net.save(str(path))


def test_caffenet_passes_through(tmp_path):
    # CaffeNet is AlexNet with pooling before normalization; here with a few outputs of fc layers.
    deploy, dense = tmp_path / "deploy.prototxt", tmp_path / "dense.caffemodel"
    text = replace(network("alexnet"), folder="caffenet").path("deploy.prototxt").read_text()
    deploy.write_text(text.replace("num_output: 4096", "num_output: 64"))
    run_in_caffe(draw_weights, deploy, dense)
    pass_through(deploy, dense, ["fc6", "fc7", "fc8"], tmp_path)
