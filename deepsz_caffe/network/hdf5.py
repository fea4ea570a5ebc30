"""Weights in HDF5 as Caffe writes them: ``/data/<layer>/<blob number>``, nothing else of the net.

Of parameters that layers share, Caffe stores the owner's only.

HDF5 can point out of a file: to another file's objects (external links), to its bytes (external
storage), to its arrays (virtual datasets). What is read of a stranger's file must be that file's
own: all of these are refused, and so is what would take much more memory than the file has bytes.
"""

from __future__ import annotations

import math
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import ModelError
from deepsz_caffe.files import atomic_write, open_input

if TYPE_CHECKING:
    from h5py import Dataset, Group

    from deepsz_caffe.network.weights import CaffeModel

#: bytes of all arrays, for one of the file: compressed, nothing but a fill value, or linked
_LARGEST_RATIO: Final = 16
_MAX_OBJECTS: Final = 1 << 15
_DEEPEST: Final = 64

Path_ = str | os.PathLike[str]
Array = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.float16]


def read_hdf5(path: Path_) -> dict[str, list[Array | str]]:
    """Read the blobs of every layer.

    Returns
    -------
    dict
        Layer name -> its blobs, float32, float64 or float16, read-only; views into a memory map
        where the file holds them in one piece. Of one that holds no floats, what is wrong with it.

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
    with open_input(source, ModelError) as old, atomic_write(path) as new:
        shutil.copyfileobj(old, new)
        for layer, array in replace.items():
            new.seek(offsets[layer])
            new.write(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data)


def save_hdf5(path: Path_, model: CaffeModel, replace: Mapping[str, np.ndarray]) -> None:
    """Write a caffemodel's weights as HDF5, as Caffe's own snapshots are: a group for each layer.

    Parameters
    ----------
    path
        The file to write.
    model
        A caffemodel that was read.
    replace
        Layer name -> new values of blob 0.

    Raises
    ------
    ModelError
        A layer's name can't be a group's, or h5py is not installed.
    DeepSZError
        The file can't be written.
    """
    h5py = _h5py(path)
    known: set[str] = set()
    with (
        atomic_write(path) as file,
        # By its descriptor, because the file has no name yet.
        h5py.File(f"/dev/fd/{file.fileno()}", "w", locking=False) as out,
    ):
        data = out.create_group("data")
        for number, layer in enumerate(model.layers):
            if model.number(layer.name) != number:
                continue  # of layers with one name Caffe ends with this
            group = _new_group(path, data, layer.name)
            blobs = layer.sound_blobs()
            names = (*model.shared_names(number), *[""] * len(blobs))
            for index, (blob, shared) in enumerate(zip(blobs, names, strict=False)):
                if shared in known:
                    continue
                known |= {shared} - {""}
                values = blob.data
                if index == 0 and layer.name in replace:
                    values = replace[layer.name].reshape(blob.shape)
                dtype = "<f8" if values.dtype.itemsize == 8 else "<f4"
                group.create_dataset(str(index), data=values, dtype=dtype)


def _new_group(path: Path_, data: Group, name: str) -> Group:
    """Make the group of a layer; slashes in its name make groups in groups."""
    why = "HDF5 takes it for another place"
    try:
        group = data.create_group(name)
        if group.name == f"/data/{name}":
            return group
    except ValueError as error:
        why = str(error)
    raise ModelError(
        f"HDF5 can't have a layer of this name: {why}",
        where=f"{path}, layer {name}",
        hint="write a .caffemodel instead",
    )


@contextmanager
def _datasets(path: Path_) -> Iterator[dict[str, list[Dataset]]]:
    """Open a file: layer name -> its datasets by number, each checked to be in the file itself."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            if "data" not in file or not isinstance(_own(path, file, "data"), h5py.Group):
                state = "iter" in file or "history" in file
                what = "a solverstate" if state else "no weights: it has no group /data"
                raise ModelError(f"an HDF5 file, but {what}", where=path)
            found = _walk(path, file["data"])
            room = _LARGEST_RATIO * Path(path).stat().st_size
            for datasets in found.values():
                for dataset in datasets:
                    room -= _check(path, dataset, room)
            yield found
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"a damaged HDF5 file: {error}", where=path) from error
    except MemoryError as error:
        raise ModelError("there is not enough memory to read it", where=path) from error


