"""A search for networks of many layers: divergences choose the bounds, counts of images judge.

Layer by layer, a count of lost images is noise where a layer may only lose a fraction of one. The
divergence of the outputs is not (see `deepsz_caffe.steps.divergence`): two or three bounds a layer
determine its curve. Divergences add up over layers, so for any price of a nat the best bounds of
all layers are those that each layer alone would choose (a Lagrangian): a frontier of configurations
from careful to bold. Only those are counted as wholes, by bisection, against the limit on top-1
with its margin. Counts never choose between configurations of about the same divergence: that
would fit them to the images.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp, log
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.steps.assess.search import Subject
from deepsz_caffe.steps.divergence import Divergence

Float64 = NDArray[np.float64]
Bounds = dict[str, float]

#: How far below its typical weight a layer is sampled first, as a factor: half a decade.
_BEGIN = 10**0.5
#: The second sample is so far from the first, as a factor of the bound: enough for a slope, near
#: enough for a straight line.
_NEAREST, _FARTHEST = 1.5, 8.0
#: A sample within this factor of a chosen bound says enough of it.
_CLOSE = 1.3
#: Bounds to choose from: from this part of a layer's typical weight up, in steps of this factor.
_LEAST, _FINE = 1e-3, 1.05
#: Prices of a nat, as factors of what it costs at the first samples.
_PRICES = np.geomspace(1e-6, 1e6, 600)
#: Noise may make a divergence 0 or flat; a curve rises at least as slowly as the bound, and
#: beyond the samples like its square, as errors that add up like noise do.
_SLOWEST, _BEYOND = 0.5, 2.0
#: Each halving of the bound below the samples costs at least this part of the bytes: what was
#: quantized before may take fewer at a smaller bound, but not ever fewer.
_HALVING = 1 / 16
_NOTHING = 1e-15
#: Configurations whose sizes differ by less are as good as each other: while curves are rough, …
_ROUGHLY = 0.03
#: … and in the end.
_WORTH = 0.003
#: After it was sampled at the chosen bounds, the frontier is searched again so far around them.
_AROUND = 4.0
#: … and at most so often.
_ROUNDS = 3


#: What counting a whole configuration gives.
Counts = TypeVar("Counts")
Counts_co = TypeVar("Counts_co", covariant=True)


class Network(Protocol[Counts_co]):
    """What can be asked about a network with some layers encoded at given bounds."""

    def size(self, name: str, bound: float) -> int:
        """Give the bytes of a layer (with those that share its weights)."""

    def diverge(self, bounds: Mapping[str, float]) -> Divergence:
        """Measure the outputs with only these layers changed, on few images."""

    def count(self, bounds: Mapping[str, float]) -> Counts_co:
        """Count a whole configuration on all images."""


@dataclass(frozen=True, order=True)
class Sample:
    """One layer alone at one bound.

    Attributes
    ----------
    bound
        Absolute error bound.
    bytes
        Size of the encoded layer.
    divergence
        Mean over the images.
    """

    bound: float
    bytes: int
    divergence: float


class Curve:
    """Divergence and size of one layer at any bound: straight lines between the samples.

    Divergences in the logarithms of both, never falling; sizes in that of the bound, since each
    halving costs about a bit a weight, and beyond the samples never rising with it.

    Parameters
    ----------
    samples
        At least one; two or more determine slopes.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        points = sorted(samples)
        self.samples = tuple(points)
        self._bounds = np.log([point.bound for point in points])
        rising = np.log([max(point.divergence, _NOTHING) for point in points])
        for place in range(len(rising) - 2, -1, -1):
            # The larger bound's divergence is the better known.
            rise = _SLOWEST * (self._bounds[place + 1] - self._bounds[place])
            rising[place] = min(rising[place], rising[place + 1] - rise)
        self._divergences = rising
        self._sizes = np.array([point.bytes for point in points], float)

    def divergence(self, bounds: Float64) -> Float64:
        """Estimate divergences at these bounds, float64 of any shape."""
        at = np.log(bounds)
        middle = np.interp(at, self._bounds, self._divergences)
        outside = np.minimum(at - self._bounds[0], 0) + np.maximum(at - self._bounds[-1], 0)
        found: Float64 = np.exp(middle + _BEYOND * outside)
        return found

    def bytes(self, bounds: Float64) -> Float64:
        """Estimate sizes at these bounds."""
        at = np.log(bounds)
        found = np.interp(at, self._bounds, self._sizes)
        if len(self._sizes) > 1:
            first, last = (
                (self._sizes[i + 1] - self._sizes[i]) / (self._bounds[i + 1] - self._bounds[i])
                for i in (0, len(self._sizes) - 2)
            )
            first = min(first, -_HALVING * self._sizes[0] / log(2))
            found += first * np.minimum(at - self._bounds[0], 0)
            found += min(last, 0) * np.maximum(at - self._bounds[-1], 0)
        least: Float64 = np.maximum(found, 1)
        return least

    def near(self, bound: float) -> bool:
        """Say whether a sample is close to a bound."""
        return bool(np.abs(self._bounds - log(bound)).min() <= log(_CLOSE))


