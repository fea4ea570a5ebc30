"""Least decoding time: steps and packed symbols under Zstandard, scattered straight into place.

The weights become levels (`quantize`). For each chunk of the row-major matrix two Zstandard frames
follow: the steps to the next entry, less 1, one a byte; and the entries' symbols, two to four of
them in a byte where so few occur (Huffman codes spend at least a bit on each byte, so packing also
saves). Symbol 0 decodes to 0: it bridges steps over 256, so that the scatter needs no branch. A
chunk decodes on its own, into its own part of the output: on as many threads as the caller likes.

Decoding is Zstandard's Huffman decoder and one pass over the output (``native/scatter.c``), which
sums the layer's digest on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import BoundedCodec, Float32, UInt8, as_bytes
from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.codecs.quantize import FINE, MAX_CELLS, Levels, Quantizer, quantize
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.codecs.zstd import compress, decompress
from deepsz_caffe.errors import CodecError

#: entries that a chunk should have: enough to pay for a frame, few enough to stay in the cache
_ENTRIES = 1 << 18
_LONGEST_STEP = 256
#: Level 1 suits symbols that are close to random bytes, 13 skips matches that cost more than they
#: save where the symbols are few.
_LEVELS = (1, 13)
#: chunks for which every level is tried
_TRIALS = 4


@dataclass(frozen=True)
class _Layout:
    """What the header says: the quantizer, levels of either sign, symbols a byte, cells a chunk."""

    quantizer: Quantizer
    positives: int
    negatives: int
    per_byte: int
    log_cells: int

    @property
    def symbols(self) -> Float32:
        """The value of every symbol: 0, the positive levels', the negative levels'."""
        positive = self.quantizer.table(0)[: self.positives]
        negative = self.quantizer.table(1)[: self.negatives]
        return np.concatenate((np.zeros(1, np.float32), positive, negative))

    def pack(self) -> bytes:
        first, second = (offset + FINE for offset in self.quantizer.offsets)
        levels = self.positives, self.negatives
        return pack_varints(
            (self.quantizer.cells, first, second, *levels, self.per_byte, self.log_cells)
        )

    @classmethod
    def unpack(cls, view: memoryview, bound: float) -> tuple[_Layout, memoryview]:
        numbers, rest = unpack_varints(view, 7)
        cells, first, second, positives, negatives, per_byte, log_cells = numbers
        if (
            not 1 <= cells < MAX_CELLS
            or not FINE // 2 < min(first, second) <= max(first, second) <= FINE * (MAX_CELLS + 1)
            or positives + negatives > 65535
            or per_byte > 4
            or log_cells > 40
        ):
            raise CodecError("packed: the header is damaged")
        quantizer = Quantizer(bound, cells, (first - FINE, second - FINE))
        return cls(quantizer, positives, negatives, per_byte, log_cells), rest


class Packed(BoundedCodec):
    """Packed symbols under Zstandard; re-sparsifies what lies within the bound of 0.

    Parameters
    ----------
    bound
        Largest absolute error.
    shape
        See `ArrayCodec`.
    """

    codec_id = "deepsz-packed"
    rank = 2

    def encode(self, buf: object) -> bytes:
        """Encode float32 weights of shape (rows, cols), at least one.

        Raises
        ------
        CodecError
            NaN, infinity, or a bound too small for weights of this size (over 65,535 levels).
        """
        weights = self.source(buf).reshape(-1)
        cells = np.flatnonzero(weights != 0)  # of booleans it is much quicker than of floats
        values = weights[cells]
        quantizer, levels = quantize(values, self.bound)
        self.verify(values, quantizer.values(levels))
        cells, levels = cells[levels != 0], levels[levels != 0]
        layout = _layout(quantizer, levels, weights.size)
        parts = [layout.pack()]
        best: tuple[list[int], list[int]] = [], []  # levels, of steps and of symbols
        for steps, symbols in _chunks(cells, levels, layout, weights.size):
            frames = []
            if steps.size:
                for content, won in zip((steps, _pack_symbols(symbols, layout)), best, strict=True):
                    # Where the first chunks agree, the others are taken to be like them.
                    trials = _LEVELS if len(won) < _TRIALS else sorted(set(won))
                    frame, level = min(_frames(content, trials), key=_length)
                    frames.append(frame)
                    won.append(level)
            parts += [pack_varints((steps.size, *map(len, frames))), *frames]
        return b"".join(parts)

    def decode(self, buf: object, out: object = None, executor: Executor | None = None) -> Float32:
        """Decode into `out`, float32 of shape (rows, cols), chunks in parallel on `executor`.

        The executor must run threads: the chunks write to the same array.
        """
        target: Float32 = self.target(out)
        self.decode_with_digest(buf, target, executor)
        return target

    def decode_with_digest(self, buf: object, out: object, executor: Executor | None = None) -> int:
        """Decode as `decode` does and return the `weights_digest` of what was written."""
        target: Float32 = self.target(out).reshape(-1)
        layout, rest = _Layout.unpack(as_bytes(buf), self.bound)
        values = layout.symbols

        def decode_chunk(chunk: tuple[int, int, memoryview, memoryview]) -> int:
            start, entries, *frames = chunk
            stop = min(start + (1 << layout.log_cells), target.size)
            return _decode_chunk(target[start:stop], start, entries, frames, layout, values)

        apply: Callable[..., Iterable[int]] = executor.map if executor else map
        chunks = list(_read_chunks(rest, layout, target.size))
        return sum(apply(decode_chunk, chunks)) & 0xFFFFFFFFFFFFFFFF


def _layout(quantizer: Quantizer, levels: Levels, cells: int) -> _Layout:
    positives, negatives = int(levels.max(initial=0)), -int(levels.min(initial=0))
    symbols = 1 + positives + negatives
    if symbols > 65536:
        raise CodecError(f"an error bound of {quantizer.bound:.3g} gives too many levels")
    per_byte = next((n for n in (4, 3, 2, 1) if symbols**n <= 256), 0)
    # The nearest power of two, as integers give it, to the cells that hold enough entries.
    wanted = cells * _ENTRIES // max(levels.size, 1)
    return _Layout(quantizer, positives, negatives, per_byte, max(wanted, 1).bit_length() - 1)


def _chunks(
    cells: NDArray[np.int64], levels: Levels, layout: _Layout, count: int
) -> Iterator[tuple[UInt8, NDArray[np.uint16]]]:
    """Yield each chunk's steps less 1 and its symbols, long steps bridged by symbols 0."""
    starts = np.arange(0, count, 1 << layout.log_cells)
    edges = np.append(np.searchsorted(cells, starts), cells.size)
    for start, first, last in zip(starts, edges[:-1], edges[1:], strict=True):
        steps = np.diff(cells[first:last], prepend=start - 1) - 1
        bridges = steps // _LONGEST_STEP
        ends = np.cumsum(bridges + 1) - 1
        bridged = np.full(last - first + int(bridges.sum()), _LONGEST_STEP - 1, np.uint8)
        symbols = np.zeros(bridged.size, np.uint16)
        bridged[ends] = steps % _LONGEST_STEP
        part = levels[first:last]
        symbols[ends] = np.where(part > 0, part, layout.positives - part)
        yield bridged, symbols


