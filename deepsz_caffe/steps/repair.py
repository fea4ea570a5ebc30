"""What to do when a configuration, measured as a whole, loses more than its layers promised."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from deepsz_caffe.errors import TargetError
from deepsz_caffe.steps.assess.result import Assessment
from deepsz_caffe.steps.assess.significance import margin
from deepsz_caffe.steps.assess.tester import Search, Tester, assess
from deepsz_caffe.steps.evaluator import Outcome
from deepsz_caffe.steps.optimize import Plan, optimize

#: How often all bounds are halved after the dynamic program has no smaller budget to offer.
_HALVINGS = 12


@dataclass(frozen=True)
class Choice:
    """A configuration: the assessment that it comes from, its bounds, and its test as a whole."""

    assessment: Assessment
    plan: Plan
    outcome: Outcome


def repair(
    tester: Tester,
    failed: Choice | None,
    assessment: Assessment,
    allowed: int,
    confidence: float,
    search: Search,
) -> Choice:
    """Tighten the bounds until the loss of the whole holds.

    Parameters
    ----------
    tester
        Encodes and measures.
    failed
        What lost too much; None where no choice of tested bounds was expected to hold.
    assessment
        What is known of single layers.
    allowed
        Images that the whole may lose against the original network, margin included.
    confidence
        See `needed`.
    search
        How further bounds are sought.

    Raises
    ------
    TargetError
        Nothing holds.
    """
    budget = allowed - tester.lost_before
    while failed is not None:
        # At least one image less than this choice was expected to lose: it is not made again.
        excess = needed(failed.outcome, confidence) - allowed
        budget = min(budget, failed.plan.loss) - max(1, excess // 2)
        if budget < 0:
            break
        assessment = assess(tester, assessment.max_loss, search=search, budget=budget)
        try:
            plan = optimize(assessment, budget=budget)
        except TargetError:
            break
        failed = Choice(assessment, plan, tester.measure(plan.bounds))
        if needed(failed.outcome, confidence) <= allowed:
            return failed
    if failed is not None:
        bounds = failed.plan.bounds
    else:
        bounds = {
            name: min(point.bound for point in layer.points)
            for layer in assessment.layers
            for name in (layer.name, *layer.sharers)
        }
    return _halved(tester, assessment, bounds, allowed, confidence)


def needed(outcome: Outcome, confidence: float) -> int:
    """Return the loss against the original network with its margin, in images, rounded up.

    The margin is on the images that the original and the compressed network judge differently,
    whatever each of pruning and compression did to them.
    """
    lost, gained = outcome.original_lost, outcome.original_gained
    error = margin(lost, gained, outcome.images, confidence) * outcome.images
    return ceil(lost - gained + error - 1e-9)


def _halved(
    tester: Tester,
    assessment: Assessment,
    bounds: dict[str, float],
    allowed: int,
    confidence: float,
) -> Choice:
    """Halve all bounds together until the loss holds."""
    for _ in range(_HALVINGS):
        bounds = {name: bound / 2 for name, bound in bounds.items()}
        outcome = tester.measure(bounds)
        if needed(outcome, confidence) <= allowed:
            encoded = tester.encode_all(bounds).values()
            size, dense = (sum(x.bytes for x in encoded), sum(x.dense_bytes for x in encoded))
            loss = outcome.lost - outcome.gained
            return Choice(assessment, Plan(bounds, size, dense, loss, tester.total), outcome)
    loss = outcome.original_lost - outcome.original_gained
    raise TargetError(
        f"no configuration keeps the loss within {allowed} of {tester.total:,} images; the last "
        f"one measured loses {loss}"
        + ("" if confidence == 0.5 else f", and {needed(outcome, confidence) - loss} of margin"),
        where=tester.setup.weights,
        hint="allow a larger loss, or take a network that was pruned less",
    )
