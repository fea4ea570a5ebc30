"""Weights files, read as views into a memory map, without Caffe.

A caffemodel is a `NetParameter` message whose layers hold blobs. It is walked in place (`wire`);
arrays are views into the map, and only names, types and shapes go through protobuf (`schema`). What
is not understood stays where it is, and `writer` writes it back byte for byte.

All forms that Caffe has written are read: today's ``layer``, V1 ``layers``, V0 layers inside those,
sizes as ``num``, ``channels``, ``height``, ``width``, and HDF5 (`hdf5`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import hdf5, schema_pb2, wire
from deepsz_caffe.network.kind import kind_of, open_weights
from deepsz_caffe.network.legacy import V0_TYPES, V1_TYPES
from deepsz_caffe.network.weights import Blob, CaffeModel, Floats, LayerWeights, Place

Path_ = str | os.PathLike[str]

# Field numbers of NetParameter and BlobProto.
_LAYERS_V1: Final = 2
LAYER: Final = 100
_V0_LAYER: Final = 1
DATA: Final = 5
DOUBLE_DATA: Final = 8
_SHAPE_FIELDS: Final = (1, 2, 3, 4, 7)
# NVCaffe's, which OpenCV writes, too: values of any type in the place of `data`.
RAW_TYPE: Final = 10
RAW_DATA: Final = 12
_RAW_DTYPES: Final[dict[int, np.dtype[np.floating]]] = {
    0: np.dtype("<f8"),
    1: np.dtype("<f4"),
    2: np.dtype("<f2"),
}

_MAX_AXES: Final = 32  # Caffe's own limit
_MAX_DIM: Final = 2**31 - 1
# Far over all networks, far under what would make small files take much memory.
_MAX_LAYERS: Final = 1 << 14
_MAX_BLOBS: Final = 1 << 16
_MAX_NAMES: Final = 4096  # bytes of a layer's name and type
_MAX_SHAPE: Final = 1024  # bytes


def read_caffemodel(path: Path_, named: Path_ | None = None) -> CaffeModel:
    """Open a weights file: a caffemodel of any age, or a ``.caffemodel.h5``.

    Nothing is loaded; arrays are views into a memory map, which stays as long as one of them does.
    Don't write into the file meanwhile; replacing it, as `write_caffemodel` does, is fine.

    Parameters
    ----------
    path
        The file.
    named
        What errors and notes call it: the `.dsz` file that it was made of, which holds nothing but
        a caffemodel.

    Raises
    ------
    ModelError
        The file can't be read, is damaged or is no caffemodel; the byte is named.
    """
    source, shown = open_weights(path), Path(path if named is None else named)
    kind = kind_of(source, shown) if named is None else "caffemodel"
    if kind == "dsz":
        raise ModelError(
            "not a caffemodel: it is a .dsz file",
            where=shown,
            hint="deepsz expand makes one of it",
        )
    if kind == "hdf5":
        stored = hdf5.read_hdf5(path)
        return CaffeModel(
            shown,
            [_loaded_layer(shown, name, arrays) for name, arrays in stored.items()],
        )
    try:
        layers, places = _read_net(shown, source)
    except wire.WireError as error:
        raise ModelError(
            f"not a caffemodel, or damaged: {error}", where=f"{shown}, byte {error.position}"
        ) from error
    if not layers:
        raise ModelError("not a caffemodel: no layer in it", where=shown)
    return CaffeModel(shown, layers, places, source)


def _loaded_layer(path: Path, name: str, arrays: Sequence[hdf5.Array | str]) -> LayerWeights:
    blobs = []
    for number, array in enumerate(arrays):
        where = f"{path}, layer {name}, blob {number}"
        if isinstance(array, str):
            nothing = np.empty(0, np.float32)
            blobs.append(Blob((0,), 0, partial(np.asarray, nothing), where, array))
        else:
            blobs.append(Blob(array.shape, array.size, partial(np.asarray, array), where))
    return LayerWeights(name, "", tuple(blobs))


def _read_net(path: Path, source: memoryview) -> tuple[list[LayerWeights], list[Place]]:
    walk = wire.Walk(source)
    old: list[wire.Field] = []
    new: list[wire.Field] = []
    for field in walk.fields(0, len(source)):
        if field.wire == wire.LEN and field.number in (_LAYERS_V1, LAYER):
            (new if field.number == LAYER else old).append(field)
            if len(old) + len(new) > _MAX_LAYERS:
                raise wire.WireError(f"more than {_MAX_LAYERS:,} layers", field.begin)
    layers, places, blobs = [], [], 0
    # Where both forms are in one file, Caffe's upgrade drops today's.
    for field in old or new:
        layer, place = _read_layer(path, walk, field)
        layers.append(layer)
        places.append(place)
        blobs += len(layer.blobs)
        if blobs > _MAX_BLOBS:
            raise wire.WireError(f"more than {_MAX_BLOBS:,} blobs", field.begin)
    return layers, places


def _read_layer(path: Path, walk: wire.Walk, field: wire.Field) -> tuple[LayerWeights, Place]:
    way: tuple[wire.Field, ...] = (field,)
    if field.number == LAYER:
        message, blobs_number, small = schema_pb2.LayerParameter(), 7, (1, 2)
    else:
        message, blobs_number, small = schema_pb2.V1LayerParameter(), 6, (4, 5)
        for inner in walk.fields(field.start, field.end):
            if inner.number == _V0_LAYER and inner.wire == wire.LEN:
                way = (field, inner)
        if len(way) == 2:
            message, blobs_number, small = schema_pb2.V0LayerParameter(), 50, (1, 2)
    parts, blobs = [], []
    for part in walk.fields(way[-1].start, way[-1].end):
        if part.number == blobs_number and part.wire == wire.LEN:
            blobs.append(part)
        elif part.number in small:
            parts.append(part)
    if len(blobs) > _MAX_BLOBS:
        raise wire.WireError(f"more than {_MAX_BLOBS:,} blobs", field.begin)
    _parse_small(walk, field, parts, message, _MAX_NAMES)
    # Any bytes are a name to Caffe.
    name = message.name.decode("utf-8", "backslashreplace")
    if isinstance(message, schema_pb2.V1LayerParameter):
        kind = V1_TYPES.get(message.type, "")
    else:
        kind = message.type.decode("utf-8", "backslashreplace")
        if len(way) == 2:
            kind = V0_TYPES.get(kind, kind)
    where = f"{path}, layer {name}"
    layer = LayerWeights(name, kind, tuple(_read_blob(where, walk, blob) for blob in blobs))
    return layer, Place(way, tuple(blobs))


def _read_blob(where: str, walk: wire.Walk, field: wire.Field) -> Blob:
    small: list[wire.Field] = []
    counts = {DATA: 0, DOUBLE_DATA: 0}
    raw = None
    for part in walk.fields(field.start, field.end):
        if part.number in _SHAPE_FIELDS or part.number == RAW_TYPE:
            small.append(part)
        elif part.number == RAW_DATA and part.wire == wire.LEN and part.end > part.start:
            raw = part
        elif is_data(part):
            counts[part.number] += _count(part)
    message = schema_pb2.BlobProto()
    _parse_small(walk, field, small, message, _MAX_SHAPE)
    if any(message.HasField(name) for name in ("num", "channels", "height", "width")):
        shape = (message.num, message.channels, message.height, message.width)
    else:
        shape = tuple(message.shape.dim)
    flaw = ""
    # Like Caffe: doubles, if there are any, go before floats. Raw values are in place of both.
    number = DOUBLE_DATA if counts[DOUBLE_DATA] else DATA
    size, read = counts[number], partial(_read_values, walk.buffer, field, number)
    if raw is not None:
        dtype = _RAW_DTYPES.get(message.raw_data_type)
        if dtype is None:
            flaw = f"raw data of type {message.raw_data_type}, which are no floats"
        elif (raw.end - raw.start) % dtype.itemsize:
            flaw = f"{raw.end - raw.start} bytes of raw data are no array of {dtype.name}"
        else:
            size = (raw.end - raw.start) // dtype.itemsize
            read = partial(np.frombuffer, walk.buffer, dtype, size, raw.start)
    if len(shape) > _MAX_AXES or not all(0 <= dim <= _MAX_DIM for dim in shape):
        flaw = flaw or f"a blob of the impossible shape {list(shape)[:40]}"
    elif size != math.prod(shape):
        flaw = flaw or f"a blob of shape {list(shape)} with {size} values"
    return Blob(shape, size, read, f"{where}, byte {field.begin}", flaw, raw is not None)


def _read_values(source: memoryview, blob: wire.Field, number: int) -> Floats:
    """All values of one of a blob's fields in order; a view if they are in one piece."""
    dtype = np.dtype("<f4" if number == DATA else "<f8")
    parts = [
        part
        for part in wire.Walk(source).fields(blob.start, blob.end)
        if part.number == number and is_data(part)
    ]
    if len(parts) == 1 and parts[0].wire == wire.LEN:
        part = parts[0]
        return np.frombuffer(source, dtype, _count(part), part.start)
    values = np.empty(sum(map(_count, parts)), dtype)
    done = 0
    for part in parts:
        piece = values[done : done + _count(part)]
        if part.wire == wire.LEN:
            piece[...] = np.frombuffer(source, dtype, piece.size, part.start)
        else:
            piece.view(np.uint8).reshape(-1, dtype.itemsize)[...] = wire.run_values(source, part)
        done += piece.size
    values.flags.writeable = False
    return values


