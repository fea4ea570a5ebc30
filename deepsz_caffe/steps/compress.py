"""Steps 2 to 4 in one: assess, optimize, check the whole, repair where it fails, encode.

That the losses of single layers add up is an approximation, and the bounds were picked because
they measured well. So the chosen configuration is measured as a whole, and where it loses more
than was asked for, a smaller budget is tried until it holds, or nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from deepsz_caffe.dsz.container import DszFile, Measured, write_dsz
from deepsz_caffe.errors import DataError, DeepSZError, InputError, TargetError
from deepsz_caffe.runtime.evaluate import Score, evaluate
from deepsz_caffe.runtime.tail import Outcome
from deepsz_caffe.steps.assess.result import Assessment
from deepsz_caffe.steps.assess.significance import margin
from deepsz_caffe.steps.assess.tester import Search, Session
from deepsz_caffe.steps.encode import encode
from deepsz_caffe.steps.optimize import Plan, images_allowed, optimize

Path_ = str | os.PathLike[str]

#: Losses (fractions) up to which the assessment looks, in turn, to reach a ratio.
_LOSSES_FOR_RATIO = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
#: How often all bounds are halved after the dynamic program has no smaller budget to offer.
_HALVINGS = 12


@dataclass(frozen=True)
class CompressResult:
    """What was written, and what it costs.

    Attributes
    ----------
    path
        The ``.dsz`` file.
    plan
        The bounds, expected size and loss.
    assessment
        Step 2.
    chosen_on
        "validation" or "test": the data that the bounds were chosen on.
    chosen_before, chosen_after
        Counts there, of the network before compression (the original one, where it was given) and
        after.
    before, after
        The same on the test data, which decided nothing unless it was chosen on.
    summary
        As `DszFile.summary`.
    """

    path: Path
    plan: Plan
    assessment: Assessment
    chosen_on: str
    chosen_before: Score
    chosen_after: Score
    before: Score
    after: Score
    measured_on: str
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.summary,
            "total": self.after.total,
            "top1_before": self.before.top1_correct,
            "top1_after": self.after.top1_correct,
            "top5_before": self.before.top5_correct,
            "top5_after": self.after.top5_correct,
            "measured_on": self.measured_on,
            "chosen_on": {
                "data": self.chosen_on,
                "total": self.chosen_after.total,
                "top1_before": self.chosen_before.top1_correct,
                "top1_after": self.chosen_after.top1_correct,
                "top5_before": self.chosen_before.top5_correct,
                "top5_after": self.chosen_after.top5_correct,
            },
            "bounds": self.plan.bounds,
            "tests": self.assessment.tests,
        }


@dataclass(frozen=True)
class _Choice:
    assessment: Assessment
    plan: Plan
    outcome: Outcome


def compress(
    network: Path_,
    weights: Path_,
    out: Path_,
    *,
    max_loss: float | None = None,
    target_ratio: float | None = None,
    original: Path_ | None = None,
    confidence: float | None = None,
    search: Search = "default",
    with_prototxt: Path_ | None = None,
    on_test: bool = True,
    **options: Any,  # noqa: ANN401
) -> CompressResult:
    """Compress the fc layers of a pruned network into a ``.dsz`` file.

    Parameters
    ----------
    network
        A prototxt whose TEST phase has data and labels.
    weights
        The pruned network.
    out
        The file; it appears complete or not at all.
    max_loss
        Largest loss of top-1 of the whole configuration, as a fraction.
    target_ratio
        Instead of `max_loss`: least compression ratio of the fc layers, at the least loss.
    original
        The unpruned network: then the loss counts against it and not against `weights`.
    confidence
        Probability with which the loss on other images of the same kind is to be within
        `max_loss`; the measured loss plus its statistical margin must be. Default 0.9; with the
        paper's protocol 0.5, which is no margin: the measured loss itself.
    search, with_prototxt
        See `assess` and `encode`.
    on_test
        Where bounds are chosen on a validation split, count both networks on the test data, too:
        two passes of the whole network. The file is the same without.
    **options
        See `assess.Session`: protocol, profile, data, executor, workers, journal and so on.

    Raises
    ------
    TargetError
        The loss or ratio can't be met; nothing is written.
    InputError
        Not exactly one target, or one out of range.
    DeepSZError
        As `assess`, `encode` and `write_dsz`.
    """
    if (max_loss is None) == (target_ratio is None):
        raise InputError("give either a maximal loss or a target ratio")
    if max_loss is not None:
        images_allowed(max_loss, 1)  # out of range: say so before minutes of work
    if confidence is None:
        confidence = 0.5 if options.get("protocol") == "paper" else 0.9
    if not 0.5 <= confidence < 1:
        raise InputError(f"a confidence is from 0.5 to below 1, not {confidence}")
    if not Path(out).absolute().parent.is_dir():
        raise DeepSZError("the folder does not exist", where=Path(out).absolute().parent)
    with Session(network, weights, **options) as session:
        before = session.features.score
        if original is not None:
            before = evaluate(
                network,
                original,
                stages=session.stages,
                data=session.data,
                executor=session.executor,
            )
        if max_loss is not None:
            lost_before = before.top1_correct - session.features.top1_correct
            choice = _within_loss(session, max_loss, lost_before, confidence, search)
        else:
            assert target_ratio is not None
            choice = _at_ratio(session, target_ratio, search)
        after = _score(choice.outcome)
        chosen_on = "validation" if session.stages else "test"
        tested = (chosen_on, before, after)
        if session.stages and on_test:
            tested = _on_test_data(session, original, choice.plan.bounds) or tested
    measured = Measured(
        data=chosen_on,
        total=after.total,
        top1_before=before.top1_correct,
        top1_after=after.top1_correct,
        top5_before=before.top5_correct,
        top5_after=after.top5_correct,
    )
    contents = encode(
        network,
        session.model,
        choice.plan.bounds,
        session.profile,
        with_prototxt=with_prototxt,
        measured=measured,
    )
    write_dsz(out, contents)
    with DszFile(out) as file:
        summary = file.summary()
    measured_on, test_before, test_after = tested
    return CompressResult(
        path=Path(out),
        plan=choice.plan,
        assessment=choice.assessment,
        chosen_on=chosen_on,
        chosen_before=before,
        chosen_after=after,
        before=test_before,
        after=test_after,
        measured_on=measured_on,
        summary=summary,
    )


def _within_loss(
    session: Session, max_loss: float, lost_before: int, confidence: float, search: Search
) -> _Choice:
    """Find a configuration whose loss, measured as a whole, holds; `lost_before` by pruning."""
    allowed = images_allowed(max_loss, session.total)
    limit = allowed - lost_before
    if limit < 0:
        raise TargetError(
            f"the pruned network alone loses {lost_before} of {session.total:,} images, "
            f"{allowed} are allowed",
            where=session.weights,
        )
    budget = limit
    plan: Plan | None = None
    while budget >= 0:
        assessment = session.assess(max_loss, search=search, budget=budget)
        try:
            plan = optimize(assessment, budget=budget)
        except TargetError:
            break
        outcome = session.measure(plan.bounds)
        excess = _needed(outcome, confidence) - limit
        if excess <= 0:
            return _Choice(assessment, plan, outcome)
        # At least one image less than this choice was expected to lose: it is not made again.
        budget = min(budget, plan.loss) - max(1, excess // 2)
    if plan is None:
        assessment = session.assess(max_loss, search=search)
        bounds = {
            name: min(point.bound for point in layer.points)
            for layer in assessment.layers
            for name in (layer.name, *layer.sharers)
        }
    else:
        bounds = plan.bounds
    for _ in range(_HALVINGS):
        bounds = {name: bound / 2 for name, bound in bounds.items()}
        outcome = session.measure(bounds)
        if _needed(outcome, confidence) <= limit:
            size, dense = session.sizes(bounds)
            loss = outcome.lost - outcome.gained
            return _Choice(assessment, Plan(bounds, size, dense, loss, session.total), outcome)
    loss = lost_before + outcome.lost - outcome.gained
    raise TargetError(
        f"no configuration keeps the loss within {allowed} of {session.total:,} images; the last "
        f"one measured loses {loss}"
        + ("" if confidence == 0.5 else f", and {_needed(outcome, confidence) - loss} of margin"),
        where=session.weights,
        hint="allow a larger loss, or take a network that was pruned less",
    )


def _needed(outcome: Outcome, confidence: float) -> int:
    """Return the loss in images with its margin, rounded up."""
    error = margin(outcome.lost, outcome.gained, outcome.images, confidence) * outcome.images
    return ceil(outcome.lost - outcome.gained + error - 1e-9)


def _at_ratio(session: Session, target_ratio: float, search: Search) -> _Choice:
    for number, max_loss in enumerate(_LOSSES_FOR_RATIO, 1):
        assessment = session.assess(max_loss, search=search)
        try:
            plan = optimize(assessment, target_ratio=target_ratio)
        except TargetError:
            if number == len(_LOSSES_FOR_RATIO):
                raise
        else:
            return _Choice(assessment, plan, session.measure(plan.bounds))
    raise AssertionError


def _score(outcome: Outcome) -> Score:
    return Score(outcome.images, outcome.top1_correct, outcome.top5_correct)


def _on_test_data(
    session: Session, original: Path_ | None, bounds: Mapping[str, float]
) -> tuple[str, Score, Score] | None:
    """Measure on the test data what was chosen without it; None where it is not there."""
    try:
        before = evaluate(session.network, original or session.weights, executor=session.executor)
        encoded = {name: session.encode(name, bound) for name, bound in bounds.items()}
        after = evaluate(
            session.network, session.weights, replace=encoded, executor=session.executor
        )
    except DataError:
        return None
    return "test", before, after
