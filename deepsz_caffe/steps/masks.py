"""Which weights stay: the largest of a layer, or of several layers under one threshold.

Masks depend on the weights alone: of equal ones the earlier in row-major order stays, and what is
0 goes before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError

#: A pruned weight comes back where it is so much larger than the smallest that stays: dynamic
#: network surgery's gap between its two thresholds (Guo et al., 2016).
_GAP = np.float32(1.1)


def check_keep(keep: float, name: str | None = None) -> None:
    """Check a fraction of weights to keep.

    Raises
    ------
    InputError
        It is outside (0, 1].
    """
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise InputError(
            f"keep ratio {keep} is not in (0, 1]",
            where=name,
            hint="0.08 keeps 8 % of the weights",
        )


def magnitude_mask(matrix: np.ndarray, keep: float) -> np.ndarray:
    """Choose the weights of largest magnitude.

    Parameters
    ----------
    matrix
        float32[r, c]
    keep
        Fraction of the weights to keep, in (0, 1].

    Returns
    -------
    numpy.ndarray
        bool[r, c], true at exactly ``round(keep * r * c)`` weights, at least one. Between equal
        magnitudes the earlier in row-major order stays, so the mask depends on nothing else.

    Raises
    ------
    InputError
        `keep` is outside (0, 1], or a weight is not a number.
    """
    check_keep(keep)
    mask = largest(_magnitudes(matrix), keep)
    return mask.reshape(matrix.shape)


def together_masks(matrices: Mapping[str, np.ndarray], keep: float) -> dict[str, np.ndarray]:
    """Choose weights of several layers under one threshold on their LAMP scores.

    A weight's score (Lee et al., 2021) is its square over the sum of all squares of its layer that
    are at least as large: what going without it would cost the layer, as a part of what is left.
    So layers of any scale compare, and the largest weight of each layer always stays.

    Parameters
    ----------
    matrices
        Layer name -> float32[r, c].
    keep
        Fraction of all their weights to keep, in (0, 1].

    Returns
    -------
    dict
        Layer name -> bool[r, c]; together true at ``round(keep * weights)``, and at one weight a
        layer at least.

    Raises
    ------
    InputError
        `keep` is outside (0, 1], or a weight is not a number.
    """
    check_keep(keep)
    scores = [lamp_scores(matrix) for matrix in matrices.values()]
    # Each layer's largest has the score 1, the highest there is.
    least = len(scores) / max(1, sum(score.size for score in scores))
    chosen = largest(np.concatenate(scores), max(keep, min(least, 1)))
    ends = np.cumsum([score.size for score in scores])[:-1]
    parts = np.split(chosen, ends)
    return {
        name: part.reshape(matrix.shape)
        for (name, matrix), part in zip(matrices.items(), parts, strict=True)
    }


def lamp_scores(matrix: np.ndarray) -> NDArray[np.float32]:
    """Return the LAMP score of every weight of a layer, flat, in [0, 1]."""
    squares = np.square(_magnitudes(matrix), dtype=np.float64)
    order = np.argsort(squares, kind="stable")
    falling = squares[order]
    left = np.cumsum(falling[::-1])[::-1]
    scores = np.zeros(squares.size, np.float32)
    scores[order] = np.divide(falling, left, out=np.zeros_like(falling), where=left > 0)
    return scores


def surgery_weights(matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make weights that are pruned now smaller by a gap, so that masks do not flicker.

    Parameters
    ----------
    matrix
        float32[r, c], also of pruned weights the value that they have learned.
    mask
        bool[r, c], true where a weight is kept now.
    """
    return np.where(mask, matrix, matrix / _GAP)


def largest(values: np.ndarray, keep: float) -> np.ndarray:
    """Choose a fraction of the values, the largest, of equal ones the earlier; at least one.

    Parameters
    ----------
    values
        float[n], none of them NaN.
    keep
        In (0, 1].

    Returns
    -------
    numpy.ndarray
        bool[n]
    """
    kept = max(1, round(keep * values.size)) if values.size else 0
    mask = np.zeros(values.size, dtype=bool)
    if kept:
        threshold = np.partition(values, values.size - kept)[values.size - kept]
        np.greater(values, threshold, out=mask)
        ties = np.flatnonzero(values == threshold)
        mask[ties[: kept - int(mask.sum())]] = True
    return mask


def _magnitudes(matrix: np.ndarray) -> NDArray[np.float32]:
    magnitudes: NDArray[np.float32] = np.abs(matrix, dtype=np.float32).ravel()
    if np.isnan(magnitudes).any():
        raise InputError("a weight is not a number, so the smallest can't be told")
    return magnitudes