def _h5py(path: Path_) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ModelError(
            "HDF5 needs h5py", where=path, hint="pip install deepsz-caffe[caffe]"
        ) from error
    module: ModuleType = h5py
    return module


def _walk(path: Path_, data: Group) -> dict[str, list[Dataset]]:
    """Find all layers' datasets below a group; layer names may hold slashes, which make groups."""
    import h5py

    found: dict[str, dict[int, Dataset]] = {}
    waiting: list[tuple[str, Group]] = [("", data)]
    seen = 0
    while waiting:
        layer, group = waiting.pop()
        members = []
        for name in group:
            seen += 1
            if seen > _MAX_OBJECTS:
                raise ModelError(f"more than {_MAX_OBJECTS:,} objects", where=path)
            members.append((name, _own(path, group, name)))
        arrays = {
            int(name): item
            for name, item in members
            if isinstance(item, h5py.Dataset) and name.isdecimal()
        }
        groups = [(name, item) for name, item in members if isinstance(item, h5py.Group)]
        if layer and (arrays or not groups):
            found[layer] = arrays
        if layer.count("/") >= _DEEPEST:
            raise ModelError("groups in groups, too deep", where=path)
        for name, item in reversed(groups):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            waiting.append((f"{layer}/{shown}" if layer else shown, item))
    return {layer: [item for _, item in sorted(items.items())] for layer, items in found.items()}


def _own(path: Path_, group: Group, name: str) -> Dataset | Group:
    """Give a member of a group that lies in the same file, below /data if by a soft link."""
    import h5py

    link = group.get(name, getlink=True)
    where = f"{path}, {group.name}/{name}"
    if isinstance(link, h5py.ExternalLink):
        raise ModelError(f"a link to another file, {link.filename}", where=where)
    if isinstance(link, h5py.SoftLink):
        target = posixpath.normpath(posixpath.join(group.name, link.path))
        if not target.startswith("/data/"):
            raise ModelError(f"a link out of /data, to {target}", where=where)
        way = target.split("/")[1:]
        current = group.file
        for step in way:
            # The way to it must have no link in it, which may lead anywhere.
            if not isinstance(current.get(step, getlink=True), h5py.HardLink):
                raise ModelError(f"a link to a link, or to nothing: {target}", where=where)
            current = current[step]
        return current
    return group[name]


def _check(path: Path_, dataset: Dataset, room: int) -> int:
    """Check a dataset before anything of it is read; give the bytes that reading it takes.

    One in one piece counts, too: by links it may be in the file many times.
    """
    import h5py

    where = f"{path}, {dataset.name}"
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or dataset.is_virtual:
        raise ModelError("a virtual dataset: its values are in other files", where=where)
    if plan.get_layout() == h5py.h5d.CONTIGUOUS and plan.get_external_count():
        raise ModelError("external storage: its values are in other files", where=where)
    if _flaw(dataset):
        return 0  # not read
    size: int = math.prod(dataset.shape) * dataset.dtype.itemsize
    offset = dataset.id.get_offset()
    if offset is not None and offset + size > Path(path).stat().st_size:
        raise ModelError(f"its {size:,} bytes lie outside of the file", where=where)
    if dataset.chunks is not None:  # a chunk is decoded whole
        size = max(size, math.prod(dataset.chunks) * dataset.dtype.itemsize)
    if size > room:
        raise ModelError(
            f"an array of {size:,} bytes: with the others over {_LARGEST_RATIO} times the file",
            where=where,
            hint="weights are written once and in one piece, as Caffe does",
        )
    return size


def _flaw(dataset: Dataset) -> str:
    """Say what is wrong with a dataset, which matters where its layer is wanted alone."""
    if dataset.shape is None:
        return "holds nothing"
    floats = dataset.dtype.kind == "f" and dataset.dtype.itemsize in (2, 4, 8)
    return "" if floats else f"holds {dataset.dtype}, not floats"


def _array(path: Path_, dataset: Dataset) -> Array | str:
    if flaw := _flaw(dataset):
        return flaw
    offset = dataset.id.get_offset()
    values: Array
    if offset is not None and dataset.size and dataset.dtype.isnative:
        values = np.asarray(np.memmap(path, dataset.dtype, "r", offset, dataset.shape))
    else:
        values = np.asarray(dataset[()], dataset.dtype.newbyteorder("="))
    values.flags.writeable = False
    return values
