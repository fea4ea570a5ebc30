"""Which error bounds to try: the paper's range, a given grid, or the few that decide.

Bounds are 1 to 9 times a power of ten. A search is given `test`, which measures one layer at one
bound and may be called from several threads, and `size`, which only encodes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import floor, log, log10

from deepsz_caffe.assessment import Point
from deepsz_caffe.optimize import least_size

#: Loss at which the paper's search leaves the decades: the distortion criterion.
CRITERION = 0.001

#: A smaller whole is worth a test if it is smaller by this part.
_WORTH = 0.005

Test = Callable[[str, float], Point]
Size = Callable[[str, float], int]
Points = dict[str, dict[float, Point]]


@dataclass(frozen=True)
class Subject:
    """What a search knows of a layer before any test.

    Attributes
    ----------
    typical
        Root mean square of its non-zero weights.
    largest
        Largest magnitude: at this bound nothing is left of the layer.
    """

    name: str
    typical: float
    largest: float


def grid(low: float, high: float) -> list[float]:
    """List the bounds 1 to 9 × 10^k from `low` to `high`, ascending.

    Examples
    --------
    >>> grid(0.008, 0.02)
    [0.008, 0.009, 0.01, 0.02]
    """
    decades = range(floor(log10(low)) - 1, floor(log10(high)) + 2)
    bounds = [_bound(digit, decade) for decade in decades for digit in range(1, 10)]
    return [bound for bound in bounds if low <= bound <= high]


def exhaustive_search(
    subjects: Sequence[Subject], bounds: Sequence[float], test: Test, threads: int
) -> Points:
    """Test every layer at every given bound."""
    pairs = [(subject.name, bound) for subject in subjects for bound in bounds]
    return _measure(pairs, test, threads)


def paper_search(subjects: Sequence[Subject], test: Test, total: int, limit: int) -> Points:
    """Try the paper's dynamic range of bounds (section 3.3).

    From 1e-3 up by decades while the loss stays under 0.1 %. Once it does not, the multiples 2 to 9
    of the decade before, up to the first that loses more than `limit` images.
    """

    def search(subject: Subject) -> dict[float, Point]:
        points: dict[float, Point] = {}
        decade = -3
        while True:
            bound = _bound(1, decade)
            points[bound] = test(subject.name, bound)
            if points[bound].loss(negative=True) >= CRITERION * total:
                break
            if bound > subject.largest:
                return points
            decade += 1
        for digit in range(1, 10):
            bound = _bound(digit, decade - 1)
            if bound not in points:
                points[bound] = test(subject.name, bound)
            if points[bound].loss(negative=True) > limit:
                break
        return points

    with ThreadPoolExecutor(len(subjects)) as threads:
        found = threads.map(search, subjects)
        return {subject.name: points for subject, points in zip(subjects, found, strict=True)}


def default_search(
    subjects: Sequence[Subject], test: Test, size: Size, limit: int, threads: int
) -> Points:
    """Test the bounds that the dynamic program would choose, until it chooses tested ones.

    The loss of a layer rises slowly and then steeply. From a first guess, a third of the typical
    weight, losses and sizes at other bounds are estimated; the dynamic program picks with these
    estimates the bounds of all layers; they are tested, which brackets and then bisects what
    matters; and so on until everything picked has been tested, or the untested would make the
    whole hardly smaller. Then the next larger bounds are tried, whatever their estimates, where
    that could still make it smaller. A layer whose size hardly matters costs hardly any test.

    Last, smaller bounds are encoded: where one takes no more bytes it is tested too, as accuracy
    for nothing (sizes do not always fall as bounds grow).
    """
    grids = {s.name: grid(s.typical / 1000, max(s.largest, s.typical) * 2) for s in subjects}
    starts = {s.name: _nearest(grids[s.name], s.typical / 3) for s in subjects}
    models = {
        s.name: _Model(
            grids[s.name], limit, {b: size(s.name, b) for b in _around(s, grids, starts)}
        )
        for s in subjects
    }
    _learn(models, _measure(list(starts.items()), test, threads))
    while True:
        options = {name: model.options() for name, model in models.items()}
        # Where everything in reach loses too much, go as far down as it reaches.
        picked = _choose(options, limit) or {name: each[0][0] for name, each in options.items()}
        wanted = [(n, bound) for n, bound in picked.items() if bound not in models[n].points]
        if wanted and _little_to_gain(models, picked, limit):
            wanted = []
        wanted = wanted or _next_steps(models, limit)
        if not wanted:
            break
        _learn(models, _measure(wanted, test, threads))
    picked = _choose({name: model.tested() for name, model in models.items()}, limit)
    smaller = []
    for name, bound in picked.items():
        below = [b for b in grids[name] if b < bound][-2:]
        smaller += [
            (name, b)
            for b in below
            if b not in models[name].points and size(name, b) <= models[name].points[bound].bytes
        ]
    _learn(models, _measure(smaller, test, threads))
    return {name: model.points for name, model in models.items()}


def _little_to_gain(models: Mapping[str, _Model], picked: Mapping[str, float], limit: int) -> bool:
    """Say whether untested bounds that were picked hardly make the whole smaller."""
    known = _choose({name: model.tested() for name, model in models.items()}, limit)
    if not known:
        return False
    now = sum(models[name].size(bound) for name, bound in known.items())
    return sum(models[name].size(bound) for name, bound in picked.items()) > (1 - _WORTH) * now


def _next_steps(models: Mapping[str, _Model], limit: int) -> list[tuple[str, float]]:
    """List the bounds that would be picked if a step from a tested bound went well.

    See `_Model.hopes`. They are worth a test against the estimates where that would make the whole
    smaller by `_WORTH`.
    """
    known = _choose({name: model.tested() for name, model in models.items()}, limit)
    hoped = {name: [*model.tested(), *model.hopes()] for name, model in models.items()}
    picked = _choose(hoped, limit)
    if not known or not picked:
        return []
    now = sum(models[name].size(bound) for name, bound in known.items())
    then = sum(models[name].size(bound) for name, bound in picked.items())
    if then > (1 - _WORTH) * now:
        return []
    return [(name, bound) for name, bound in picked.items() if bound not in models[name].points]


class _Model:
    """Estimates of a layer's loss and size at bounds that have not been tested."""

    def __init__(self, bounds: Sequence[float], limit: int, sizes: Mapping[float, int]) -> None:
        self._bounds = bounds
        self._limit = limit
        self._sizes = dict(sizes)
        self.points: dict[float, Point] = {}

    def learn(self, point: Point) -> None:
        self.points[point.bound] = point
        self._sizes[point.bound] = point.bytes

    def tested(self) -> list[tuple[float, int, int]]:
        """Return (bound, loss, size) of what was tested to the end."""
        return [
            (bound, point.loss(negative=False), point.bytes)
            for bound, point in sorted(self.points.items())
            if not point.stopped
        ]

    def options(self) -> list[tuple[float, int, int]]:
        """Return (bound, loss, size), measured or estimated, within reach of what was tested."""
        # Further out nothing is known: at most two and a half times as far as before.
        near, far = min(self.points) / 2.5, max(self.points) * 2.5
        inside = [bound for bound in self._bounds if near <= bound <= far]
        return [(bound, self._loss(bound), self.size(bound)) for bound in inside]

    def hopes(self) -> list[tuple[float, int, int]]:
        """Return (bound, loss, size) of untested bounds next to tested ones, as well as may be.

        One step up loses nothing more, one step down loses an image less. The step from 1 to 2 is
        too long for such luck, unless half of the limit is left.
        """
        above = dict(pairwise(self._bounds))
        below = {high: low for low, high in above.items() if high < 1.9 * low}
        steps = [
            (above[bound], loss)
            for bound, loss, _ in self.tested()
            if bound in above and (above[bound] < 1.9 * bound or 2 * loss <= self._limit)
        ]
        steps += [(below[bound], loss - 1) for bound, loss, _ in self.tested() if bound in below]
        return [
            (bound, max(loss, 0), self.size(bound))
            for bound, loss in steps
            if bound not in self.points
        ]

    def size(self, bound: float) -> int:
        if bound in self._sizes:
            return self._sizes[bound]
        known = sorted(self._sizes)
        right = min(max(bisect_left(known, bound), 1), len(known) - 1)
        low, high = known[right - 1], known[right]
        part = log(bound / low) / log(high / low)
        between = self._sizes[low] + part * (self._sizes[high] - self._sizes[low])
        return max(1, round(between))

    def _loss(self, bound: float) -> int:
        if bound in self.points:
            return self._measured(self.points[bound])
        known = sorted(self.points)
        right = bisect_left(known, bound)
        # Below and above what is known, errors add up like noise: with the square of the bound.
        # One image more than was seen keeps a lucky test from looking like no loss anywhere.
        if right == 0:
            scale = (bound / known[0]) ** 2
            return round((self._measured(self.points[known[0]])) * scale)
        if right == len(known):
            scale = (bound / known[-1]) ** 2
            return round((self._measured(self.points[known[-1]]) + 1) * scale)
        low, high = known[right - 1], known[right]
        # Far over the limit the curve is steep; between there and here it counts as just over.
        below, above = (
            min(self._measured(self.points[side]), 3 * self._limit + 3) for side in (low, high)
        )
        part = (bound**2 - low**2) / (high**2 - low**2)
        return round(below + part * (above - below))

    def _measured(self, point: Point) -> int:
        loss = point.loss(negative=False)
        return max(loss, self._limit + 1) if point.stopped else loss


