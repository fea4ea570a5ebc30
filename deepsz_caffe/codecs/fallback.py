"""The kernels in Python and numpy: slow, for machines without the compiled ones, same bytes.

Each function is the twin of one in ``native/``, whose comments explain it; names and constants
agree, and so does the memory that they take: arrays are gone through in blocks. The twin of the
context-mixing coder is `fallback_mixing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.fallback_mixing import mixing_decode, mixing_encode

__all__ = [
    "digest_of",
    "digest_weights",
    "join_planes",
    "mixing_decode",
    "mixing_encode",
    "packed_entries",
    "scatter_packed",
    "scatter_steps",
    "values_of_levels",
]

_DAMAGED = "the stream is damaged"
_BITS_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_FIRST_KEY = np.uint64(0xD6E8FEB86659FD93)
_MASK64 = 0xFFFFFFFFFFFFFFFF
#: entries of an array handled at a time; a multiple of 2, 3 and 4
_BLOCK = 3 << 12

#: what the compiled kernels take; bytes, arrays of any kind, memory maps
Buffer = Any


# ---- scatter.c ----


def _array(buffer: Buffer, dtype: type[np.generic]) -> NDArray[Any]:
    return np.asarray(memoryview(buffer).cast("B")).view(dtype)


def digest_of(positions: NDArray[np.integer], bits: NDArray[np.uint32]) -> int:
    mixed = bits.astype(np.uint64) * _BITS_FACTOR
    hashed = np.where(bits << np.uint32(1), mixed ^ mixed >> np.uint64(29) | np.uint64(1), 0)
    keys = positions.astype(np.uint64) + _FIRST_KEY
    return int(np.sum(keys * keys * hashed.astype(np.uint64), dtype=np.uint64))


def digest_weights(weights: NDArray[np.float32], first: int = 0) -> tuple[int, int]:
    bits = weights.reshape(-1).view(np.uint32)
    digest = nonzeros = 0
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        where = np.flatnonzero(block << np.uint32(1))
        digest += digest_of(where + (start + first), block[where])
        nonzeros += where.size
    return digest & _MASK64, nonzeros


def scatter_steps(
    data: NDArray[np.float32], index: NDArray[np.uint8], out: NDArray[np.float32]
) -> tuple[int, int]:
    flat = out.reshape(-1)
    flat[...] = 0
    reached, taken = -1, 0
    for start in range(0, index.size, _BLOCK):
        entries = index[start : start + _BLOCK]
        steps = np.where(entries == 0, np.int64(255), entries.astype(np.int64))
        cells = (np.cumsum(steps) + reached)[entries != 0]
        reached += int(steps.sum())
        values = data[taken : taken + cells.size]
        taken += cells.size
        if values.size < cells.size or (cells.size and cells[-1] >= flat.size):
            raise ValueError(_DAMAGED)
        flat[cells] = values
    if taken != data.size or (index.size and index[-1] == 0):
        raise ValueError(_DAMAGED)
    return digest_weights(flat)


def scatter_packed(
    steps: Buffer, codes: Buffer, per_byte: int, values: Buffer, out: Buffer, first: int
) -> tuple[int, int]:
    values, flat = _array(values, np.float32), _array(out, np.float32)
    flat[...] = 0
    for cells, picks in packed_entries(steps, codes, per_byte, values.size, flat.size):
        flat[cells] = values[picks]
    return digest_weights(flat, first)


def packed_entries(
    steps: Buffer, codes: Buffer, per_byte: int, symbols: int, cells: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.integer]]]:
    """Give the cells of a chunk's entries, and their symbols, a block at a time."""
    steps, codes = _array(steps, np.uint8), _array(codes, np.uint8)
    entries = steps.size
    size = -(-entries // per_byte) if per_byte else 2 * entries
    fits = 0 < symbols <= 1 << 16 and per_byte <= 4 and codes.size == size
    if fits and per_byte:
        fits = int(codes.max(initial=0)) < symbols**per_byte <= 256
    if not fits:
        raise ValueError(_DAMAGED)
    reached = -1
    for start in range(0, entries, _BLOCK):
        block = steps[start : start + _BLOCK]
        places = np.cumsum(block, dtype=np.int64) + np.arange(reached + 1, reached + 1 + block.size)
        reached = int(places[-1])
        picks = _symbols(codes, start, block.size, entries, per_byte, symbols)
        if reached >= cells or picks.max() >= symbols:
            raise ValueError(_DAMAGED)
        yield places, picks


def _symbols(
    codes: NDArray[np.uint8], start: int, count: int, entries: int, per_byte: int, symbols: int
) -> NDArray[np.integer]:
    """Unpack the symbols of `count` entries from `start` on."""
    if per_byte == 0:
        low, high = codes[start : start + count], codes[entries + start : entries + start + count]
        return low | high.astype(np.uint16) << np.uint16(8)
    wide = codes[start // per_byte : -(-(start + count) // per_byte)].astype(np.int32)
    digits = [wide // symbols**place % symbols for place in range(per_byte)]
    return np.stack(digits, axis=1).reshape(-1)[:count]


def values_of_levels(
    cells: NDArray[np.float32], positive: NDArray[np.float32], negative: NDArray[np.float32]
) -> None:
    flat = cells.reshape(-1)
    table = np.concatenate((negative[::-1], np.zeros(1, np.float32), positive))
    for start in range(0, flat.size, _BLOCK):
        levels = flat[start : start + _BLOCK].view(np.int32)
        if levels.max() > positive.size or -int(levels.min()) > negative.size:
            raise ValueError(_DAMAGED)
        flat[start : start + _BLOCK] = table[levels + negative.size]


# ---- planes.c ----


def join_planes(planes: bytes) -> bytes:
    out = bytearray(planes)
    groups = len(planes) // 4
    for byte in range(4):
        out[byte : 4 * groups : 4] = planes[byte * groups : (byte + 1) * groups]
    return bytes(out)
