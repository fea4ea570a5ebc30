"""What is put into a network is what the file holds, whatever the file is called; else an error."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import toy as toys

from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.errors import CaffeError, DeepSZWarning, ModelError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.prototxt import read_prototxt
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.load import load_net
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.pool import CaffePool, run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def hdf5(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "weights.hdf5"
    run_in_caffe(save_hdf5, str(toy.deploy), str(toy.weights), str(path))
    return path


@pytest.fixture(scope="module")
def compressed(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "x.dsz"
    bounds = dict.fromkeys(toys.FC_LAYERS, 1e-6)
    write_dsz(path, encode(toy.network, toy.weights, bounds, "paper", with_prototxt=toy.deploy))
    return path


def save_hdf5(network, weights, path):
    caffe = import_caffe()
    caffe.Net(network, weights, caffe.TEST).save_hdf5(path)


def loaded(network, weights):
    """Give what `load_net` has in it; runs in a Caffe process."""
    net = load_net(network, weights)
    return {name: [blob.data.copy() for blob in blobs] for name, blobs in net.params.items()}


def test_contents_decide_what_a_weights_file_is(toy, pool, hdf5, compressed, tmp_path):
    expected = evaluate(toy.network, toy.weights, executor=pool)
    assert expected.top1_correct > 1900
    for source in (hdf5, toy.weights, compressed):
        for name in ("w.hdf5", "w.H5", "w.caffemodel", "w.caffemodel.h5", "w", "w.dsz"):
            path = tmp_path / name
            path.unlink(missing_ok=True)
            os.link(source, path)
            assert evaluate(toy.network, path, executor=pool) == expected, (source, name)


def test_every_weight_is_in_the_network_bit_for_bit(toy, pool, hdf5):
    model = read_caffemodel(toy.weights)
    for source in (hdf5, toy.weights):
        found = pool.submit(loaded, str(toy.deploy), str(source)).result()
        assert set(found) == {"conv", *toys.FC_LAYERS}
        for name, blobs in found.items():
            for ours, stored in zip(blobs, model[name].blobs, strict=True):
                np.testing.assert_array_equal(ours.view(np.uint32), stored.data.view(np.uint32))


def test_a_compressed_network_brings_its_prototxt(toy, compressed, tmp_path):
    alone = run_in_caffe(loaded, str(compressed), None)
    assert set(alone) == {"conv", *toys.FC_LAYERS}
    bare = tmp_path / "bare.dsz"
    write_dsz(bare, encode(toy.network, toy.weights, {"ip": 0.1}, "paper"))
    with pytest.raises(ModelError, match=r"bare\.dsz: no deploy prototxt is stored in it"):
        load_net(bare)


def test_a_compressed_file_on_the_wrong_network_is_named(toy, pool, compressed, tmp_path):
    network = tmp_path / "net.prototxt"
    for old, new in (("num_output: 24", "num_output: 25"), ("kernel_size: 3", "kernel_size: 5")):
        network.write_text(toy.network.read_text().replace(old, new))
        with pytest.raises(ModelError, match=f"^{compressed}, layer"):
            evaluate(network, compressed, executor=pool)


def edited(toy, path, edit):
    """Copy the weights with a change to one layer's message."""
    net = schema_pb2.NetParameter.FromString(toy.weights.read_bytes())
    edit({layer.name.decode(): layer for layer in net.layer})
    path.write_bytes(net.SerializeToString())
    return path


def test_too_few_blobs_are_refused_and_too_many_said(toy, pool, tmp_path):
    few = edited(toy, tmp_path / "few", lambda layers: layers["conv"].blobs.pop())
    with pytest.raises(ModelError, match="few, layer conv: 1 blobs where the network has 2"):
        evaluate(toy.network, few, executor=pool)

    def add_mask(layers):
        layers["conv"].blobs.append(layers["conv"].blobs[0])

    many = edited(toy, tmp_path / "many", add_mask)
    with pytest.warns(DeepSZWarning, match="layer conv: 3 blobs where the network has 2"):
        score = evaluate(toy.network, many, executor=pool)
    assert score == evaluate(toy.network, toy.weights, executor=pool)


