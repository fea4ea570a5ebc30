"""A digest of a decoded layer, so that a codec's own fault does not pass unseen.

The sum over all non-zeros, modulo 2^64, of (p + K)² · h(bits): p is the row-major position, K a
constant, h a mix of the 32 bits of the value. A sum does not depend on order, so a decoder can
add it up while it scatters values, in chunks and threads; and where few values occur, their mixes
come from a table. It is a check against faults, not against forgery.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32, UInt8
from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.errors import CodecError


def weights_digest(matrix: Float32) -> int:
    """Return the 64-bit digest of a float32 array, taken in row-major order.

    Parameters
    ----------
    matrix
        C-contiguous float32 of any shape. +0 and −0 count as no weight at all.
    """
    return int(kernels.digest_weights(np.ascontiguousarray(matrix, dtype=np.float32)))


def scatter(data: Float32, index: UInt8, out: NDArray[np.float32]) -> int:
    """Rebuild a dense matrix from its two arrays, in one pass, and return its digest.

    Parameters
    ----------
    data
        float32 (n,), the non-zeros in row-major order.
    index
        uint8 (m,), steps of 1 to 255 from the last non-zero (the first one counts from before the
        first cell), one for each value; a 0 goes on by 255 cells without a value.
    out
        C-contiguous float32 of any shape, filled with zeros and the values.

    Raises
    ------
    CodecError
        The arrays don't fit each other or `out`, which is then left half-written.
    """
    try:
        return int(kernels.scatter_steps(data, index, out))
    except ValueError as error:
        raise CodecError("data and index arrays don't fit each other or the matrix") from error
