"""Weights files: read as views into a memory map, written back byte for byte, without Caffe.

A caffemodel is a `NetParameter` message whose layers hold blobs. It is walked in place (`wire`);
arrays are views into the map, and only names, types and shapes go through protobuf (`schema`). What
is not understood stays where it is: writing back an untouched network gives the same bytes, and
replacing a layer's weights changes those bytes and nothing else. The exception are fc weights that
are not stored as one packed run of float32 (unpacked, in several runs, or as doubles): where they
are replaced, packed float32 takes their place, which means the same to Caffe.

All forms that Caffe has written are read: today's ``layer``, V1 ``layers``, V0 layers inside those,
sizes as ``num``, ``channels``, ``height``, ``width``, and HDF5 (`hdf5`).
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.network import hdf5, schema_pb2, wire
from deepsz_caffe.network.legacy import V0_TYPES, V1_TYPES

Path_ = str | os.PathLike[str]
Buffer = bytes | bytearray | memoryview

# Field numbers of NetParameter and BlobProto.
_LAYERS_V1: Final = 2
_LAYER: Final = 100
_V0_LAYER: Final = 1
_DATA: Final = 5
_DOUBLE_DATA: Final = 8
_SHAPE_FIELDS: Final = (1, 2, 3, 4, 7)

_MAX_AXES: Final = 32  # Caffe's own limit
_MAX_DIM: Final = 2**31 - 1


@dataclass(frozen=True)
class Blob:
    """One array of a layer.

    Attributes
    ----------
    shape
        As the file has it; four axes where it gives sizes in the old way.
    data
        ``float32[shape]``, or ``float64[shape]`` where the file holds doubles; read-only. Usually a
        view into the memory map, whose address is any number: `numpy.require` with ``"A"`` makes a
        copy for code that needs it aligned.
    """

    shape: tuple[int, ...]
    data: NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class LayerWeights:
    """A layer of a weights file.

    Attributes
    ----------
    name
        The layer's name.
    type
        In today's spelling, such as ``"InnerProduct"``, also in V1 files; ``""`` in HDF5 files,
        which hold no types.
    blobs
        Its arrays; of an fc layer the weights and, unless it has none, the bias.
    """

    name: str
    type: str
    blobs: tuple[Blob, ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of blob 0 taken as a matrix: its first axis and the rest.

        The old (1, 1, N, K) counts as N × K.
        """
        if not self.blobs:
            raise ModelError("has no weights", where=f"layer {self.name}")
        shape = self.blobs[0].shape
        if len(shape) == 4 and shape[:2] == (1, 1):
            shape = shape[2:]
        return (shape[0] if shape else 1), math.prod(shape[1:])

    @property
    def matrix(self) -> NDArray[np.float32]:
        """Blob 0 as ``float32[rows, columns]``; a view unless the file holds doubles."""
        rows_columns = self.matrix_shape
        return self.blobs[0].data.reshape(rows_columns).astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Place:
    """Where a layer lies in the map: the message, or for V0 one in another, and its blobs."""

    path: tuple[wire.Field, ...]
    blobs: tuple[wire.Field, ...]


class CaffeModel:
    """A weights file that `read_caffemodel` has opened.

    Attributes
    ----------
    path
        The file.
    layers
        Every layer in the file's order, those without weights included.
    """

    def __init__(
        self,
        path: Path,
        layers: Sequence[LayerWeights],
        places: Sequence[_Place] = (),
        source: memoryview | None = None,
    ) -> None:
        self.path = path
        self.layers = tuple(layers)
        self._places = tuple(places)
        self._source = source
        # Of layers with one name Caffe ends with the last; one without weights changes nothing.
        self._index = {layer.name: number for number, layer in enumerate(self.layers)}
        self._index |= {layer.name: n for n, layer in enumerate(self.layers) if layer.blobs}

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __getitem__(self, name: str) -> LayerWeights:
        """Give the layer of that name, the last with weights where several have it."""
        return self.layers[self._number(name)]

    def _number(self, name: str) -> int:
        if name not in self._index:
            known = ", ".join(layer.name for layer in self.layers if layer.blobs) or "none"
            raise ModelError(f"no layer {name!r}", where=self.path, hint=f"with weights: {known}")
        return self._index[name]


