"""The context-mixing coder in Python: the twin of ``native/mixing.c``, which explains it.

The one place here with a Python loop over weights, because each of the coder's decisions depends on
all before it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOGIT_MAX = 2815
HALF = 1 << 21
UNARY = 24
UNARY_SETS = 16
NEVER = 1000
_MASK32 = 0xFFFFFFFF
_DAMAGED = "the stream is damaged"


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

    def __init__(self, stream: bytes | memoryview | None = None) -> None:
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


class _Estimates:
    """Estimates of one kind: probabilities and observations, in arrays as C has them."""

    def __init__(self, count: int, p: int, n: int) -> None:
        self.p = array("I", [p]) * count
        self.n = array("I", [n]) * count

    def observe(self, i: int, bit: int, limit: int) -> None:
        n = self.n[i]
        self.p[i] += (((bit << 22) - self.p[i]) * _tables()[3][n]) >> 16
        if n < limit:
            self.n[i] = n + 1


class _Mixture:
    def __init__(self, base: int) -> None:
        self.base = base
        self.inputs: list[int] = []
        self.sources: list[tuple[_Estimates, int, int] | None] = []

    def add_value(self, p22: int) -> None:
        self.inputs.append(_stretch(p22) - self.base)
        self.sources.append(None)

    def add(self, source: _Estimates, i: int, limit: int = NEVER) -> None:
        self.inputs.append(_stretch(source.p[i]) - self.base)
        self.sources.append((source, i, limit))

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
                source[0].observe(source[1], bit, source[2])
        return bit


class _Lines:
    """Rows or columns."""

    def __init__(self, count: int, zero: tuple[int, int], sign: tuple[int, int]) -> None:
        self.zero = _Estimates(count, *zero)
        self.sign = _Estimates(count, *sign)
        self.mean = array("I", [0]) * count
        self.count = array("I", [0]) * count

    def learn_size(self, i: int, size: int, guesses: int, limit: int) -> None:
        scaled = min(size, 4000) * 16
        self.count[i] += 1
        if self.count[i] == 1:
            self.mean[i] = (scaled + 16 * guesses) // (1 + guesses)
        else:
            weight = self.count[i] + guesses if self.count[i] < limit else limit
            self.mean[i] += (scaled - self.mean[i]) // weight


class _Model:
    def __init__(self, prior: int) -> None:
        self.all = _Estimates(1, prior, 30)
        zero = {"near": 64, "column_near": 256, "column_row": 128, "strided": 64}
        zero |= {"size_near": 128, "recent": 96, "row_near": 256, "size_column": 256}
        self.zero = {name: _Estimates(size, prior, 5) for name, size in zero.items()}
        self.sign_near = _Estimates(9, HALF, 1)
        self.sign_strided = _Estimates(81, HALF, 1)
        self.sign_far = _Estimates(81, HALF, 1)
        self.unary = _Estimates(UNARY_SETS * 2, HALF, 0)
        self.by = [_Estimates(256, HALF, 1) for _ in range(6)]
        self.low = _Estimates(16 * 2 * 256, HALF, 2)
        self.gamma = _Estimates(32, HALF, 2)
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


def _bits(flags: Sequence[int]) -> int:
    return sum((level != 0) << place for place, level in enumerate(flags))


class _Around(NamedTuple):
    """What lies around a cell and has been coded before it."""

    left: int
    left2: int
    up: int
    up_left: int
    up_right: int
    up2: int
    stride: int
    stride_left: int
    stride_right: int
    stride2: int


class _Places(NamedTuple):
    """Classes of a cell's column, row and neighbouring columns."""

    column: int
    row: int
    beside: int


