"""Levels on a grid finer than the bound: they decode as given, or are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.codecs.mixing_step import PARTS, MixingStep, step_of
from deepsz_caffe.codecs.quantize import quantize
from deepsz_caffe.errors import CodecError
from tests.codecs.test_codecs import pruned


@given(seed=st.integers(0, 2**32 - 1), bound=st.floats(1e-3, 1), parts=st.integers(1, PARTS))
@settings(max_examples=40, deadline=None)
def test_levels_within_the_bound_come_back_as_they_were(seed, bound, parts):
    weights = pruned(9, 31, 0.3, seed)
    quantizer, levels = quantize(weights, step_of(bound, parts))
    # Any neighbour that the bound allows.
    random = np.random.default_rng(seed)
    moved = levels + random.integers(-1, 2, levels.shape, np.int32) * (weights != 0)
    moved = moved.clip(-quantizer.table(1).size, quantizer.table(0).size).astype(np.int32)
    far = np.abs(quantizer.values(moved) - weights.astype(np.float64)) > bound
    moved[far] = levels[far]
    codec = MixingStep(bound)
    stream = codec.encode_rounded(weights, parts, quantizer, moved)
    decoded = codec.decode(stream, np.full_like(weights, np.nan))
    assert np.array_equal(decoded, quantizer.values(moved))
    assert np.abs(decoded - weights.astype(np.float64)).max() <= bound
    if parts == PARTS:
        stream = codec.encode_rounded(weights, parts, quantizer, levels)
        assert stream == codec.encode(weights)


def test_a_level_beyond_the_bound_is_refused():
    weights = pruned(9, 31, 0.3)
    quantizer, levels = quantize(weights, 0.01)
    place = np.unravel_index(np.argmax(np.abs(weights)), weights.shape)
    levels[place] -= 2 * np.sign(levels[place])
    with pytest.raises(CodecError, match=r"an error of .* exceeds 0\.02"):
        MixingStep(0.02).encode_rounded(weights, PARTS // 2, quantizer, levels)


@pytest.mark.parametrize("wrong", ["parts", "step", "shape", "type", "level"])
def test_arguments_that_do_not_fit_are_refused(wrong):
    weights = pruned(9, 31, 0.3)
    quantizer, levels = quantize(weights, 0.01)
    parts = {"parts": 0, "step": 16}.get(wrong, PARTS // 2)
    levels = {"shape": levels[1:], "type": levels.astype(np.int64)}.get(wrong, levels)
    if wrong == "level":
        levels[0, 0] = quantizer.table(0).size + 1
    with pytest.raises(CodecError):
        MixingStep(0.02).encode_rounded(weights, parts, quantizer, levels)


@pytest.mark.parametrize("first", [0, PARTS + 1, 127])
def test_a_step_over_the_bound_or_none_is_damage(first):
    weights = pruned(9, 31, 0.3)
    stream = bytearray(MixingStep(0.01).encode(weights))
    stream[0] = first
    with pytest.raises(CodecError, match="header is damaged"):
        MixingStep(0.01).decode(bytes(stream), np.empty_like(weights))
