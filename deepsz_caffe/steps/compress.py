"""Steps 2 to 4 in one: assess, optimize, check the whole, encode.

That the losses of single layers add up is an approximation, and the bounds were picked because
they measured well. So configurations are measured as wholes (`choose`), and one that holds is
written, or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

from deepsz_caffe.dsz.layout import EncodedLayer, Measured
from deepsz_caffe.dsz.reader import DszFile, Summary
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.errors import InputError
from deepsz_caffe.network.layers import KINDS, Selection
from deepsz_caffe.steps.agreement import Agreement, MaxChange
from deepsz_caffe.steps.assess.result import Assessment
from deepsz_caffe.steps.assess.setup import Protocol, Setup
from deepsz_caffe.steps.assess.tester import (
    Biases,
    Search,
    Tester,
    assessment_of,
    check_biases,
    check_search,
)
from deepsz_caffe.steps.choose import Chosen, at_ratio, within_loss
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.encode import assemble
from deepsz_caffe.steps.evaluator import Outcome, Score
from deepsz_caffe.steps.optimize import Plan, checked_ratio
from deepsz_caffe.steps.whole import within_agreement, within_change

Path_ = str | os.PathLike[str]
#: Profile -> another whose codecs are tried, too, where they are nearly as good at one bound.
_ALSO = {"small": "paper"}
_AS_GOOD = 1.25
#: Counts before and after on the test data, given the encoded layers; None where there is none.
OnTest = Callable[[Mapping[str, EncodedLayer]], tuple[Score, Score] | None]


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
        "validation", "test" or "pictures": the data that the bounds were chosen on.
    chosen_before, chosen_after
        Counts there, of the network before compression (the original one, where it was given) and
        after.
    before, after
        The same on the test data, which decided nothing unless it was chosen on.
    summary
        As `DszFile.summary`; its `ratio` is that of the layers in it.
    tests
        Tests that this rests on: of single layers and of whole configurations.
    pictures
        How pictures were prepared, where the data are some.
    asked
        What was asked for, where that needs no labels. Of an agreement, right means as the original
        network; of a largest change, nothing is right or wrong, and scores are 0.
    changes
        Output -> its relative squared change, where a largest change was asked for.
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
    summary: Summary
    tests: int
    pictures: str | None = None
    asked: Agreement | MaxChange | None = None
    changes: Mapping[str, Divergence] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the compressed layers: those that `ratio` covers."""
        return tuple(self.plan.bounds)

    def to_json(self) -> dict[str, object]:
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
            "ratio_covers": list(self.layers),
            "tests": self.tests,
            **self._without_labels(),
        }

    def _without_labels(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.pictures is not None:
            found["preprocessing"] = self.pictures
        if isinstance(self.asked, Agreement):
            found["agreement"] = {
                "asked": self.asked.share,
                "confidence": self.asked.confidence,
                "images": self.after.total,
                "same_top1": self.after.top1_correct,
                "at_least": self.asked.at_least(self.after),
            }
        elif self.asked is not None:
            found["max_change"] = {
                "asked": self.asked.part,
                "confidence": self.asked.confidence,
                "images": self.after.total,
                "outputs": {
                    name: {"change": sqrt(change.mean), "at_most": self.asked.at_most(change)}
                    for name, change in (self.changes or {}).items()
                },
            }
        return found


@dataclass(frozen=True)
class Target:
    """What is asked for: exactly one of a loss, a ratio, an agreement or a change.

    Attributes
    ----------
    max_loss
        Largest loss of top-1 of the whole configuration, as a fraction.
    ratio
        Least compression ratio of the fc layers, at the least loss.
    agreement
        Least share of images whose top-1 is the original network's: no labels needed. Its bounds
        are always sought by divergences.
    max_change
        Largest relative change of the network's outputs, see `MaxChange`; sought likewise.
    confidence
        Probability with which the loss on other images of the same kind is to be within
        `max_loss`, or the agreement at least `agreement`; the measured loss plus its statistical
        margin must be. 0.5 is no margin: the measured loss itself.
    search
        How bounds are sought.

    Raises
    ------
    InputError
        Not exactly one target, or something out of range.
    """

    max_loss: float | None = None
    ratio: float | None = None
    agreement: float | None = None
    max_change: float | None = None
    confidence: float = 0.9
    search: Search = "default"

    def __post_init__(self) -> None:
        if [self.max_loss, self.ratio, self.agreement, self.max_change].count(None) != 3:
            raise InputError(
                "give one target: a maximal loss or a target ratio, or on pictures an agreement or "
                "a largest change"
            )
        if self.unlabelled is not None and self.search == "paper":
            raise InputError("the paper's search is for a maximal loss, not for an agreement")
        if self.ratio is not None:
            checked_ratio(self.ratio)
            if self.search == "divergence":
                raise InputError("a search by divergences is for a maximal loss, not for a ratio")
        check_search(self.max_loss or 0.0, self.search, None, whole=True)
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"a confidence is from 0.5 to below 1, not {self.confidence}")

    @property
    def unlabelled(self) -> Agreement | MaxChange | None:
        """The target that needs no labels, where it is one."""
        if self.agreement is not None:
            return Agreement(self.agreement, self.confidence)
        return None if self.max_change is None else MaxChange(self.max_change, self.confidence)


