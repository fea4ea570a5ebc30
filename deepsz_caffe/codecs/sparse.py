"""Dense matrix <-> the two-array form of a pruned fc layer (section 3.2 of the paper).

`data` holds the non-zero weights in row-major order, `index` the steps between their positions as
one byte each. The first step counts from the position before the first weight, so every step to a
value is 1 or more. An entry 0 means "advance by 255, no value here" and bridges longer steps; no
padding value is stored for it. (In the authors' scripts a 0 step is ambiguous: it also stands for a
first weight that is not zero.)

Of a column-major layer the two arrays describe the transposed matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import FormatError

#: The longest step that one index entry makes, and what an entry 0 advances by.
LONGEST_STEP = 255

# Index entries that `to_dense` turns into positions at a time: 8 bytes each, stays in the cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Sparse:
    """The two arrays of a matrix.

    Parameters
    ----------
    shape
        Rows and columns of the dense matrix.
    data : float32[n]
        The values, row by row.
    index : uint8[m]
        The steps, ``m >= n``; exactly `n` entries are not 0.
    """

    shape: tuple[int, int]
    data: NDArray[np.float32]
    index: NDArray[np.uint8]


def to_sparse(matrix: NDArray[np.float32]) -> Sparse:
    """Split a matrix into its non-zeros and the steps between them.

    Parameters
    ----------
    matrix : float32[r, c]
        Any memory layout. Negative zero is zero; NaN is a value.
    """
    rows, columns = matrix.shape
    flat = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1)
    positions = np.flatnonzero(flat)
    steps = np.diff(positions, prepend=-1)
    padding = (steps - 1) // LONGEST_STEP
    index = np.zeros(positions.size + int(padding.sum()), np.uint8)
    index[np.arange(positions.size) + np.cumsum(padding)] = steps - LONGEST_STEP * padding
    return Sparse((rows, columns), flat[positions], index)


def to_dense(sparse: Sparse, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Rebuild the matrix, the reverse of `to_sparse`.

    Parameters
    ----------
    out : float32[r, c]
        Where to; any strides, e.g. the transposed view of a matrix.

    Raises
    ------
    FormatError
        The steps lead outside the matrix, there are more or fewer of them than values, or they go
        on behind the last value.
    """
    if out is None:
        out = np.empty(sparse.shape, np.float32)
    out.fill(0)
    contiguous = out.reshape(-1) if out.flags.c_contiguous else None
    for places, values in _runs(sparse):
        if contiguous is not None:
            contiguous[places] = values
        else:
            out[np.unravel_index(places, sparse.shape)] = values
    return out


def positions(sparse: Sparse) -> NDArray[np.int64]:
    """Return where the values are: int64[n], row-major, increasing.

    Raises
    ------
    FormatError
        As `to_dense`.
    """
    return np.concatenate([np.empty(0, np.int64), *(places for places, _ in _runs(sparse))])


def _runs(sparse: Sparse) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield positions and values, some of them at a time; check the steps."""
    size = sparse.shape[0] * sparse.shape[1]
    if np.count_nonzero(sparse.index) != sparse.data.size:
        raise FormatError(
            f"the index has {np.count_nonzero(sparse.index)} steps for {sparse.data.size} values"
        )
    if sparse.index.size and sparse.index[-1] == 0:
        raise FormatError("the index goes on behind the last value")
    position, taken = -1, 0
    for start in range(0, sparse.index.size, _BLOCK):
        entries = sparse.index[start : start + _BLOCK]
        advance = entries.astype(np.int64)
        advance[entries == 0] = LONGEST_STEP
        reached = np.cumsum(advance)
        reached += position
        position = int(reached[-1])
        if position >= size:
            raise FormatError(f"the index leads to weight {position} of {size}")
        places = reached[entries != 0]
        yield places, sparse.data[taken : taken + places.size]
        taken += places.size
