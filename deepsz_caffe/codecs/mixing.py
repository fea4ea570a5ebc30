"""Least bytes: zeros and weights together, by one adaptive context-mixing coder.

The weights become levels (`quantize`), the levels a stream (``native/mixing.c`` describes the
model). The matrix or its transpose is walked, whichever is smaller, with or without the distance
between neighbours in another direction that the encoder found: the inputs of a first layer are
pixels, and the pixel above is 28 columns away.

About 0.1 µs a cell: for networks of LeNet's size, or where bytes count more than seconds.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32, MatrixCodec, as_bytes
from deepsz_caffe.codecs.kernels import COMPILED, kernels
from deepsz_caffe.codecs.quantize import FINE, MAX_CELLS, Levels, Quantizer, quantize
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.errors import CodecError

#: a prior is stored in steps of this many 1/256 of a logit, around 128
_PRIOR_STEP = 22
_LONGEST_STRIDE = 512
#: rows that are enough to see which columns go together
_SAMPLE = 256
#: walks are compared on this part of the rows, and at least on so many cells
_TRIED_PART, _TRIED_CELLS = 8, 1 << 14
#: … by several threads where those are more than so many
_THREADED_CELLS = 1 << 16
#: of the state: a column in either kernel, rows of the slow one included; model and tables
_COLUMN_BYTES = 28 if COMPILED else 40
_MODEL_BYTES = 1 << 18


@dataclass(frozen=True)
class Walk:
    """How the coder goes through a matrix: what the stream's header says beside the levels.

    Attributes
    ----------
    transposed
        Column by column instead of row by row.
    stride
        Cells between neighbours in another direction; 0 for none.
    prior
        Share of non-zeros to begin with: a logit in steps, plus 128.
    low_bits
        Bits of a magnitude that are coded apart from its unary part.
    """

    transposed: bool
    stride: int
    prior: int
    low_bits: int

    def arguments(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return what the kernels take for a matrix of this shape in memory."""
        rows, cols = shape[::-1] if self.transposed else shape
        prior = (self.prior - 128) * _PRIOR_STEP
        return self.transposed, rows, cols, self.stride, prior, self.low_bits


class Mixing(MatrixCodec):
    """Context mixing of a whole matrix; re-sparsifies what lies within the bound of 0.

    Parameters
    ----------
    bound
        Largest absolute error.
    shape
        See `ArrayCodec`.
    """

    codec_id = "deepsz-mixing"
    value_seconds = 2e-6 if COMPILED else 4e-4

    def encode(self, buf: object) -> bytes:
        """Encode float32 weights of shape (rows, cols), at least one.

        Raises
        ------
        CodecError
            NaN, infinity, or a bound too small for weights of this size.
        """
        return self.encode_known(buf)[0]

    def encode_known(self, buf: object) -> tuple[bytes, Float32]:
        """See `MatrixCodec`."""
        weights = self.source(buf)
        quantizer, levels = quantize(weights, self.bound)
        values = quantizer.values(levels)
        self.verify(weights, values)
        return encode_quantized(quantizer, levels), values

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (rows, cols)."""
        target: Float32 = self.target(out)
        header, stream = unpack_varints(as_bytes(buf), 6)
        flags, cells, positive, negative, stride, prior = header
        walk = Walk(bool(flags & 1), stride, prior, flags >> 1)
        width = target.shape[0 if walk.transposed else 1]
        largest_offset = FINE * (MAX_CELLS + 1)
        if (
            not 1 <= cells < MAX_CELLS
            or max(positive, negative) > largest_offset
            or min(positive, negative) <= FINE // 2
            or walk.low_bits > 8
            or prior > 255
            or not (stride == 0 or 2 <= stride < min(width, _LONGEST_STRIDE + 1))
            or (1 in target.shape and width > 1)
        ):
            raise CodecError("mixing: the header is damaged")
        quantizer = Quantizer(self.bound, cells, (positive - FINE, negative - FINE))
        tables = quantizer.table(0), quantizer.table(1)
        largest = tuple(table.size for table in tables)
        try:
            # The levels take the place that their values will have.
            kernels.mixing_decode(stream, target, *walk.arguments(target.shape), *largest)
            kernels.values_of_levels(target, *tables)
        except ValueError as error:
            raise CodecError(f"mixing: {error}") from error
        return target

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`; the coder keeps a state for each column of what it walks through."""
        # Vectors are walked as one column.
        columns = 1 if 1 in shape else max(shape)
        return _COLUMN_BYTES * (columns + 2 * (_LONGEST_STRIDE + 1)) + _MODEL_BYTES


