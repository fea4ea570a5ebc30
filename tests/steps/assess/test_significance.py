"""Margins and early stops against simulation and the binomial they approximate."""

import numpy as np
import pytest

from deepsz_caffe.steps.assess.significance import certainly_over, margin, standard_error


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
