"""Layers and blobs whose names are keywords, paths, numbers, or as long as can be.

Before, a layer called ``file`` ended pruning in ``savez() got multiple values for argument``, and a
blob name of 250 bytes made a file name that no file system takes. A name is data everywhere: from
pruning to the expanded file each of these comes back as it is.
"""

from pathlib import Path

import numpy as np
import pytest

import deepsz_caffe
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.encode import encode, write_dsz

#: fc layer -> the blob that it makes
NAMES = {
    "file": "a/b",
    "self": "a_b",
    "../../etc/passwd": "/abs",
    "x" * 250: "y" * 250,
    "lambda": "..",
    "mask_0": "names",
    "features": "label/1",
    "%s{0}'\\t \u5377": "allow_pickle",
    "7": "0",
}
ROWS = 40


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Give a folder with a network of such names, its data, solver and weights."""
    import h5py

    from deepsz_caffe.runtime.pool import run_in_caffe

    folder = tmp_path_factory.mktemp("names")
    random = np.random.default_rng(1)
    with h5py.File(folder / "data.h5", "w") as file:
        file["data"] = random.normal(size=(ROWS, 3, 4, 4)).astype(np.float32)
        file["label"] = random.integers(0, 5, ROWS).astype(np.float32)
    (folder / "list.txt").write_text(f"{folder}/data.h5\n")
    run_in_caffe(write_network, str(folder))
    return folder


def write_network(folder):
    from deepsz_caffe.runtime.worker import import_caffe

    caffe = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter()
    for phase in (0, 1):
        data = net.layer.add(name="data", type="HDF5Data", top=["data", "label"])
        data.include.add(phase=phase)
        data.hdf5_data_param.source = f"{folder}/list.txt"
        data.hdf5_data_param.batch_size = 10
    conv = net.layer.add(name="None", type="Convolution", bottom=["data"], top=["print"])
    conv.convolution_param.num_output = 3
    conv.convolution_param.kernel_size.append(2)
    conv.convolution_param.weight_filler.type = "xavier"
    below = "print"
    for name, blob in NAMES.items():
        layer = net.layer.add(name=name, type="InnerProduct", bottom=[below], top=[blob])
        layer.inner_product_param.num_output = 5 if name == "7" else 9
        layer.inner_product_param.weight_filler.type = "xavier"
        below = blob
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=[below, "label"], top=["loss"])
    accuracy = net.layer.add(
        name="accuracy", type="Accuracy", bottom=[below, "label"], top=["accuracy"]
    )
    accuracy.include.add(phase=1)
    Path(folder, "net.prototxt").write_text(str(net))
    Path(folder, "solver.prototxt").write_text(
        f'net: "{folder}/net.prototxt" base_lr: 0.001 lr_policy: "fixed" max_iter: 8\n'
        f"test_iter: {ROWS // 10} test_interval: 4 snapshot: 4 random_seed: 1"
    )
    caffe.set_random_seed(1)
    caffe.Net(f"{folder}/net.prototxt", caffe.TEST).save(f"{folder}/dense.caffemodel")


@pytest.mark.filterwarnings("ignore:.*gets . of 40 images right")
@pytest.mark.parametrize("frozen", [False, True])
def test_names_from_pruning_to_the_expanded_file(network, tmp_path, frozen):
    definition, pruned = network / "net.prototxt", tmp_path / "pruned.caffemodel"
    deepsz_caffe.prune(
        network / "solver.prototxt",
        network / "dense.caffemodel",
        dict.fromkeys(NAMES, 0.5),
        pruned,
        freeze_body=tmp_path / "features" if frozen else None,
    )
    layers = {layer.name: layer for layer in read_caffemodel(pruned).layers if layer.blobs}
    assert set(layers) == {*NAMES, "None"}
    for name in NAMES:
        weights = layers[name].matrix
        assert np.count_nonzero(weights) == round(0.5 * weights.size), name
    if frozen:
        return
    names = list(NAMES)
    assessed = deepsz_caffe.assess(
        definition, pruned, protocol="paper", bounds=[0.01], journal=tmp_path / "journal"
    )
    assert [layer.name for layer in assessed.layers] == names
    plan = deepsz_caffe.optimize(assessed, max_loss=0.9)
    write_dsz(tmp_path / "o.dsz", encode(definition, pruned, plan.bounds))
    decoded = deepsz_caffe.decode(tmp_path / "o.dsz")
    deepsz_caffe.expand(tmp_path / "o.dsz", tmp_path / "back.caffemodel")
    back = {layer.name: layer for layer in read_caffemodel(tmp_path / "back.caffemodel").layers}
    for name in names:
        np.testing.assert_array_equal(back[name].matrix, decoded[name])
    scores = [
        deepsz_caffe.evaluate(definition, tmp_path / weights)
        for weights in ("o.dsz", "back.caffemodel")
    ]
    assert scores[0] == scores[1]
