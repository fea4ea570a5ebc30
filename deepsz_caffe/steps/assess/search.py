"""Which error bounds to try: the paper's range, a given grid, or the few that decide.

A search is given `test`, which measures one layer at one
bound and may be called from several threads, and `size`, which only encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import floor, log, log10

from deepsz_caffe.steps.assess.estimate import LayerModel, expected_gains, least_sizes
from deepsz_caffe.steps.assess.result import Point
from deepsz_caffe.steps.optimize import least_size

#: Loss at which the paper's search leaves the decades: the distortion criterion.
CRITERION = 0.001

#: How far below its typical weight a layer begins, as a factor: half a decade.
_BEGIN = 10**0.5

#: A test is worth it if it promises to make the whole smaller by this part of a layer's mean size.
_WORTH = 0.01

#: A test is done together with the most promising one if it promises this part as much.
_BESIDE = 0.5

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


def grid(low: float, high: float, *, halves: bool = False) -> list[float]:
    """List the bounds 1 to 9 × 10^k from `low` to `high`, ascending; or by steps of a half.

    Examples
    --------
    >>> grid(0.008, 0.02)
    [0.008, 0.009, 0.01, 0.02]
    >>> grid(0.009, 0.02, halves=True)
    [0.009, 0.0095, 0.01, 0.015, 0.02]
    """
    decades = range(floor(log10(low)) - 1, floor(log10(high)) + 2)
    digits = [digit / 2 for digit in range(2, 20)] if halves else range(1, 10)
    bounds = [_bound(digit, decade) for decade in decades for digit in digits]
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
    subjects: Sequence[Subject], test: Test, size: Size, total: int, limit: int, threads: int
) -> Points:
    """Test, again and again, what promises to make the whole smallest.

    Every layer begins half a decade below its typical weight. From then on losses and sizes at
    other bounds, in half steps (1, 1.5, 2, ... 9.5 times a power of ten), are estimated with their
    uncertainty, and the bounds are tested that make the whole smaller by the most bytes on average
    (see `estimate`): a little tighter where a layer lost too much, a little looser
    where it lost little, and not at all where a layer's size hardly matters. It is over when no
    test promises `_WORTH` of what a layer weighs on average: of many layers each may promise
    little, and all together much.

    Last, smaller bounds are encoded: where one takes no more bytes it is tested too, as accuracy
    for nothing (sizes do not always fall as bounds grow).
    """
    grids = {s.name: _grid(s) for s in subjects}
    starts = {s.name: _start(s) for s in subjects}
    models = {}
    with ThreadPoolExecutor(threads) as pool:
        weighed = {
            s.name: [(b, pool.submit(size, s.name, b)) for b in weighed_first(s)] for s in subjects
        }
        for name, sizes in weighed.items():
            known = {bound: coming.result() for bound, coming in sizes}
            models[name] = LayerModel(grids[name], limit, total, known)
    wanted = list(starts.items())
    while wanted:
        _learn(models, _measure(wanted, test, threads))
        wanted = _promising(models, limit) or _tighter(models, limit)
    smaller = []
    for name, bound in _chosen(models, limit).items():
        below = [b for b in grids[name] if b < bound][-2:]
        smaller += [
            (name, b)
            for b in below
            if b not in models[name].points and size(name, b) <= models[name].points[bound].bytes
        ]
    _learn(models, _measure(smaller, test, threads))
    return {name: model.points for name, model in models.items()}


def _promising(models: Mapping[str, LayerModel], limit: int) -> list[tuple[str, float]]:
    """List the tests to do next: of each layer the one that promises most, if it is worth it.

    How many there are does not depend on how many can run at a time, so neither does the result.
    """
    best = []
    for name, model in models.items():
        # The others at their best as estimated: what is worth it only together is found so.
        rest = [each.estimates() for other, each in models.items() if other != name]
        now = least_sizes([model.options(), *rest], limit)[limit]
        gains = expected_gains(model, least_sizes(rest, limit), now)
        if gains:
            bound = max(gains, key=gains.__getitem__)
            best.append((gains[bound], name, bound))
    whole = least_sizes([model.options() for model in models.values()], limit)[limit]
    enough = _WORTH * whole / len(models)
    enough = max(enough, _BESIDE * max((gain for gain, _, _ in best), default=0))
    return [(name, bound) for gain, name, bound in best if gain > 0 and gain >= enough]


def _tighter(models: Mapping[str, LayerModel], limit: int) -> list[tuple[str, float]]:
    """Where a layer would have to lose less than at any tested bound: a smaller bound for it.

    That is so where all that was tested loses too much together, and where the whole would be
    smaller by what a test is worth if the layer that loses most lost nothing.
    """
    options = [model.options() for model in models.values()]
    # The first of a layer's options is not tested.
    tested = least_sizes([each[1:] for each in options], limit)[limit]
    if least_sizes(options, limit)[limit] >= (1 - _WORTH / len(models)) * tested:
        return []

    def least_loss(model: LayerModel) -> int:
        points = model.points.values()
        return min(limit + 1 if p.stopped else p.loss(negative=False) for p in points)

    for name, model in sorted(models.items(), key=lambda each: -least_loss(each[1])):
        below = [bound for bound in model.untested() if bound <= min(model.points) / 2]
        if below:
            return [(name, below[-1])]
    return []


def _chosen(models: Mapping[str, LayerModel], limit: int) -> dict[str, float]:
    """Let the dynamic program pick among tested bounds; empty where nothing is within."""
    tested = {
        name: [point for point in model.points.values() if not point.stopped]
        for name, model in models.items()
    }
    if not all(tested.values()):
        return {}
    losses = [[point.loss(negative=False) for point in each] for each in tested.values()]
    sizes = [[point.bytes for point in each] for each in tested.values()]
    chosen = least_size(losses, sizes, limit)
    if chosen is None:
        return {}
    return {
        name: each[number].bound
        for (name, each), number in zip(tested.items(), chosen, strict=True)
    }


def _learn(models: Mapping[str, LayerModel], points: Points) -> None:
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


def weighed_first(subject: Subject) -> list[float]:
    """List the bounds at which a layer is encoded before any test, to know its sizes roughly."""
    bounds, start = _grid(subject), _start(subject)
    return sorted({_nearest(bounds, start * factor) for factor in (0.4, 1, 2.5)})


def _grid(subject: Subject) -> list[float]:
    largest = max(subject.largest, subject.typical)
    return grid(subject.typical / 1000, largest * 2, halves=True)


def _start(subject: Subject) -> float:
    return _nearest(grid(subject.typical / 1000, subject.typical), subject.typical / _BEGIN)


def _nearest(bounds: Sequence[float], wanted: float) -> float:
    return min(bounds, key=lambda bound: abs(log(bound / wanted)))


def _bound(digit: float, decade: int) -> float:
    # From decimal text: 3 × 0.1 is not 0.3.
    return float(f"{digit}e{decade}")
