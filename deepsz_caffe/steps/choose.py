"""The configuration to write: chosen by what single layers lose, judged by what the whole loses.

An assessment knows layers one by one. Here its points, and with the default search what they say
of the bounds between them, become the options of `joint.search_configurations`, which measures
whole configurations. With the default search, where tests tell what becomes of each image, more
bounds are tested for that: all that may pay of the layers above which little is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import floor

from deepsz_caffe.errors import TargetError
from deepsz_caffe.steps import whole
from deepsz_caffe.steps.assess.estimate import LayerModel, Option
from deepsz_caffe.steps.assess.joint import (
    WORTH_FORECAST,
    Alone,
    Choice,
    Goal,
    WithinBytes,
    WithinLoss,
    search_configurations,
)
from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment
from deepsz_caffe.steps.assess.search import grid, weighed_first
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.tester import (
    Margins,
    Search,
    Tester,
    assess,
    assessment_of,
    subject_of,
)
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.evaluator import Outcome
from deepsz_caffe.steps.optimize import Plan, images_allowed, optimize

#: Losses (fractions) up to which the assessment looks, in turn, to reach a ratio.
_LOSSES_FOR_RATIO = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
#: From this part of a layer's typical weight up every bound in half steps is an option.
_FINE = 1 / 100
#: Below it next to nothing is lost: coarse steps, down to this part of the largest weight.
_COARSE = [4.0**-step for step in range(1, 9)]
_LEAST = 1e-5
#: A layer is quick to test where at most this part of all weights is in and above it: then all its
#: bounds are tested, from this part of its typical weight up, that take at most this part of all
#: bytes more than the loosest that seems to hold.
_QUICK = 1 / 8
_LEAST_TESTED = 1 / 10
_MORE_BYTES = 0.05
#: So many of them are tested before the losses are looked at.
_TOGETHER = 4


@dataclass(frozen=True)
class Chosen:
    """A configuration: the assessment that it comes from, its bounds, and its test as a whole.

    Attributes
    ----------
    wholes
        Configurations that were measured as wholes.
    changes
        Of outputs, where these were asked about; then `outcome` has no counts.
    """

    assessment: Assessment
    plan: Plan
    outcome: Outcome
    wholes: int
    changes: Mapping[str, Divergence] | None = None


def within_loss(tester: Tester, max_loss: float, confidence: float, search: Search) -> Chosen:
    """Choose the fewest bytes with which the loss of the whole, and its margin, hold.

    Parameters
    ----------
    tester
        Encodes and measures.
    max_loss
        The loss allowed against the original network, as a fraction.
    confidence
        Of the margin, see `significance.margin`.
    search
        How bounds are sought. With "paper" only bounds that the assessment tested are taken, and
        what the dynamic program picks is taken where it holds. With "divergence" see `whole`.

    Raises
    ------
    TargetError
        Nothing holds.
    """
    allowed = images_allowed(max_loss, tester.total)
    limit = allowed - tester.lost_before
    if limit < 0:
        raise TargetError(
            f"the pruned network alone loses {tester.lost_before} of {tester.total:,} images, "
            f"{allowed} are allowed",
            where=tester.setup.weights,
            hint=f"allow a loss of over {tester.lost_before / tester.total:.2g}, prune less, or "
            "retrain for longer",
        )
    if search == "divergence":
        plan, outcome, counted = whole.within_loss(tester, allowed, confidence)
        return Chosen(assessment_of(tester, max_loss, search, {}), plan, outcome, counted)
    assessment = assess(tester, max_loss, search=search, budget=limit)
    if search == "paper":
        try:
            plan = optimize(assessment, budget=limit)
        except TargetError:
            pass
        else:
            outcome = tester.measure(plan.bounds)
            if images_needed(outcome, confidence) <= allowed:
                return Chosen(assessment, plan, outcome, 1)
    goal = WithinLoss(allowed)
    if tester.reference is not None and search == "default":
        goal = WithinLoss(allowed, WORTH_FORECAST)
    return _choose(tester, assessment, goal, confidence, search)


def at_ratio(tester: Tester, ratio: float, confidence: float, search: Search) -> Chosen:
    """Choose the least loss of the whole, with its margin, at a compression ratio.

    Raises
    ------
    TargetError
        No bounds that lose an acceptable part of the accuracy reach the ratio.
    """
    for max_loss in _LOSSES_FOR_RATIO:
        assessment = assess(tester, max_loss, search=search)
        try:
            optimize(assessment, target_ratio=ratio)
        except TargetError:
            if max_loss == _LOSSES_FOR_RATIO[-1]:
                raise
        else:
            dense = sum(layer.dense_bytes for layer in assessment.layers)
            goal = WithinBytes(floor(dense / ratio))
            return _choose(tester, assessment, goal, confidence, search)
    raise AssertionError


def _choose(
    tester: Tester, assessment: Assessment, goal: Goal, confidence: float, search: Search
) -> Chosen:
    every = _Configurations(tester, assessment, search)
    # Not by their counts: pruned and original network may differ in decisions and count the same.
    before = None if tester.setup.original is None else tester.measure({})
    found = search_configurations(
        every.options, every.measure, every.weigh, goal, confidence, before, every.alone
    )
    if found.choice is None:
        raise TargetError(
            _nothing_holds(found.measured.values(), tester.total, confidence),
            where=tester.setup.weights,
            hint="allow a larger loss, or take a network that was pruned less",
        )
    bounds = every.bounds(found.choice)
    encoded = tester.encode_all(bounds).values()
    expected = sum(
        each[number].loss for each, number in zip(every.options, found.choice, strict=True)
    )
    plan = Plan(
        bounds=bounds,
        bytes=sum(layer.bytes for layer in encoded),
        dense_bytes=sum(layer.dense_bytes for layer in encoded),
        loss=round(expected),
        total=tester.total,
    )
    return Chosen(assessment, plan, found.measured[found.choice], len(found.measured))


class _Configurations:
    """All configurations of some layers, by the numbers of their options, and tests of them.

    Attributes
    ----------
    options
        Of each layer, the tightest bound first, as they seem before any whole is measured.
    alone
        Tests of single layers, where these tell what becomes of each image.
    """

    def __init__(self, tester: Tester, assessment: Assessment, search: Search) -> None:
        self._tester, self._layers = tester, assessment.layers
        limit = images_allowed(assessment.max_loss, assessment.total)
        # What loses more alone no other layer makes good.
        self._stop = None if tester.setup.protocol == "paper" else 3 * limit + 3
        self._models = [_model(tester, layer, limit, search) for layer in assessment.layers]
        reference = tester.reference if search == "default" else None
        if reference is not None:
            for number in _quick(assessment.layers):
                self._test_all(number, limit)
        self.options = [[each.option(bound) for bound in each.bounds] for each in self._models]
        self.alone: Alone | None = None
        if reference is not None:
            margins = {
                (layer, option): known
                for layer, model in enumerate(self._models)
                for option, bound in enumerate(model.bounds)
                if bound in model.points
                and (known := tester.margins(self._layers[layer].name, bound)) is not None
            }
            self.alone = Alone(reference, margins, self._test)

    def bounds(self, choice: Choice) -> dict[str, float]:
        """Give the bound of each layer."""
        return {
            name: model.bounds[number]
            for layer, model, number in zip(self._layers, self._models, choice, strict=True)
            for name in (layer.name, *layer.sharers)
        }

    def measure(self, choice: Choice) -> Outcome:
        """Measure a configuration as a whole."""
        return self._tester.measure(self.bounds(choice))

    def weigh(self, layer: int, option: int) -> int:
        """Encode an option of a layer; gives its bytes."""
        return self._tester.size(self._layers[layer].name, self._models[layer].bounds[option])

    def _test(self, layer: int, option: int) -> tuple[Option, Margins | None]:
        model = self._models[layer]
        name, bound = self._layers[layer].name, model.bounds[option]
        model.learn(self._tester.test(name, bound, self._stop))
        return model.option(bound), self._tester.margins(name, bound)

    def _test_all(self, layer: int, limit: int) -> None:
        """Test all bounds of a layer that may pay, the tightest first, until too much is lost.

        Of those that are not tested only a few remain, of the tightest, if these may be needed.
        """
        name, model = self._layers[layer].name, self._models[layer]
        typical = self._tester.layer(name).typical
        coarse = [bound for bound in model.bounds if bound < typical * _FINE]
        least = [_least_size(each, limit) for each in self._models]
        most = least[layer] + _MORE_BYTES * sum(least)
        worth = [
            bound
            for bound in grid(typical * _LEAST_TESTED, model.bounds[-1], halves=True)
            if model.size(bound) <= most
        ]
        # A few at a time: one is encoded while another is tested.
        with ThreadPoolExecutor(self._tester.threads) as threads:
            for start in range(0, len(worth), _TOGETHER):
                some = worth[start : start + _TOGETHER]
                points = list(threads.map(partial(self._tester.test, name, limit=self._stop), some))
                for point in points:
                    model.learn(point)
                if any(point.loss(negative=False) > 1.5 * limit + 3 for point in points):
                    break
        tightest = model.points[min(model.points)]
        if tightest.lost + tightest.gained <= limit / 4:  # tighter ones have nothing to offer
            coarse = []
        model.bounds = sorted({*coarse, *model.points})


def _least_size(model: LayerModel, limit: int) -> int:
    """Give the bytes of the smallest test of which the loss alone holds, or of all."""
    points = [point for point in model.points.values() if not point.stopped]
    held = [point.bytes for point in points if point.loss(negative=False) <= limit]
    return min(held, default=model.size(model.bounds[0]))


def _quick(layers: Sequence[LayerAssessment]) -> list[int]:
    """Give the numbers of the layers above which little is to be computed."""
    cells = [layer.shape[0] * layer.shape[1] for layer in layers]
    return [number for number in range(len(cells)) if sum(cells[number:]) <= _QUICK * sum(cells)]


def _model(tester: Tester, layer: LayerAssessment, limit: int, search: Search) -> LayerModel:
    """Give what is known of a layer at all bounds that a configuration may have."""
    known = tester.layer(layer.name)
    bounds = [point.bound for point in layer.points if not point.stopped]
    if search == "default":
        # Far beyond the first bound that loses too much nothing holds.
        lost = [p.bound for p in layer.points if p.loss(negative=False) > 3 * limit + 3]
        top = min(lost, default=2 * max(known.largest, known.typical))
        fine = known.typical * _FINE
        coarse = [float(f"{fine * step:.0e}") for step in _COARSE]
        bounds += [bound for bound in coarse if bound >= _LEAST * known.largest]
        bounds += grid(fine, top, halves=True)
    bounds = sorted(set(bounds))
    # Sizes need to be known only roughly; the search weighed these already.
    weighed = weighed_first(subject_of(known)) if search == "default" else bounds[:1]
    sizes = {bound: tester.size(layer.name, bound) for bound in weighed}
    model = LayerModel(bounds, limit, tester.total, sizes)
    for point in layer.points:
        model.learn(point)
    return model


def _nothing_holds(outcomes: Iterable[Outcome], total: int, confidence: float) -> str:
    least = min(outcomes, key=lambda outcome: images_needed(outcome, confidence))
    loss = least.original_lost - least.original_gained
    margin = images_needed(least, confidence) - loss
    return (
        f"no configuration meets what was asked for; of those measured the best loses {loss} of "
        f"{total:,} images" + (f", and {margin} of margin" if margin else "")
    )
