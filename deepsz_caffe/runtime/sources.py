"""What Caffe's data layers read from files: counted, measured, and read in Python where need be.

A BVLC Caffe without OpenCV has no ImageData layer and can't decode the images of an LMDB. Here
both are decoded as Caffe would in its TEST phase: cropped in the middle, mean subtracted, scaled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError
from deepsz_caffe.files import open_input
from deepsz_caffe.network import outline_pb2, schema_pb2
from deepsz_caffe.runtime.images import (
    decode_image,
    image_list,
    needed,
    read_image,
    read_lines,
    read_mean,
    what_is,
)

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import Datum, LayerParameter, TransformationParameter
    from lmdb import Environment

Array = NDArray[np.generic]
#: Reads images, float32[channels, height, width], with their labels, from the one at a place on.
Reader = Callable[[int], Iterator[tuple[NDArray[np.float32], int]]]

_LMDB = 1  # DataParameter.DB


@dataclass(frozen=True)
class Source:
    """The images of a data layer that reads files.

    Attributes
    ----------
    images
        Their number.
    shapes
        For each top, the shape of what an image brings; () for a label that is a number.
    reader
        Reads them where this Caffe can't; else None.
    """

    images: int
    shapes: tuple[tuple[int, ...], ...]
    reader: Reader | None = None


def open_source(layer: LayerParameter, layer_types: frozenset[str]) -> Source:
    """Open what a Data, HDF5Data or ImageData layer reads.

    Parameters
    ----------
    layer_types
        What this Caffe knows; nothing where there is none, and all is read here.

    Raises
    ------
    DataError
        The source is missing, empty, damaged, or of a kind that can't be counted.
    """
    opened = {"Data": _open_lmdb, "HDF5Data": _open_hdf5, "ImageData": _open_list}
    own = type(layer)()
    own.CopyFrom(layer)  # a reader keeps it, and the caller may change his
    return opened[layer.type](own, layer_types)


def countable(layer: LayerParameter) -> bool:
    """Say whether the images of a layer that reads files can be counted: not those of a LevelDB."""
    return layer.type != "Data" or int(layer.data_param.backend) == _LMDB


def count_images(layer: LayerParameter) -> int:
    """Count the images that a layer reads from files.

    Raises
    ------
    DataError
        As `open_source`.
    """
    if layer.type == "Data":
        return lmdb_entries(layer.data_param.source)
    if layer.type == "HDF5Data":
        return _open_hdf5(layer, frozenset()).images
    return len(image_list(layer.image_data_param.source))


def batch_size(layer: LayerParameter) -> int:
    """Return the batch size of a layer that reads files."""
    return int(getattr(layer, PARAMETERS[layer.type]).batch_size)


#: layer type -> its field that names the source and the batch size
PARAMETERS = {
    "Data": "data_param",
    "HDF5Data": "hdf5_data_param",
    "ImageData": "image_data_param",
}


def lmdb_entries(source: str | os.PathLike[str]) -> int:
    """Count the entries of an LMDB.

    Raises
    ------
    DataError
        There is none, it is damaged or empty; it is named.
    """
    with _lmdb(source) as environment:
        entries = int(environment.stat()["entries"])
    if entries == 0:
        raise DataError("the LMDB is empty", where=source)
    return entries


@contextmanager
def _lmdb(source: str | os.PathLike[str]) -> Iterator[Environment]:
    lmdb = needed("lmdb", source)
    if not Path(source).exists():
        hint = "sources are relative to the working folder; `deepsz mnist DIR` makes MNIST's"
        raise DataError("no such LMDB", where=source, hint=hint)
    folder = Path(source).is_dir()
    if (file := Path(source, "data.mdb") if folder else Path(source)).exists():
        open_input(file, DataError).close()
    try:
        with lmdb.open(
            os.fsencode(source), readonly=True, lock=False, subdir=folder
        ) as environment:
            pages = environment.info()["last_pgno"] + 1
            if (size := file.stat().st_size) < pages * environment.stat()["psize"]:
                # It is mapped: what reads behind its end is ended by the system.
                raise DataError(f"cut short: {size:,} bytes of an LMDB", where=source)
            yield environment
    except lmdb.Error as error:
        what, hint = what_is(file)
        said = f"it is {what}" if what else f"or damaged: {error}"
        raise DataError(f"not an LMDB, {said}", where=source, hint=hint or None) from error


def _open_lmdb(layer: LayerParameter, layer_types: frozenset[str]) -> Source:
    parameters = layer.data_param
    source = parameters.source
    if not countable(layer) and Path(source).exists():
        raise DataError("a LevelDB: its entries can't be counted", where=source, hint="use LMDB")
    entries = lmdb_entries(source)
    datum = next(_datums(source, 0))
    if datum.encoded:
        reader = None if "ImageData" in layer_types else partial(_read_lmdb, layer)
        _, shape = _cropped(_decoded(datum, layer.transform_param, source), layer)
    else:
        reader = None if "Data" in layer_types else partial(_read_lmdb, layer)
        crop = layer.transform_param.crop_size
        shape = (datum.channels, crop or datum.height, crop or datum.width)
    return Source(entries, (shape, ())[: len(layer.top)], reader)


def _datums(source: str, first: int) -> Iterator[Datum]:
    with _lmdb(source) as environment, environment.begin(buffers=True) as transaction:
        for value in islice(transaction.cursor().iternext(keys=False), first, None):
            datum: Datum = schema_pb2.Datum()
            try:
                datum.ParseFromString(bytes(value))
            except Exception as error:  # protobuf's DecodeError has several homes
                raise DataError(f"an entry is no image: {error}", where=source) from error
            yield datum


def _read_lmdb(layer: LayerParameter, first: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    source, transform = layer.data_param.source, layer.transform_param
    for datum in _datums(source, first):
        yield _transformed(_datum_image(datum, transform, source), layer), datum.label


def read_lmdb_images(source: str, first: int, *, color: bool) -> Iterator[tuple[Array, int]]:
    """Read the images of an LMDB as they are, [height, width, channels], with their labels.

    Parameters
    ----------
    source
        The LMDB.
    first
        How many to leave out at its beginning.
    color
        Whether image files in it are decoded with three channels, in BGR order, or one.

    Raises
    ------
    DataError
        As `lmdb_entries`; an entry is no image, or OpenCV is missing.
    """
    transform = outline_pb2.TransformationParameter(force_color=color, force_gray=not color)
    for datum in _datums(source, first):
        yield _datum_image(datum, transform, source), datum.label


def read_lmdb_labels(source: str) -> Iterator[int]:
    """Read the labels of an LMDB.

    Raises
    ------
    DataError
        An entry has none, which is not label 0; or as `lmdb_entries`.
    """
    for number, datum in enumerate(_datums(source, 0)):
        if not datum.HasField("label"):
            raise DataError(
                f"entry {number} has no label", where=source, hint="--agreement needs none"
            )
        yield datum.label


def _datum_image(datum: Datum, transform: TransformationParameter, source: str) -> Array:
    if datum.encoded:
        return _decoded(datum, transform, source)
    shape = (datum.channels, datum.height, datum.width)
    values = np.frombuffer(datum.data, np.uint8) if datum.data else datum.float_data
    try:
        return np.asarray(values).reshape(shape).transpose(1, 2, 0)
    except ValueError as error:
        raise DataError(f"an entry is no image: {error}", where=source) from error


def _decoded(datum: Datum, transform: TransformationParameter, source: str) -> Array:
    """Decode an entry as Caffe's DataTransformer does."""
    cv2 = needed("cv2", source)
    flag = cv2.IMREAD_UNCHANGED
    if transform.force_color or transform.force_gray:
        flag = cv2.IMREAD_COLOR if transform.force_color else cv2.IMREAD_GRAYSCALE
    image = decode_image(datum.data, flag, source)
    if image is None or image.dtype != np.uint8:
        raise DataError("an entry is not an image of 8 bits that OpenCV reads", where=source)
    return np.atleast_3d(np.asarray(image))