@dataclass(frozen=True)
class Proposal:
    """A configuration of the frontier, and what the curves say of it."""

    bounds: Bounds
    bytes: float
    divergence: float


@dataclass(frozen=True)
class Found(Generic[Counts]):
    """What a search found.

    Attributes
    ----------
    best
        The configuration taken; None where even the most careful one loses too much.
    bytes
        Its size, measured.
    outcome
        Its counts.
    divergence
        Of the whole, measured; `best.divergence` is the sum over its layers.
    curves
        Layer name -> what was learnt of it.
    counted
        Configurations that were counted as wholes.
    """

    best: Proposal | None
    bytes: int
    outcome: Counts | None
    divergence: Divergence | None
    curves: dict[str, Curve]
    counted: int


def divergence_search(
    subjects: Sequence[Subject],
    network: Network[Counts],
    holds: Callable[[Counts], bool],
    threads: int = 1,
) -> Found[Counts]:
    """Find the smallest configuration whose counts hold what was asked for.

    Parameters
    ----------
    subjects
        The layers.
    network
        Measures.
    holds
        Says of the counts of a whole whether they do.
    threads
        Layers that are measured at a time; what is found does not depend on it.
    """
    search = _Search(subjects, network, holds, threads)
    curves = search.first_curves()
    best = search.bisect(frontier(curves, subjects), _ROUGHLY)
    for done in range(_ROUNDS):
        if best is None or (done and all(curves[n].near(b) for n, b in best.bounds.items())):
            break
        curves = search.closer(curves, best.bounds)
        around = [
            each
            for each in frontier(curves, subjects)
            if best.divergence / _AROUND <= each.divergence <= best.divergence * _AROUND
        ]
        best = search.bisect(around, _WORTH) or best
    if best is None:
        return Found(None, 0, None, None, curves, search.counted)
    size, outcome = search.result(best.bounds)
    return Found(best, size, outcome, network.diverge(best.bounds), curves, search.counted)


def frontier(curves: Mapping[str, Curve], subjects: Sequence[Subject]) -> list[Proposal]:
    """List the configurations that no other beats, from careful to bold, as the curves have it."""
    grids = [_grid(subject) for subject in subjects]
    sizes = [curves[s.name].bytes(grid) for s, grid in zip(subjects, grids, strict=True)]
    nats = [curves[s.name].divergence(grid) for s, grid in zip(subjects, grids, strict=True)]
    first = [curve.samples[0] for curve in curves.values()]
    unit = sum(each.bytes for each in first) / sum(max(e.divergence, _NOTHING) for e in first)
    prices = _PRICES[::-1, None] * unit
    picks = np.stack(
        [np.argmin(size + prices * each, axis=1) for size, each in zip(sizes, nats, strict=True)],
        axis=1,
    )
    picks = picks[np.append(True, (picks[1:] != picks[:-1]).any(axis=1))]
    return [
        Proposal(
            {s.name: float(grid[at]) for s, grid, at in zip(subjects, grids, pick, strict=True)},
            float(sum(size[at] for size, at in zip(sizes, pick, strict=True))),
            float(sum(each[at] for each, at in zip(nats, pick, strict=True))),
        )
        for pick in picks
    ]