@dataclass(frozen=True)
class Slot:
    """A gap that `split_weights` left in a weights file.

    Attributes
    ----------
    layer, blob
        Name of the layer and number of the blob that were cut out.
    shape
        Rows and columns of the weights.
    offset
        Byte of the rest before which the ``4 * rows * columns`` bytes of float32, little-endian
        and row-major, are to be inserted.
    """

    layer: str
    blob: int
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes that are to be inserted."""
        return 4 * math.prod(self.shape)


_Chunk = Buffer | Slot


# --- reading -------------------------------------------------------------------------------------


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


def _read_net(source: memoryview) -> tuple[list[LayerWeights], list[_Place]]:
    top = [f for f in wire.fields(source, 0, len(source)) if f.wire == wire.LEN]
    # Where both forms are in one file, Caffe's upgrade drops today's.
    found = [f for f in top if f.number == _LAYERS_V1] or [f for f in top if f.number == _LAYER]
    read = [_read_layer(source, field) for field in found]
    return [layer for layer, _ in read], [place for _, place in read]


def _read_layer(source: memoryview, field: wire.Field) -> tuple[LayerWeights, _Place]:
    path: tuple[wire.Field, ...] = (field,)
    if field.number == _LAYER:
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
    return layer, _Place(path, blobs)


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
    values = _values(source, parts, _DOUBLE_DATA)
    if values.size == 0:
        values = _values(source, parts, _DATA)
    if values.size != math.prod(shape):
        raise wire.WireError(
            f"a blob of shape {list(shape)} with {values.size} values", field.begin
        )
    return Blob(shape, values.reshape(shape))


def _values(
    source: memoryview, parts: Iterable[wire.Field], number: int
) -> NDArray[np.float32] | NDArray[np.float64]:
    """All values of one of a blob's fields in order; a view if they are in one piece."""
    dtype = np.dtype("<f4" if number == _DATA else "<f8")
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
    return wire.I32 if number == _DATA else wire.I64


def _is_data(field: wire.Field) -> bool:
    return field.number in (_DATA, _DOUBLE_DATA) and field.wire in (wire.LEN, _fixed(field.number))


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


# --- writing -------------------------------------------------------------------------------------


