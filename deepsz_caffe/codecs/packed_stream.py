"""The stream of `Packed`, as it is decoded; `deepsz_caffe.codecs.packed` says what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.digest import Tally
from deepsz_caffe.codecs.frames import decompress
from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.codecs.quantize import FINE, MAX_CELLS, Quantizer
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.errors import CodecError

#: log2 of the cells that a chunk has at least: all of them non-zeros, they fill it
LEAST_LOG_CELLS = 18


@dataclass(frozen=True)
class Layout:
    """What the header says: the quantizer, levels of either sign, symbols a byte, cells a chunk."""

    quantizer: Quantizer
    positives: int
    negatives: int
    per_byte: int
    log_cells: int

    @property
    def symbols(self) -> NDArray[np.float32]:
        """The value of every symbol: 0, the positive levels', the negative levels'."""
        sides = enumerate((self.positives, self.negatives))
        tables = [self.quantizer.table(side)[:count] for side, count in sides]
        return np.concatenate((np.zeros(1, np.float32), *tables))

    def pack(self) -> bytes:
        """Return the header."""
        first, second = (offset + FINE for offset in self.quantizer.offsets)
        levels = self.positives, self.negatives
        return pack_varints(
            (self.quantizer.cells, first, second, *levels, self.per_byte, self.log_cells)
        )

    @classmethod
    def unpack(cls, view: memoryview, bound: float) -> tuple[Layout, memoryview]:
        """Read a header and return it with the bytes that follow."""
        numbers, rest = unpack_varints(view, 7)
        cells, first, second, positives, negatives, per_byte, log_cells = numbers
        if (
            not 1 <= cells < MAX_CELLS
            or not FINE // 2 < min(first, second) <= max(first, second) <= FINE * (MAX_CELLS + 1)
            or positives + negatives > 65535
            or per_byte > 4
            or not LEAST_LOG_CELLS <= log_cells <= 40
        ):
            raise CodecError("packed: the header is damaged")
        quantizer = Quantizer(bound, cells, (first - FINE, second - FINE))
        return cls(quantizer, positives, negatives, per_byte, log_cells), rest


@dataclass(frozen=True)
class CellRange:
    """Some cells of a matrix, from `start` on, and the two frames of their entries."""

    start: int
    cells: int
    entries: int
    steps: memoryview
    codes: memoryview


class PackedStream:
    """A stream that was read but not decoded.

    Parameters
    ----------
    view
        The bytes.
    bound
        Largest absolute error.
    cells
        Weights of the matrix, zeros included.

    Attributes
    ----------
    symbols : float32[n]
        The value of every symbol; of symbol 0 it is 0.
    chunks : tuple of CellRange
        They cover the matrix, in order.

    Raises
    ------
    CodecError
        The stream is damaged.
    """

    def __init__(self, view: memoryview, bound: float, cells: int) -> None:
        self._layout, rest = Layout.unpack(view, bound)
        self.symbols = self._layout.symbols
        self.chunks = tuple(_read_chunks(rest, 1 << self._layout.log_cells, cells))

    def decode(self, chunk: CellRange, out: NDArray[np.float32]) -> Tally:
        """Decode a chunk into `out`, of its size; return its part of the matrix's tally.

        Raises
        ------
        CodecError
            The chunk is damaged.
        """
        entries = self.entries(chunk)
        try:
            return Tally(*kernels.scatter_packed(*entries, self.symbols, out, chunk.start))
        except ValueError as error:
            raise CodecError(f"packed: {error}") from error

    def entries(self, chunk: CellRange) -> tuple[bytes, bytes, int]:
        """Decompress a chunk: its steps, its symbols as they are stored, and how many a byte holds.

        Raises
        ------
        CodecError
            The chunk is damaged.
        """
        per_byte = self._layout.per_byte
        steps = codes = b""
        if chunk.entries:
            size = -(-chunk.entries // per_byte) if per_byte else 2 * chunk.entries
            steps, codes = decompress(chunk.steps, chunk.entries), decompress(chunk.codes, size)
        return steps, codes, per_byte


def _read_chunks(rest: memoryview, size: int, count: int) -> Iterator[CellRange]:
    """Yield the chunks, of `size` cells each; check that no byte is left."""
    for start in range(0, count, size):
        cells = min(size, count - start)
        (entries,), rest = unpack_varints(rest, 1)
        if entries > cells:
            raise CodecError("packed: a chunk has more entries than cells")
        first = second = 0
        if entries:
            (first, second), rest = unpack_varints(rest, 2)
        if first + second > len(rest):
            raise CodecError("packed: the stream is truncated")
        yield CellRange(start, cells, entries, rest[:first], rest[first : first + second])
        rest = rest[first + second :]
    if rest:
        raise CodecError("packed: something follows the last chunk")
