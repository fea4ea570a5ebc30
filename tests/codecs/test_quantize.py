"""The quantizer: bound kept to the last bit, uniform bins where asked, entropy no worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepsz_caffe.codecs.quantize import entropy, quantize


@given(
    weights=hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-9, 9, width=32)),
    bound=st.floats(1e-4, 4),
)
@settings(max_examples=150, deadline=None)
def test_decoded_values_are_within_the_bound(weights, bound):
    quantizer, levels = quantize(weights, bound)
    decoded = quantizer.values(levels)
    assert np.all(np.abs(decoded.astype(np.float64) - weights) <= bound)
    assert np.array_equal(levels == 0, np.abs(weights.astype(np.float64)) <= bound)
    assert np.array_equal(np.sign(levels), np.sign(decoded))


@pytest.mark.parametrize("bound", [1e-3, 1e-2, 1e-1])
def test_the_middle_offset_gives_uniform_bins(bound):
    weights = np.random.default_rng(1).laplace(0, 0.1, 50_000).astype(np.float32)
    _, levels = quantize(weights, bound, offset=16)
    uniform = np.rint(weights.astype(np.float64) / (2 * bound))
    # Cells are a little narrower than twice the bound: only weights at an edge may differ.
    assert np.mean(levels != uniform) < 0.01
    assert np.max(np.abs(levels - uniform)) <= 1


@pytest.mark.parametrize("bound", [1e-3, 7e-3, 2e-2, 5e-2])
def test_the_choice_is_no_worse_than_uniform_bins(bound):
    rng = np.random.default_rng(2)
    weights = (0.02 + rng.gamma(2, 0.01, 40_000)) * rng.choice([-1, 1], 40_000)
    weights = weights.astype(np.float32)
    _, levels = quantize(weights, bound)
    _, uniform = quantize(weights, bound, offset=16)
    assert entropy(levels[levels != 0]) <= entropy(uniform[uniform != 0]) + 1e-6


def test_entropy_of_known_distributions():
    assert entropy(np.array([], int)) == 0
    assert entropy(np.array([3, 3, 3])) == 0
    assert entropy(np.array([0, 1, 2, 3] * 5)) == pytest.approx(2)
