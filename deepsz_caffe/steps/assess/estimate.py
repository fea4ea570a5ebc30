"""What a layer may lose and weigh at bounds that have not been tested.

A search asks this to decide what to test next. Losses are counts of images; a test's own scatter
(images lost and images gained almost cancel each other) and the distance to the nearest test make
an estimate uncertain, so it is a mean with a standard deviation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.steps.assess.result import Point

#: An estimated loss is off by this part for each factor e between its bound and a tested one.
_SPREAD = 0.1

#: A count of images is never known better than this before it is counted.
_LEAST_SPREAD = 0.3

# The normal distribution function: between these points a straight line is off by less than 1e-6.
_AT = np.linspace(-8.5, 8.5, 4353)
_BELOW = np.array([NormalDist().cdf(at) for at in _AT])


@dataclass(frozen=True)
class Option:
    """One way to store a layer.

    Attributes
    ----------
    bytes
        Size of the encoded layer.
    loss
        Images that it is expected to cost the network, net.
    changed
        Images that are expected to change sides.
    variance
        How far the loss may be from what is expected, in images squared.
    """

    bytes: int
    loss: float
    changed: float
    variance: float


class LayerModel:
    """A layer's tests, and estimates between and around them.

    Parameters
    ----------
    bounds
        All bounds that may be tested, ascending.
    limit
        Images that the whole network may lose.
    total
        Images of a test that is not stopped.
    sizes
        Bytes at two bounds or more.

    Attributes
    ----------
    bounds
        As given.
    points
        Tests by their bounds.
    """

    def __init__(
        self, bounds: Sequence[float], limit: int, total: int, sizes: Mapping[float, int]
    ) -> None:
        self.bounds = bounds
        self._limit = limit
        self._total = total
        self._sizes = dict(sizes)
        self.points: dict[float, Point] = {}

    def learn(self, point: Point) -> None:
        """Add a test."""
        self.points[point.bound] = point
        self._sizes[point.bound] = point.bytes

    def options(self) -> list[tuple[int, int]]:
        """List (loss, bytes) of what was tested to the end.

        The first is not tested: at the smallest bound nothing is lost, at the size estimated there.
        """
        smallest = max(self.size(self.bounds[0]), *self._sizes.values())
        whole = [point for point in self.points.values() if not point.stopped]
        return [(0, smallest), *((p.loss(negative=False), p.bytes) for p in whole)]

    def estimates(self) -> list[tuple[int, int]]:
        """List (loss, bytes) of every bound, as tested or as estimated."""
        untested = [(round(self.loss(bound)[0]), self.size(bound)) for bound in self.untested()]
        return [*self.options(), *untested]

    def untested(self) -> list[float]:
        """List the bounds that have not been tested."""
        return [bound for bound in self.bounds if bound not in self.points]

    def size(self, bound: float) -> int:
        """Bytes at a bound; where they are not known, on the line through the two nearest known.

        The line is straight in the bound's logarithm: each halving costs about a bit a weight.
        """
        if bound in self._sizes:
            return self._sizes[bound]
        known = sorted(self._sizes)
        right = min(max(bisect_left(known, bound), 1), len(known) - 1)
        low, high = known[right - 1], known[right]
        part = log(bound / low) / log(high / low)
        return max(1, round(self._sizes[low] + part * (self._sizes[high] - self._sizes[low])))

    def loss(self, bound: float) -> tuple[float, float]:
        """Mean and standard deviation of the loss at an untested bound, in images.

        The mean follows the square of the bound, as errors that add up like noise do. The images
        that change sides are as many as at the tested bounds around, and their root is a test's
        scatter.
        """
        mean, changed, distance = self._estimate(bound)
        return mean, max(sqrt(changed + (_SPREAD * distance * mean) ** 2), _LEAST_SPREAD)

    def option(self, bound: float) -> Option:
        """Say what a bound, tested or not, is expected to do to the network in a configuration.

        There other images are near a decision than where the layer is alone: what was measured of
        it alone is uncertain by about the root of the images that change sides.
        """
        if bound in self.points:
            point = self.points[bound]
            changed = (point.lost + point.gained) * self._share(point)
            loss = (point.lost - point.gained) * self._share(point)
            return Option(point.bytes, loss, changed, changed + 1)
        mean, changed, _ = self._estimate(bound)
        spread = self.loss(bound)[1]
        return Option(self.size(bound), mean, changed, spread**2 + changed + 1)

    def _estimate(self, bound: float) -> tuple[float, float, float]:
        """Mean loss, images that change sides, and how far the nearest test is (a logarithm)."""
        known = sorted(self.points)
        right = bisect_left(known, bound)
        if not 0 < right < len(known):
            near = known[0] if right == 0 else known[-1]
            ratio = bound / near
            # One image more than was seen keeps a lucky test from promising no loss anywhere.
            mean = (self._measured(near) + (right > 0)) * ratio**2
            return mean, self._changed(near) * ratio, abs(log(ratio))
        low, high = known[right - 1], known[right]
        # Far over the limit the curve is steep; between there and here it counts as just over.
        cap = 3 * self._limit + 3
        part = (bound**2 - low**2) / (high**2 - low**2)
        ends = [min(self._measured(side), cap) for side in (low, high)]
        mean = ends[0] + part * (ends[1] - ends[0])
        part = (bound - low) / (high - low)
        changed = self._changed(low) + part * (self._changed(high) - self._changed(low))
        return mean, min(changed, cap), min(log(bound / low), log(high / bound))

    def _measured(self, bound: float) -> float:
        """Loss in images; of a stopped test what it would have come to, over the limit."""
        point = self.points[bound]
        loss = point.loss(negative=False)
        return max(loss * self._share(point), self._limit + 1) if point.stopped else loss

    def _changed(self, bound: float) -> float:
        """Count images that changed sides, and one more: none seen is not none possible."""
        point = self.points[bound]
        return (point.lost + point.gained) * self._share(point) + 1

    def _share(self, point: Point) -> float:
        return self._total / point.images


def normal_below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the probability that a normal variate of mean 0 and variance 1 is below each value.

    Examples
    --------
    >>> normal_below(np.array([-9.0, 0.0, 1.2816])).round(4)
    array([0. , 0.5, 0.9])
    """
    found: NDArray[np.float64] = np.interp(values, _AT, _BELOW, left=0.0, right=1.0)
    return found


