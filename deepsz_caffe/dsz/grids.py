"""A chunk with blobs whose values lie on a grid, as corrected biases do: levels, and the rest.

A few hundred values on a grid are a few bits each to a coder that learns how often each occurs;
what packs bytes needs twice as much for them. So the blobs are taken out of the chunk. The packed
form is, as varints, the number of blobs, and for each the bytes of the chunk between the one before
and it, its values, its exponent (doubled; for those below 0 one less than twice the magnitude) and
the bytes of its levels; then the levels of all blobs, each a stream of `codecs.mixing` of one
column, at the bound `_BOUND`, for whole numbers; then the other bytes as one Zstandard frame. A
value is the nearest whole number to what the stream holds, times two to the exponent, as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.frames import compress, decompress
from deepsz_caffe.codecs.mixing import Mixing
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.errors import CodecError

#: what decoding needs beside its input and output: the state of `codecs.mixing` for a vector
WORKING = Mixing(1).working_bytes((1, 1), 0)
#: below a half: whole numbers come back by rounding
_BOUND = 0.499
_FLOAT = 4
_FIELDS = 4
#: float32 holds whole numbers below 2 to this, and no exponent but those.
_BITS = 24
_EXPONENTS = range(-149, 128)
#: Larger whole numbers are not few bits each.
_LARGEST = 1 << 12


def pack_grids(data: bytes, blobs: Sequence[bytes], level: int) -> bytes | None:
    """Pack a chunk in which some blobs lie on grids.

    Parameters
    ----------
    data
        The chunk.
    blobs
        Values, float32, little-endian, in the order in which they lie in the stream of chunks.
        Those that are not in this one, or on no grid, stay where they are.
    level
        Of Zstandard, for the other bytes.

    Returns
    -------
    bytes or None
        None where there is no such blob.
    """
    fields: list[int] = []
    streams: list[bytes] = []
    others = bytearray()
    end = 0
    for blob in blobs:
        begin = data.find(blob, end)
        found = _levels(np.frombuffer(blob, "<f4")) if begin >= 0 else None
        if found is None:
            continue
        whole, exponent = found
        stream = Mixing(_BOUND).encode(whole.astype(np.float32).reshape(-1, 1))
        if _values(stream, whole.size, exponent) != blob:
            continue
        zigzag = 2 * exponent if exponent >= 0 else -2 * exponent - 1
        fields += begin - end, whole.size, zigzag, len(stream)
        streams.append(stream)
        others += data[end:begin]
        end = begin + len(blob)
    if not streams:
        return None
    others += data[end:]
    head = pack_varints((len(streams), *fields))
    return b"".join((head, *streams, compress(bytes(others), level)))


def unpack_grids(packed: bytes, size: int) -> bytes:
    """Give back the `size` bytes of a chunk.

    Raises
    ------
    CodecError
        They are not exactly what is packed.
    """
    (count,), view = unpack_varints(memoryview(packed), 1)
    if not 1 <= count <= size // _FLOAT:
        raise CodecError(f"{count} blobs in {size} bytes")
    fields, view = unpack_varints(view, _FIELDS * count)
    blobs = [fields[at : at + _FIELDS] for at in range(0, len(fields), _FIELDS)]
    rest = size - sum(before + _FLOAT * values for before, values, _, _ in blobs)
    if rest < 0:
        raise CodecError(f"the blobs have more than {size} bytes")
    taken = []
    for _, values, zigzag, length in blobs:
        exponent = -(zigzag + 1 >> 1) if zigzag & 1 else zigzag >> 1
        if not values or length > len(view) or exponent not in _EXPONENTS:
            raise CodecError("the header is damaged")
        taken.append(_values(view[:length], values, exponent))
        view = view[length:]
    others = decompress(view, size - sum(map(len, taken)))
    pieces: list[bytes] = []
    at = 0
    for (before, *_), value in zip(blobs, taken, strict=True):
        pieces += others[at : at + before], value
        at += before
    return b"".join((*pieces, others[at:]))


def _levels(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], int] | None:
    """Find the coarsest grid of values: whole numbers and an exponent of two; None without any."""
    if not values.size or not np.isfinite(values).all() or not values.any():
        return None
    parts, exponents = np.frexp(values.astype(np.float64))
    whole = np.ldexp(parts, _BITS).astype(np.int64)[values != 0]
    lowest = np.log2(whole & -whole).astype(np.int64)
    exponent = int((lowest + exponents[values != 0]).min()) - _BITS
    levels = np.ldexp(values.astype(np.float64), -exponent)
    if exponent not in _EXPONENTS or np.abs(levels).max() > _LARGEST:
        return None
    return levels.astype(np.int64), exponent


def _values(stream: bytes | memoryview, count: int, exponent: int) -> bytes:
    decoded = Mixing(_BOUND).decode(stream, np.empty((count, 1), np.float32))
    whole = np.rint(decoded.astype(np.float64)) + 0.0
    with np.errstate(over="ignore"):
        return np.ldexp(whole, exponent).astype("<f4").tobytes()