def _pack_symbols(symbols: NDArray[np.uint16], layout: _Layout) -> UInt8:
    if layout.per_byte == 0:
        return np.concatenate((symbols & 255, symbols >> 8)).astype(np.uint8)
    base, per_byte = 1 + layout.positives + layout.negatives, layout.per_byte
    padded = np.zeros(-(-symbols.size // per_byte) * per_byte, np.uint16)
    padded[: symbols.size] = symbols
    digits = padded.reshape(-1, per_byte)
    packed: UInt8 = (digits * base ** np.arange(per_byte)).sum(axis=1).astype(np.uint8)
    return packed


def _frames(content: UInt8, levels: Iterable[int]) -> Iterator[tuple[bytes, int]]:
    """Yield the Zstandard frame at each of the levels, with its level."""
    for level in levels:
        yield compress(content, level), level


def _length(frame: tuple[bytes, int]) -> int:
    return len(frame[0])


def _read_chunks(
    rest: memoryview, layout: _Layout, count: int
) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Yield each chunk's first cell, number of entries and two frames; check that no byte is left.

    A header that asks for a great many empty chunks costs a byte each, so this ends soon.
    """
    size = 1 << layout.log_cells
    for start in range(0, count, size):
        (entries,), rest = unpack_varints(rest, 1)
        if entries > min(size, count - start):
            raise CodecError("packed: a chunk has more entries than cells")
        first = second = 0
        if entries:
            (first, second), rest = unpack_varints(rest, 2)
        if first + second > len(rest):
            raise CodecError("packed: the stream is truncated")
        yield start, entries, rest[:first], rest[first : first + second]
        rest = rest[first + second :]
    if rest:
        raise CodecError("packed: something follows the last chunk")


def _decode_chunk(
    out: Float32,
    start: int,
    entries: int,
    frames: list[memoryview],
    layout: _Layout,
    values: Float32,
) -> int:
    per_byte = layout.per_byte
    size = -(-entries // per_byte) if per_byte else 2 * entries
    content = np.empty(entries + size, np.uint8)
    steps, codes = content[:entries], content[entries:]
    if entries:
        decompress(frames[0], steps)
        decompress(frames[1], codes)
    try:
        return int(kernels.scatter_packed(steps, codes, per_byte, values, out, start))
    except ValueError as error:
        raise CodecError(f"packed: {error}") from error
