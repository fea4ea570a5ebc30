"""Weights files written back with new weights in some layers; all else byte for byte.

Weights that are not stored as one packed run of float32 (unpacked, in several runs, or as doubles)
are the exception: where they are replaced, packed float32 takes their place, which means the same
to Caffe. Raw values, such as half precision, become packed floats in every layer, because BVLC
Caffe does not know them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepsz_caffe.errors import ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.network import HDF5_SUFFIXES, hdf5, schema_pb2, wire
from deepsz_caffe.network.caffemodel import (
    DATA,
    DOUBLE_DATA,
    LAYER,
    RAW_DATA,
    RAW_TYPE,
    is_data,
)
from deepsz_caffe.network.weights import Blob, CaffeModel, Floats, LayerWeights, Place

Path_ = str | os.PathLike[str]
Buffer = bytes | bytearray | memoryview


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


def write_caffemodel(path: Path_, model: CaffeModel, replace: Mapping[str, np.ndarray]) -> None:
    """Write the network back with new weights in some layers; all else byte for byte.

    Parameters
    ----------
    path
        The file to write; it may be the one that was read. A name that ends in ``.h5`` or
        ``.hdf5`` makes an HDF5 file, as Caffe's own snapshots are, any other a caffemodel.
    model
        From `read_caffemodel`.
    replace
        Layer name -> new blob 0, float32, in its own shape or as rows × columns.

    Raises
    ------
    ModelError
        A layer is not in the network, or weights have another shape.
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
    if Path(path).suffix.lower() in HDF5_SUFFIXES:
        if model.source is None:
            hdf5.write_hdf5(model.path, path, arrays)
        else:
            hdf5.save_hdf5(path, model, arrays)
        return
    rest, slots = split_weights(model, arrays)
    with atomic_write(path) as file:
        join_weights(rest, slots, (arrays[slot.layer] for slot in slots), file)


def write_bare(path: Path_, model: CaffeModel) -> None:
    """Write a caffemodel of layers with weights alone: their names, types and blobs.

    That is what Caffe reads of one. How the network was trained (its data, fillers, rates), which
    Caffe writes, too, is as many bytes as some hundred compressed weights.

    Parameters
    ----------
    path
        The file to write; it may be the one that was read.
    model
        From `read_caffemodel`.

    Raises
    ------
    DeepSZError
        The file can't be written.
    """
    net = schema_pb2.NetParameter()
    for layer in model.layers:
        blobs = [
            schema_pb2.BlobProto(**_sizes(blob.shape), data=np.asarray(blob.data, "<f4").tobytes())
            for blob in layer.sound_blobs()
        ]
        if blobs:
            net.layer.add(name=layer.name.encode(), type=layer.type.encode(), blobs=blobs)
    with atomic_write(path) as file:
        file.write(net.SerializeToString())


def _sizes(shape: tuple[int, ...]) -> dict[str, Any]:
    """Write down a shape so that Caffe takes it for those that it may stand for."""
    if len(shape) == 4:  # also what an old file says of fewer axes
        return dict(zip(("num", "channels", "height", "width"), shape, strict=True))
    return {"shape": {"dim": shape}}


