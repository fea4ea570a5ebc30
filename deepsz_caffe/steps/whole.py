"""Networks of many layers: rounding that knows their inputs, bounds chosen by divergences.

The layers of a whole network are rounded by the second moments of what enters them
(`deepsz_caffe.steps.rounding`), measured with the network as it is, and their bounds are chosen by
`deepsz_caffe.steps.assess.divergence_search`. What is written was counted as a whole, with the
margin that every loss has here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deepsz_caffe.errors import DeepSZWarning, TargetError
from deepsz_caffe.steps.agreement import Agreement, MaxChange
from deepsz_caffe.steps.assess.divergence_search import Counts, Network, divergence_search
from deepsz_caffe.steps.assess.search import Subject
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.tester import Tester
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.evaluator import Outcome
from deepsz_caffe.steps.optimize import Plan
from deepsz_caffe.steps.rounding import one_blas_thread


@dataclass(frozen=True)
class Sampled:
    """What `divergence_search` asks about a network, answered by a tester, but for the counts."""

    tester: Tester

    def size(self, name: str, bound: float) -> int:
        """Give the bytes of a layer, with the layers that share its weights."""
        return self.tester.size(name, bound)

    def diverge(self, bounds: Mapping[str, float]) -> Divergence:
        """Measure the outputs on few images with only these layers encoded."""
        return self.tester.evaluator.diverge(self.tester.encode_all(bounds))


@dataclass(frozen=True)
class Measured(Sampled):
    """A network whose images are counted.

    Attributes
    ----------
    limit
        More than so many lost images, against the network as it is, never hold.
    """

    limit: int

    def count(self, bounds: Mapping[str, float]) -> Outcome:
        """Count a whole configuration, as far as it takes to know that it does not hold."""
        return self.tester.measure(bounds, self.limit)


@dataclass(frozen=True)
class Changing(Sampled):
    """A network whose outputs are compared."""

    def count(self, bounds: Mapping[str, float]) -> Mapping[str, Divergence]:
        """Measure a whole configuration on all images."""
        return self.tester.changes(bounds)


def within_loss(tester: Tester, limit: int, confidence: float) -> tuple[Plan, Outcome, int]:
    """Choose the fewest bytes with which the loss of the whole, and its margin, hold.

    Parameters
    ----------
    tester
        Encodes and measures.
    limit
        Images that may be lost against the original network.
    confidence
        Of the margin, see `significance.margin`.

    Returns
    -------
    Plan, Outcome, int
        The configuration, its counts, and how many were counted.

    Raises
    ------
    TargetError
        Even the most careful configuration loses too much.
    """
    missed = TargetError(
        f"no configuration loses at most {limit} of {tester.total:,} images with its margin",
        where=tester.setup.weights,
        hint="allow a larger loss, or take a network that was pruned less",
    )
    most = limit - tester.lost_before
    return _counted(tester, lambda found: images_needed(found, confidence) <= limit, most, missed)


def within_agreement(tester: Tester, agreement: Agreement) -> tuple[Plan, Outcome, int]:
    """Choose the fewest bytes with which the class of enough images stays the same.

    Images are right where the answer is the original network's, as an evaluator without labels
    has it. Parameters and results as of `within_loss`.

    Raises
    ------
    TargetError
        Even the most careful configuration changes too many, or pruning did.
    """
    if tester.evaluator.chance == tester.total > 1:
        warnings.warn(
            DeepSZWarning(
                f"{tester.setup.weights}: says the same class of all {tester.total:,} images: are "
                "they prepared as the network was trained (mean, scale, order of channels)?"
            ),
            stacklevel=2,
        )
    score, asked = tester.evaluator.score, f"an agreement of {agreement.share:.2%}"
    shown = f"with confidence {agreement.confidence:g}"
    if not agreement.holds(score):
        raise TargetError(
            f"the pruned network alone agrees on {score.top1_correct:,} of {score.total:,} images, "
            f"too few for {asked} {shown}",
            where=tester.setup.weights,
            hint="ask for less, prune less, or retrain for longer",
        )
    missed = TargetError(
        f"no configuration shows {asked} on {tester.total:,} images {shown}",
        where=tester.setup.weights,
        hint="ask for less, or give more images",
    )
    most = agreement.most_changed(score.total) - (score.total - score.top1_correct)
    return _counted(tester, lambda found: agreement.holds(found.score), most, missed)


def within_change(tester: Tester, change: MaxChange) -> tuple[Plan, Mapping[str, Divergence], int]:
    """Choose the fewest bytes with which no output changes more; as `within_agreement`."""
    missed = TargetError(
        f"no configuration changes the outputs by at most {change.part:g} with confidence "
        f"{change.confidence:g}",
        where=tester.setup.weights,
        hint="allow a larger change",
    )
    return _within(tester, Changing(tester), change.holds, missed)


def _counted(
    tester: Tester, holds: Callable[[Outcome], bool], most: int, missed: TargetError
) -> tuple[Plan, Outcome, int]:
    def wholly(found: Outcome) -> bool:
        return found.images == tester.total and holds(found)

    plan, outcome, counted = _within(tester, Measured(tester, most), wholly, missed)
    return replace(plan, loss=outcome.original_lost - outcome.original_gained), outcome, counted


def _within(
    tester: Tester,
    network: Network[Counts],
    holds: Callable[[Counts], bool],
    missed: TargetError,
) -> tuple[Plan, Counts, int]:
    subjects = [Subject(each.name, each.typical, each.largest) for each in tester.setup.layers]
    try:
        with one_blas_thread():
            found = divergence_search(subjects, network, holds, tester.threads)
    except BaseException:
        # Threads that are still waiting for a measurement give up.
        tester.evaluator.close()
        raise
    if found.best is None or found.outcome is None:
        raise missed
    encoded = tester.encode_all(found.best.bounds).values()
    plan = Plan(
        bounds=found.best.bounds,
        bytes=sum(layer.bytes for layer in encoded),
        dense_bytes=sum(layer.dense_bytes for layer in encoded),
        loss=0,
        total=tester.total,
    )
    return plan, found.outcome, found.counted
