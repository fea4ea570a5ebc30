"""Weights in HDF5: read as Caffe reads them, written as Caffe's own snapshots are."""

import h5py
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from click.testing import CliRunner

from deepsz_caffe import DeepSZWarning, ModelError, encode, expand, write_dsz
from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

# Two layers share their weights, and one blob is read by two layers, which makes a Split layer.
DEFINITION = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "conv/1" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "a" type: "InnerProduct" bottom: "conv" top: "a" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "c" type: "InnerProduct" bottom: "conv" top: "c" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "d" type: "InnerProduct" bottom: "a" top: "d"
  inner_product_param { num_output: 5 bias_term: false weight_filler { type: "xavier" } } }
"""  # noqa: E501


def make(folder):
    """Let Caffe write the same weights in both forms, in this (Caffe) process."""
    caffe = import_caffe()
    caffe.set_random_seed(3)
    net = caffe.Net(f"{folder}/net.prototxt", caffe.TEST)
    net.save(f"{folder}/net.caffemodel")
    net.save_hdf5(f"{folder}/net.h5")


def load(folder, names):
    caffe = import_caffe()
    net = caffe.Net(f"{folder}/net.prototxt", caffe.TEST)
    found = []
    for name in names:
        net.load_hdf5(f"{folder}/{name}")
        params = net.params.items()
        found.append({layer: [b.data.copy() for b in blobs] for layer, blobs in params})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hdf5")
    definition = DEFINITION.replace("conv/1", "conv1")  # Caffe can't write a slash
    (folder / "net.prototxt").write_text(definition)
    run_in_caffe(make, str(folder))
    return folder


def contents(path):
    """Give everything in an HDF5 file: groups, and datasets with type, layout and values."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = (str(item.dtype), item.shape, item.chunks, item[()].tobytes())
        else:
            found[name] = None
        assert not item.attrs

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_a_caffemodel_becomes_the_file_that_caffe_writes(folder, tmp_path):
    model = read_caffemodel(folder / "net.caffemodel")
    for name in ("a.h5", "b.caffemodel.h5", "c.hdf5", "d.H5"):
        write_caffemodel(tmp_path / name, model, {})
        assert contents(tmp_path / name) == contents(folder / "net.h5")


def test_what_is_expanded_to_h5_is_hdf5(folder):
    # Caffe's own HDF5 holds weights that layers share once.
    bounds = {"net.caffemodel": {"a": 0.01, "c": 0.01, "d": 0.01}, "net.h5": {"a": 0.01, "d": 0.01}}
    models = {}
    for source, options in (("net.caffemodel", ()), ("net.h5", ("--isolated",))):
        packed = folder / f"{source}.dsz"
        write_dsz(packed, encode(folder / "net.prototxt", folder / source, bounds[source]))
        command = ["expand", str(packed), f"{packed}.h5", *options]
        assert CliRunner().invoke(deepsz, command).exit_code == 0
        expand(packed, folder / "o.caffemodel")
        models[f"{source}.dsz.h5"] = read_caffemodel(folder / "o.caffemodel")
    for model, caffe in zip(
        models.values(), run_in_caffe(load, str(folder), list(models)), strict=True
    ):
        for name in ("conv1", "a", "d"):
            for one, other in zip(caffe[name], model[name].blobs, strict=True):
                np.testing.assert_array_equal(one, other.data)


def test_what_is_said_of_it_names_the_users_file(folder, tmp_path):
    net = caffe_pb2.NetParameter()
    net.layer.add(name="odd").blobs.add(data=[1], shape={"dim": [3]})
    raw = (folder / "net.caffemodel").read_bytes() + net.SerializeToString()
    (tmp_path / "odd").write_bytes(raw)
    write_dsz(tmp_path / "odd.dsz", encode(None, tmp_path / "odd", {"a": 0.01}))
    with pytest.warns(DeepSZWarning, match="without weights") as said:
        expand(tmp_path / "odd.dsz", tmp_path / "odd.h5")
    assert str(said[0].message).startswith(f"{tmp_path / 'odd.dsz'}, layer odd, ")


