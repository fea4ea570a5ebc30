"""CIFAR-10's readers against records built by hand, and the LMDBs through Caffe's own messages."""

import io
import tarfile

import lmdb
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments.datasets import cifar10


def records(count, seed):
    """`count` binary records, labels in even shares, and the same as arrays."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    raw = np.concatenate([labels[:, None], images.reshape(count, -1)], axis=1).tobytes()
    return raw, images, labels


def test_a_binary_record_is_a_label_and_three_planes():
    raw, images, labels = records(30, 0)
    read, read_labels = cifar10.parse_binary(raw)
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(read_labels, labels)


@pytest.mark.parametrize("raw", [b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072])
def test_other_bytes_are_refused(raw):
    with pytest.raises(DataError):
        cifar10.parse_binary(raw)


def test_the_last_images_of_each_class_are_held_out():
    _, images, labels = records(100, 1)
    images[:, 0, 0, 0] = np.arange(100)  # an image's number
    parts = cifar10.split((images, labels), (images[:20], labels[:20]), held_a_class=2)
    numbers = {name: set(x[:, 0, 0, 0].tolist()) for name, (x, _) in parts.items()}
    assert numbers["validation_lmdb"] == set(range(80, 100))
    assert numbers["train_lmdb"] == set(range(80))
    assert numbers["test_lmdb"] == set(range(20))
    for images, labels in parts.values():
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 10, labels)  # shuffled together
    assert (np.diff(parts["train_lmdb"][0][:, 0, 0, 0].astype(int)) != 1).any()


def test_uneven_classes_are_refused():
    _, images, labels = records(100, 1)
    with pytest.raises(DataError, match="equal size"):
        cifar10.split((images[:-1], labels[:-1]), (images[:20], labels[:20]), held_a_class=2)


def jpeg(value):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (value, 2 * value, 250 - value)).save(file, "JPEG", quality=100)
    return file.getvalue()


def test_a_jpeg_tree_reads_the_same_from_folder_and_archive(tmp_path):
    root = tmp_path / "tree"
    for part in ("train", "test"):
        for label, kind in enumerate(cifar10.CLASSES):
            (root / part / kind).mkdir(parents=True)
            for number in range(2):
                (root / part / kind / f"{number:04}.jpg").write_bytes(jpeg(10 * label + number))
    with tarfile.open(tmp_path / "tree.tar.xz", "w:xz") as archive:
        archive.add(root, "elsewhere")
    for source in (root, tmp_path / "tree.tar.xz"):
        (images, labels), _ = cifar10.read_cifar10(source)
        np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 2))
        expected = np.array([10 * label + number for label in range(10) for number in range(2)])
        planes = np.stack([expected, 2 * expected, 250 - expected], axis=1)
        assert np.abs(images.mean(axis=(2, 3)) - planes).max() < 2  # JPEG loses a little


def test_what_is_no_cifar10_is_refused(tmp_path):
    with pytest.raises(DataError, match="0 of the 6"):
        cifar10.read_cifar10(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="archive"):
        cifar10.read_cifar10(tmp_path / "broken.tar")
    with pytest.raises(InputError):
        cifar10.prepare(tmp_path / "out", tmp_path / "missing")


def test_the_command_writes_lmdbs_in_bgr_order(tmp_path):
    source = tmp_path / "binary"
    source.mkdir()
    batches = [records(10_000, seed) for seed in range(6)]
    for number, (raw, _, _) in enumerate(batches[:5], start=1):
        (source / f"data_batch_{number}.bin").write_bytes(raw)
    (source / "test_batch.bin").write_bytes(batches[5][0])

    arguments = ["cifar10", str(tmp_path / "data"), "--from", str(source)]
    result = CliRunner().invoke(deepsz, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0

    from caffe.proto import caffe_pb2

    _, images, labels = batches[5]
    known = {image.tobytes(): label for image, label in zip(images[:, ::-1], labels, strict=True)}
    with lmdb.open(str(tmp_path / "data/test_lmdb"), readonly=True, lock=False) as environment:
        assert environment.stat()["entries"] == 10_000
        with environment.begin() as transaction:
            for _, value in transaction.cursor():
                datum = caffe_pb2.Datum.FromString(value)
                assert (datum.channels, datum.height, datum.width) == (3, 32, 32)
                assert known.pop(datum.data) == datum.label
    assert not known
    again = CliRunner().invoke(deepsz, arguments, catch_exceptions=False)
    assert "already complete" in again.output
