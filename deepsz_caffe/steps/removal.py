"""Removal of weights that the others make good: pruning without labels or training.

Magnitude alone removes what a layer's output may need. With the second moments H = mean(x xᵀ) of
what enters a layer, taking a weight w_j away and letting those after it change for the least error
of the output costs w_j² / (U_jj)², where Uᵀ U = H⁻¹ with U upper triangular (Optimal Brain Surgeon;
one order of columns for all rows, as in SparseGPT). The cheapest weights go, column by column, and
each hands its error on to the weights that are yet to come. That chooses well, but those that came
before can make errors good, too: in the end each row's weights are what keeps its output best.
"""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32
from deepsz_caffe.errors import InputError

Float64 = NDArray[np.float64]

#: What is added to each input's second moment, as a part of their mean.
DAMPING = 0.01
# Columns among which the cheapest weights are looked for at a time: later costs depend on them.
_TOGETHER = 64


def remove_weights(
    weights: Float32, moments: NDArray[np.floating], keep: float, damping: float = DAMPING
) -> Float32:
    """Set the weights to 0 that a layer's output misses least, and adapt the others.

    Parameters
    ----------
    weights : float32[r, c]
        Finite; what is 0 stays 0.
    moments : float[g, c, c]
        Mean of x xᵀ over the layer's inputs, for each of g groups of r / g rows.
    keep
        Fraction of the weights to keep, in (0, 1]; where fewer are left, nothing changes.
    damping
        Added to the diagonal of the moments, as a part of its mean; over 0.

    Returns
    -------
    float32[r, c]

    Raises
    ------
    InputError
        `keep` is out of range, or the moments are not finite or don't fit the weights.
    """
    check_keep(keep)
    rows, columns = weights.shape
    if moments.ndim != 3 or moments.shape[1:] != (columns, columns) or rows % len(moments):
        raise InputError(
            f"second moments of shape {list(moments.shape)} don't fit {rows} × {columns} weights"
        )
    if not isfinite(float(moments.sum(dtype=np.float64))):
        raise InputError("second moments must be finite")
    if np.count_nonzero(weights) <= keep * weights.size:
        return weights.copy()
    parts = weights.reshape(len(moments), -1, columns)
    kept = [_remove(part, each, keep, damping) for part, each in zip(parts, moments, strict=True)]
    return np.concatenate(kept)


def check_keep(keep: float) -> None:
    """Check a fraction of weights to keep.

    Raises
    ------
    InputError
        It is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise InputError(f"the part of the weights to keep is in (0, 1], not {keep}")


def _remove(
    weights: Float32, moments: NDArray[np.floating], keep: float, damping: float
) -> Float32:
    exact = moments.astype(np.float64)
    mean = float(exact.diagonal().mean()) or 1.0
    exact[np.diag_indices_from(exact)] += damping * mean
    # What varies most comes last: it can make the most good.
    order = np.argsort(exact.diagonal(), kind="stable")
    # L Lᵀ = H in the reversed order gives Uᵀ U = H⁻¹ in this one.
    reverse = order[::-1]
    factor = np.linalg.cholesky(exact[np.ix_(reverse, reverse)])
    upper = np.ascontiguousarray(np.linalg.inv(factor)[::-1, ::-1])
    left = weights[:, order].astype(np.float64)
    gone = left == 0
    pivots = upper.diagonal()
    costs = np.where(gone, -1.0, (left / pivots) ** 2)
    shares = _shares(costs, keep)
    for start, share in shares:
        stop = min(start + _TOGETHER, left.shape[1])
        block = slice(start, stop)
        mask = _cheapest((left[:, block] / pivots[block]) ** 2, gone[:, block], share)
        errors = np.zeros((left.shape[0], stop - start))
        for column in range(start, stop):
            here = column - start
            removed = np.where(mask[:, here], left[:, column] / pivots[column], 0.0)
            left[:, column:stop] -= removed[:, None] * upper[column, column:stop]
            left[mask[:, here], column] = 0
            errors[:, here] = removed
        left[:, stop:] -= errors @ upper[block, stop:]
    kept = np.empty(left.shape, bool)
    kept[:, order] = left != 0
    return _refitted(weights, exact, kept)


def _refitted(weights: Float32, moments: Float64, kept: NDArray[np.bool_]) -> Float32:
    """Give each row the weights at the places kept with which its output changes least."""
    found = np.zeros_like(weights)
    wanted = weights.astype(np.float64) @ moments
    for row, places in enumerate(kept):
        only = np.flatnonzero(places)
        found[row, only] = np.linalg.solve(moments[np.ix_(only, only)], wanted[row, only])
    return found


def _shares(costs: Float64, keep: float) -> list[tuple[int, int]]:
    """Give, for each block of columns, how many of its weights stay, by their costs at first."""
    count = round(keep * costs.size)
    limit = np.partition(costs.reshape(-1), costs.size - count - 1)[costs.size - count - 1]
    return [
        (start, int(np.count_nonzero(costs[:, start : start + _TOGETHER] > limit)))
        for start in range(0, costs.shape[1], _TOGETHER)
    ]


def _cheapest(costs: Float64, gone: NDArray[np.bool_], stay: int) -> NDArray[np.bool_]:
    """Say which weights go so that `stay` are left: those that are 0, and then the cheapest."""
    costs = np.where(gone, -1.0, costs)
    if stay == 0:
        return np.ones(costs.shape, bool)
    order = np.argsort(costs, axis=None, kind="stable")
    mask = np.zeros(costs.size, bool)
    mask[order[: costs.size - stay]] = True
    return mask.reshape(costs.shape) | gone
