"""The preamble and the header of a `.dsz` file as bytes, and the rules that a header must keep."""

from __future__ import annotations

import struct
from collections.abc import Collection
from math import isfinite
from zlib import crc32

from deepsz_caffe.dsz.layout import (
    CHUNK,
    MAGIC,
    MAX_HEADER,
    PREAMBLE,
    VERSION,
    VERSION_OF_BOUNDS,
    Chunk,
    Header,
    LayerEntry,
    Packing,
    Rest,
    chunk_sizes,
    longest_index,
)
from deepsz_caffe.dsz.message import parse, serialize
from deepsz_caffe.errors import FormatError


def write_header(header: Header) -> bytes:
    """Return preamble and header.

    Raises
    ------
    FormatError
        It breaks a rule of the format.
    """
    content = serialize(header)
    if len(content) > MAX_HEADER:
        raise FormatError(f"the header would have {len(content)} bytes, over {MAX_HEADER}")
    check(parse(Header, content))
    sizes = struct.pack("<II", _version(header), len(content))
    return MAGIC + sizes + struct.pack("<I", crc32(content, crc32(sizes))) + content


def header_bytes(preamble: bytes) -> int:
    """Return how many bytes of header follow a preamble.

    Raises
    ------
    FormatError
        It is none, or that of another version.
    """
    if not preamble:
        raise FormatError("an empty file, not a .dsz file")
    if preamble[:8] != MAGIC:
        damaged = preamble[:4] == MAGIC[:4]
        raise FormatError(
            "not a .dsz file",
            hint="it went through a transfer in text mode" if damaged else None,
        )
    if len(preamble) < PREAMBLE.size:
        raise FormatError("the file ends in the preamble")
    _, version, length, _ = PREAMBLE.unpack(preamble)
    if version not in (VERSION, VERSION_OF_BOUNDS):
        raise FormatError(
            f"version {version} of the format is unknown; this reads {VERSION} and "
            f"{VERSION_OF_BOUNDS}"
        )
    if length > MAX_HEADER:
        raise FormatError(f"the header has {length} bytes, over {MAX_HEADER}")
    return int(length)


def read_header(preamble: bytes, content: bytes) -> Header:
    """Return the header that follows a preamble, checked against every rule.

    Raises
    ------
    FormatError
        It is damaged, or breaks a rule of the format.
    """
    if len(content) < header_bytes(preamble):
        raise FormatError("the file ends in the header")
    if crc32(content, crc32(preamble[8:16])) != PREAMBLE.unpack(preamble)[3]:
        raise FormatError("the header's checksum is wrong", hint="the file is damaged")
    header = parse(Header, content)
    check(header)
    if PREAMBLE.unpack(preamble)[1] != _version(header):
        raise FormatError(
            f"bounds of the rest belong to version {VERSION_OF_BOUNDS}, and to it alone"
        )
    return header


def _version(header: Header) -> int:
    return VERSION_OF_BOUNDS if header.rest.bounds else VERSION


def check(header: Header) -> None:
    """Raise FormatError where a header breaks a rule; every rule of the specification is here."""
    names = set()
    for layer in header.layers:
        where = f"layer {layer.name}"
        _check_layer(layer, where)
        if layer.name in names:
            raise FormatError("two layers have this name", where=where)
        names.add(layer.name)
    _check_rest(header.rest, len(header.layers))
    deploy = () if header.deploy is None else (header.deploy.chunk,)
    grids = any(chunk.packing == Packing.GRIDS for chunk in (*header.rest.chunks, *deploy))
    if grids and not header.rest.bounds:
        raise FormatError(f"blobs on a grid belong to version {VERSION_OF_BOUNDS}", where="rest")
    _check_bounds(header.rest, names)
    if header.deploy is not None:
        if header.deploy.bytes > CHUNK:
            raise FormatError("it is larger than a chunk", where="deploy prototxt")
        _check_chunk(header.deploy.chunk, header.deploy.bytes, "deploy prototxt")
    if len(header.origin.source_sha256) not in (0, 32):
        raise FormatError("the SHA-256 of the source has not 32 bytes", where="origin")


def _check_rest(rest: Rest, layers: int) -> None:
    if len(rest.slots) != layers:
        raise FormatError(f"{len(rest.slots)} slots for {layers} layers", where="rest")
    if any(a >= b for a, b in zip(rest.slots, rest.slots[1:], strict=False)):
        raise FormatError("the slots don't increase", where="rest")
    if any(slot > rest.bytes for slot in rest.slots):
        raise FormatError("a slot lies outside", where="rest")
    if len(rest.chunks) != -(-rest.bytes // CHUNK):
        raise FormatError(f"{len(rest.chunks)} chunks for {rest.bytes} bytes", where="rest")
    for number, (chunk, size) in enumerate(zip(rest.chunks, chunk_sizes(rest.bytes), strict=True)):
        _check_chunk(chunk, size, f"rest, chunk {number}")


def _check_bounds(rest: Rest, compressed: Collection[str]) -> None:
    seen = {(name, 0) for name in compressed}
    for each in rest.bounds:
        where = f"rest, blob {each.blob} of layer {each.layer}"
        if (each.layer, each.blob) in seen:
            raise FormatError("it has two bounds", where=where)
        seen.add((each.layer, each.blob))
        if not (each.layer and isfinite(each.error_bound) and each.error_bound > 0):
            raise FormatError("it has no name, or its error bound is not over 0", where=where)


def _check_layer(layer: LayerEntry, where: str) -> None:
    weights = layer.rows * layer.columns
    rules = (
        (layer.name != "", "it has no name"),
        (weights > 0, "it has no rows or no columns"),
        (isfinite(layer.error_bound) and layer.error_bound > 0, "its error bound is not over 0"),
        (layer.nonzeros <= weights, f"it has {layer.nonzeros} non-zeros in {weights} weights"),
        ((layer.nonzeros > 0) == (layer.data_codec != ""), "non-zeros and data codec disagree"),
        ((layer.data_bytes > 0) == (layer.data_codec != ""), "data codec and bytes disagree"),
        ((layer.index_bytes > 0) == (layer.index_codec != ""), "index codec and bytes disagree"),
        ((layer.index_count > 0) == (layer.index_codec != ""), "index codec and count disagree"),
        (layer.data_codec != "" or layer.index_codec == "", "it has an index without data"),
        (
            layer.index_codec == "" or layer.nonzeros <= layer.index_count,
            "its index is too short",
        ),
        (
            layer.index_count <= longest_index(layer.shape, weights),
            "its index is longer than the matrix can need",
        ),
    )
    for holds, broken in rules:
        if not holds:
            raise FormatError(broken, where=where)


def _check_chunk(chunk: Chunk, size: int, where: str) -> None:
    if chunk.packing not in tuple(Packing):
        raise FormatError(f"packing {chunk.packing} is unknown", where=where)
    stored = chunk.packing == Packing.STORED
    if chunk.bytes != size if stored else not 0 < chunk.bytes < size:
        raise FormatError(f"{chunk.bytes} bytes can't hold {size}", where=where)
