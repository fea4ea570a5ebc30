"""MNIST's LMDBs: the images in them are the raw files', and a wrong file gets nowhere."""

import gzip
import hashlib
import shutil

import lmdb
import numpy as np
import pytest
from caffe.proto import caffe_pb2

from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments.datasets.mnist import MD5, SPLITS, prepare


def idx(array):
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def records(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        for _, value in transaction.cursor():
            yield caffe_pb2.Datum.FromString(bytes(value))


def test_lmdbs_hold_every_image_once_in_order(mnist):
    """Put together again, the LMDBs are the raw files, by MNIST's own MD5."""
    images = {name: [] for name in SPLITS}
    labels = {name: [] for name in SPLITS}
    for name in SPLITS:
        for datum in records(mnist / name):
            assert (datum.channels, datum.height, datum.width) == (1, 28, 28)
            images[name].append(datum.data)
            labels[name].append(datum.label)

    def md5(header, content):
        return hashlib.md5(header + content, usedforsecurity=False).hexdigest()

    for prefix, names in (("train", ("train_lmdb", "validation_lmdb")), ("t10k", ("test_lmdb",))):
        count = sum(SPLITS[name] for name in names)
        pixels = b"".join(b"".join(images[name]) for name in names)
        classes = bytes(label for name in names for label in labels[name])
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        assert md5(header, pixels) == MD5[f"{prefix}-images-idx3-ubyte"]
        header = bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes()
        assert md5(header, classes) == MD5[f"{prefix}-labels-idx1-ubyte"]


def test_second_run_touches_nothing(mnist):
    before = {path: path.stat().st_mtime_ns for path in mnist.glob("*/data.mdb")}
    lines = []
    counts = prepare(mnist, source=mnist, report=lines.append)
    assert {path: path.stat().st_mtime_ns for path in mnist.glob("*/data.mdb")} == before
    assert lines == [f"{mnist}: already complete"]
    assert list(counts.values()) == [50_000, 10_000, 10_000]


@pytest.fixture(scope="module")
def raw_files(mnist, tmp_path_factory):
    """The raw files, taken out of the LMDBs again; the training images packed by gzip."""
    folder = tmp_path_factory.mktemp("raw")
    for prefix, names in (("train", ("train_lmdb", "validation_lmdb")), ("t10k", ("test_lmdb",))):
        data = [datum for name in names for datum in records(mnist / name)]
        pixels = np.frombuffer(b"".join(d.data for d in data), np.uint8).reshape(-1, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            idx(np.array([d.label for d in data], np.uint8))
        )
    packed = folder / "train-images-idx3-ubyte"
    packed.with_suffix(".gz").write_bytes(gzip.compress(packed.read_bytes(), 1))
    packed.unlink()
    return folder


@pytest.fixture
def raw_folder(raw_files, tmp_path):
    return shutil.copytree(raw_files, tmp_path / "raw")


def test_local_folder_gives_the_same_bytes(mnist, raw_folder, tmp_path):
    prepare(tmp_path / "lmdb", source=raw_folder)
    for name in SPLITS:
        made = (tmp_path / "lmdb" / name / "data.mdb").read_bytes()
        assert made == (mnist / name / "data.mdb").read_bytes()
    assert sorted(path.name for path in (tmp_path / "lmdb").iterdir()) == sorted(SPLITS)


def test_flipped_bit_is_noticed_and_nothing_written(raw_folder, tmp_path):
    labels = raw_folder / "t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[5000] ^= 1
    labels.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: is not MNIST's: MD5"):
        prepare(tmp_path / "lmdb", source=raw_folder)
    assert not (tmp_path / "lmdb").exists()


def test_cut_gzip_is_noticed(raw_folder, tmp_path):
    packed = raw_folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"ubyte\.gz: can't read"):
        prepare(tmp_path / "lmdb", source=raw_folder)


def test_incomplete_folder_names_the_file(tmp_path):
    with pytest.raises(DataError, match="neither train-images-idx3-ubyte nor"):
        prepare(tmp_path / "lmdb", source=tmp_path)


def test_missing_source_is_wrong_use(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        prepare(tmp_path / "lmdb", source=tmp_path / "none")


def test_damaged_lmdb_is_made_again(mnist, raw_folder, tmp_path):
    target = tmp_path / "lmdb" / "test_lmdb"
    target.mkdir(parents=True)
    (target / "data.mdb").write_bytes(b"not an LMDB")
    prepare(tmp_path / "lmdb", source=raw_folder)
    assert (target / "data.mdb").read_bytes() == (mnist / "test_lmdb/data.mdb").read_bytes()
