"""The kernels in Python and numpy: slow, for machines without the compiled ones, same bytes.

Each function is the twin of one in ``native/``, whose comments explain it; names and constants
agree. The context-mixing coder is the one place here with a Python loop over weights, because each
of its decisions depends on all before it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGIT_MAX = 2815
HALF = 1 << 21
UNARY = 24
UNARY_SETS = 16
NEVER = 1000
_MASK32 = 0xFFFFFFFF
_DAMAGED = "the stream is damaged"

_BITS_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_FIRST_KEY = np.uint64(0xD6E8FEB86659FD93)
_BLOCK = 1 << 20


#: what the compiled kernels take; bytes, arrays of any kind, memory maps
Buffer = Any


# ---- scatter.c ----


def _array(buffer: Buffer, dtype: type[np.generic]) -> NDArray[Any]:
    return np.asarray(memoryview(buffer).cast("B")).view(dtype)


def digest_of(positions: NDArray[Any], bits: NDArray[np.uint32]) -> int:
    mixed = bits.astype(np.uint64) * _BITS_FACTOR
    hashed = np.where(bits << np.uint32(1), mixed ^ mixed >> np.uint64(29) | np.uint64(1), 0)
    keys = positions.astype(np.uint64) + _FIRST_KEY
    return int(np.sum(keys * keys * hashed.astype(np.uint64), dtype=np.uint64))


def digest_weights(weights: NDArray[np.float32]) -> int:
    bits = weights.reshape(-1).view(np.uint32)
    total = 0
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        where = np.flatnonzero(block)
        total += digest_of(where + start, block[where])
    return total & 0xFFFFFFFFFFFFFFFF


def scatter_steps(
    data: NDArray[np.float32], index: NDArray[np.uint8], out: NDArray[np.float32]
) -> int:
    values = np.flatnonzero(index)
    steps = np.where(index == 0, np.int64(255), index.astype(np.int64))
    cells = np.cumsum(steps)[values] - 1
    fits = cells.size == data.size and (index.size == 0 or index[-1] != 0)
    if not fits or (cells.size and cells[-1] >= out.size):
        raise ValueError(_DAMAGED)
    flat = out.reshape(-1)
    flat[...] = 0
    flat[cells] = data
    return digest_of(cells, data.view(np.uint32))


def scatter_packed(
    steps: Buffer,
    codes: Buffer,
    per_byte: int,
    values: Buffer,
    out: Buffer,
    first: int,
) -> int:
    steps, codes = _array(steps, np.uint8), _array(codes, np.uint8)
    values, flat = _array(values, np.float32), _array(out, np.float32)
    entries, symbols = steps.size, values.size
    if per_byte == 0:
        picks = codes[:entries] | codes[entries:].astype(np.uint32) << np.uint32(8)
        valid = codes.size == 2 * entries
    else:
        wide = codes.astype(np.int64)
        digits = [wide // symbols**i % symbols for i in range(per_byte)]
        picks = np.stack(digits, axis=1).reshape(-1)[:entries].astype(np.uint32)
        valid = codes.size == -(-entries // per_byte)
        valid &= int(codes.max(initial=0)) < symbols**per_byte <= 256 and per_byte <= 4
    cells = np.cumsum(steps.astype(np.int64) + 1) - 1
    if not valid or picks.max(initial=0) >= symbols or cells.max(initial=0) >= flat.size:
        raise ValueError(_DAMAGED)
    flat[...] = 0
    flat[cells] = values[picks]
    return digest_of(cells + first, flat[cells].view(np.uint32))


def write_packed(
    steps: Buffer,
    codes: Buffer,
    per_byte: int,
    values: Buffer,
    descriptor: int,
    offset: int,
    count: int,
    first: int,
) -> int:
    out = np.empty(count, np.float32)
    digest = scatter_packed(steps, codes, per_byte, values, out, first)
    content = memoryview(out.tobytes())
    while content:
        written = os.pwrite(descriptor, content[:_BLOCK], offset)
        content, offset = content[written:], offset + written
    return digest


def values_of_levels(
    cells: NDArray[np.float32], positive: NDArray[np.float32], negative: NDArray[np.float32]
) -> None:
    levels = cells.view(np.int32)
    if levels.max(initial=0) > positive.size or -int(levels.min(initial=0)) > negative.size:
        raise ValueError(_DAMAGED)
    table = np.concatenate((negative[::-1], np.zeros(1, np.float32), positive))
    cells[...] = table[levels + negative.size]


# ---- planes.c ----


def join_planes(planes: bytes) -> bytes:
    out = bytearray(planes)
    groups = len(planes) // 4
    for byte in range(4):
        out[byte : 4 * groups : 4] = planes[byte * groups : (byte + 1) * groups]
    return bytes(out)


# ---- mixing.c ----


@cache
def _tables() -> tuple[list[int], list[int], list[int], list[int]]:
    squash = [0] * (2 * LOGIT_MAX + 1)
    power = 1 << 32
    for i in range(LOGIT_MAX + 1):
        p = min((1 << 48) // ((1 << 32) + power), 65535)
        squash[LOGIT_MAX + i] = p
        squash[LOGIT_MAX - i] = 65536 - p
        power = power * 4278222805 >> 32
    stretch_fine, stretch_coarse, fine, coarse = [], [], 0, 0
    for i in range(4096):
        while fine < 2 * LOGIT_MAX and squash[fine] < i:
            fine += 1
        while coarse < 2 * LOGIT_MAX and squash[coarse] < 16 * i + 8:
            coarse += 1
        stretch_fine.append(fine - LOGIT_MAX)
        stretch_coarse.append(coarse - LOGIT_MAX)
    return squash, stretch_fine, stretch_coarse, [131072 // (2 * n + 3) for n in range(NEVER + 1)]


def _stretch(p22: int) -> int:
    _, fine, coarse, _ = _tables()
    p = p22 >> 6
    if p < 4096:
        return fine[p]
    if p > 65536 - 4096:
        return -fine[65536 - p]
    return coarse[p >> 4]


def _clamp(value: int, low: int, high: int) -> int:
    return low if value < low else min(value, high)


class _Coder:
    """The binary range coder; a decoder when it is given a stream."""

    def __init__(self, stream: bytes | None = None) -> None:
        self.low, self.high, self.code, self.position = 0, _MASK32, 0, 0
        self.out = bytearray()
        self.stream = stream
        if stream is not None:
            for _ in range(4):
                self._shift_in()

    def _shift_in(self) -> None:
        assert self.stream is not None
        byte = self.stream[self.position] if self.position < len(self.stream) else 0
        self.code = (self.code << 8 | byte) & _MASK32
        self.position += 1

    def bit(self, bit: int, p16: int) -> int:
        span = self.high - self.low
        middle = self.low + (span >> 16) * p16 + ((span & 65535) * p16 >> 16)
        if self.stream is not None:
            bit = int(self.code <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while (self.low ^ self.high) >> 24 == 0:
            if self.stream is not None:
                self._shift_in()
            else:
                self.out.append(self.high >> 24)
            self.low = self.low << 8 & _MASK32
            self.high = (self.high << 8 | 255) & _MASK32
        return bit

    def last_bytes(self) -> tuple[int, int]:
        for count in range(4):
            kept = self.high >> (32 - 8 * count) << (32 - 8 * count)
            if kept >= self.low:
                return kept, count
        return self.high, 4


# An estimate is a list [probability, observations]: the loops below are slow enough.
_Estimate = list[int]


def _observe(e: _Estimate, bit: int, limit: int) -> None:
    rates = _tables()[3]
    e[0] += ((bit << 22) - e[0]) * rates[e[1]] >> 16
    if e[1] < limit:
        e[1] += 1


class _Mixture:
    def __init__(self, base: int) -> None:
        self.base = base
        self.inputs: list[int] = []
        self.sources: list[tuple[_Estimate, int] | None] = []

    def add_value(self, p22: int) -> None:
        self.inputs.append(_stretch(p22) - self.base)
        self.sources.append(None)

    def add(self, source: _Estimate, limit: int = NEVER) -> None:
        self.inputs.append(_stretch(source[0]) - self.base)
        self.sources.append((source, limit))

    def code(self, coder: _Coder, bit: int, a: list[int], b: list[int], rate: int) -> int:
        total = sum(x * (a[i] + b[i]) for i, x in enumerate(self.inputs))
        logit = _clamp(self.base + (total >> 16), -LOGIT_MAX, LOGIT_MAX)
        p16 = _tables()[0][LOGIT_MAX + logit]
        bit = coder.bit(bit, p16)
        error = rate * ((bit << 16) - p16)
        for i, x in enumerate(self.inputs):
            step = (x * error + (1 << 17)) >> 18
            a[i] = _clamp(a[i] + step, -(1 << 24), 1 << 24)
            b[i] = _clamp(b[i] + step, -(1 << 24), 1 << 24)
            source = self.sources[i]
            if source is not None:
                _observe(source[0], bit, source[1])
        return bit


@dataclass
class _Line:
    zero: _Estimate
    sign: _Estimate
    mean: int = 0
    count: int = 0

    def learn_size(self, size: int, guesses: int, limit: int) -> None:
        scaled = min(size, 4000) * 16
        self.count += 1
        if self.count == 1:
            self.mean = (scaled + 16 * guesses) // (1 + guesses)
        else:
            weight = self.count + guesses if self.count < limit else limit
            self.mean += (scaled - self.mean) // weight


def _estimates(count: int, p: int, n: int) -> list[_Estimate]:
    return [[p, n] for _ in range(count)]


@dataclass
class _Model:
    prior: int
    all: _Estimate = field(init=False)

    def __post_init__(self) -> None:
        self.all = [self.prior, 30]
        zero = {"near": 64, "column_near": 256, "column_row": 128, "strided": 64}
        zero |= {"size_near": 128, "recent": 96, "row_near": 256, "size_column": 256}
        self.zero = {name: _estimates(size, self.prior, 5) for name, size in zero.items()}
        self.sign_near = _estimates(9, HALF, 1)
        self.sign_strided = _estimates(81, HALF, 1)
        self.sign_far = _estimates(81, HALF, 1)
        self.unary = _estimates(UNARY_SETS * 2, HALF, 0)
        self.by = [_estimates(256, HALF, 1) for _ in range(6)]
        self.low = _estimates(16 * 2 * 256, HALF, 2)
        self.gamma = _estimates(32, HALF, 2)
        self.zero_weights = [[8000] * 12 for _ in range(16)]
        self.zero_weights_near = [[0] * 12 for _ in range(8)]
        self.sign_weights = ([10000] * 12, [0] * 12)
        self.size_weights = [[14000] * 12 for _ in range(UNARY_SETS)]
        self.size_weights_all = [0] * 12


_EDGES = (0, 16, 18, 20, 23, 27, 32, 38, 46, 56, 70, 90, 128, 200, 400)


def _size_class(mean: int) -> int:
    return sum(mean > edge for edge in _EDGES)


def _sign_of(level: int) -> int:
    return 2 if level > 0 else int(level < 0)


def _code_size(
    coder: _Coder,
    size: int,
    negative: int,
    low_bits: int,
    largest: Sequence[int],
    m: _Model,
    by: Sequence[int],
) -> int:
    value = size - 1
    high = value >> low_bits
    count = 0
    while count < UNARY:
        unary_set = min(count, UNARY_SETS - 1)
        mix = _Mixture(0)
        mix.add(m.unary[unary_set * 2 + negative])
        for estimates, context in zip(m.by, by, strict=True):
            mix.add(estimates[unary_set * 16 + context])
        if not mix.code(coder, int(count < high), m.size_weights[unary_set], m.size_weights_all, 4):
            break
        count += 1
    if count == UNARY:
        rest = max(high - UNARY + 1, 1)
        bits = rest.bit_length()
        for i in range(1, 22):
            more = coder.bit(int(i < bits), m.gamma[i][0] >> 6)
            _observe(m.gamma[i], more, 30)
            if not more:
                bits = i
                break
        else:
            raise ValueError(_DAMAGED)
        seen = 1
        for i in reversed(range(bits - 1)):
            seen = seen << 1 | coder.bit(rest >> i & 1, 32768)
        count += seen - 1
    node, low_set = 1, min(count, 15) * 2 + negative
    for i in reversed(range(low_bits)):
        estimate = m.low[low_set * 256 + node]
        bit = coder.bit(value >> i & 1, _clamp(estimate[0] >> 6, 32, 65504))
        _observe(estimate, bit, NEVER)
        node = node << 1 | bit
    size = (count << low_bits | (node - (1 << low_bits))) + 1
    if size > largest[negative]:
        raise ValueError(_DAMAGED)
    return size


def _walk(
    coder: _Coder,
    levels: NDArray[np.int32],
    stride: int,
    prior_logit: int,
    low_bits: int,
    largest: Sequence[int],
) -> None:
    """Encode `levels`, or fill them in; int32 of shape (rows, cols) as it is walked."""
    decode = coder.stream is not None
    rows, cols = levels.shape
    squash = _tables()[0]
    prior = squash[LOGIT_MAX + _clamp(prior_logit, -LOGIT_MAX, LOGIT_MAX)] << 6
    m = _Model(prior)
    z = m.zero
    margin = stride + 1
    column = [_Line([prior, 6], [HALF, 5]) for _ in range(cols + 2 * margin)]
    # Two rows back, with zeros beyond the edges, is all that the contexts look at.
    pad = 2 * margin + 1
    above2, above = [0] * (cols + 2 * pad), [0] * (cols + 2 * pad)
    for r in range(rows):
        row = _Line([prior, 10], [HALF, 4])
        now = [0] * (cols + 2 * pad)
        history = 0
        age = r if r < 8 else 8 + min(r.bit_length() - 4, 6)
        for k in range(cols):
            x = k + pad
            left, left2 = now[x - 1], now[x - 2]
            up, up_left, up_right, up2 = above[x], above[x - 1], above[x + 1], above2[x]
            near_stride = stride_left = stride_right = stride2 = 0
            if stride > 1:
                near_stride, stride_left = now[x - stride], now[x - stride - 1]
                stride_right, stride2 = now[x - stride + 1], now[x - 2 * stride]
            here, west, east = (column[margin + k + i] for i in (0, -1, 1))
            north, south = column[margin + k - stride], column[margin + k + stride]

            beside = (west.zero[0] + east.zero[0]) >> 1
            if stride > 1:
                beside = (2 * beside + north.zero[0] + south.zero[0]) >> 2
            base = _stretch(m.all[0])
            by_column = _clamp((_stretch(here.zero[0]) - base + 384) // 96, 0, 15)
            by_row = _clamp((_stretch(row.zero[0]) - base + 256) // 64, 0, 7)
            by_beside = _clamp((_stretch(beside) - base + 384) // 80, 0, 15)
            flags = (left, left2, up, up_right, up_left, up2)
            stride_flags = (near_stride, stride_right, stride_left, stride2, left, left2)
            sizes = 2 * abs(left) + abs(up) + 2 * abs(near_stride) + abs(up_right) // 2
            sizes += abs(up_left) // 2 + abs(stride_right) + abs(stride_left)
            mix = _Mixture(base)
            mix.add(here.zero, 500)
            mix.add(row.zero, 120)
            mix.add_value(beside)
            mix.add(z["near"][sum((v != 0) << i for i, v in enumerate(flags))])
            mix.add(z["column_near"][by_column * 16 + by_beside])
            mix.add(z["column_row"][by_column * 8 + by_row])
            mix.add(z["strided"][sum((v != 0) << i for i, v in enumerate(stride_flags))])
            mix.add(z["size_near"][min(sizes.bit_length(), 7) * 16 + by_beside])
            lately, long = (history & 255).bit_count(), history.bit_count()
            mix.add(z["recent"][min(lately, 5) * 16 + min(long, 15)])
            mix.add(z["row_near"][(by_row * 16 + by_beside) * 2 + (left != 0)])
            mix.add(z["size_column"][_size_class(here.mean) * 16 + by_column])
            near = (left != 0) + 2 * (up != 0) + 4 * (near_stride != 0)
            level = 0 if decode else int(levels[r, k])
            weights = m.zero_weights[age], m.zero_weights_near[near]
            bit = mix.code(coder, int(level != 0), *weights, 4)
            _observe(m.all, bit, NEVER)
            history = (history << 1 | bit) & _MASK32
            if not bit:
                levels[r, k] = 0
                continue

            beside = (west.sign[0] + east.sign[0]) >> 1
            if stride > 1:
                beside = (2 * beside + north.sign[0] + south.sign[0]) >> 2
            mix = _Mixture(0)
            mix.add(here.sign)
            mix.add(row.sign, 250)
            mix.add_value(beside)
            mix.add(m.sign_near[_sign_of(left) * 3 + _sign_of(up)])
            strided = _sign_of(near_stride) * 27 + _sign_of(left) * 9
            mix.add(m.sign_strided[strided + _sign_of(stride_right) * 3 + _sign_of(stride_left)])
            far = _sign_of(left2) * 27 + _sign_of(up_right) * 9
            mix.add(m.sign_far[far + _sign_of(up_left) * 3 + _sign_of(up2)])
            negative = mix.code(coder, int(level < 0), *m.sign_weights, 16)

            columns = (west.mean + east.mean) >> 1
            if stride > 1:
                columns = (2 * columns + north.mean + south.mean) >> 2
            by = (
                _size_class(here.mean),
                _size_class(row.mean),
                min((abs(left) + abs(up)).bit_length(), 7) * 2 + negative,
                min((abs(left) + abs(near_stride)).bit_length(), 7) * 2 + negative,
                by_column,
                _size_class(columns),
            )
            size = _code_size(coder, abs(level), negative, low_bits, largest, m, by)
            now[x] = levels[r, k] = -size if negative else size
            here.learn_size(size, 2, 40)
            row.learn_size(size, 0, 30)
        above2, above = above, now


def _view(matrix: NDArray[Any], transposed: bool, rows: int, cols: int) -> NDArray[np.int32]:
    cells: NDArray[np.int32] = matrix.reshape(-1).view(np.int32)
    return cells.reshape(cols, rows).T if transposed else cells.reshape(rows, cols)


def mixing_encode(
    matrix: NDArray[np.int32],
    transposed: bool,
    rows: int,
    cols: int,
    stride: int,
    prior: int,
    low_bits: int,
    *largest: int,
) -> bytes:
    coder = _Coder()
    levels = _view(matrix.copy(), transposed, rows, cols)
    _walk(coder, levels, stride, prior, low_bits, largest)
    last, count = coder.last_bytes()
    return bytes(coder.out) + last.to_bytes(4, "big")[:count]


def mixing_decode(
    stream: Any,  # noqa: ANN401  # any buffer of bytes
    matrix: NDArray[Any],
    transposed: bool,
    rows: int,
    cols: int,
    stride: int,
    prior: int,
    low_bits: int,
    *largest: int,
) -> None:
    coder = _Coder(bytes(stream))
    _walk(coder, _view(matrix, transposed, rows, cols), stride, prior, low_bits, largest)
    last, count = coder.last_bytes()
    if coder.code != last or len(stream) != coder.position - 4 + count:
        raise ValueError(_DAMAGED)
