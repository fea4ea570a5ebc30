"""Which configuration to take: all layers encoded at once and measured as a whole.

That the losses of single layers add up is an approximation, and what measured well one by one was
partly lucky. So configurations are measured as wholes, and of those that hold the smallest is
taken. Which one to measure next is decided as the tests of single layers are: by the bytes that it
promises to save, on average.

What a configuration loses is estimated by linear regression with Gaussian errors. Each option of
each layer adds to the net loss what is expected of it and an unknown deviation, whose variance is
about the number of images that change sides there, since each of them changes the count by one.
Every configuration that is measured corrects the deviations of the options that it holds, so the
estimate of others that share them.

Where single layers can be tested for what they do to each image, that is done before a
configuration that holds them is measured, and `superposition` forecasts it far better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import pi, prod, sqrt
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.steps.assess.estimate import Option, normal_below
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.superposition import Choices, Floats, Superposition
from deepsz_caffe.steps.evaluator import Outcome, Reference

#: A measurement is worth it if it promises to save this part of the bytes …
_WORTH_BYTES = 0.005
#: … this part where it is forecast by margins: what layers hold was tested then, and is kept, …
WORTH_FORECAST = 0.001
#: … or, where the bytes are given, this part of an image.
_WORTH_IMAGES = 0.2
#: At most so many configurations are measured, and for each layer so many more.
_MOST, _MOST_EACH = 24, 4
#: Where so many failed and none held, all layers are tightened together.
_HOPEFUL = 6
#: So many configurations are looked at; where there are more, those that differ from the best in
#: two layers …
_LOOKED_AT = 200_000
#: … and so many of them, the most promising by what single layers say, are estimated with care.
_COMPARED = 2_000
#: How much wider the scatter is than what single layers say, to choose these.
_WIDER = 3
#: So many tighter options of each layer are weighed beside those of the best configuration.
_NEIGHBOURS = 2
#: Losses at all bounds of a layer are off together by about this part, squared.
_TOGETHER = 0.05

#: For each layer the number of its option.
Choice = tuple[int, ...]


#: A test of a layer alone has to promise so many times as much as a measurement.
_TEST_ALONE = 20
#: Variance, in images squared, of what `superposition` forecasts, for each layer.
_SUPERPOSED = 1.0


@dataclass(frozen=True)
class Alone:
    """Tests of single layers.

    Attributes
    ----------
    reference
        What margins are compared with.
    margins
        (layer, option) -> float32[images], of the tests that were done.
    test
        Tests an option of a layer; gives it as it is known then, and margins if there are any.
    """

    reference: Reference
    margins: Mapping[tuple[int, int], NDArray[np.float32]]
    test: Callable[[int, int], tuple[Option, NDArray[np.float32] | None]]


@dataclass(frozen=True)
class Found:
    """The configuration taken, and all that were measured.

    Attributes
    ----------
    choice
        For each layer the number of its option; None where no configuration meets the goal.
    measured
        Configurations in the order in which they were measured.
    """

    choice: Choice | None
    measured: dict[Choice, Outcome]


class Goal(Protocol):
    """What is wanted of a configuration, and what a measurement is worth to it."""

    def value(self, size: int, needed: int) -> float | None:
        """Give the value of a measured configuration, the less the better; None: it fails."""

    def possible(self, sizes: Floats, best: float | None) -> NDArray[np.bool_]:
        """Say which sizes can be better than the best at all."""

    def gains(self, sizes: Floats, needed: Floats, spread: Floats, best: float | None) -> Floats:
        """Say how much better than the best a measurement makes it, on average."""

    def enough(self, best: float | None) -> float:
        """Give the least gain that a measurement is worth."""


@dataclass(frozen=True)
class WithinLoss:
    """The fewest bytes of which the loss with its margin is at most `limit` images.

    A measurement is worth it if it promises to save the part `worth` of the bytes.
    """

    limit: int
    worth: float = _WORTH_BYTES

    def value(self, size: int, needed: int) -> float | None:
        return size if needed <= self.limit else None

    def possible(self, sizes: Floats, best: float | None) -> NDArray[np.bool_]:
        return sizes < (np.inf if best is None else best)

    def gains(self, sizes: Floats, needed: Floats, spread: Floats, best: float | None) -> Floats:
        # One byte more: where all weigh the same, any that holds is still worth it.
        saved = np.maximum((sizes.max() + 1 if best is None else best) - sizes, 0)
        gain: Floats = normal_below((self.limit + 0.5 - needed) / spread) * saved
        return gain

    def enough(self, best: float | None) -> float:
        return 0 if best is None else self.worth * best


@dataclass(frozen=True)
class WithinBytes:
    """The least loss, with its margin, of those that take at most `limit` bytes."""

    limit: int

    def value(self, size: int, needed: int) -> float | None:
        return needed if size <= self.limit else None

    def possible(self, sizes: Floats, best: float | None) -> NDArray[np.bool_]:
        return sizes <= self.limit

    def gains(self, sizes: Floats, needed: Floats, spread: Floats, best: float | None) -> Floats:
        least = needed.max() if best is None else best
        far = (least - needed) / spread
        # The expected improvement of a Gaussian.
        gain: Floats = spread * (far * normal_below(far) + np.exp(-(far**2) / 2) / sqrt(2 * pi))
        return np.where(sizes <= self.limit, gain, 0)

    def enough(self, best: float | None) -> float:
        return 0 if best is None else _WORTH_IMAGES


def search_configurations(
    layers: Sequence[Sequence[Option]],
    measure: Callable[[Choice], Outcome],
    weigh: Callable[[int, int], int],
    goal: Goal,
    confidence: float,
    before: Outcome | None = None,
    alone: Alone | None = None,
) -> Found:
    """Measure configurations, the most promising first, until no other is worth it.

    Parameters
    ----------
    layers
        The options of each layer, the tightest first.
    measure
        Counts a whole configuration.
    weigh
        Encodes an option of a layer, given by their numbers, and says how many bytes it takes; the
        options need to know that only roughly.
    goal
        `WithinLoss` or `WithinBytes`.
    confidence
        Of the margin, see `significance.margin`.
    before
        The network with nothing encoded, where that is not the original one, which counts.
    alone
        Tests of single layers, where they tell what becomes of each image.
    """
    estimate = _Estimate(layers, confidence, before, alone)
    most = _MOST + _MOST_EACH * len(layers)
    best: tuple[float, Choice] | None = None
    failed = 0
    weighed: set[Choice] = set()
    while len(estimate.measured) < most:
        around = best[1] if best else estimate.safest
        value = best[0] if best else None
        choices = estimate.hopeful(around, goal, value)
        needed, spread = estimate(choices)
        gains = goal.gains(estimate.bytes(choices), needed, spread, value)
        gains[estimate.is_measured(choices)] = 0
        # To test a layer alone takes longer than to measure what is forecast.
        gains[estimate.untested(choices) & (gains <= _TEST_ALONE * goal.enough(value))] = 0
        place = int(gains.argmax())
        choice: Choice = tuple(choices[place].tolist())
        if best is None and (failed >= _HOPEFUL or gains[place] <= 0):
            # Nothing holds so far, and the estimates were wrong: all layers tighter, and tighter.
            last = next(reversed(estimate.measured), choice)
            choice = tuple(option // 2 for option in last)
            if choice in estimate.measured:
                break
        elif gains[place] <= goal.enough(value):
            if around in weighed:
                break
            # Sizes do not always fall as bounds grow: the tighter neighbours may weigh less.
            weighed.add(around)
            estimate.weigh_tighter(around, weigh)
            continue
        elif estimate.test_alone(choice):
            continue
        sizes = [weigh(layer, option) for layer, option in enumerate(choice)]
        outcome = measure(choice)
        estimate.learn(choice, outcome, sizes)
        reached = goal.value(sum(sizes), images_needed(outcome, confidence))
        failed += reached is None
        if reached is not None and (best is None or (reached, choice) < best):
            best = reached, choice
    return Found(best[1] if best else None, estimate.measured)


class _Estimate:
    """What configurations lose, as expected from all that was measured so far."""

    def __init__(
        self,
        layers: Sequence[Sequence[Option]],
        confidence: float,
        before: Outcome | None,
        alone: Alone | None,
    ) -> None:
        def column(name: str) -> list[Floats]:
            return [np.array([getattr(o, name) for o in each], float) for each in layers]

        self._bytes, self._loss = column("bytes"), column("loss")
        self._changed, self._variance = column("changed"), column("variance")
        self._lost_before, self._changed_before = _counts(before) if before else (0, 0)
        self._factor = NormalDist().inv_cdf(confidence)
        self.measured: dict[Choice, Outcome] = {}
        #: the configuration that loses least as it seemed beforehand
        self.safest: Choice = tuple(int(np.argmax(sizes)) for sizes in self._bytes)
        self._alone, self._margins = alone, None
        self._tested: set[tuple[int, int]] = set()
        self._counts = [len(each) for each in layers]
        if alone is not None:
            self._margins = Superposition(alone.reference, self._counts)
            for (layer, option), margins in alone.margins.items():
                self._margins.learn(layer, option, margins)
                self._tested.add((layer, option))
        self._all = _all_choices(self._counts)
        self._known = None if self._all is None else self._beforehand(self._all)

    def learn(self, choice: Choice, outcome: Outcome, sizes: Sequence[int]) -> None:
        """Add a measurement."""
        self.measured[choice] = outcome
        for known, option, size in zip(self._bytes, choice, sizes, strict=True):
            known[option] = size

    def weigh_tighter(self, choice: Choice, weigh: Callable[[int, int], int]) -> None:
        """Learn what the options next to those of a configuration weigh, on the tighter side."""
        for layer, (known, option) in enumerate(zip(self._bytes, choice, strict=True)):
            for tighter in range(max(option - _NEIGHBOURS, 0), option):
                known[tighter] = weigh(layer, tighter)

    def test_alone(self, choice: Choice) -> bool:
        """Test each option of a configuration alone, where that was not done; say if any was."""
        if self._alone is None or self._margins is None:
            return False
        new = [pair for pair in enumerate(choice) if pair not in self._tested]
        for layer, option in new:
            self._tested.add((layer, option))
            found, margins = self._alone.test(layer, option)
            for array, value in (
                (self._bytes, found.bytes),
                (self._loss, found.loss),
                (self._changed, found.changed),
                (self._variance, found.variance),
            ):
                array[layer][option] = value
            if margins is not None:
                self._margins.learn(layer, option, margins)
            if self._all is not None and self._known is not None:
                rows = self._all[:, layer] == option
                self._known[:, rows] = self._beforehand(self._all[rows])
        return bool(new)

    def untested(self, choices: Choices) -> NDArray[np.bool_]:
        """Say which of these configurations hold options that would be tested alone first."""
        if self._margins is None:
            return np.zeros(len(choices), bool)
        return ~self._margins.knows(choices)

    def is_measured(self, choices: Choices) -> NDArray[np.bool_]:
        """Say which of these configurations were measured."""
        found = np.zeros(len(choices), bool)
        for choice in self.measured:
            found |= (choices == choice).all(axis=1)
        return found

    def bytes(self, choices: Choices) -> Floats:
        """Give the sizes of configurations, int[n, layers]."""
        return _sums(self._bytes, choices)

    def hopeful(self, around: Choice, goal: Goal, best: float | None) -> Choices:
        """Narrow all configurations, or those near one, down to those that promise most."""
        every = self._all if self._all is not None else _near(self._counts, around)
        sizes = self.bytes(every)
        possible = goal.possible(sizes, best)
        possible[0] |= not possible.any()
        choices, sizes = every[possible], sizes[possible]
        if len(choices) <= _COMPARED:
            return choices
        known = self._beforehand(choices) if self._known is None else self._known[:, possible]
        needed, spread = self._with_margin(known[0], known[1]), np.sqrt(known[2])
        # By what is likely, and by what measurements may yet make likely: a wide spread alone would
        # let the smallest in, which are hopeless and promise most, and nothing else.
        gains = (goal.gains(sizes, needed, factor * spread, best) for factor in (1, _WIDER))
        kept = [np.argpartition(-each, _COMPARED // 2)[: _COMPARED // 2] for each in gains]
        return choices[np.unique(np.concatenate(kept))]

    def __call__(self, choices: Choices) -> tuple[Floats, Floats]:
        """Estimate the loss with its margin, in images, and its standard deviation."""
        loss, changed, variance = self._beforehand(choices)
        if not self.measured:
            return self._with_margin(loss, changed), np.sqrt(variance)
        known = np.array(list(self.measured))
        lost, seen = np.array([_counts(o) for o in self.measured.values()], float).T
        expected, usual, scatter = self._beforehand(known)
        across = self._covariance(choices, known)
        shared = self._covariance(known, known)
        weights = np.linalg.solve(shared + np.diag(scatter - np.diag(shared)), across.T)
        loss = loss + (lost - expected) @ weights
        variance = variance - (across * weights.T).sum(axis=1)
        changed = changed * np.median((seen + 1) / (usual + 1))
        return self._with_margin(loss, changed), np.sqrt(np.maximum(variance, 1))

    def _beforehand(self, choices: Choices) -> Floats:
        """Give net loss, images that change sides, and the variance of the loss: float64[3, n]."""
        together = sum(
            _TOGETHER * np.maximum(each[column], 0) ** 2
            for each, column in zip(self._loss, choices.T, strict=True)
        )
        found = np.array(
            [
                self._lost_before + _sums(self._loss, choices),
                self._changed_before + _sums(self._changed, choices),
                # One more: what several layers do to each other.
                _sums(self._variance, choices) + together + 1,
            ]
        )
        if self._margins is not None:
            rows = self._margins.knows(choices)
            if rows.any():
                found[:2, rows] = self._margins.forecast(choices[rows])
                found[2, rows] = _SUPERPOSED * len(self._counts) + 1
        return found

    def _with_margin(self, loss: Floats, changed: Floats) -> Floats:
        needed: Floats = loss + self._factor * np.sqrt(np.maximum(changed, 1))
        return needed

    def _covariance(self, some: Choices, others: Choices) -> Floats:
        total = np.zeros((len(some), len(others)))
        for loss, variance, a, b in zip(self._loss, self._variance, some.T, others.T, strict=True):
            same = a[:, None] == b
            if self._margins is not None:
                total += _SUPERPOSED * same
                continue
            total += same * variance[b]
            total += _TOGETHER * np.outer(np.maximum(loss[a], 0), np.maximum(loss[b], 0))
        return total


def _counts(outcome: Outcome) -> tuple[int, int]:
    """Return the net loss against the original network, and the images that changed sides."""
    lost, gained = outcome.original_lost, outcome.original_gained
    return lost - gained, lost + gained


def _sums(arrays: Sequence[Floats], choices: Choices) -> Floats:
    total: Floats = np.sum(
        [array[column] for array, column in zip(arrays, choices.T, strict=True)], axis=0
    )
    return total


def _all_choices(counts: Sequence[int]) -> Choices | None:
    """List all configurations, unless they are too many."""
    if prod(counts) > _LOOKED_AT:
        return None
    return np.indices(counts).reshape(len(counts), -1).T


def _near(counts: Sequence[int], around: Choice) -> Choices:
    """List the configurations that differ from one in two layers at most."""
    found = []
    for i, j in combinations(range(len(counts)), 2):
        pairs = np.indices((counts[i], counts[j])).reshape(2, -1)
        near = np.tile(np.array(around), (pairs.shape[1], 1))
        near[:, i], near[:, j] = pairs
        found.append(near)
    return np.unique(np.concatenate(found), axis=0)
