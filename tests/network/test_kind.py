"""Files that are called caffemodel and are something else are named for what they are."""

import gzip
import io
import os
import pickle
import re
import tarfile
import zipfile

import h5py
import numpy as np
import pytest

from deepsz_caffe import load_net
from deepsz_caffe.dsz import isolated, layout
from deepsz_caffe.dsz.decode import decode
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, FormatError, ModelError
from deepsz_caffe.network import wire
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.kind import weights_kind


def field(number, payload):
    """Write a field by hand: a number, or bytes."""
    if isinstance(payload, int):
        return wire.tag(number, wire.VARINT) + wire.varint(payload)
    return wire.tag(number, wire.LEN) + wire.varint(len(payload)) + payload


LAYER = field(100, field(1, b"fc") + field(2, b"InnerProduct") + field(7, field(5, bytes(8))))


def archive(kind):
    stream = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as tar:
            entry = tarfile.TarInfo("net.caffemodel")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"abcd"))
    elif kind == "zip":
        with zipfile.ZipFile(stream, "w") as zipped:
            zipped.writestr("archive/data.pkl", b"abcd")
    else:
        np.save(stream, np.zeros(3))
    return stream.getvalue()


OTHERS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "an HTML page": b"\n<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>",
    "an XML": b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "a solverstate": field(1, 100) + field(2, b"x.caffemodel") + field(3, field(5, bytes(3000))),
    "a solverstate: the state": field(1, 100) + field(3, field(5, bytes(64))) + field(4, 2),
    "a single blob": b"".join(field(n, 2) for n in (1, 2, 3, 4)) + field(5, bytes(64)),
    "a single blob, such as a mean": field(5, bytes(64)) + field(7, field(1, b"\x10")),
    "an ONNX model": field(1, 8) + field(2, b"pytorch") + field(7, field(2, b"graph")),
    "a network with its weights as text": b'layer { name: "a" blobs { data: 0.5 data: 1 } }',
    "a network's definition": b'# caf\xe9\nname: "t"\nlayer { name: "a" type: "ReLU" }',
    "a solver's definition": b'net: "a.prototxt"\nbase_lr: 0.1\n',
    "a JSON document": b'{"layers": []}',
    "a text": b"Permission denied\n",
    "a text ": "café".encode("utf-16"),
    "a ZIP archive": archive("zip"),
    "a tar archive": archive("tar"),
    "a gzip archive": gzip.compress(b"abcd"),
    "a numpy array": archive("numpy"),
    "a Python pickle": pickle.dumps([1]),
    "a safetensors file": (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}',
    "nothing but zero bytes": bytes(5000),
    "a PNG image": b"\x89PNG\r\n\x1a\n0000",
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_weights_is_named(what, tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(OTHERS[what])
    for read in (weights_kind, read_caffemodel):
        with pytest.raises(ModelError) as error:
            read(path)
        assert what.strip() in str(error.value)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("what", [*OTHERS, "a caffemodel", "HDF5", "an empty file"])
def test_what_is_no_dsz_is_named_as_well(what, tmp_path):
    path = tmp_path / "net.dsz"
    if what == "HDF5":
        h5py.File(path, "w").close()
    else:
        path.write_bytes(OTHERS.get(what, LAYER if what == "a caffemodel" else b""))
    for read in (DszFile, decode, lambda given: load_net(given, trial=False)):
        with pytest.raises(FormatError, match=r"not a \.dsz file") as error:
            read(path)
        assert what.strip() in str(error.value)
        assert str(path) in str(error.value)
    with pytest.raises(DeepSZError, match=re.escape(str(path))):
        isolated.expand(path, tmp_path / "out")
    if what in OTHERS:  # where a caffemodel would do as well, its name says what it should be
        with pytest.raises(ModelError, match=r"not a \.dsz file: it is"):
            weights_kind(path)


@pytest.mark.parametrize("name", ["net.caffemodel", "net.h5", "net.dsz", "net"])
def test_the_contents_decide_not_the_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(LAYER)
    assert weights_kind(path) == "caffemodel"
    path.write_bytes(layout.MAGIC + bytes(16))
    assert weights_kind(path) == "dsz"
    with pytest.raises(ModelError, match=r"it is a \.dsz file"):
        read_caffemodel(path)
    for block in (0, 512, 4096):  # bytes of the user's own, before the file proper
        with h5py.File(path, "w", userblock_size=block) as file:
            file.create_dataset("data/fc/0", data=np.ones((2, 3), np.float32))
        assert weights_kind(path) == "hdf5"
        np.testing.assert_array_equal(read_caffemodel(path)["fc"].matrix, np.ones((2, 3)))


def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "pipe", "a pipe"),
        ("/dev/zero", "a device"),
        (tmp_path, "a folder"),
        (tmp_path / "none", "No such file"),
        ("a\0b", "null"),
        (tmp_path / ("n" * 300), "too long"),
    ):
        with pytest.raises(ModelError, match=why):
            read_caffemodel(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelError, match="symbolic"):
        read_caffemodel(tmp_path / "loop")
    (tmp_path / "empty").touch()
    with pytest.raises(ModelError, match="empty"):
        read_caffemodel(tmp_path / "empty")