def write_caffemodel(path: Path_, model: CaffeModel, replace: Mapping[str, np.ndarray]) -> None:
    """Write the network back with new weights in some layers; all else byte for byte.

    Parameters
    ----------
    path
        The file to write; it may be the one that was read. A name that ends in ``.h5`` makes an
        HDF5 file, as in Caffe, and needs one that was read; from an HDF5 file any other name makes
        a caffemodel.
    model
        From `read_caffemodel`.
    replace
        Layer name -> new blob 0, float32, in its own shape or as rows × columns.

    Raises
    ------
    ModelError
        A layer is not in the network, or weights have another shape.
    InputError
        HDF5 is asked for, but the model is a caffemodel.
    DeepSZError
        The file can't be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in replace.items():
        layer = model[name]
        if array.shape not in (layer.matrix_shape, layer.blobs[0].shape):
            raise ModelError(
                f"new weights of shape {array.shape}, the layer's are {layer.matrix_shape}",
                where=f"{model.path}, layer {name}",
            )
        arrays[name] = array
    if Path(path).suffix == ".h5":
        if model._source is not None:
            raise InputError("HDF5 can't be made of a caffemodel", where=path)
        hdf5.write_hdf5(model.path, path, arrays)
        return
    rest, slots = split_weights(model, arrays)
    with atomic_write(path) as file:
        join_weights(rest, slots, (arrays[slot.layer] for slot in slots), file)


def split_weights(
    model: CaffeModel, layer_names: Iterable[str]
) -> tuple[list[Buffer], tuple[Slot, ...]]:
    """Cut the weights (blob 0) of some layers out of a caffemodel.

    Weights that are not one run of packed float32 are declared as such in what is left, and an HDF5
    file becomes a caffemodel; everything else stays byte for byte.

    Parameters
    ----------
    model
        From `read_caffemodel`.
    layer_names
        Layers to cut; their order does not matter.

    Returns
    -------
    rest
        What is left, in pieces, mostly views into the map; their concatenation counts.
    slots
        The gaps, in the file's order.

    Raises
    ------
    ModelError
        A layer is not in the network or has no weights.
    """
    wanted = {model._number(name) for name in layer_names}
    for number in wanted:
        _ = model.layers[number].matrix_shape  # a layer without weights ends here
    chunks: list[_Chunk] = []
    if model._source is None:
        for number, layer in enumerate(model.layers):
            chunks += _encoded_layer(layer, cut=number in wanted)
    else:
        copied = 0
        for number in sorted(wanted):
            message = model._places[number].path[0]
            chunks.append(model._source[copied : message.begin])
            chunks += _cut_layer(model._source, model._places[number], model.layers[number])
            copied = message.end
        chunks.append(model._source[copied:])
    rest: list[Buffer] = []
    slots: list[Slot] = []
    position = 0
    for chunk in chunks:
        if isinstance(chunk, Slot):
            slots.append(dataclasses.replace(chunk, offset=position))
        elif len(chunk):
            rest.append(chunk)
            position += len(chunk)
    return rest, tuple(slots)


def join_weights(
    rest: Buffer | Iterable[Buffer],
    slots: Iterable[Slot],
    arrays: Iterable[np.ndarray],
    file: BinaryIO,
) -> None:
    """Write the caffemodel that `split_weights` cut, with these weights in its gaps.

    It streams: `arrays` is asked for the next one when the one before is written, so that a
    generator needs memory for one layer at a time.

    Parameters
    ----------
    rest
        In one piece or several.
    slots
        In the order of their offsets.
    arrays
        The weights of each slot, float32 of its size.
    file
        Where to write.

    Raises
    ------
    ModelError
        Slots and arrays, or slots and rest, don't fit together.
    """
    pieces = iter([rest] if isinstance(rest, bytes | bytearray | memoryview) else rest)
    piece = memoryview(b"")
    position = 0
    for slot, array in zip(slots, arrays, strict=True):
        if slot.offset < position:
            raise ModelError("slots out of order", where=f"layer {slot.layer}")
        while position < slot.offset:
            if not piece:
                piece = memoryview(next(pieces, b""))
                if not piece:
                    raise ModelError("a slot behind the end", where=f"layer {slot.layer}")
            step = min(slot.offset - position, len(piece))
            file.write(piece[:step])
            piece = piece[step:]
            position += step
        if 4 * array.size != slot.nbytes:
            raise ModelError(
                f"weights of shape {array.shape} for a slot of {slot.shape}",
                where=f"layer {slot.layer}",
            )
        file.write(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data)
    file.write(piece)
    for following in pieces:
        file.write(following)


def _cut_layer(source: memoryview, place: _Place, layer: LayerWeights) -> list[_Chunk]:
    """Give a layer's message with a slot in the place of its weights."""
    blob = place.blobs[0]
    slot = Slot(layer.name, 0, layer.matrix_shape, -1)
    parts = list(wire.fields(source, blob.start, blob.end))
    data = [field for field in parts if _is_data(field)]
    message = place.path[0]
    if (
        len(data) == 1
        and (data[0].number, data[0].wire) == (_DATA, wire.LEN)
        and data[0].end - data[0].start == slot.nbytes
    ):
        return [
            source[message.begin : data[0].start],
            slot,
            source[data[0].end : message.end],
        ]
    content: list[_Chunk] = [source[f.begin : f.end] for f in parts if f not in data]
    content += [wire.tag(_DATA, wire.LEN) + wire.varint(slot.nbytes), slot]
    inner: wire.Field = blob
    for outer in reversed(place.path):
        content = [
            source[outer.start : inner.begin],
            *_length_delimited(inner.number, content),
            source[inner.end : outer.end],
        ]
        inner = outer
    return _length_delimited(message.number, content)


def _encoded_layer(layer: LayerWeights, cut: bool) -> list[_Chunk]:
    """Write a layer anew, with a slot in the place of its weights if they are `cut`."""
    content: list[_Chunk] = [
        schema_pb2.LayerParameter(name=layer.name.encode()).SerializeToString()
    ]
    for number, blob in enumerate(layer.blobs):
        field, dtype = (_DATA, "<f4") if blob.data.dtype == np.float32 else (_DOUBLE_DATA, "<f8")
        payload: _Chunk = np.ascontiguousarray(blob.data, dtype).reshape(-1).view(np.uint8).data
        if cut and number == 0:
            field, payload = _DATA, Slot(layer.name, 0, layer.matrix_shape, -1)
        shape = schema_pb2.BlobProto(shape={"dim": blob.shape}).SerializeToString()
        content += _length_delimited(7, [shape, *_length_delimited(field, [payload])])
    return _length_delimited(_LAYER, content)


def _length_delimited(number: int, content: Sequence[_Chunk]) -> list[_Chunk]:
    size = sum(chunk.nbytes if isinstance(chunk, Slot) else len(chunk) for chunk in content)
    return [wire.tag(number, wire.LEN) + wire.varint(size), *content]
