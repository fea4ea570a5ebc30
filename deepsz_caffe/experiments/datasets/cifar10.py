"""CIFAR-10 as Caffe LMDBs: fetched or taken from a folder or archive, split and written.

Krizhevsky's original binary files are fetched from their own site. A folder or a tar archive may be
given instead: of the binary files, or of JPEG files ``train/CLASS/NNNN.jpg``, ``test/CLASS/...``
(JPEG is slightly lossy, so accuracies differ a little from those on the originals).

The LMDBs hold images as they are, 3 x 32 x 32 bytes in Caffe's BGR order; scaling up to AlexNet's
input is the network's first layer (`prototxt/alexnet_cifar10/`). The split: the 10,000 test images
are the test set; the last 500 training images of each class are the validation split, on which
every choice is made. Each LMDB is shuffled once with a fixed seed, because Caffe's Data layer
reads in order.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from deepsz_caffe.errors import DataError, InputError, needs_extra
from deepsz_caffe.experiments.datasets.databases import Record, Report, records_of, write_splits

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
#: LMDB -> number of images
SPLITS = {"train_lmdb": 45_000, "validation_lmdb": 5_000, "test_lmdb": 10_000}

#: images uint8 [n, 3, 32, 32] in RGB order, labels uint8 [n]
Labelled = tuple[np.ndarray, np.ndarray]

_PIXELS = 3 * 32 * 32
_BATCH = 10_000 * (1 + _PIXELS)  # bytes of a binary file
_ARCHIVE_BYTES = 256 * 2**20  # the true archive has 170,052,171
_LARGEST_JPEG = 2**20
_TIMEOUT = 60  # seconds without a byte from the site
_BINARY = re.compile(r"(?:.*/)?(data_batch_[1-5]|test_batch)\.bin")
_JPEG = re.compile(rf"(?:.*/)?(train|test)/({'|'.join(CLASSES)})/[^/]+\.jpe?g")


def prepare(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> dict[str, int]:
    """Write CIFAR-10's LMDBs; see `deepsz_caffe.experiments.datasets.Prepare`.

    Parameters
    ----------
    source
        A folder or a tar archive, of the binary files or of the JPEG tree. Without it the binary
        archive is fetched and its MD5 checked. It holds 60,000 images of ten even classes.
    """
    say = report or (lambda line: None)
    if source is not None and not Path(source).exists():
        raise InputError("no such folder or archive", where=source)

    def read(scratch: Path) -> dict[str, Iterator[Record]]:
        archive = Path(source) if source else _fetch(scratch / "archive", say)
        say(f"reading {source or URL}")
        parts = split(*read_cifar10(archive))
        return {
            name: records_of(images[:, ::-1], labels) for name, (images, labels) in parts.items()
        }

    return write_splits(Path(folder), SPLITS, read, say)


def read_cifar10(source: str | os.PathLike[str]) -> tuple[Labelled, Labelled]:
    """Read the training and the test images out of a folder or archive.

    Returns
    -------
    tuple
        (images, labels) of the training set (50,000) and of the test set (10,000), in the order of
        the binary files, or class by class in the order of the JPEG files' names.

    Raises
    ------
    DataError
        It holds neither form completely, or a file of it is damaged.
    """
    path = Path(source)
    batches: dict[str, bytes] = {}
    jpegs: dict[str, bytes] = {}
    for name, content in _archived(path) if path.is_file() else _filed(path):
        if found := _BINARY.fullmatch(name):
            batches[found[1]] = content
        elif found := _JPEG.fullmatch(name):
            jpegs[name] = content
    if len(batches) == 6:
        train = b"".join(batches[f"data_batch_{number}"] for number in range(1, 6))
        return parse_binary(train, path), parse_binary(batches["test_batch"], path)
    if jpegs:
        return _decode_jpegs(jpegs, "train", path), _decode_jpegs(jpegs, "test", path)
    raise DataError(
        f"holds {len(batches)} of the 6 binary files and no train/CLASS/*.jpg", where=path
    )


def parse_binary(raw: bytes, where: object = None) -> Labelled:
    """Read binary records: a label, then 3,072 bytes, three planes of 32 x 32 in RGB order.

    Raises
    ------
    DataError
        The length is no whole number of records, or a label is not 0 to 9.
    """
    if not raw or len(raw) % (1 + _PIXELS):
        raise DataError(f"{len(raw)} bytes are no whole number of CIFAR-10 records", where=where)
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + _PIXELS)
    if records[:, 0].max() > 9:
        raise DataError(f"label {records[:, 0].max()} is not 0 to 9", where=where)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def split(train: Labelled, test: Labelled, held_a_class: int = 500) -> dict[str, Labelled]:
    """Hold out the last images of every class for validation, and shuffle each part.

    Raises
    ------
    DataError
        The numbers of images are not CIFAR-10's.
    """
    images, labels = train
    held = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASSES)):
        held[np.flatnonzero(labels == label)[-held_a_class:]] = True
    parts: Mapping[str, Labelled] = {
        "train_lmdb": (images[~held], labels[~held]),
        "validation_lmdb": (images[held], labels[held]),
        "test_lmdb": test,
    }
    shuffled = {}
    for name, (part_images, part_labels) in parts.items():
        counts = np.bincount(part_labels, minlength=len(CLASSES))
        if len(set(counts.tolist())) != 1:
            raise DataError(f"classes are not of equal size: {counts.tolist()}", where=name)
        order = np.random.default_rng(0).permutation(len(part_labels))
        shuffled[name] = part_images[order], part_labels[order]
    return shuffled


def _fetch(path: Path, say: Report) -> Path:
    """Fetch the original archive and check it."""
    say(f"fetching {URL}")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as answer, path.open("wb") as file:
            while file.tell() <= _ARCHIVE_BYTES and (chunk := answer.read(2**20)):
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:  # urllib's errors are OSErrors
        raise DataError(
            f"can't be fetched ({getattr(error, 'reason', error)})",
            where=URL,
            hint="fetch the archive some other way and give it with --from",
        ) from error
    if digest.hexdigest() != MD5:
        raise DataError(f"MD5 {digest.hexdigest()}, not {MD5}", where=URL)
    return path


def _filed(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files of a folder that may belong to CIFAR-10."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (_BINARY.fullmatch(name) or _JPEG.fullmatch(name)):
            yield name, path.read_bytes()


def _archived(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the members of an archive that may belong to CIFAR-10."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                largest = _BATCH if _BINARY.fullmatch(member.name) else _LARGEST_JPEG
                wanted = largest == _BATCH or _JPEG.fullmatch(member.name)
                file = archive.extractfile(member) if wanted and member.isfile() else None
                if file is not None:
                    yield member.name, file.read(largest)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"can't read the archive: {error}", where=path) from error


def _decode_jpegs(jpegs: Mapping[str, bytes], part: str, where: Path) -> Labelled:
    with needs_extra("caffe"):
        from PIL import Image

    images, labels = [], []
    for label, kind in enumerate(CLASSES):
        names = sorted(name for name in jpegs if name.split("/")[-3:-1] == [part, kind])
        for name in names:
            try:
                pixels = np.asarray(Image.open(io.BytesIO(jpegs[name])).convert("RGB"))
            except OSError as error:
                raise DataError(f"{name} is no JPEG file: {error}", where=where) from error
            if pixels.shape != (32, 32, 3):
                raise DataError(f"{name} is {pixels.shape[:2]}, not 32 × 32", where=where)
            images.append(pixels.transpose(2, 0, 1))
            labels.append(label)
    if not images:
        raise DataError(f"no {part}/CLASS/*.jpg", where=where)
    return np.stack(images), np.array(labels, np.uint8)
