"""Which images are scored, in which shape, and how encoded ones are read: against Caffe itself."""

import os
import shutil
import zipfile

import h5py
import lmdb
import numpy as np
import pytest
import toy as toys

from deepsz_caffe.api import assess
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.runtime.data import prepare_images
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.net import build_net
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.sources import lmdb_entries
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.assess.result import Assessment


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


@pytest.fixture
def some(toy):
    """Give the first arrays of the test set, and what the network says to them."""
    return {name: array[:130] for name, array in toy.arrays().items()}


def with_source(toy, folder, layer):
    path = folder / "source.prototxt"
    path.write_text(layer + toys.BODY + toys.JUDGES)
    return path


def test_names_that_are_no_utf8_are_names(toy, pool, some, tmp_path):
    def named(name, source):
        copy = tmp_path / os.fsdecode(b"\xe9" + name)
        return shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)

    network, weights = named(b"n", toy.deploy), named(b"w", toy.weights)
    np.savez(tmp_path / "some.npz", **some)
    arrays = named(b"a.npz", tmp_path / "some.npz")
    expected = evaluate(toy.deploy, toy.weights, data=some, executor=pool)
    assert evaluate(network, weights, data=arrays, executor=pool) == expected
    options = {"protocol": "paper", "bounds": [0.05], "layers": ["ip"], "data": arrays}
    out = tmp_path / os.fsdecode(b"\xe9.json")
    assess(network, weights, executor=pool, journal=out.with_suffix(".j"), **options).save(out)
    assert Assessment.load(out).total == 130
    assert lmdb_entries(named(b"l", toy.folder / "test_lmdb")) == 2_030
    with pytest.raises(InputError, match="no UTF-8, as a prototxt"):
        evaluate(toy.network, weights, data=tmp_path / os.fsdecode(b"\xe9l"), executor=pool)


def hdf5_source(toy, folder, name="images.h5"):
    arrays = toy.arrays("validation")
    with h5py.File(folder / name, "w") as file:
        file["data"], file["label"] = arrays["data"], arrays["label"].astype(np.float32)
    (folder / "list.txt").write_text(f"{folder / name}\n")
    layer = f"""layer {{ name: "data" type: "HDF5Data" top: "data" top: "label"
      hdf5_data_param {{ source: "{folder}/list.txt" batch_size: 50 }} }}"""
    return with_source(toy, folder, layer)


def test_given_arrays_are_scored_whatever_the_network_would_read(toy, pool, some, tmp_path):
    expected = evaluate(toy.deploy, toy.weights, data=some, executor=pool)
    assert expected.total == 130
    noise = {"data": np.zeros_like(some["data"]), "label": some["label"]}
    for network in (toy.network, hdf5_source(toy, tmp_path)):
        assert evaluate(network, toy.weights, data=some, executor=pool) == expected
        nothing = evaluate(network, toy.weights, data=noise, executor=pool)
        assert nothing == evaluate(toy.deploy, toy.weights, data=noise, executor=pool)
        assert nothing.top1_correct < 30
    # Also where the source is not there at all.
    (tmp_path / "images.h5").unlink()
    assert evaluate(tmp_path / "source.prototxt", toy.weights, data=some, executor=pool) == expected


def test_an_npz_is_known_by_its_contents(toy, pool, some, tmp_path):
    np.savez(tmp_path / "arrays.npz", **some)
    (tmp_path / "arrays.npz").rename(tmp_path / "arrays")
    score = evaluate(toy.network, toy.weights, data=tmp_path / "arrays", executor=pool)
    assert score.total == 130
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(DataError, match="no array for data"):
        evaluate(toy.network, toy.weights, data=tmp_path / "other.zip", executor=pool)


def test_labels_go_to_their_blob_whatever_it_is_called(toy, pool, some, tmp_path):
    network = tmp_path / "net.prototxt"
    network.write_text(toy.network.read_text().replace('"label"', '"classes"'))
    expected = evaluate(toy.deploy, toy.weights, data=some, executor=pool)
    assert evaluate(network, toy.weights, data=some, executor=pool) == expected
    own = {"data": some["data"], "classes": some["label"]}
    assert evaluate(network, toy.weights, data=own, executor=pool) == expected


def test_shapes_fit_exactly_or_in_one_row_or_not_at_all(toy, pool, some):
    def ask(network, data):
        given = {"data": data, "label": some["label"]}
        return evaluate(network, toy.weights, data=given, executor=pool)

    images = some["data"]
    for network in (toy.deploy, toy.network):
        assert ask(network, images.reshape(130, -1)) == ask(network, images)
        for wrong in (images.transpose(0, 2, 3, 1), images[:, 0], images[..., :10]):
            said = str(list(wrong.shape[1:])).replace("[", r"\[")
            with pytest.raises(DataError, match=rf"{said} an image do not fit \[1, 11, 11\]"):
                ask(network, wrong)
    with pytest.raises(DataError, match="not an array of numbers"):
        ask(toy.deploy, np.full((130, 121), "x"))
    with pytest.raises(DataError, match="differ in length"):
        ask(toy.network, images[:100])


