"""Margins and early stops against simulation and the binomial they approximate."""

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.steps.assess.significance import (
    certainly_over,
    hopeless,
    images_to_show,
    margin,
    most_changed,
    standard_error,
)
from deepsz_caffe.steps.evaluator import Outcome, Score


def test_the_standard_error_is_that_of_paired_differences():
    differences = np.repeat([1, -1, 0], [30, 10, 960])
    assert standard_error(30, 10, 1000) == pytest.approx(differences.std() / np.sqrt(1000))


def test_the_margin_covers_the_true_loss_as_often_as_it_says():
    random = np.random.default_rng(1)
    images, p_lost, p_gained = 10_000, 0.004, 0.002
    counts = random.multinomial(images, [p_lost, p_gained, 1 - p_lost - p_gained], 4000)
    covered = [
        (lost - gained) / images + margin(lost, gained, images, 0.9) >= p_lost - p_gained
        for lost, gained, _ in counts.tolist()
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)
    assert margin(30, 10, 1000, 0.5) == 0


@given(st.data(), st.integers(1, 90), st.integers(0, 20))
def test_hopeless_is_what_the_other_images_can_not_make_good(data, total, limit):
    before = np.array(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    seen = data.draw(st.integers(1, total))
    after = np.array(data.draw(st.lists(st.booleans(), min_size=seen, max_size=seen)))
    lost, gained = (before[:seen] & ~after).sum(), (after & ~before[:seen]).sum()
    counts = (int(lost), int(gained))
    outcome = Outcome(seen, int(after.sum()), seen, *counts, *counts)
    # At best all other images are right.
    at_best = int(before.sum() - after.sum()) - (total - seen)
    score = Score(total, int(before.sum()), total)
    assert hopeless(outcome, score, limit) == (at_best > limit)


@pytest.mark.parametrize("true_loss", [15, 20])
def test_tests_within_the_limit_are_hardly_ever_stopped(true_loss):
    random = np.random.default_rng(2)
    total, limit, gained = 10_000, 20, 30
    decisions = np.repeat([1, -1, 0], [gained + true_loss, gained, 0])
    decisions = np.append(decisions, np.zeros(total - decisions.size, int))
    stopped = 0
    for _ in range(400):
        order = random.permutation(decisions)
        stopped += any(
            certainly_over(
                int((order[:seen] == 1).sum()), int((order[:seen] == -1).sum()), seen, total, limit
            )
            for seen in range(500, total + 1, 500)
        )
    assert stopped == 0


def test_hopeless_tests_are_stopped_at_once_and_the_end_is_exact():
    assert certainly_over(300, 2, 500, 10_000, 20)
    assert not certainly_over(60, 2, 60, 10_000, 20)
    assert certainly_over(21, 0, 10_000, 10_000, 20)
    assert not certainly_over(20, 0, 10_000, 10_000, 20)


def binomial(count, images, share):
    return sum(comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(count + 1))


@pytest.mark.parametrize(("changed", "images"), [(0, 1), (0, 300), (3, 40), (9, 1000), (40, 41)])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_upper_limit_is_clopper_and_pearsons(changed, images, confidence):
    limit = most_changed(changed, images, confidence)
    assert binomial(changed, images, limit) == pytest.approx(1 - confidence, rel=1e-5)
    if changed == 0:
        assert limit == pytest.approx(1 - (1 - confidence) ** (1 / images), abs=1e-8)


def test_all_changed_says_nothing_and_large_numbers_do_not_overflow():
    assert most_changed(7, 7, 0.9) == 1
    # The normal approximation does for many.
    limit = most_changed(5_000, 100_000, 0.9)
    assert limit == pytest.approx(0.05 + 1.2816 * sqrt(0.05 * 0.95 / 100_000), rel=1e-3)


@given(st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_the_fewest_images_that_show_a_share(share, confidence):
    needed = images_to_show(share, confidence)
    assert most_changed(0, needed, confidence) <= share + 1e-8
    if needed > 1:
        assert most_changed(0, needed - 1, confidence) > share - 1e-8


def test_what_so_many_draws_show_is_true_as_often_as_said():
    share, images, draws = 0.02, 250, 4_000
    seen = np.random.default_rng(0).binomial(images, share, draws)
    limits = {count: most_changed(int(count), images, 0.9) for count in np.unique(seen)}
    held = sum(limits[count] >= share for count in seen) / draws
    assert 0.89 <= held < 0.97
