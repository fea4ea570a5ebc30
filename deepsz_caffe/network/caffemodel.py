"""Weights files, read as views into a memory map, without Caffe.

A caffemodel is a `NetParameter` message whose layers hold blobs. It is walked in place (`wire`);
arrays are views into the map, and only names, types and shapes go through protobuf (`schema`). What
is not understood stays where it is, and `writer` writes it back byte for byte.

All forms that Caffe has written are read: today's ``layer``, V1 ``layers``, V0 layers inside those,
sizes as ``num``, ``channels``, ``height``, ``width``, and HDF5 (`hdf5`).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import hdf5, schema_pb2, wire
from deepsz_caffe.network.legacy import V0_TYPES, V1_TYPES
from deepsz_caffe.network.weights import Blob, CaffeModel, LayerWeights, Place

Path_ = str | os.PathLike[str]

# Field numbers of NetParameter and BlobProto.
_LAYERS_V1: Final = 2
LAYER: Final = 100
_V0_LAYER: Final = 1
DATA: Final = 5
DOUBLE_DATA: Final = 8
_SHAPE_FIELDS: Final = (1, 2, 3, 4, 7)

_MAX_AXES: Final = 32  # Caffe's own limit
_MAX_DIM: Final = 2**31 - 1


def read_caffemodel(path: Path_) -> CaffeModel:
    """Open a weights file: a caffemodel of any age, or a ``.caffemodel.h5``.

    Nothing is loaded; arrays are views into a memory map, which stays as long as one of them does.
    Don't write into the file meanwhile; replacing it, as `write_caffemodel` does, is fine.

    Raises
    ------
    ModelError
        The file can't be read, is damaged or is no caffemodel; the byte is named.
    """
    file_path = Path(path)
    try:
        with file_path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError("an empty file, not a caffemodel", where=path)
            source = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelError(f"can't read: {error.strerror}", where=path) from error
    if bytes(source[: len(hdf5.MAGIC)]) == hdf5.MAGIC:
        stored = hdf5.read_hdf5(file_path)
        return CaffeModel(
            file_path,
            [
                LayerWeights(name, "", tuple(Blob(array.shape, array) for array in arrays))
                for name, arrays in stored.items()
            ],
        )
    try:
        layers, places = _read_net(source)
    except wire.WireError as error:
        raise ModelError(
            f"not a caffemodel, or damaged: {error}",
            where=f"{path}, byte {error.position}",
            hint="a weights file is wanted, not a prototxt"
            if file_path.suffix == ".prototxt"
            else None,
        ) from error
    if not layers:
        raise ModelError("not a caffemodel: no layer in it", where=path)
    return CaffeModel(file_path, layers, places, source)


def _read_net(source: memoryview) -> tuple[list[LayerWeights], list[Place]]:
    top = [f for f in wire.fields(source, 0, len(source)) if f.wire == wire.LEN]
    # Where both forms are in one file, Caffe's upgrade drops today's.
    found = [f for f in top if f.number == _LAYERS_V1] or [f for f in top if f.number == LAYER]
    read = [_read_layer(source, field) for field in found]
    return [layer for layer, _ in read], [place for _, place in read]


def _read_layer(source: memoryview, field: wire.Field) -> tuple[LayerWeights, Place]:
    path: tuple[wire.Field, ...] = (field,)
    if field.number == LAYER:
        message, blobs_number, small = schema_pb2.LayerParameter(), 7, (1, 2)
    else:
        message, blobs_number, small = schema_pb2.V1LayerParameter(), 6, (4, 5)
        inner = [
            f
            for f in wire.fields(source, field.start, field.end)
            if f.number == _V0_LAYER and f.wire == wire.LEN
        ]
        if inner:
            path = (field, inner[-1])
            message, blobs_number, small = schema_pb2.V0LayerParameter(), 50, (1, 2)
    parts = list(wire.fields(source, path[-1].start, path[-1].end))
    blobs = tuple(f for f in parts if f.number == blobs_number and f.wire == wire.LEN)
    _parse_small(source, field, parts, small, message)
    # Any bytes are a name to Caffe.
    name = message.name.decode("utf-8", "backslashreplace")
    if isinstance(message, schema_pb2.V1LayerParameter):
        kind = V1_TYPES.get(message.type, "")
    else:
        kind = message.type.decode("utf-8", "backslashreplace")
        if len(path) == 2:
            kind = V0_TYPES.get(kind, kind)
    layer = LayerWeights(name, kind, tuple(_read_blob(source, blob) for blob in blobs))
    return layer, Place(path, blobs)


def _read_blob(source: memoryview, field: wire.Field) -> Blob:
    parts = list(wire.fields(source, field.start, field.end))
    message = schema_pb2.BlobProto()
    _parse_small(source, field, parts, _SHAPE_FIELDS, message)
    if any(message.HasField(name) for name in ("num", "channels", "height", "width")):
        shape = (message.num, message.channels, message.height, message.width)
    else:
        shape = tuple(message.shape.dim)
    if len(shape) > _MAX_AXES or not all(0 <= dim <= _MAX_DIM for dim in shape):
        raise wire.WireError(f"a blob of the impossible shape {list(shape)[:40]}", field.begin)
    # Like Caffe: doubles, if there are any, go before floats.
    values = _values(source, parts, DOUBLE_DATA)
    if values.size == 0:
        values = _values(source, parts, DATA)
    if values.size != math.prod(shape):
        raise wire.WireError(
            f"a blob of shape {list(shape)} with {values.size} values", field.begin
        )
    return Blob(shape, values.reshape(shape))


def _values(
    source: memoryview, parts: Iterable[wire.Field], number: int
) -> NDArray[np.float32] | NDArray[np.float64]:
    """All values of one of a blob's fields in order; a view if they are in one piece."""
    dtype = np.dtype("<f4" if number == DATA else "<f8")
    arrays = []
    for field in parts:
        if field.number == number and field.wire == wire.LEN:
            count, odd = divmod(field.end - field.start, dtype.itemsize)
            if odd:
                raise wire.WireError(
                    f"{field.end - field.start} bytes are no array of {dtype.name}", field.begin
                )
            arrays.append(np.frombuffer(source, dtype, count, field.start))
        elif field.number == number and field.wire == _fixed(number):
            arrays.append(wire.run_values(source, field).ravel().view(dtype))
    if len(arrays) == 1:
        values = arrays[0]
    else:
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    values.flags.writeable = False
    return values


def _fixed(number: int) -> int:
    return wire.I32 if number == DATA else wire.I64


def is_data(field: wire.Field) -> bool:
    return field.number in (DATA, DOUBLE_DATA) and field.wire in (wire.LEN, _fixed(field.number))


def _parse_small(
    source: memoryview,
    where: wire.Field,
    parts: Iterable[wire.Field],
    numbers: Sequence[int],
    message: Message,
) -> None:
    """Let protobuf parse some fields of a message: fields in a row are a message again."""
    try:
        message.MergeFromString(
            b"".join(source[f.begin : f.end] for f in parts if f.number in numbers)
        )
    except DecodeError as error:
        raise wire.WireError(
            f"names or shapes that protobuf can't read ({error})", where.begin
        ) from error
