"""Weights in HDF5 as Caffe writes them: ``/data/<layer>/<blob number>``, nothing else of the net.

Of parameters that layers share, Caffe stores the owner's only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import ModelError
from deepsz_caffe.files import atomic_write

if TYPE_CHECKING:
    from h5py import Dataset

MAGIC: Final = b"\x89HDF\r\n\x1a\n"

Path_ = str | os.PathLike[str]
Array = NDArray[np.float32] | NDArray[np.float64]


def read_hdf5(path: Path_) -> dict[str, list[Array]]:
    """Read the blobs of every layer.

    Returns
    -------
    dict
        Layer name -> its blobs, float32 or float64, read-only; views into a memory map where the
        file holds them in one piece.

    Raises
    ------
    ModelError
        Not a weights file, damaged, or h5py is not installed.
    """
    with _datasets(path) as layers:
        return {
            name: [_array(path, dataset) for dataset in datasets]
            for name, datasets in layers.items()
        }


def write_hdf5(source: Path_, path: Path_, replace: Mapping[str, np.ndarray]) -> None:
    """Copy a weights file with new values in blob 0 of some layers; all else byte for byte.

    Parameters
    ----------
    source
        The file that `read_hdf5` has read.
    path
        The file to write.
    replace
        Layer name -> new values, float32, as many as there are.

    Raises
    ------
    ModelError
        Weights that are to be replaced are not in one piece of float32, as Caffe writes them.
    """
    offsets: dict[str, int] = {}
    with _datasets(source) as layers:
        for layer in replace:
            dataset = layers[layer][0]
            offset = dataset.id.get_offset()
            if offset is None or dataset.dtype != np.dtype("<f4"):
                raise ModelError(
                    "stored in chunks or not as float32, so it can't be replaced in place",
                    where=f"{source}, layer {layer}",
                    hint="write a .caffemodel instead",
                )
            offsets[layer] = offset
    with Path(source).open("rb") as old, atomic_write(path) as new:
        shutil.copyfileobj(old, new)
        for layer, array in replace.items():
            new.seek(offsets[layer])
            new.write(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data)


@contextmanager
def _datasets(path: Path_) -> Iterator[dict[str, list[Dataset]]]:
    """Open a file: layer name -> its datasets by number."""
    try:
        import h5py
    except ImportError as error:
        raise ModelError(
            "reading HDF5 needs h5py", where=path, hint="pip install deepsz-caffe[caffe]"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            group = file.get("data")
            if not isinstance(group, h5py.Group):
                raise ModelError("an HDF5 file, but no weights: it has no group /data", where=path)
            found: dict[str, dict[int, Dataset]] = {}

            def visit(name: str, item: object) -> None:
                # Layer names may hold slashes, which HDF5 takes for groups.
                layer, _, number = name.rpartition("/")
                if isinstance(item, h5py.Dataset) and layer and number.isdecimal():
                    found.setdefault(layer, {})[int(number)] = item
                elif isinstance(item, h5py.Group) and not len(item):
                    found.setdefault(name, {})

            group.visititems(visit)
            yield {
                layer: [item for _, item in sorted(items.items())] for layer, items in found.items()
            }
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"a damaged HDF5 file: {error}", where=path) from error


def _array(path: Path_, dataset: Dataset) -> Array:
    offset = dataset.id.get_offset()
    kind = dataset.dtype
    if kind not in (np.dtype("f4"), np.dtype("f8")):
        raise ModelError(f"holds {kind}, not floats", where=f"{path}, {dataset.name}")
    values: Array
    if offset is not None and dataset.size:
        values = np.asarray(np.memmap(path, kind, "r", offset, dataset.shape))
    else:
        values = np.asarray(dataset[()])
    values.flags.writeable = False
    return values