class _Search(Generic[Counts]):
    def __init__(
        self,
        subjects: Sequence[Subject],
        network: Network[Counts],
        holds: Callable[[Counts], bool],
        threads: int,
    ) -> None:
        self._threads = threads
        self._subjects = subjects
        self._network = network
        self._holds = holds
        self._outcomes: dict[tuple[float, ...], Counts] = {}

    @property
    def counted(self) -> int:
        return len(self._outcomes)

    def first_curves(self) -> dict[str, Curve]:
        """Sample each layer twice: a slope needs a second bound, towards what others lose."""
        starts = self._samples({s.name: s.typical / _BEGIN for s in self._subjects})
        usual = exp(np.mean([log(max(s.divergence, _NOTHING)) for s in starts.values()]))
        bounds = {}
        for name, start in starts.items():
            wanted = (usual / max(start.divergence, _NOTHING)) ** 0.5
            factor = min(max(wanted, 1 / _FARTHEST), _FARTHEST)
            if 1 / _NEAREST < factor < _NEAREST:
                factor = 1 / _NEAREST if factor < 1 else _NEAREST
            bounds[name] = start.bound * factor
        more = self._samples(bounds)
        return {name: Curve((start, more[name])) for name, start in starts.items()}

    def closer(self, curves: Mapping[str, Curve], bounds: Bounds) -> dict[str, Curve]:
        """Sample layers at the bounds that are to be theirs, where no sample is near."""
        more = self._samples(
            {n: bounds[n] for n, curve in curves.items() if not curve.near(bounds[n])}
        )
        return {
            name: Curve((*curve.samples, more[name])) if name in more else curve
            for name, curve in curves.items()
        }

    def bisect(self, proposals: Sequence[Proposal], worth: float) -> Proposal | None:
        """Return the boldest proposal that holds, taking it that all before it do.

        One that is larger by the part `worth` will do.
        """

        def holds(place: int) -> bool:
            return self._holds(self.result(proposals[place].bounds)[1])

        place = _boldest(proposals, holds, worth)
        return proposals[place] if place >= 0 else None

    def result(self, bounds: Bounds) -> tuple[int, Counts]:
        """Return the size of a configuration and its counts, which are counted once."""
        key = tuple(bounds[subject.name] for subject in self._subjects)
        if key not in self._outcomes:
            self._outcomes[key] = self._network.count(bounds)
        size = sum(self._network.size(name, bound) for name, bound in bounds.items())
        return size, self._outcomes[key]

    def _samples(self, bounds: Bounds) -> dict[str, Sample]:
        """Sample some layers, each alone."""
        pool = ThreadPoolExecutor(self._threads)
        try:
            found = pool.map(self._sample, bounds.keys(), bounds.values())
            return dict(zip(bounds, found, strict=True))
        finally:
            # After an error or Ctrl-C nobody waits for the others.
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample(self, name: str, bound: float) -> Sample:
        divergence = self._network.diverge({name: bound}).mean
        return Sample(bound, self._network.size(name, bound), divergence)


def _boldest(proposals: Sequence[Proposal], holds: Callable[[int], bool], worth: float) -> int:
    """Return the last place that holds, or one that saves nearly as much; -1 for none."""
    low, high = -1, len(proposals)
    while high - low > 1:
        if low >= 0 and high < len(proposals):
            saved = proposals[low].bytes - proposals[high].bytes
            if saved <= worth * proposals[low].bytes:
                break
        middle = _middle(proposals, low, high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _middle(proposals: Sequence[Proposal], low: int, high: int) -> int:
    """Halve the divergence's logarithm between two places: evenly many proposals need not be."""
    first = max(proposals[max(low, 0)].divergence, _NOTHING)
    last = max(proposals[min(high, len(proposals) - 1)].divergence, _NOTHING)
    wanted = (first * last) ** 0.5
    place = bisect_left(proposals, wanted, low + 1, high, key=lambda each: each.divergence)
    return min(max(place, low + 1), high - 1)


def _grid(subject: Subject) -> Float64:
    """List the bounds of a layer to choose from: up to where nothing of it is left."""
    low, high = subject.typical * _LEAST, max(subject.largest, subject.typical)
    return np.geomspace(low, high, max(round(log(high / low) / log(_FINE)), 2))