def least_sizes(options: Iterable[list[tuple[int, int]]], limit: int) -> np.ndarray:
    """Find the least bytes of several layers together for every loss from 0 to `limit`.

    Parameters
    ----------
    options
        Of each layer: (loss, bytes) pairs to choose from.

    Returns
    -------
    numpy.ndarray
        float64[limit + 1]: the dynamic program of the paper's section 3.4 over tested bounds.
    """
    least = np.zeros(limit + 1)
    for each in options:
        longer = np.full(limit + 1, np.inf)
        for loss, size in each:
            if loss <= limit:
                longer[loss:] = np.minimum(longer[loss:], least[: limit + 1 - loss] + size)
        least = longer
    return least


def expected_gains(model: LayerModel, others: np.ndarray, whole: float) -> dict[float, float]:
    """Say how many bytes smaller a test of each untested bound would make the whole, on average.

    Over every loss that the test may find: its probability, times what the whole would then weigh
    less, with the best that the other layers can be within what is left of the limit.

    Parameters
    ----------
    model
        The layer to test.
    others
        `least_sizes` of the other layers.
    whole
        Bytes of all layers as far as is known.

    Returns
    -------
    dict
        Untested bound -> bytes.
    """
    bounds = model.untested()
    if not bounds:
        return {}
    estimates = np.array([model.loss(bound) for bound in bounds])
    mean, spread = estimates[:, :1], estimates[:, 1:]
    # P(loss <= l) for l = 0 ... limit: counts are rounded, and those below 0 count as 0.
    losses = np.arange(len(others))
    below = normal_below((losses + 0.5 - mean) / spread)
    probability = np.diff(below, axis=1, prepend=0)
    sizes = np.array([model.size(bound) for bound in bounds])[:, None]
    gains = (probability * np.maximum(whole - sizes - others[::-1], 0)).sum(axis=1)
    return dict(zip(bounds, gains.tolist(), strict=True))