def split_weights(
    model: CaffeModel, layer_names: Iterable[str]
) -> tuple[list[Buffer], tuple[Slot, ...]]:
    """Cut the weights (blob 0) of some layers out of a caffemodel.

    Weights that are not one run of packed float32 are declared as such in what is left, raw values
    are there as packed ones, and an HDF5 file becomes a caffemodel; everything else stays byte for
    byte.

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
    wanted = {model.number(name) for name in layer_names}
    for number in wanted:
        _ = model.layers[number].matrix_shape  # a layer without weights ends here
    chunks: list[_Chunk] = []
    if model.source is None:
        for number, layer in enumerate(model.layers):
            chunks += _encoded_layer(layer, cut=number in wanted)
    else:
        copied = 0
        for number, layer in enumerate(model.layers):
            place = model.places[number]
            anew = any(_is_anew(blob) for blob in layer.blobs)
            if number in wanted or anew or len(layer.blobs) < len(place.blobs):
                chunks.append(model.source[copied : place.path[0].begin])
                chunks += _changed_layer(model.source, place, layer, number in wanted)
                copied = place.path[0].end
        chunks.append(model.source[copied:])
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


def _changed_layer(
    source: memoryview, place: Place, layer: LayerWeights, cut: bool
) -> list[_Chunk]:
    """Give a layer's message with a slot in the place of its weights, if they are `cut`.

    Raw values become packed ones, changed ones the new ones, and blobs that the layer does not have
    are left out.
    """
    message = place.path[0]
    slot = Slot(layer.name, 0, layer.matrix_shape, -1) if cut else None
    anew = [n for n, blob in enumerate(layer.blobs) if _is_anew(blob)]
    fewer = len(layer.blobs) < len(place.blobs)
    if slot is not None and not (anew or fewer):
        data = _packed_run(source, place.blobs[0], slot)
        if data is not None:
            return [source[message.begin : data.start], slot, source[data.end : message.end]]
    content: list[_Chunk] = []
    inner = place.path[-1]
    done = inner.start
    for number, field in enumerate(place.blobs):
        values = slot if number == 0 and slot is not None else None
        if number >= len(layer.blobs):
            content.append(source[done : field.begin])
            done = field.end
        elif number in anew or values is not None:
            new = _blob_with(source, field, values or layer.blobs[number].data)
            content += [source[done : field.begin], *_length_delimited(field.number, new)]
            done = field.end
    content.append(source[done : inner.end])
    for outer in reversed(place.path[:-1]):
        content = [
            source[outer.start : inner.begin],
            *_length_delimited(inner.number, content),
            source[inner.end : outer.end],
        ]
        inner = outer
    return _length_delimited(message.number, content)


def _is_anew(blob: Blob) -> bool:
    """Say whether a blob's values are to be written anew."""
    return (blob.raw or blob.changed) and not blob.flaw


def _packed_run(source: memoryview, blob: wire.Field, slot: Slot) -> wire.Field | None:
    """Find a blob's values where they are one run of packed float32, as Caffe writes them."""
    parts = wire.Walk(source).fields(blob.start, blob.end)
    data = [part for part in parts if is_data(part)]
    if len(data) == 1 and (data[0].number, data[0].wire) == (DATA, wire.LEN):
        return data[0] if data[0].end - data[0].start == slot.nbytes else None
    return None


def _blob_with(source: memoryview, field: wire.Field, values: Slot | Floats) -> list[_Chunk]:
    """Give a blob's message with other values, or a slot for them, behind all else in it."""
    content: list[_Chunk] = []
    done = field.start
    for part in wire.Walk(source).fields(field.start, field.end):
        if is_data(part) or part.number in (RAW_DATA, RAW_TYPE):
            if part.begin > done:
                content.append(source[done : part.begin])
            done = part.end
    content.append(source[done : field.end])
    return [*content, *_values(values)]


def _values(values: Slot | Floats) -> list[_Chunk]:
    if isinstance(values, Slot):
        return _length_delimited(DATA, [values])
    double = values.dtype == np.float64
    packed = np.ascontiguousarray(values, "<f8" if double else "<f4").reshape(-1)
    return _length_delimited(DOUBLE_DATA if double else DATA, [packed.view(np.uint8).data])


def _encoded_layer(layer: LayerWeights, cut: bool) -> list[_Chunk]:
    """Write a layer anew, with a slot in the place of its weights if they are `cut`."""
    content: list[_Chunk] = [
        schema_pb2.LayerParameter(name=layer.name.encode()).SerializeToString()
    ]
    for number, blob in enumerate(layer.blobs if cut else layer.sound_blobs()):
        slot = Slot(layer.name, 0, layer.matrix_shape, -1) if cut and number == 0 else None
        shape = schema_pb2.BlobProto(shape={"dim": blob.shape}).SerializeToString()
        content += _length_delimited(7, [shape, *_values(slot or blob.data)])
    return _length_delimited(LAYER, content)


def _length_delimited(number: int, content: Sequence[_Chunk]) -> list[_Chunk]:
    size = sum(chunk.nbytes if isinstance(chunk, Slot) else len(chunk) for chunk in content)
    return [wire.tag(number, wire.LEN) + wire.varint(size), *content]
