"""The dynamic program against brute force, and the targets of `optimize`."""

from dataclasses import replace
from itertools import product

import pytest
from assessments import assessment
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.errors import InputError, TargetError
from deepsz_caffe.steps.assess.journal import Journal, journal_key
from deepsz_caffe.steps.evaluator import Outcome
from deepsz_caffe.steps.optimize import (
    images_allowed,
    least_loss,
    least_size,
    measured_loss,
    optimize,
)

OPTIONS = st.lists(st.tuples(st.integers(-6, 12), st.integers(1, 40)), min_size=1, max_size=4)
INSTANCES = st.lists(OPTIONS, min_size=1, max_size=4)


def split(instance):
    losses = [[loss for loss, _ in options] for options in instance]
    return losses, [[size for _, size in options] for options in instance]


def totals(instance):
    return [
        (sum(loss for loss, _ in choice), sum(size for _, size in choice))
        for choice in product(*instance)
    ]


def picked(instance, chosen):
    pairs = [options[i] for options, i in zip(instance, chosen, strict=True)]
    return sum(loss for loss, _ in pairs), sum(size for _, size in pairs)


@given(INSTANCES, st.integers(-30, 40))
def test_least_size_is_that_of_brute_force(instance, budget):
    possible = [(size, loss) for loss, size in totals(instance) if loss <= budget]
    chosen = least_size(*split(instance), budget)
    if not possible:
        assert chosen is None
    else:
        loss, size = picked(instance, chosen)
        assert (size, loss) == min(possible)


@given(INSTANCES, st.integers(0, 120))
def test_least_loss_is_that_of_brute_force(instance, max_bytes):
    possible = [(loss, size) for loss, size in totals(instance) if size <= max_bytes]
    chosen = least_loss(*split(instance), max_bytes)
    if not possible:
        assert chosen is None
    else:
        assert picked(instance, chosen) == min(possible)


def test_a_loss_is_kept_and_a_gain_counts_only_in_the_papers_protocol():
    plan = optimize(assessment(), max_loss=0.012)
    assert plan.bounds == {"a": 0.01, "b": 0.02}
    assert (plan.bytes, plan.loss, plan.total, plan.dense_bytes) == (490, 10, 1000, 6000)
    assert optimize(assessment(), max_loss=0.004).bounds == {"a": 0.01, "b": 0.01}
    assert optimize(assessment("paper"), max_loss=0.001).bounds == {"a": 0.02, "b": 0.01}


def test_a_ratio_is_reached_at_the_least_loss():
    plan = optimize(assessment(), target_ratio=12)
    assert plan.bounds == {"a": 0.02, "b": 0.01}
    assert plan.ratio == 12.0
    assert plan.loss == 5


def test_targets_out_of_reach_say_what_can_be_met():
    with pytest.raises(TargetError, match=r"least is 390, a ratio of 15\.4"):
        optimize(assessment(), target_ratio=15.5)
    with pytest.raises(TargetError, match="loses only -1 of 1,000 images; the least is 0"):
        optimize(assessment(), budget=-1)


@pytest.mark.parametrize("wrong", [{}, {"max_loss": 0.1, "target_ratio": 2}, {"max_loss": -0.1}])
def test_wrong_targets_are_refused(wrong):
    with pytest.raises(InputError):
        optimize(assessment(), **wrong)


def test_fractions_become_the_counts_they_mean():
    assert [images_allowed(x, 10_000) for x in (0, 0.002, 0.0013, 0.0029999)] == [0, 20, 13, 29]


def test_a_plan_that_was_measured_as_a_whole_says_what_it_loses(tmp_path):
    measured = replace(assessment(), digests={"network": "n", "weights": "w", "data": "d"})
    plan = optimize(measured, max_loss=0.02)
    path = tmp_path / "A.json.journal"
    assert measured_loss(measured, plan, path) is None
    journal = Journal(path, journal_key(measured.digests, measured.profile))
    journal.add_whole(plan.bounds, "original", Outcome(1000, 880, 990, 25, 5, 30, 6))
    assert measured_loss(measured, plan, path) == 20
    assert measured_loss(assessment(), plan, path) is None
    other = optimize(measured, max_loss=0)
    assert measured_loss(measured, other, path) is None
