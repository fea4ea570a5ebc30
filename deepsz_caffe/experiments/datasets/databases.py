"""Labelled images as the LMDBs that Caffe's Data layer reads: written, counted, put in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, needs_extra
from deepsz_caffe.files import reason
from deepsz_caffe.folders import exclusive, temporary_folder
from deepsz_caffe.runtime.sources import lmdb_entries

#: an image, uint8 or floating point [channels, height, width], and its label
Record = tuple[NDArray[np.generic], int]
Report = Callable[[str], None]

_MAP_BYTES = 2**34  # at first; a limit, not a size: the file grows to what is used
_BATCH_BYTES = 2**28  # of images in one transaction, which holds them in memory


def write_lmdb(path: Path, records: Iterable[Record]) -> int:
    """Write images and their labels, in the given order.

    Images of bytes are stored as such, others as floats.

    Parameters
    ----------
    path
        A folder that does not exist yet.
    records
        Images of one shape, with their labels.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    DataError
        The disk is full, or the folder can't be written; images differ in shape.
    """
    with needs_extra("caffe"):
        import lmdb

    count = 0
    try:
        with lmdb.open(os.fsencode(path), map_size=_MAP_BYTES, lock=False) as environment:
            for batch in _batches(_datums(records)):
                written = False
                while not written:
                    try:
                        with environment.begin(write=True) as transaction:
                            for number, value in enumerate(batch, start=count):
                                transaction.put(b"%08d" % number, value, append=True)
                        written = True
                    except lmdb.MapFullError:
                        environment.set_mapsize(2 * environment.info()["map_size"])
                count += len(batch)
    except lmdb.Error as error:
        raise DataError(f"can't write: {error}", where=path.name) from error
    return count


def records_of(images: NDArray[np.generic], labels: NDArray[np.integer]) -> Iterator[Record]:
    """Give images [n, channels, height, width] and labels [n] one by one."""
    return zip(images, labels.tolist(), strict=True)


def count_records(path: Path) -> int:
    """Count the images of an LMDB; 0 when there is none, or something else lies there."""
    try:
        return lmdb_entries(path) if (path / "data.mdb").is_file() else 0
    except DataError:
        return 0


def write_splits(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[Path], Mapping[str, Iterable[Record]]],
    say: Report,
) -> dict[str, int]:
    """Write those LMDBs of a folder that are not there, each complete or not at all.

    Parameters
    ----------
    folder
        Is made where it is missing.
    sizes
        Name of each LMDB -> number of its images; one that has them is kept.
    read
        Gives the images by LMDB; is called with an empty folder that it may use, and only where
        an LMDB is missing.
    say
        Called with a line of text as the work goes on.

    Returns
    -------
    dict
        Path of each LMDB -> number of its images.

    Raises
    ------
    DataError
        The folder can't be written, or there are more or fewer images than in `sizes`.
    """

    def missing() -> list[str]:
        return [name for name, count in sizes.items() if count_records(folder / name) != count]

    if not missing():
        say(f"{folder}: already complete")
    else:
        there = folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder / "lmdb"), temporary_folder(beside=folder / "lmdb") as scratch:
                wanted = missing()  # another run may have written them meanwhile
                parts = read(scratch) if wanted else {}
                for name in wanted:
                    say(f"writing {folder / name}: {sizes[name]:,} images")
                    made = scratch / name
                    if (count := write_lmdb(made, parts[name])) != sizes[name]:
                        raise DataError(f"{count} images, not {sizes[name]}", where=folder / name)
                    if (folder / name).exists():
                        shutil.rmtree(folder / name)
                    made.rename(folder / name)
        except OSError as error:
            raise DataError(f"can't write: {reason(error)}", where=folder) from error
        finally:
            if not there:
                with suppress(OSError):  # something is in it
                    folder.rmdir()
    return {str(folder / name): count for name, count in sizes.items()}


def _datums(records: Iterable[Record]) -> Iterator[bytes]:
    from caffe.proto import caffe_pb2

    datum = caffe_pb2.Datum()
    shape = None
    for number, (image, label) in enumerate(records):
        if shape is None:
            shape = image.shape
            datum.channels, datum.height, datum.width = shape
        elif image.shape != shape:
            raise DataError(
                f"image {number} is {_shape(image.shape)}, those before are {_shape(shape)} "
                "(channels × height × width)",
                hint="give all one size",
            )
        if image.dtype == np.uint8:
            datum.data = image.tobytes()
        else:
            datum.ClearField("float_data")
            datum.float_data.extend(image.astype(np.float32).ravel().tolist())
        datum.label = label
        yield datum.SerializeToString()


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _batches(values: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for value in values:
        batch.append(value)
        size += len(value)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