def test_a_stage_that_no_layer_names_is_refused(toy, pool):
    with pytest.raises(InputError, match=r"'validatoin': no layer .*its stages: validation"):
        evaluate(toy.network, toy.weights, stages=["validatoin"], executor=pool)


def write_lmdb(path, images, encoded, labels=None):
    """Write images uint8[n, h, w, channels] as they are, or as PNG."""
    import cv2
    from caffe.proto import caffe_pb2

    with lmdb.open(str(path), map_size=1 << 26) as environment, environment.begin(write=True) as t:
        for number, image in enumerate(images):
            datum = caffe_pb2.Datum(label=number if labels is None else int(labels[number]))
            datum.height, datum.width, datum.channels = image.shape
            datum.encoded = encoded
            datum.data = (
                cv2.imencode(".png", image)[1].tobytes()
                if encoded
                else image.transpose(2, 0, 1).tobytes()
            )
            t.put(f"{number:08d}".encode(), datum.SerializeToString())
    return path


def data_layer(source, transform=""):
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    text = f"""layer {{ name: "d" type: "Data" top: "data" top: "label"
      transform_param {{ {transform} }}
      data_param {{ source: "{source}" backend: LMDB batch_size: 3 }} }}"""
    return text_format.Parse(text, caffe_pb2.NetParameter(state={"phase": 1}))


def caffes_batches(source, transform, count):
    """Read batches by Caffe's own Data layer; runs in a Caffe process."""
    net = build_net(import_caffe(), data_layer(source, transform))
    read = []
    for _ in range(count):
        net.forward()
        read.append((net.blobs["data"].data.copy(), net.blobs["label"].data.copy()))
    return read


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transform", ["", "crop_size: 4 mean_value: 7", "crop_size: 5 MEAN"])
def test_encoded_images_are_read_as_caffe_reads_plain_ones(pool, tmp_path, channels, transform):
    from caffe.proto import caffe_pb2

    random = np.random.default_rng(channels)
    images = random.integers(0, 256, (8, 9, 8, channels), np.uint8)
    mean = caffe_pb2.BlobProto(num=1, channels=channels, height=9, width=8)
    mean.data.extend(random.uniform(0, 255, channels * 72))
    (tmp_path / "mean").write_bytes(mean.SerializeToString())
    transform = "scale: 0.3 " + transform.replace("MEAN", f'mean_file: "{tmp_path}/mean"')
    plain, encoded = (
        write_lmdb(tmp_path / str(kind), images, encoded=kind) for kind in (False, True)
    )
    theirs = pool.submit(caffes_batches, str(plain), transform, 3).result()
    net = data_layer(encoded, transform)
    found = prepare_images(net, None, frozenset({"Data"}))
    assert (found.total, found.batch) == (8, 3)
    assert net.layer[0].type == "Input"
    assert [tuple(shape.dim) for shape in net.layer[0].input_param.shape] == [
        theirs[0][0].shape,
        (3,),
    ]
    ours = list(found.batches())
    assert [rows for rows, _ in ours] == [3, 3, 2]
    for (rows, given), (data, labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(given["data"], data[:rows])
        np.testing.assert_array_equal(given["label"], labels[:rows])
    second = list(found.batches(1, 2))
    np.testing.assert_array_equal(second[0][1]["data"], ours[1][1]["data"])
    # A Caffe with OpenCV reads for itself.
    assert prepare_images(data_layer(encoded), None, frozenset({"ImageData"})).reader is None


def test_encoded_images_give_the_same_counts(toy, pool, some, tmp_path):
    images = np.rint(some["data"] * 256).astype(np.uint8).transpose(0, 2, 3, 1)
    source = write_lmdb(tmp_path / "encoded", images, encoded=True, labels=some["label"])
    score = evaluate(toy.network, toy.weights, data=source, executor=pool)
    assert score == evaluate(toy.deploy, toy.weights, data=some, executor=pool)


def test_an_entry_that_is_no_image_is_said(tmp_path):
    source = write_lmdb(tmp_path / "x", np.zeros((1, 2, 2, 1), np.uint8), encoded=True)
    from caffe.proto import caffe_pb2

    with lmdb.open(str(source)) as environment, environment.begin(write=True) as t:
        datum = caffe_pb2.Datum(encoded=True, data=b"no image")
        t.put(b"00000000", datum.SerializeToString())
    with pytest.raises(DataError, match=r"x: an entry is not an image"):
        prepare_images(data_layer(source), None, frozenset())
