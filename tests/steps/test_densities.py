"""Which density comes next, and what part of the time it gets."""

from math import inf

import pytest

from deepsz_caffe.steps.densities import next_keep, share_of_time


def test_densities_are_tried_from_dense_to_sparse():
    assert next_keep({}) == next_keep({1.0: 9}) == 1 / 16
    assert next_keep({1 / 16: inf}) == next_keep({1.0: 9, 1 / 16: inf}) == 0.25
    assert next_keep({0.1: 5, 0.095: inf}) is None
    assert next_keep({1 / 16: 5, 1 / 32: inf}) == pytest.approx(512**-0.5)
    assert next_keep({1 / 16: inf, 1 / 4: 5}) == 1 / 8
    assert next_keep({0.11: 9, 0.1: 5, 0.095: inf}) is None
    assert next_keep({0.05: 5, 0.04: 4}) == pytest.approx(0.04 * 0.5**0.5)
    assert next_keep({0.12: 9, 0.1: 5, 0.05: 6}) == pytest.approx(0.005**0.5)


def test_the_time_is_shared_among_the_trials_that_close_the_gaps():
    assert share_of_time({}) == share_of_time({0.1: 5}) == 0.1
    assert share_of_time({0.12: 9, 0.1: 5, 0.07: 6}) == 1 / 2
    assert share_of_time({0.2: 9, 0.1: 5, 0.05: 6}) == 1 / 5
