"""A digest of a decoded layer, so that a codec's own fault does not pass unseen.

The sum, modulo 2^64, of a mix of position and float32 bits over all non-zeros. A sum does not
depend on order, so a decoder can add it up while it scatters values, in chunks and threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32

_POSITION = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_BLOCK = 1 << 20


def weights_digest(matrix: Float32) -> int:
    """Return the 64-bit digest of a float32 array, taken in row-major order.

    Parameters
    ----------
    matrix
        C-contiguous float32 of any shape. +0 and −0 count as no weight at all.
    """
    flat = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1)
    total = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        where = np.flatnonzero(block)
        total += int(np.sum(_mix(where + start, block[where]), dtype=np.uint64))
    return total & 0xFFFFFFFFFFFFFFFF


def _mix(positions: NDArray[np.int64], values: Float32) -> NDArray[np.uint64]:
    bits = values.view(np.uint32).astype(np.uint64)
    mixed = (positions.astype(np.uint64) + np.uint64(1)) * _POSITION ^ bits
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(29)
    return mixed
