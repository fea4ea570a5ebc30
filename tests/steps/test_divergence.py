"""Divergences against closed forms."""

import numpy as np
import pytest

from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.divergence import Divergence, divergences


def probabilities(scores):
    exact = np.exp(scores.astype(np.float64))
    return exact / exact.sum(axis=1, keepdims=True)


def test_two_classes_have_a_closed_form():
    p, q = np.array([0.5, 0.9, 0.2]), np.array([0.25, 0.9, 0.7])
    before, after = np.stack((p, 1 - p), 1), np.stack((q, 1 - q), 1)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert divergences(before, after, "probabilities") == pytest.approx(expected, abs=1e-15)
    # Scores may be off by any constant an image.
    shift = np.array([[0], [-300], [1000]])
    scores = divergences(np.log(before), np.log(after) + shift, "scores")
    assert scores == pytest.approx(expected, abs=1e-12)


def test_scores_and_probabilities_agree_and_axes_that_follow_are_averaged():
    random = np.random.default_rng(1)
    before = random.normal(0, 3, (5, 10, 2, 3)).astype(np.float32)
    after = before + random.normal(0, 0.3, before.shape).astype(np.float32)
    scores = divergences(before, after, "scores")
    p, q = probabilities(before), probabilities(after)
    assert divergences(p, q, "probabilities") == pytest.approx(scores, rel=1e-9)
    pixels = [
        divergences(before[..., i, j], after[..., i, j], "scores") for i, j in np.ndindex(2, 3)
    ]
    assert np.mean(pixels, axis=0) == pytest.approx(scores)


def test_a_small_change_of_scores_is_half_its_variance():
    random = np.random.default_rng(2)
    before, change = random.normal(size=(4, 10)), 1e-4 * random.normal(size=(4, 10))
    p = probabilities(before)
    variance = (p * change**2).sum(1) - (p * change).sum(1) ** 2
    assert divergences(before, before + change, "scores") == pytest.approx(variance / 2, rel=1e-3)


@pytest.mark.parametrize("kind", ["scores", "probabilities", "values"])
def test_no_change_is_nothing_and_nonsense_is_infinite(kind):
    before = np.full((3, 4), 0.25, np.float32)
    after = before.copy()
    after[1, 2] = np.nan
    assert divergences(before, after, kind).tolist() == [0, np.inf, 0]
    with pytest.raises(InputError, match="not finite"):
        divergences(after, before, kind)


def test_a_probability_of_zero_counts_much_but_not_infinitely():
    sure, other = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    assert divergences(sure, other, "probabilities") == pytest.approx(126 * np.log(2), rel=1e-6)
    assert divergences(sure, sure, "probabilities").tolist() == [0]


def test_other_outputs_change_relative_to_their_mean_square():
    before = np.array([[3, 4], [0, 0]], np.float32)
    after = np.array([[3, 5], [3, 4]], np.float32)
    assert divergences(before, after, "values").tolist() == [1 / 12.5, 2]
    nothing = np.zeros((2, 2))
    assert divergences(nothing, before, "values").tolist() == [np.inf, 0]


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (3,), (3, 4, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="can't be compared"):
        divergences(np.ones((3, 4)), np.ones(shape), "scores")


def test_the_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(3).exponential(2, (4000, 100))
    found = [Divergence.of(each) for each in values]
    assert np.std([each.mean for each in found]) == pytest.approx(0.2, rel=0.05)
    assert np.mean([each.error for each in found]) == pytest.approx(0.2, rel=0.05)
    assert Divergence.of(np.array([7.0])) == Divergence(7.0, np.inf, 1)
    assert Divergence.of(np.array([1.0, np.inf])) == Divergence(np.inf, np.inf, 2)
    with pytest.raises(InputError):
        Divergence.of(np.array([]))