def _choose(options: Mapping[str, list[tuple[float, int, int]]], limit: int) -> dict[str, float]:
    """Let the dynamic program pick among (bound, loss, size); empty where nothing is within."""
    if not all(options.values()):
        return {}
    losses = [[loss for _, loss, _ in each] for each in options.values()]
    sizes = [[size for _, _, size in each] for each in options.values()]
    chosen = least_size(losses, sizes, limit)
    if chosen is None:
        return {}
    return {
        name: each[number][0] for (name, each), number in zip(options.items(), chosen, strict=True)
    }


def _learn(models: Mapping[str, _Model], points: Points) -> None:
    for name, tested in points.items():
        for point in tested.values():
            models[name].learn(point)


def _measure(pairs: Sequence[tuple[str, float]], test: Test, threads: int) -> Points:
    """Test (layer, bound) pairs, several at a time."""
    found: Points = {name: {} for name, _ in pairs}
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda pair: test(*pair), pairs)
        for (name, bound), point in zip(pairs, results, strict=True):
            found[name][bound] = point
    return found


def _around(
    subject: Subject, grids: Mapping[str, list[float]], starts: Mapping[str, float]
) -> list[float]:
    start = starts[subject.name]
    return sorted({_nearest(grids[subject.name], start * factor) for factor in (0.4, 1, 2.5)})


def _nearest(bounds: Sequence[float], wanted: float) -> float:
    return min(bounds, key=lambda bound: abs(log(bound / wanted)))


def _bound(digit: int, decade: int) -> float:
    # From decimal text: 3 × 0.1 is not 0.3.
    return float(f"{digit}e{decade}")
