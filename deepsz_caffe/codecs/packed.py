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

import math
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32, MatrixCodec, Part, UInt8, as_bytes
from deepsz_caffe.codecs.frames import compress
from deepsz_caffe.codecs.packed_stream import LEAST_LOG_CELLS, Layout, PackedStream
from deepsz_caffe.codecs.quantize import Levels, Quantizer, TightBoundError, quantize
from deepsz_caffe.codecs.varint import pack_varints

#: entries that a chunk should have: enough to pay for a frame, few enough to stay in the cache
_ENTRIES = 1 << LEAST_LOG_CELLS
_LONGEST_STEP = 256
#: Level 1 suits symbols that are close to random bytes, 13 skips matches that cost more than they
#: save where the symbols are few.
_LEVELS = (1, 13)
#: chunks for which every level is tried
_TRIALS = 4


class Packed(MatrixCodec):
    """Packed symbols under Zstandard; re-sparsifies what lies within the bound of 0.

    Parameters
    ----------
    bound
        Largest absolute error.
    shape
        See `ArrayCodec`.
    """

    codec_id = "deepsz-packed"
    value_seconds = 2e-7

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

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (rows, cols)."""
        target: Float32 = self.target(out)
        flat = target.reshape(-1)
        for part in self.parts(buf, target.shape):
            part.decode(flat[part.start : part.start + part.cells])
        return target

    def parts(self, buf: object, shape: tuple[int, ...]) -> Iterator[Part]:
        """Yield the chunks; see `MatrixCodec.parts`."""
        stream = PackedStream(as_bytes(buf), self.bound, math.prod(shape))
        for chunk in stream.chunks:
            yield Part(chunk.start, chunk.cells, partial(stream.decode, chunk))

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`; a step and two bytes of a symbol for each weight are the most."""
        return 3 * math.prod(shape)


def _layout(quantizer: Quantizer, levels: Levels, cells: int) -> Layout:
    positives, negatives = int(levels.max(initial=0)), -int(levels.min(initial=0))
    symbols = 1 + positives + negatives
    if symbols > 65536:
        raise TightBoundError(f"an error bound of {quantizer.bound:.3g} gives too many levels")
    per_byte = next((n for n in (4, 3, 2, 1) if symbols**n <= 256), 0)
    # The nearest power of two, as integers give it, to the cells that hold enough entries.
    wanted = cells * _ENTRIES // max(levels.size, 1)
    return Layout(quantizer, positives, negatives, per_byte, max(wanted, 1).bit_length() - 1)


def _chunks(
    cells: NDArray[np.int64], levels: Levels, layout: Layout, count: int
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


def _pack_symbols(symbols: NDArray[np.uint16], layout: Layout) -> UInt8:
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
