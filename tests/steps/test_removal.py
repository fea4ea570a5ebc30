"""Removal of weights against brute force, and against removal by magnitude."""

from itertools import combinations

import numpy as np
import pytest

from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.removal import DAMPING, remove_weights


def some(rows, columns, seed=0, groups=1):
    """Give weights, and moments of inputs that have a few common causes."""
    random = np.random.default_rng(seed)
    moments = []
    for _ in range(groups):
        causes = random.normal(size=(3_000, 6)) @ random.normal(size=(6, columns))
        inputs = np.maximum(causes + 0.5 * random.normal(size=causes.shape), 0)
        moments.append(inputs.T @ inputs / len(inputs))
    weights = random.normal(size=(rows, columns)).astype(np.float32)
    return weights, np.array(moments, np.float32)


def damped(moments):
    return moments + DAMPING * moments.diagonal().mean() * np.eye(len(moments))


def error(found, weights, moments):
    change = found.astype(np.float64) - weights
    return np.einsum("ij,jk,ik->", change, damped(moments.astype(np.float64)), change)


@pytest.mark.parametrize("keep", [0.7, 0.4, 0.1])
def test_so_many_are_left_and_outputs_change_far_less_than_by_magnitude(keep):
    weights, moments = some(30, 150)
    found = remove_weights(weights, moments, keep)
    assert np.count_nonzero(found) == pytest.approx(keep * weights.size, rel=0.01)
    limit = np.quantile(np.abs(weights), 1 - keep)
    largest = np.where(np.abs(weights) > limit, weights, 0)
    assert error(found, weights, moments[0]) < 0.35 * error(largest, weights, moments[0])


def test_what_is_left_keeps_the_output_best():
    weights, moments = some(8, 70)
    found = remove_weights(weights, moments, 0.3)
    # The gradient at every weight that is left is 0.
    gradient = (found.astype(np.float64) - weights) @ damped(moments[0].astype(np.float64))
    scale = np.abs(weights @ moments[0]).max()
    assert np.abs(gradient[found != 0]).max() < 1e-5 * scale


def test_the_choice_is_near_the_best_of_all():
    ratios = []
    for seed in range(12):
        weights, moments = some(1, 9, seed)
        best = np.inf
        exact = damped(moments[0].astype(np.float64))
        for places in combinations(range(9), 4):
            only = np.array(places)
            trial = np.zeros_like(weights)
            trial[0, only] = np.linalg.solve(exact[np.ix_(only, only)], (weights @ exact)[0, only])
            best = min(best, error(trial, weights, moments[0]))
        found = remove_weights(weights, moments, 4 / 9)
        assert np.count_nonzero(found) == 4
        ratios.append(error(found, weights, moments[0]) / best)
    assert min(ratios) > 1 - 1e-4
    assert np.median(ratios) < 1.7


def test_zeros_stay_groups_see_their_own_inputs_and_enough_is_enough():
    weights, moments = some(12, 40, groups=3)
    weights[np.random.default_rng(1).random(weights.shape) < 0.4] = 0
    found = remove_weights(weights, moments, 0.3)
    assert not found[weights == 0].any()
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        alone = remove_weights(weights[rows], moments[group : group + 1], 0.3)
        np.testing.assert_array_equal(found[rows], alone)
    np.testing.assert_array_equal(remove_weights(weights, moments, 0.9), weights)
    np.testing.assert_array_equal(remove_weights(weights, moments, 1), weights)


def test_inputs_that_never_vary_do_no_harm():
    weights, moments = some(5, 20)
    moments[0, 3] = moments[0, :, 3] = 0
    assert np.isfinite(remove_weights(weights, moments, 0.5)).all()
    assert np.count_nonzero(remove_weights(weights, 0 * moments, 0.5)) == 50


@pytest.mark.parametrize("keep", [0, -1, 1.1, float("nan")])
def test_fractions_out_of_range_are_refused(keep):
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        remove_weights(*some(4, 5), keep)


def test_moments_that_do_not_fit_are_refused():
    weights, moments = some(4, 5)
    for wrong in (moments[0], moments[:, :4], np.repeat(moments, 3, axis=0), moments * np.nan):
        with pytest.raises(InputError, match="moments"):
            remove_weights(weights, wrong, 0.5)