def test_new_weights_go_into_either_form(folder, tmp_path):
    new = np.full((5, 8), 0.5, np.float32)
    for name in ("net.caffemodel", "net.h5"):
        write_caffemodel(tmp_path / "new.h5", read_caffemodel(folder / name), {"d": new})
        found = contents(tmp_path / "new.h5")
        assert found.pop("data/d/0")[3] == new.tobytes()
        wanted = contents(folder / "net.h5")
        del wanted["data/d/0"]
        assert found == wanted


@pytest.mark.parametrize("name", ["file", "class", "7", "n" * 250, "层=2,b", "a/b/c", "\xe9 [x]"])
def test_names_are_data(name, tmp_path):
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file[f"data/{name}/0"] = np.ones((2, 3), np.float32)
        file.create_group("data/relu")
    model = read_caffemodel(tmp_path / "net.h5")
    assert sorted(layer.name for layer in model.layers) == sorted([name, "relu"])
    write_caffemodel(tmp_path / "net.caffemodel", model, {name: np.zeros((2, 3), np.float32)})
    again = read_caffemodel(tmp_path / "net.caffemodel")
    write_caffemodel(tmp_path / "again.h5", again, {})
    assert not read_caffemodel(tmp_path / "again.h5")[name].matrix.any()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("options", [{}, {"chunks": (1, 3)}, {"compression": "gzip"}])
def test_every_type_and_layout_of_floats_is_read(dtype, options, tmp_path):
    values = np.arange(6, dtype=dtype).reshape(2, 3)
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.create_dataset("data/fc/0", data=values, **options)
        file["data/other"] = h5py.SoftLink("/data/fc")  # inside of /data: allowed
    for name in ("fc", "other"):
        np.testing.assert_array_equal(read_caffemodel(tmp_path / "net.h5")[name].matrix, values)


def test_other_hdf5_files_are_named(tmp_path):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file["iter"] = 3
        file["history/0"] = np.ones(3)
    with pytest.raises(ModelError, match="a solverstate"):
        read_caffemodel(path)
    with h5py.File(path, "w") as file:  # Keras
        file["model_weights/dense/kernel"] = np.ones(3)
    with pytest.raises(ModelError, match="no group /data"):
        read_caffemodel(path)


def test_a_flawed_blob_is_an_error_where_it_is_wanted_alone(tmp_path):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file["data/fc/0"] = np.ones((2, 3), np.float32)
        file["data/whole numbers/0"] = np.ones(3, np.int64)
        file["data/nothing/0"] = h5py.Empty("f4")
        file["data/no rows/0"] = np.ones((0, 3), np.float32)
        file["data/text/0"] = "a"
    model = read_caffemodel(path)
    assert model["fc"].matrix.all()
    assert model["no rows"].blobs[0].data.shape == (0, 3)
    for name, why in (("whole numbers", "not floats"), ("nothing", "nothing"), ("text", "floats")):
        with pytest.raises(ModelError, match=f"layer {name}, blob 0: .*{why}"):
            _ = model[name].blobs[0].data
    with pytest.warns(match="written without weights") as notes:
        write_dsz(tmp_path / "o.dsz", encode(None, path, {"fc": 0.1}))
    assert len(notes) == 3
    expand(tmp_path / "o.dsz", tmp_path / "o.caffemodel")
    again = read_caffemodel(tmp_path / "o.caffemodel")
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    # And the other way: an empty blob of a caffemodel.
    with (tmp_path / "o.caffemodel").open("ab") as file:
        file.write(b"\xa2\x06\x05\x0a\x01x\x3a\x00")
    with pytest.warns(match="layer x, byte .*written without weights"):
        write_caffemodel(tmp_path / "o.h5", read_caffemodel(tmp_path / "o.caffemodel"), {})
    assert not read_caffemodel(tmp_path / "o.h5")["x"].blobs


@pytest.mark.parametrize("name", ["/etc/x", "a/./b", "a//b", ".", ""])
def test_a_name_that_hdf5_takes_for_another_place_is_refused(name, tmp_path):
    layer = caffe_pb2.NetParameter()
    blob = layer.layer.add(name=name, type="InnerProduct").blobs.add()
    blob.shape.dim.extend([1, 2])
    blob.data.extend([1, 2])
    (tmp_path / "net").write_bytes(layer.SerializeToString())
    with pytest.raises(ModelError, match="HDF5 can't have a layer of this name"):
        write_caffemodel(tmp_path / "net.h5", read_caffemodel(tmp_path / "net"), {})
    assert not (tmp_path / "net.h5").exists()