def _open_hdf5(layer: LayerParameter, layer_types: frozenset[str]) -> Source:
    source = layer.hdf5_data_param.source
    h5py = needed("h5py", source)
    rows = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    for name in read_lines(source):
        try:
            with h5py.File(name, "r") as file:
                rows += len(file[layer.top[0]])
                shapes = tuple(file[top].shape[1:] for top in layer.top)
        except (OSError, KeyError) as error:
            tops = " and ".join(layer.top)
            raise DataError(f"can't read datasets {tops}: {error}", where=name) from error
    if rows == 0:
        raise DataError("the HDF5 files hold no images", where=source)
    return Source(rows, shapes)


def _open_list(layer: LayerParameter, layer_types: frozenset[str]) -> Source:
    files = image_list(layer.image_data_param.source)
    if "ImageData" in layer_types:
        _, shape = _cropped(_image(layer, files[0][0]), layer)
        return Source(len(files), (shape, ())[: len(layer.top)])
    reader = partial(_read_list, layer, files)
    shape = next(reader(0))[0].shape
    return Source(len(files), (shape, ())[: len(layer.top)], reader)


def _read_list(
    layer: LayerParameter, files: tuple[tuple[str, int], ...], first: int
) -> Iterator[tuple[NDArray[np.float32], int]]:
    for name, label in files[first:]:
        yield _transformed(_image(layer, name), layer), label


def _image(layer: LayerParameter, name: str) -> Array:
    parameters = layer.image_data_param
    size = (parameters.new_width, parameters.new_height)
    path = parameters.root_folder + name
    return read_image(path, color=parameters.is_color, size=size if all(size) else None)


def _cropped(image: Array, layer: LayerParameter) -> tuple[tuple[slice, slice], tuple[int, ...]]:
    """Give the rows and columns of the middle part, and its shape, channels first."""
    height, width, channels = image.shape
    crop = layer.transform_param.crop_size
    if not crop:
        return (slice(0, height), slice(0, width)), (channels, height, width)
    if crop > min(height, width):
        raise DataError(
            f"an image of {height} × {width} can't be cropped to {crop} × {crop}",
            where=f"layer {layer.name}",
        )
    top, left = (height - crop) // 2, (width - crop) // 2
    return (slice(top, top + crop), slice(left, left + crop)), (channels, crop, crop)


def _transformed(image: Array, layer: LayerParameter) -> NDArray[np.float32]:
    """Do what Caffe's DataTransformer does in the TEST phase with an image [h, w, channels]."""
    transform = layer.transform_param
    where = f"layer {layer.name}"
    if transform.mirror:
        raise DataError(
            "mirror is random in Caffe's TEST phase, too", where=where, hint="leave it out there"
        )
    (rows, columns), _ = _cropped(image, layer)
    values = image[rows, columns].astype(np.float32)
    if transform.mean_file:
        mean = read_mean(transform.mean_file)
        if mean.shape != image.shape:
            raise DataError(
                f"a mean of {list(mean.shape)} for images of {list(image.shape)} (height, width, "
                "channels)",
                where=f"{where}, {transform.mean_file}",
            )
        values -= mean[rows, columns]
    elif transform.mean_value:
        values -= np.asarray(transform.mean_value, np.float32)
    return values.transpose(2, 0, 1) * np.float32(transform.scale)
