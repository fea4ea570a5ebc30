"""Labelled images as the LMDBs that Caffe's Data layer reads: written, counted, put in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deepsz_caffe.errors import DataError, needs_extra

_MAP_BYTES = 2**34  # a limit, not a size: the file grows to what is used


def write_lmdb(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and their labels, in the given order.

    Parameters
    ----------
    path
        A folder that does not exist yet.
    images
        uint8 [n, channels, height, width].
    labels
        Integers [n].

    Raises
    ------
    DataError
        The disk is full, or the folder can't be written.
    """
    with needs_extra("caffe"):
        import lmdb

    try:
        with (
            lmdb.open(str(path), map_size=_MAP_BYTES) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in _records(images, labels):
                transaction.put(key, value, append=True)
    except lmdb.Error as error:
        raise DataError(f"can't write: {error}", where=path.name) from error


def count_records(path: Path) -> int:
    """Count the images of an LMDB; 0 when there is none, or something else lies there."""
    with needs_extra("caffe"):
        import lmdb

    if not (path / "data.mdb").is_file():
        return 0
    try:
        with lmdb.open(str(path), readonly=True, lock=False) as environment:
            return int(environment.stat()["entries"])
    except lmdb.Error:
        return 0


def put_in_place(made: Path, target: Path, count: int) -> None:
    """Rename a finished LMDB to `target`; one of `count` images already there is as good."""
    if target.exists() and count_records(target) != count:
        shutil.rmtree(target)
    try:
        made.rename(target)
    except OSError:  # another process was quicker
        if count_records(target) != count:
            raise


def _records(images: np.ndarray, labels: np.ndarray) -> Iterable[tuple[bytes, bytes]]:
    from caffe.proto import caffe_pb2

    channels, height, width = images.shape[1:]
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width)
    for position, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        datum.data = image.tobytes()
        datum.label = label
        yield b"%08d" % position, datum.SerializeToString()