def _count(part: wire.Field) -> int:
    """Values in a field of a blob's data."""
    if part.wire != wire.LEN:
        return part.values
    size = 4 if part.number == DATA else 8
    count, odd = divmod(part.end - part.start, size)
    if odd:
        raise wire.WireError(
            f"{part.end - part.start} bytes are no array of float{8 * size}", part.begin
        )
    return count


def is_data(field: wire.Field) -> bool:
    """Say whether a field of a blob holds values, packed or not; raw ones apart."""
    fixed = {DATA: wire.I32, DOUBLE_DATA: wire.I64}
    return field.number in fixed and field.wire in (wire.LEN, fixed[field.number])


def _parse_small(
    walk: wire.Walk,
    where: wire.Field,
    parts: Sequence[wire.Field],
    message: Message,
    limit: int,
) -> None:
    """Let protobuf parse some fields of a message: fields in a row are a message again."""
    size = sum(part.end - part.begin for part in parts)
    if size > limit:
        raise wire.WireError(f"names or shapes of {size:,} bytes", where.begin)
    try:
        message.MergeFromString(b"".join(walk.buffer[f.begin : f.end] for f in parts))
    except DecodeError as error:
        raise wire.WireError(
            f"names or shapes that protobuf can't read ({error})", where.begin
        ) from error
