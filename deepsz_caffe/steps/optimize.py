"""Step 3: pick one error bound for each layer, by dynamic programming (section 3.4 of the paper).

The losses of single layers add up (while they are small), so choosing the bounds is a knapsack
problem over layers. Losses are counts of images here, not rounded percentages: the table over the
budget has one column for each image that may be lost, and the optimum is exact.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError, TargetError
from deepsz_caffe.steps.assess.journal import TESTED, Journal, journal_key
from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment, Point

#: A size that no choice has.
_NONE = np.iinfo(np.int64).max // 2


@dataclass(frozen=True)
class Plan:
    """One error bound a layer.

    Attributes
    ----------
    bounds
        Layer name -> absolute error bound.
    bytes
        Expected size of the fc layers.
    dense_bytes
        Their size as dense float32.
    loss, total
        Expected loss of top-1, as images out of `total`: the sum over the layers.
    """

    bounds: dict[str, float]
    bytes: int
    dense_bytes: int
    loss: int
    total: int

    @property
    def ratio(self) -> float:
        return self.dense_bytes / self.bytes


def images_allowed(max_loss: float, total: int) -> int:
    """Convert a loss as a fraction to the most images out of `total` that may be lost.

    Raises
    ------
    InputError
        The loss is not in [0, 1).
    """
    if not 0 <= max_loss < 1:
        raise InputError(
            f"a loss of accuracy is a fraction from 0 to below 1, not {max_loss}",
            hint="0.002 is 0.2 %",
        )
    # 0.002 × 10000 must be 20 although 0.002 is a little less.
    return floor(max_loss * total + 1e-6)


def optimize(
    assessment: Assessment,
    *,
    max_loss: float | None = None,
    target_ratio: float | None = None,
    budget: int | None = None,
    max_bytes: int | None = None,
    negative_as_measured: bool | None = None,
) -> Plan:
    """Choose the bounds: least bytes within a loss, or least loss within a size.

    Exactly one target is given.

    Parameters
    ----------
    max_loss
        Largest expected loss of top-1, as a fraction of the images.
    target_ratio
        Least compression ratio of the fc layers.
    budget
        `max_loss` as a count of images.
    max_bytes
        `target_ratio` as a size.
    negative_as_measured
        Count a layer that gains accuracy as a negative loss, which others may spend, as the paper
        does. Default: only for an assessment with the paper's protocol; otherwise it counts as 0,
        since such gains are mostly chance.

    Raises
    ------
    TargetError
        No choice of the measured points meets the target; says what can be met.
    InputError
        Not exactly one target, or one out of range.
    """
    targets = (max_loss, target_ratio, budget, max_bytes)
    if sum(target is not None for target in targets) != 1:
        raise InputError("give either a maximal loss or a target ratio")
    if negative_as_measured is None:
        negative_as_measured = assessment.protocol == "paper"
    dense = sum(layer.dense_bytes for layer in assessment.layers)
    if max_loss is not None:
        budget = images_allowed(max_loss, assessment.total)
    if target_ratio is not None:
        max_bytes = floor(dense / checked_ratio(target_ratio))
    candidates = [_candidates(layer) for layer in assessment.layers]
    losses = [
        [point.loss(negative=negative_as_measured) for point in points] for points in candidates
    ]
    sizes = [[point.bytes for point in points] for points in candidates]
    if budget is not None:
        chosen = least_size(losses, sizes, budget)
    else:
        assert max_bytes is not None
        chosen = least_loss(losses, sizes, max_bytes)
    if chosen is None:
        raise _unmet(assessment, losses, sizes, budget, max_bytes)
    picked = [points[i] for points, i in zip(candidates, chosen, strict=True)]
    return Plan(
        bounds={
            name: point.bound
            for layer, point in zip(assessment.layers, picked, strict=True)
            for name in (layer.name, *layer.sharers)
        },
        bytes=sum(point.bytes for point in picked),
        dense_bytes=dense,
        loss=sum(options[i] for options, i in zip(losses, chosen, strict=True)),
        total=assessment.total,
    )


def measured_loss(
    assessment: Assessment, plan: Plan, journal: str | os.PathLike[str]
) -> int | None:
    """Look up what a plan loses as a whole, where that was measured.

    Parameters
    ----------
    assessment
        What the plan was made from.
    journal
        Of tests of the same network; it need not exist.

    Returns
    -------
    int or None
        Loss of top-1 in images, a gain is negative; `Plan.loss` is what was expected.
    """
    if not set(TESTED) <= assessment.digests.keys():
        return None
    found = Journal(journal, journal_key(assessment.digests, assessment.profile))
    outcome = found.find_whole(plan.bounds)
    return None if outcome is None else outcome.lost - outcome.gained


def checked_ratio(ratio: float) -> float:
    """Return a compression ratio that may be asked for.

    Raises
    ------
    InputError
        It is not a number over 0.
    """
    if not (isfinite(ratio) and ratio > 0):
        raise InputError(f"a compression ratio is over 0, not {ratio}")
    return ratio


def _unmet(
    assessment: Assessment,
    losses: Sequence[Sequence[int]],
    sizes: Sequence[Sequence[int]],
    budget: int | None,
    max_bytes: int | None,
) -> TargetError:
    """Say what the measured points can meet in place of what was asked for."""
    if budget is not None:
        least = sum(min(options) for options in losses)
        return TargetError(
            f"no choice of bounds loses only {budget} of {assessment.total:,} images; the "
            f"least is {least}",
            hint="assess smaller error bounds, or allow a larger loss",
        )
    best = sum(min(options) for options in sizes)
    dense = sum(layer.dense_bytes for layer in assessment.layers)
    return TargetError(
        f"no choice of bounds takes only {max_bytes:,} bytes; the least is {best:,}, a "
        f"ratio of {dense / best:.1f}",
        hint="allow a larger loss in the assessment, or prune more",
    )


def least_size(
    losses: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]], budget: int
) -> list[int] | None:
    """Pick one option a layer: least total size with a total loss of at most `budget`.

    Of several choices of that size, one of least loss. Losses may be negative.

    Returns
    -------
    list of int or None
        The number of the option for each layer; None where no choice meets the budget.
    """
    table = _Table(losses, sizes)
    last = table.column(budget)
    if last < 0:
        return None
    # The first column of the least size: no loss for nothing.
    return table.trace(int(np.argmin(table.best[: last + 1])))


def least_loss(
    losses: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]], max_bytes: int
) -> list[int] | None:
    """Pick one option a layer: least total loss with a total size of at most `max_bytes`.

    Of several choices of that loss, one of least size.
    """
    table = _Table(losses, sizes)
    fits = np.flatnonzero(table.best <= max_bytes)
    return table.trace(int(fits[0])) if fits.size else None


class _Table:
    """`best[b]`: the least size with a total loss of exactly `b` above the least possible."""

    def __init__(self, losses: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]]) -> None:
        if not losses or not all(losses):
            raise InputError("every layer needs at least one option")
        self._offset = sum(min(options) for options in losses)
        # Losses from 0 up; the table is as wide as the largest total.
        self._losses = [[loss - min(options) for loss in options] for options in losses]
        width = sum(max(options) for options in self._losses) + 1
        self.best: NDArray[np.int64] = np.full(width, _NONE, np.int64)
        self.best[0] = 0
        self._picks: list[NDArray[np.int64]] = []
        for options, costs in zip(self._losses, sizes, strict=True):
            longer = np.full((len(options), width), _NONE, np.int64)
            for number, (loss, size) in enumerate(zip(options, costs, strict=True)):
                longer[number, loss:] = self.best[: width - loss] + size
            picks = longer.argmin(axis=0)
            self._picks.append(picks)
            self.best = np.minimum(longer[picks, np.arange(width)], _NONE)

    def column(self, budget: int) -> int:
        return min(budget - self._offset, len(self.best) - 1)

    def trace(self, column: int) -> list[int]:
        chosen = []
        for picks, options in zip(reversed(self._picks), reversed(self._losses), strict=True):
            number = int(picks[column])
            chosen.append(number)
            column -= options[number]
        return chosen[::-1]


def _candidates(layer: LayerAssessment) -> list[Point]:
    """Return the points whose loss was measured on all images."""
    points = [point for point in layer.points if not point.stopped]
    if not points:
        raise TargetError(
            "every error bound that was tried loses too much accuracy",
            where=f"layer {layer.name}",
            hint="assess for a larger loss, or leave the layer as it is: --layers",
        )
    return points