class _Walk:
    """The state of a walk through a matrix of `cols` columns, a row at a time."""

    def __init__(
        self,
        coder: _Coder,
        cols: int,
        stride: int,
        prior_logit: int,
        low_bits: int,
        largest: Sequence[int],
    ) -> None:
        self.coder, self.cols, self.stride = coder, cols, stride
        self.low_bits, self.largest = low_bits, largest
        self.prior = _tables()[0][LOGIT_MAX + _clamp(prior_logit, -LOGIT_MAX, LOGIT_MAX)] << 6
        self.model = _Model(self.prior)
        self.margin = stride + 1
        # Columns beyond either edge are never learnt and stay at the first guess.
        self.column = _Lines(cols + 2 * self.margin, (self.prior, 6), (HALF, 5))
        # Two rows back, with zeros beyond the edges, is all that the contexts look at.
        self.pad = 2 * self.margin + 1
        self.above2, self.above, self.now = self._empty(), self._empty(), self._empty()

    def _empty(self) -> array[int]:
        return array("i", [0]) * (self.cols + 2 * self.pad)

    def code_row(self, number: int, levels: NDArray[np.int32], decode: bool) -> None:
        """Encode a row of levels, or fill it in."""
        self.row = _Lines(1, (self.prior, 10), (HALF, 4))
        self.history = 0
        self.age = number if number < 8 else 8 + min(number.bit_length() - 4, 6)
        self.above2, self.above, self.now = self.above, self.now, self._empty()
        given = array("i", bytes(4 * self.cols) if decode else levels.tobytes())
        for k in range(self.cols):
            self.now[self.pad + k] = self._code(given[k], k)
        if decode:
            levels[:] = np.frombuffer(self.now, np.int32, self.cols, 4 * self.pad)

    def _code(self, level: int, k: int) -> int:
        near, m = self._around(k + self.pad), self.model
        base = _stretch(m.all.p[0])
        here = self.margin + k
        beside = self._beside(self.column.zero.p, here)
        places = _Places(
            _clamp((_stretch(self.column.zero.p[here]) - base + 384) // 96, 0, 15),
            _clamp((_stretch(self.row.zero.p[0]) - base + 256) // 64, 0, 7),
            _clamp((_stretch(beside) - base + 384) // 80, 0, 15),
        )
        bit = self._code_zero(level, here, near, base, beside, places)
        m.all.observe(0, bit, NEVER)
        self.history = (self.history << 1 | bit) & _MASK32
        if not bit:
            return 0
        negative = self._code_sign(level, here, near)
        by = (
            _size_class(self.column.mean[here]),
            _size_class(self.row.mean[0]),
            min((abs(near.left) + abs(near.up)).bit_length(), 7) * 2 + negative,
            min((abs(near.left) + abs(near.stride)).bit_length(), 7) * 2 + negative,
            places.column,
            _size_class(self._beside(self.column.mean, here)),
        )
        size = self._code_size(abs(level), negative, by)
        self.column.learn_size(here, size, 2, 40)
        self.row.learn_size(0, size, 0, 30)
        return -size if negative else size

    def _around(self, x: int) -> _Around:
        now, above, stride = self.now, self.above, self.stride
        strided = (0, 0, 0, 0)
        if stride > 1:
            left = x - stride
            strided = (now[left], now[left - 1], now[left + 1], now[x - 2 * stride])
        return _Around(
            now[x - 1],
            now[x - 2],
            above[x],
            above[x - 1],
            above[x + 1],
            self.above2[x],
            *strided,
        )

    def _beside(self, values: array[int], here: int) -> int:
        """Mean of the neighbouring columns'."""
        mean = (values[here - 1] + values[here + 1]) >> 1
        if self.stride > 1:
            mean = (2 * mean + values[here - self.stride] + values[here + self.stride]) >> 2
        return mean

    def _code_zero(
        self, level: int, here: int, near: _Around, base: int, beside: int, by: _Places
    ) -> int:
        m, z = self.model, self.model.zero
        flags = (near.left, near.left2, near.up, near.up_right, near.up_left, near.up2)
        strided = (near.stride, near.stride_right, near.stride_left, near.stride2)
        sizes = 2 * abs(near.left) + abs(near.up) + 2 * abs(near.stride)
        sizes += abs(near.up_right) // 2 + abs(near.up_left) // 2
        sizes += abs(near.stride_right) + abs(near.stride_left)
        mix = _Mixture(base)
        mix.add(self.column.zero, here, 500)
        mix.add(self.row.zero, 0, 120)
        mix.add_value(beside)
        mix.add(z["near"], _bits(flags))
        mix.add(z["column_near"], by.column * 16 + by.beside)
        mix.add(z["column_row"], by.column * 8 + by.row)
        mix.add(z["strided"], _bits((*strided, near.left, near.left2)))
        mix.add(z["size_near"], min(sizes.bit_length(), 7) * 16 + by.beside)
        lately, long = (self.history & 255).bit_count(), self.history.bit_count()
        mix.add(z["recent"], min(lately, 5) * 16 + min(long, 15))
        mix.add(z["row_near"], (by.row * 16 + by.beside) * 2 + (near.left != 0))
        mix.add(z["size_column"], _size_class(self.column.mean[here]) * 16 + by.column)
        set_ = _bits((near.left, near.up, near.stride))
        weights = m.zero_weights[self.age], m.zero_weights_near[set_]
        return mix.code(self.coder, int(level != 0), *weights, 4)

    def _code_sign(self, level: int, here: int, near: _Around) -> int:
        m = self.model
        mix = _Mixture(0)
        mix.add(self.column.sign, here)
        mix.add(self.row.sign, 0, 250)
        mix.add_value(self._beside(self.column.sign.p, here))
        mix.add(m.sign_near, _sign_of(near.left) * 3 + _sign_of(near.up))
        strided = _sign_of(near.stride) * 27 + _sign_of(near.left) * 9
        strided += _sign_of(near.stride_right) * 3 + _sign_of(near.stride_left)
        mix.add(m.sign_strided, strided)
        far = _sign_of(near.left2) * 27 + _sign_of(near.up_right) * 9
        mix.add(m.sign_far, far + _sign_of(near.up_left) * 3 + _sign_of(near.up2))
        return mix.code(self.coder, int(level < 0), *m.sign_weights, 16)

    def _code_size(self, size: int, negative: int, by: Sequence[int]) -> int:
        m, value = self.model, size - 1
        high = value >> self.low_bits
        count = 0
        while count < UNARY:
            unary_set = min(count, UNARY_SETS - 1)
            mix = _Mixture(0)
            mix.add(m.unary, unary_set * 2 + negative)
            for estimates, context in zip(m.by, by, strict=True):
                mix.add(estimates, unary_set * 16 + context)
            weights = m.size_weights[unary_set], m.size_weights_all
            if not mix.code(self.coder, int(count < high), *weights, 4):
                break
            count += 1
        if count == UNARY:
            count += self._code_gamma(max(high - UNARY + 1, 1)) - 1
        node, low_set = 1, min(count, 15) * 2 + negative
        for i in reversed(range(self.low_bits)):
            place = low_set * 256 + node
            bit = self.coder.bit(value >> i & 1, _clamp(m.low.p[place] >> 6, 32, 65504))
            m.low.observe(place, bit, NEVER)
            node = node << 1 | bit
        size = (count << self.low_bits | (node - (1 << self.low_bits))) + 1
        if size > self.largest[negative]:
            raise ValueError(_DAMAGED)
        return size

    def _code_gamma(self, rest: int) -> int:
        gamma, bits = self.model.gamma, rest.bit_length()
        for i in range(1, 22):
            more = self.coder.bit(int(i < bits), gamma.p[i] >> 6)
            gamma.observe(i, more, 30)
            if not more:
                bits = i
                break
        else:
            raise ValueError(_DAMAGED)
        seen = 1
        for i in reversed(range(bits - 1)):
            seen = seen << 1 | self.coder.bit(rest >> i & 1, 32768)
        return seen


def _view(matrix: NDArray[np.generic], transposed: bool, rows: int, cols: int) -> NDArray[np.int32]:
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
    walk = _Walk(coder, cols, stride, prior, low_bits, largest)
    for number, levels in enumerate(_view(matrix, transposed, rows, cols)):
        walk.code_row(number, levels, decode=False)
    last, count = coder.last_bytes()
    return bytes(coder.out) + last.to_bytes(4, "big")[:count]


def mixing_decode(
    stream: bytes | memoryview,
    matrix: NDArray[np.generic],
    transposed: bool,
    rows: int,
    cols: int,
    stride: int,
    prior: int,
    low_bits: int,
    *largest: int,
) -> None:
    coder = _Coder(stream)
    walk = _Walk(coder, cols, stride, prior, low_bits, largest)
    for number, levels in enumerate(_view(matrix, transposed, rows, cols)):
        walk.code_row(number, levels, decode=True)
    last, count = coder.last_bytes()
    if coder.code != last or len(stream) != coder.position - 4 + count:
        raise ValueError(_DAMAGED)
