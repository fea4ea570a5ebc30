import os

import numpy as np
import pytest

from deepsz_caffe.errors import CaffeError, InputError
from deepsz_caffe.experiments.baselines import deep_compression, retraining, weightless
from deepsz_caffe.experiments.full_size import generated
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.network.caffemodel import read_caffemodel

os.environ.setdefault("GLOG_minloglevel", "2")

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.00390625 }
  data_param { source: "FOLDER/lmdb" backend: LMDB batch_size: 50 } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 300 } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 100 } }
layer { name: "relu2" type: "ReLU" bottom: "ip2" top: "ip2" }
layer { name: "ip3" type: "InnerProduct" bottom: "ip2" top: "ip3"
  inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip3" bottom: "label" top: "loss" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small training set, a pruned LeNet-300-100 of generated weights, and a solver."""
    path = tmp_path_factory.mktemp("retraining")
    generated.write_images(path / "lmdb", 50, (1, 28, 28), 10)
    generated.write_caffemodel(network("lenet-300-100"), path / "pruned.caffemodel")
    (path / "net.prototxt").write_text(NET.replace("FOLDER", str(path)))
    (path / "solver.prototxt").write_text(
        f'net: "{path}/net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 1'
    )
    return path


def matrices(path):
    model = read_caffemodel(path)
    return {layer.name: np.array(layer.blobs[0].data) for layer in model.layers if layer.blobs}


def test_one_step_moves_each_shared_value_by_the_mean_gradient_of_its_weights(folder):
    import caffe

    weights = matrices(folder / "pruned.caffemodel")
    layers = {name: deep_compression.quantize(matrix, 3) for name, matrix in weights.items()}
    after = retraining.retrain_codebooks(
        folder / "solver.prototxt", folder / "pruned.caffemodel", layers, iterations=1
    )
    net = caffe.Net(
        str(folder / "net.prototxt"), caffe.TRAIN, weights=str(folder / "pruned.caffemodel")
    )
    for name, layer in layers.items():
        net.params[name][0].data[...] = layer.decode()
    net.forward()
    net.backward()
    for name, layer in layers.items():
        before = layer.decode()
        gradient = net.params[name][0].diff
        for old, new in zip(layer.codebook[1:], after[name].codebook[1:], strict=True):
            members = before == old
            expected = old - 0.01 * gradient[members].mean() if members.any() else old
            assert new == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_retrained_codebooks_lower_the_loss_and_keep_zeros_and_codes(folder):
    import caffe

    weights = matrices(folder / "pruned.caffemodel")
    layers = {name: deep_compression.quantize(matrix, 3) for name, matrix in weights.items()}
    after = retraining.retrain_codebooks(
        folder / "solver.prototxt", folder / "pruned.caffemodel", layers, iterations=50, lr=3.0
    )
    losses = []
    for version in (layers, after):
        net = caffe.Net(
            str(folder / "net.prototxt"), caffe.TRAIN, weights=str(folder / "pruned.caffemodel")
        )
        for name, layer in version.items():
            net.params[name][0].data[...] = layer.decode()
        losses.append(float(net.forward()["loss"]))
    assert losses[1] < losses[0] - 0.03, losses
    for name, layer in after.items():
        np.testing.assert_array_equal(layer.decode() != 0, weights[name] != 0)
        assert len(layer.to_bytes()) == len(layers[name].to_bytes())


def test_the_filters_layer_and_all_zeros_stay_while_the_others_learn(folder):
    weights = matrices(folder / "pruned.caffemodel")
    fixed = {"ip1": weightless.encode(weights["ip1"], 4, 6).decode()}
    out = folder / "retrained.caffemodel"
    retraining.retrain_others(
        folder / "solver.prototxt", folder / "pruned.caffemodel", fixed, out, iterations=20
    )
    after = matrices(out)
    np.testing.assert_array_equal(after["ip1"], fixed["ip1"])
    for name in ("ip2", "ip3"):
        assert (after[name] != weights[name]).any()
        assert not after[name][weights[name] == 0].any()


def test_wrong_use_and_caffes_own_message(folder, tmp_path):
    with pytest.raises(InputError, match="one iteration"):
        retraining.retrain_codebooks(
            folder / "solver.prototxt", folder / "pruned.caffemodel", {}, iterations=0
        )
    broken = tmp_path / "solver.prototxt"
    broken.write_text('net: "no/such.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 1')
    with pytest.raises(CaffeError, match="no/such"):
        retraining.retrain_codebooks(broken, folder / "pruned.caffemodel", {}, iterations=1)