def encode_quantized(quantizer: Quantizer, levels: Levels) -> bytes:
    """Encode levels of shape (rows, cols) that were chosen elsewhere, by the walk that suits best.

    `Mixing` of the quantizer's bound decodes them to their values.
    """
    walk = _best_walk(levels)
    flags = walk.low_bits << 1 | walk.transposed
    header = (flags, quantizer.cells, *(offset + FINE for offset in quantizer.offsets))
    return pack_varints((*header, walk.stride, walk.prior)) + encode_levels(
        levels, walk, tuple(quantizer.table(side).size for side in (0, 1))
    )


def _best_walk(levels: Levels) -> Walk:
    """Return the walk that takes fewest bytes for rows in the middle, or all of a small matrix.

    Where walks differ much they do so on any part; the choice is within 0.2 % of the best.
    """
    rows, cols = levels.shape
    tried = min(max(rows // _TRIED_PART, -(-_TRIED_CELLS // cols)), rows)
    first = (rows - tried) // 2
    part = levels[first : first + tried]
    # A stride must be shorter than the row that is walked.
    walks = [w for w in _walks(levels) if w.stride < part.shape[0 if w.transposed else 1]]
    if len(walks) == 1:
        return walks[0]

    def size(walk: Walk) -> int:
        return len(encode_levels(part, walk))

    if part.size <= _THREADED_CELLS:  # starting threads would take as long
        return min(walks, key=size)
    # The kernel lets other threads run, and encoding is most of what an assessment waits for.
    with ThreadPoolExecutor(min(len(walks), os.cpu_count() or 1)) as threads:
        sizes = list(threads.map(size, walks))
    return walks[sizes.index(min(sizes))]


def encode_levels(levels: Levels, walk: Walk, largest: tuple[int, ...] | None = None) -> bytes:
    """Encode int32 levels of shape (rows, cols), without any header.

    Parameters
    ----------
    levels
        The matrix in memory.
    walk
        How to go through it.
    largest
        Largest positive and negative magnitude, where they are more than those in `levels`.
    """
    if largest is None:
        largest = int(levels.max(initial=0)), -int(levels.min(initial=0))
    stream = kernels.mixing_encode(
        np.ascontiguousarray(levels), *walk.arguments(levels.shape), *largest
    )
    return bytes(stream)


def _walks(levels: Levels) -> list[Walk]:
    """Return the walks worth trying for these levels."""
    kept = levels != 0
    density = (np.count_nonzero(kept) + 0.5) / (levels.size + 1)
    logit = 256 * math.log(density / (1 - density))
    prior = min(max(round(logit / _PRIOR_STEP) + 128, 0), 255)
    magnitudes = np.abs(levels[kept])
    mean = float(magnitudes.mean()) - 1 if magnitudes.size else 0.0
    low_bits = min(max(math.ceil(math.log2(mean / 6)), 0), 8) if mean > 0 else 0
    if 1 in levels.shape:
        # A vector is walked as one column: the contexts of many columns have nothing to say.
        return [Walk(levels.shape[0] == 1, 0, prior, low_bits)]
    return [
        Walk(transposed, stride, prior, low_bits)
        for transposed, matrix in ((False, kept), (True, kept.T))
        for stride in sorted({0, _stride(matrix)})
    ]


def _stride(kept: NDArray[np.bool_]) -> int:
    """Return the distance, at least 2, at which the cells of a row resemble each other most."""
    rows, cols = kept.shape
    sample = kept[:: -(-rows // _SAMPLE)].astype(np.float64)
    longest = min(_LONGEST_STRIDE, cols // 3)
    if longest < 2:
        return 0
    centred = sample - sample.mean()
    spectrum: NDArray[np.complex128] = np.fft.rfft(centred, 2 * cols, axis=1)
    correlation = np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=0))[: longest + 1]
    # Fewer pairs are that far apart; rounded, so that the choice does not hang on the last digit.
    fair = np.round(correlation[2:] / (cols - np.arange(2, longest + 1)), 9)
    return int(np.argmax(fair)) + 2
