"""The definitions of the paper's networks, built by Caffe itself."""

import os
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.network.prototxt import phase, read_prototxt, read_solver
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

IMAGENET = {  # folder -> (entry that has its shapes, published number of parameters)
    "alexnet": ("alexnet", 60_965_224),
    "caffenet": ("alexnet", 60_965_224),
    "vgg_16": ("vgg-16", 138_357_544),
}
LENETS = {"lenet_300_100": ("lenet-300-100", 266_610), "lenet_5": ("lenet-5", 431_080)}
DEFINED = IMAGENET | LENETS


def _definition(folder, name):
    return ROOT / "prototxt" / folder / f"{name}.prototxt"


def _shapes(path):
    """Build the network in this (Caffe) process: layer -> blob shapes."""
    caffe = import_caffe()
    net = caffe.Net(str(path), caffe.TEST)
    return {name: [tuple(b.data.shape) for b in blobs] for name, blobs in net.params.items()}


def _shapes_and_loss(folder, net_text, wanted_phase):
    """Build a network that reads `data/`, run it once, and give its blobs' and loss's values."""
    os.chdir(folder)
    _write_images(Path("data/imagenet/train_lmdb"))
    _write_images(Path("data/imagenet/val_lmdb"))
    Path("net.prototxt").write_text(net_text)
    caffe = import_caffe()
    caffe.set_random_seed(1)
    net = caffe.Net("net.prototxt", getattr(caffe, wanted_phase))
    out = net.forward()
    shapes = {name: [tuple(b.data.shape) for b in blobs] for name, blobs in net.params.items()}
    return shapes, {name: value.tolist() for name, value in out.items()}


def _write_images(path):
    import lmdb
    from caffe.proto import caffe_pb2

    path.mkdir(parents=True)
    random = np.random.default_rng(2)
    with lmdb.open(str(path), map_size=1 << 24) as lmdb_, lmdb_.begin(write=True) as transaction:
        datum = caffe_pb2.Datum(channels=3, height=256, width=256, label=7)
        datum.data = random.integers(0, 256, (3, 256, 256), np.uint8).tobytes()
        transaction.put(b"0", datum.SerializeToString())


def _wanted_shapes(entry):
    layers = {**entry.conv, **{layer.name: layer.shape for layer in entry.fc}}
    return {name: [tuple(shape), (shape[0],)] for name, shape in layers.items()}


@pytest.mark.parametrize("folder", DEFINED)
def test_deploy_has_the_published_parameters(folder):
    entry, parameters = DEFINED[folder]
    shapes = run_in_caffe(_shapes, _definition(folder, "deploy"))
    assert shapes == _wanted_shapes(network(entry))
    assert sum(np.prod(shape) for blobs in shapes.values() for shape in blobs) == parameters


@pytest.mark.parametrize("wanted_phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    "folder", [pytest.param(f, marks=pytest.mark.slow if f == "vgg_16" else ()) for f in IMAGENET]
)
def test_train_val_reads_images_and_has_deploys_parameters(folder, wanted_phase, tmp_path):
    net = phase(read_prototxt(_definition(folder, "train_val")), wanted_phase)
    net.layer[0].data_param.batch_size = 1
    shapes, out = run_in_caffe(_shapes_and_loss, str(tmp_path), str(net), wanted_phase)
    assert shapes == _wanted_shapes(network(IMAGENET[folder][0]))
    judges = {"loss"} | ({"accuracy", "accuracy_top5"} if wanted_phase == "TEST" else set())
    assert set(out) == judges
    # A thousand classes and small random weights: about ln 1000 = 6.9.
    assert 4 < out["loss"] < 12


@pytest.mark.parametrize("folder", DEFINED)
def test_deploy_and_train_val_are_the_same_network(folder):
    """Layer for layer between data and judges: fillers, learning rates and judges apart."""

    def plain(name):
        net = phase(read_prototxt(_definition(folder, name)), "TEST")
        for layer in net.layer:
            del layer.param[:]
            for part in (layer.convolution_param, layer.inner_product_param):
                part.ClearField("weight_filler")
                part.ClearField("bias_filler")
        judges = ("Input", "Data", "Softmax", "SoftmaxWithLoss", "Accuracy")
        return [str(layer) for layer in net.layer if layer.type not in judges]

    assert plain("deploy") == plain("train_val")


@pytest.mark.parametrize("folder", IMAGENET)
def test_solver_names_the_network_and_tests_every_image_once(folder):
    solver = read_solver(_definition(folder, "solver"))
    assert solver.net == f"prototxt/{folder}/train_val.prototxt"
    net = phase(read_prototxt(ROOT / solver.net), "TEST")
    assert solver.test_iter[0] * net.layer[0].data_param.batch_size == 50_000
    assert [layer.name for layer in compressible_layers(net)] == ["fc6", "fc7", "fc8"]
    assert not Path(net.layer[0].data_param.source).is_absolute()


def test_solver_used_from_elsewhere_finds_the_network_beside_it(tmp_path, monkeypatch):
    path = _definition("lenet_300_100", "solver")
    monkeypatch.chdir(tmp_path)
    assert Path(read_solver(path).net) == path.with_name("train_val.prototxt")
    here = tmp_path / "prototxt" / "lenet_300_100" / "train_val.prototxt"
    here.parent.mkdir(parents=True)
    here.touch()
    assert read_solver(path).net == "prototxt/lenet_300_100/train_val.prototxt"