def usual_layers(target: Target, protocol: Protocol, profile: str) -> Selection:
    """Give the layers that are compressed where nobody says which: the paper's are fc layers."""
    as_paper = "paper" in (protocol, profile, target.search)
    return "fc" if target.ratio is not None or (as_paper and not target.unlabelled) else "all"


def settled(target: Target, setup: Setup, profile: str, biases: Biases) -> Target:
    """Settle what the default search is, and see that biases can be treated so with it.

    Divergences are for whole networks. For fc layers alone counts do as well: of LeNet-300-100
    they leave 13,356 bytes, divergences with corrected biases 14,310.
    """
    of_type = {layer.name: layer.type for layer in setup.net.layer}
    more = any(KINDS[of_type[layer.name]].group != "fc" for layer in setup.layers)
    whole = more and target.max_loss is not None and "paper" not in (setup.protocol, profile)
    if target.unlabelled is not None or (whole and target.search == "default"):
        target = replace(target, search="divergence")
    check_biases(biases, target.search, profile)
    return target


def compress(
    tester: Tester,
    out: Path_,
    target: Target,
    *,
    deploy: bytes | None = None,
    on_test: OnTest | None = None,
    pictures: str | None = None,
) -> CompressResult:
    """Compress the layers of a pruned network into a ``.dsz`` file.

    Parameters
    ----------
    tester
        The network.
    out
        The file; it appears complete or not at all.
    target
        A loss or a ratio.
    deploy
        A deploy prototxt to store in the file.
    on_test
        Where bounds are chosen on a validation split: counts on the test data.
    pictures
        Where the data are pictures: how they were prepared. The file records it.

    Raises
    ------
    TargetError
        The loss or ratio can't be met; nothing is written.
    DeepSZError
        As `assess` and `write_dsz`.
    """
    setup, profile = tester.setup, tester.profile
    before = tester.evaluator.original
    if target.max_change is not None:
        before = Score(tester.total, 0, 0)
    tester, choice = choose(tester, target)
    after = choice.outcome.score
    chosen_on = "validation" if setup.stages else "test" if pictures is None else "pictures"
    encoded = tester.encode_all(choice.plan.bounds)
    tested = on_test(encoded) if setup.stages and on_test is not None else None
    measured_on, test_before, test_after = (
        ("test", *tested) if tested else (chosen_on, before, after)
    )
    measured = Measured(
        data=chosen_on if pictures is None else f"{chosen_on}: {pictures}",
        total=after.total,
        top1_before=before.top1_correct,
        top1_after=after.top1_correct,
        top5_before=before.top5_correct,
        top5_after=after.top5_correct,
    )
    layers = encoded.values()
    names = list(encoded)
    changes = [change for layer in layers for change in layer.changes]
    contents = assemble(
        setup.model, names, layers, profile, deploy=deploy, measured=measured, changes=changes
    )
    write_dsz(out, contents)
    with DszFile(out) as file:
        summary = file.summary()
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
        tests=tester.tests,
        pictures=pictures,
        asked=target.unlabelled,
        changes=choice.changes,
    )


def choose(tester: Tester, target: Target) -> tuple[Tester, Chosen]:
    """Choose a configuration, and whose codecs encode it."""
    asked = target.unlabelled
    if isinstance(asked, Agreement):
        plan, outcome, counted = within_agreement(tester, asked)
        assessment = assessment_of(tester, 1 - asked.share, "divergence", {})
        return tester, Chosen(assessment, plan, outcome, counted)
    if asked is not None:
        plan, changes, counted = within_change(tester, asked)
        assessment = assessment_of(tester, 0.0, "divergence", {})
        nothing = Outcome(tester.total, 0, 0, 0, 0, 0, 0)
        return tester, Chosen(assessment, plan, nothing, counted, changes)
    if target.max_loss is None:
        assert target.ratio is not None
        return tester, at_ratio(tester, target.ratio, target.confidence, target.search)

    def within(tester: Tester, max_loss: float = target.max_loss) -> Chosen:
        return within_loss(tester, max_loss, target.confidence, target.search)

    chosen = within(tester)
    other = _ALSO.get(tester.profile)
    if other is None or target.search == "divergence":
        return tester, chosen
    # What takes more bytes at one bound may lose less there, and bear a larger bound.
    also = tester.with_profile(other)
    at_the_same = sum(layer.bytes for layer in also.encode_all(chosen.plan.bounds).values())
    if at_the_same > _AS_GOOD * chosen.plan.bytes:
        return tester, chosen
    instead = within(also)
    return (also, instead) if instead.plan.bytes < chosen.plan.bytes else (tester, chosen)
