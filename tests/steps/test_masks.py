"""Which weights stay under one threshold for several layers, against the definition spelled out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.masks import lamp_scores, magnitude_mask, surgery_weights, together_masks

FEW = {"a": (7, 9), "b": (4, 5), "c": (1, 3)}


def layers(seed, shapes):
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) * 10.0 ** random.integers(-3, 3)).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_a_score_is_the_part_of_what_is_as_large():
    matrix = layers(1, {"a": (5, 6)})["a"]
    squares = np.float64(matrix.ravel()) ** 2
    expected = [square / squares[squares >= square].sum() for square in squares]
    np.testing.assert_allclose(lamp_scores(matrix), expected, rtol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.06, 1))
def test_as_many_are_kept_as_asked_and_the_largest_of_each_layer(seed, keep):
    matrices = layers(seed, FEW)
    masks = together_masks(matrices, keep)
    assert sum(mask.sum() for mask in masks.values()) == round(keep * 86)
    assert {name: mask.shape for name, mask in masks.items()} == FEW
    scores = {name: lamp_scores(matrix).reshape(matrix.shape) for name, matrix in matrices.items()}
    least = min(scores[name][mask].min() for name, mask in masks.items() if mask.any())
    for name, mask in masks.items():
        assert scores[name][~mask].max(initial=0) <= least
        assert mask.flat[np.abs(matrices[name]).argmax()]
        # In one layer scores are in the order of the magnitudes.
        np.testing.assert_array_equal(mask, magnitude_mask(matrices[name], mask.mean()))


def test_a_layers_scale_does_not_matter():
    matrices = layers(3, FEW)
    masks = together_masks(matrices, 0.3)
    scaled = together_masks({name: matrix * 64 for name, matrix in matrices.items()}, 0.3)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, scaled[name])


def test_so_few_that_each_layer_keeps_one():
    masks = together_masks(layers(4, FEW), 1e-9)
    assert [mask.sum() for mask in masks.values()] == [1, 1, 1]


def test_zeros_go_first():
    matrices = layers(5, FEW)
    matrices["a"][:, ::2] = 0
    left = np.count_nonzero(matrices["a"]) + 23
    masks = together_masks(matrices, left / 86)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, matrices[name] != 0)


@pytest.mark.parametrize("keep", [0, 1.5, float("nan")])
def test_what_is_kept_is_in_0_to_1(keep):
    with pytest.raises(InputError, match="not in"):
        together_masks(layers(6, FEW), keep)


def test_what_is_no_number_has_no_score():
    with pytest.raises(InputError, match="not a number"):
        together_masks({"a": np.array([[1, np.nan]], np.float32)}, 0.5)


def test_a_pruned_weight_comes_back_where_it_is_clearly_larger():
    weights = np.array([[1.0, 1.05, 1.2, 0.5]], np.float32)
    now = np.array([[True, False, False, True]])
    seen = surgery_weights(weights, now)
    np.testing.assert_array_equal(magnitude_mask(seen, 0.5), [[True, False, True, False]])
    np.testing.assert_array_equal(magnitude_mask(seen, 0.75), [[True, True, True, False]])
