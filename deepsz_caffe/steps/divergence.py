"""How far a changed network's outputs are from the original's: no labels, few images.

A count of images says little about a small change: most images are right before and after. The
Kullback-Leibler divergence of the class probabilities uses every image, and nearly adds up over
the layers that cause it. Where the outputs are no classes, the relative squared change of them
serves, which adds up over layers whose errors are independent.

Everything is in float64; values are of single images, so that means come with standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError

Float64 = NDArray[np.float64]
#: what outputs are: scores before Softmax, probabilities after it, or neither
Kind = Literal["scores", "probabilities", "values"]

# A probability that float32 has rounded to 0 counts as its smallest normal number.
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Divergence:
    """A mean over images, and how well they determine it.

    Attributes
    ----------
    mean
        Nats for class probabilities; for other outputs a fraction (its root is the relative error).
    error
        Standard error of the mean; infinite for a single image.
    images
        How many.
    """

    mean: float
    error: float
    images: int

    def at_most(self, confidence: float) -> float:
        """Return the upper limit of the true mean; infinite where nothing is known of the error."""
        if confidence == 0.5:
            return self.mean
        return self.mean + NormalDist().inv_cdf(confidence) * self.error

    @classmethod
    def of(cls, values: Float64) -> Divergence:
        """Summarize values of single images, float64[n], n >= 1."""
        if not values.size:
            raise InputError("a divergence needs at least one image")
        mean = float(values.mean())
        known = values.size > 1 and np.isfinite(mean)
        error = float(values.std(ddof=1)) / sqrt(values.size) if known else inf
        return cls(mean, error, values.size)


def divergences(before: NDArray[np.floating], after: NDArray[np.floating], kind: Kind) -> Float64:
    """Return each image's divergence of `after` from `before`.

    Parameters
    ----------
    before, after : float[n, c, ...]
        Outputs of the original and of the changed network for the same images; classes along the
        second axis. Where more axes follow (a class for every pixel), the mean over them is taken.
    kind
        What the outputs are.

    Returns
    -------
    float64[n]
        At least 0; infinite where `after` is not finite.

    Raises
    ------
    InputError
        The shapes differ, there is no class axis, or `before` is not finite.
    """
    if before.shape != after.shape or before.ndim < 2 or before.size == 0:
        raise InputError(
            f"outputs of shapes {list(before.shape)} and {list(after.shape)} can't be compared"
        )
    if not np.isfinite(before).all():
        raise InputError("the original network's outputs are not finite")
    finite = np.isfinite(after).reshape(len(after), -1).all(axis=1)
    found = np.full(len(before), inf)
    old = before.astype(np.float64)
    if kind == "values":
        return relative_changes(*squared_changes(before, after))
    logarithms = _log_softmax if kind == "scores" else _log_normalized
    p, q = logarithms(old[finite]), logarithms(after[finite].astype(np.float64))
    each = (np.exp(p) * (p - q)).sum(axis=1)
    found[finite] = np.maximum(each.reshape(len(each), -1).mean(axis=1), 0)
    return found


def squared_changes(
    before: NDArray[np.floating], after: NDArray[np.floating]
) -> tuple[Float64, Float64]:
    """Return the squared change of each image's output, and its square before: float64[n] both.

    The change is infinite where `after` is not finite.
    """
    old = before.astype(np.float64)
    changes = _squares(after.astype(np.float64) - old)
    return np.where(np.isfinite(changes), changes, inf), _squares(old)


def relative_changes(changes: Float64, squares: Float64) -> Float64:
    """Return what `squared_changes` gave of all images as parts of the mean square."""
    scale = squares.mean()
    if not isfinite(scale):
        raise InputError("the original network's outputs are not finite")
    # Outputs that are 0 for every image: any change is infinitely much.
    found: Float64 = changes / scale if scale else np.where(changes > 0, inf, 0.0)
    return found


def _squares(values: Float64) -> Float64:
    found: Float64 = (values.reshape(len(values), -1) ** 2).sum(axis=1)
    return found


def _log_softmax(scores: Float64) -> Float64:
    relative = scores - scores.max(axis=1, keepdims=True)
    found: Float64 = relative - np.log(np.exp(relative).sum(axis=1, keepdims=True))
    return found


def _log_normalized(probabilities: Float64) -> Float64:
    some = np.maximum(probabilities, _LEAST)
    found: Float64 = np.log(some / some.sum(axis=1, keepdims=True))
    return found
