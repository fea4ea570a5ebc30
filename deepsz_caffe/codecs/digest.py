"""What is known of a decoded layer when it is complete: a digest of its weights, and how many.

The digest is the sum over all non-zeros, modulo 2^64, of (p + K)² · h(bits): p is the row-major
position, K a constant, h a mix of the 32 bits of the value. A sum does not depend on order, so a
decoder can add it up while it scatters values, in parts and threads; and where few values occur,
their mixes come from a table. It is a check against faults, not against forgery.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.errors import CodecError


class Tally(NamedTuple):
    """Digest and number of the weights that are not 0, of a matrix or a part of it."""

    digest: int
    nonzeros: int


def tally(weights: NDArray[np.float32], first: int = 0) -> Tally:
    """Take the tally of a float32 array in row-major order; +0 and −0 count as no weight at all.

    Parameters
    ----------
    weights
        C-contiguous float32 of any shape.
    first
        Position in the matrix of the array's first weight.
    """
    flat = np.ascontiguousarray(weights, dtype=np.float32)
    return Tally(*kernels.digest_weights(flat, first))


def total(tallies: Iterable[Tally]) -> Tally:
    """Add up the tallies of all parts of a matrix."""
    digest = nonzeros = 0
    for part in tallies:
        digest += part.digest
        nonzeros += part.nonzeros
    return Tally(digest & 0xFFFFFFFFFFFFFFFF, nonzeros)


def weights_digest(matrix: NDArray[np.float32]) -> int:
    """Return the 64-bit digest of a float32 array, taken in row-major order.

    Examples
    --------
    >>> weights_digest(np.zeros((2, 3), np.float32))
    0
    """
    return tally(matrix).digest


def scatter(data: NDArray[np.float32], index: NDArray[np.uint8], out: NDArray[np.float32]) -> Tally:
    """Rebuild a dense matrix from its two arrays, in one pass, and return its tally.

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
        return Tally(*kernels.scatter_steps(data, index, out))
    except ValueError as error:
        raise CodecError("data and index arrays don't fit each other or the matrix") from error