SHARED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false weight_filler { type: "gaussian" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false } }
"""


def share(network, weights, other):
    """Save weights of layers that share them, and with other ones in the second layer."""
    caffe = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = caffe.Net(network, caffe.TEST)
    net.save(weights)
    stored = NetParameter.FromString(Path(weights).read_bytes())
    layer = next(layer for layer in stored.layer if layer.name == "b")
    layer.blobs[0].data[:] = [*range(9)]
    Path(other).write_bytes(stored.SerializeToString())
    theirs = caffe.Net(network, other, caffe.TEST)
    return theirs.params["a"][0].data.copy()


def test_of_different_copies_of_shared_weights_the_last_counts_as_in_caffe(pool, tmp_path):
    network, weights, other = (str(tmp_path / name) for name in ("n.prototxt", "w", "other"))
    (tmp_path / "n.prototxt").write_text(SHARED)
    theirs = pool.submit(share, network, weights, other).result()
    assert set(pool.submit(loaded, network, weights).result()) == {"a", "b"}
    with pytest.warns(DeepSZWarning, match="layer a: it shares its weights with a, b"):
        found = pool.submit(loaded, network, other).result()
    np.testing.assert_array_equal(found["a"][0], theirs)
    np.testing.assert_array_equal(found["b"][0], np.arange(9, dtype=np.float32).reshape(3, 3))


def lose_a_weight(network, weights):
    """Load weights into a network whose blob does not keep what is put in."""
    caffe = import_caffe()
    net = read_prototxt(network)
    caffe_net = build_net(caffe, net)

    class Deaf:
        data = property(lambda self: np.zeros((10, 40), np.float32))

    class Net:
        _layer_names, layers = caffe_net._layer_names, caffe_net.layers
        params = dict(caffe_net.params) | {"ip": [Deaf(), caffe_net.params["ip"][1]]}

    load_weights(Net, net, weights)


def test_weights_that_do_not_reach_the_network_are_an_error(toy, pool):
    with pytest.raises(ModelError, match="layer ip: its weights did not reach the network"):
        pool.submit(lose_a_weight, str(toy.deploy), str(toy.weights)).result()


def with_layer(toy, folder, layer):
    path = folder / "net.prototxt"
    text = toy.network.read_text()
    end = text.index('layer { name: "conv"')
    path.write_text(text[:end] + layer + text[end:].replace('bottom: "data"', 'bottom: "more"', 1))
    return path


def test_layers_that_this_caffe_can_not_build_are_named(toy, pool, tmp_path):
    network = with_layer(
        toy, tmp_path, 'layer { name: "own" type: "Swirl" bottom: "data" top: "more" }'
    )
    with pytest.raises(CaffeError, match="layer own: Unknown layer type: Swirl"):
        evaluate(network, toy.weights, executor=pool)
    with pytest.raises(CaffeError, match="layer own: Unknown layer type: Swirl"):
        load_net(network, toy.weights)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("no_such_mod", "module 'no_such_mod' can't be imported: ModuleNotFoundError"),
        ("broken_mod", "module 'broken_mod' can't be imported: ZeroDivisionError"),
        ("json", "module 'json' has no 'Twice'"),
    ],
)
def test_python_layers_without_their_module_are_named(toy, tmp_path, monkeypatch, module, said):
    (tmp_path / "broken_mod.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    layer = f"""layer {{ name: "py" type: "Python" bottom: "data" top: "more"
      python_param {{ module: "{module}" layer: "Twice" }} }}"""
    with pytest.raises(ModelError, match=f"^layer py: its Python {said}"):
        evaluate(with_layer(toy, tmp_path, layer), toy.weights)


def test_python_layers_run(toy, tmp_path, monkeypatch):
    (tmp_path / "good_mod.py").write_text(
        """import caffe
class Same(caffe.Layer):
    def setup(self, bottom, top): pass
    def reshape(self, bottom, top): top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top): top[0].data[...] = bottom[0].data
    def backward(self, *_): pass
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    layer = """layer { name: "py" type: "Python" bottom: "data" top: "more"
      python_param { module: "good_mod" layer: "Same" } }"""
    score = evaluate(with_layer(toy, tmp_path, layer), toy.weights)
    assert score == evaluate(toy.network, toy.weights)


def test_weights_that_are_not_there(toy, pool, tmp_path):
    with pytest.raises(ModelError, match="none: can't read: No such file"):
        evaluate(toy.network, tmp_path / "none", executor=pool)
    shutil.copyfile(toy.network, tmp_path / "text.dsz")
    with pytest.raises(Exception, match=r"text\.dsz"):
        evaluate(toy.network, tmp_path / "text.dsz", executor=pool)
