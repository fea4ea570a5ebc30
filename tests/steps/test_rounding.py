"""Rounding with error feedback: against every choice there is, and against rounding alone."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from deepsz_caffe.codecs.quantize import quantize
from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.errors import CodecError, InputError
from deepsz_caffe.steps import rounding
from deepsz_caffe.steps.encode import encode_rounded
from deepsz_caffe.steps.rounding import one_blas_thread, round_weights


def layer(rows, columns, density, seed=0, images=200):
    """Weights, and inputs that resemble each other, as those of a network do."""
    random = np.random.default_rng(seed)
    weights = random.laplace(0, 0.05, (rows, columns)).astype(np.float32)
    weights[random.random(weights.shape) >= density] = 0
    mixed = random.standard_normal((images, 4)) @ random.standard_normal((4, columns))
    inputs = np.maximum(mixed + random.standard_normal((images, columns)), 0)
    return weights, inputs.T @ inputs / images


def output_error(weights, decoded, moments):
    errors = weights - decoded.astype(np.float64)
    return np.einsum("ij,jk,ik->i", errors, moments, errors)


def all_values(quantizer):
    return np.concatenate(([0], quantizer.table(0), quantizer.table(1)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    density=st.sampled_from([0, 0.1, 0.5, 1]),
    ratio=st.sampled_from([1, 1.5, 2, 5]),
    rate=st.sampled_from([0, 0.02, 1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_weight_is_within_the_bound_and_zeros_stay(shape, density, ratio, rate, seed):
    weights, moments = layer(*shape, density, seed)
    bound = 0.03 * ratio
    quantizer, levels = round_weights(weights, moments, bound, 0.03, rate)
    decoded = quantizer.values(levels)
    assert levels.dtype == np.int32
    assert np.abs(decoded - weights.astype(np.float64)).max() <= bound
    assert not levels[weights == 0].any()
    again = round_weights(weights, moments, bound, 0.03, rate)
    assert again[0] == quantizer
    assert np.array_equal(again[1], levels)


def test_it_is_near_the_best_choice_there_is():
    weights, moments = layer(20, 7, 1)
    step = 0.06
    quantizer, levels = round_weights(weights, moments, 2 * step, step, rate=0)
    moments = moments + rounding.DAMPING * moments.diagonal().mean() * np.eye(7)
    plain = output_error(weights, quantizer.values(quantize(weights, step)[1]), moments)
    found = output_error(weights, quantizer.values(levels), moments)
    best = []
    table = all_values(quantizer)
    for row in weights:
        choices = [table[np.abs(table - float(w)) <= 2 * step] for w in row]
        every = np.array(list(product(*choices)))
        best.append(output_error(row, every, moments).min())
    assert found.sum() <= 1.25 * sum(best)
    assert found.sum() <= 0.5 * plain.sum()


def test_inputs_that_do_not_hang_together_give_the_nearest_levels():
    weights, _ = layer(8, 30, 0.7)
    moments = np.diag(np.linspace(0.5, 2, 30))
    quantizer, levels = round_weights(weights, moments, 0.06, 0.03, rate=0)
    errors = np.abs(quantizer.values(levels) - weights)
    nearest = np.abs(all_values(quantizer) - weights[..., None].astype(np.float64))
    assert errors == pytest.approx(nearest.min(axis=-1) * (weights != 0))


def test_the_error_falls_by_much_and_a_rate_buys_bits_for_it():
    weights, moments = layer(60, 200, 0.2)
    step = 0.05
    quantizer, plain = quantize(weights, step)
    errors, costs = [output_error(weights, quantizer.values(plain), moments).sum()], []
    for rate in (0, 0.02, 0.1):
        levels = round_weights(weights, moments, 2 * step, step, rate)[1]
        errors.append(output_error(weights, quantizer.values(levels), moments).sum())
        counts = np.unique(levels, return_counts=True)[1]
        costs.append(-(counts * np.log2(counts / levels.size)).sum())
    assert errors[1] < 0.4 * errors[0]
    assert errors[1] < errors[2] < errors[3]
    assert costs[0] > costs[1] > costs[2]


def test_blocks_of_columns_lose_little(monkeypatch):
    weights, moments = layer(40, 300, 0.3, images=1000)
    error = []
    for together in (1000, 50):
        monkeypatch.setattr(rounding, "_TOGETHER", together)
        quantizer, levels = round_weights(weights, moments, 0.1, 0.05, rate=0)
        error.append(output_error(weights, quantizer.values(levels), moments).sum())
    plain = quantizer.values(quantize(weights, 0.05)[1])
    assert error[1] < 1.25 * error[0]
    assert error[1] < 0.5 * output_error(weights, plain, moments).sum()


def test_rows_that_share_a_factor_are_rounded_as_those_that_do_not(monkeypatch):
    weights, moments = layer(12, 90, 1)
    weights[:, ::7] = 0
    alone = [round_weights(row[None], moments, 0.1, 0.05, rate=0)[1][0] for row in weights]
    together = round_weights(weights, moments, 0.1, 0.05, rate=0)[1]
    # The cells' offset is chosen for each matrix; the same one makes rows comparable.
    same = [
        quantize(row[None], 0.05)[0].offsets == quantize(weights, 0.05)[0].offsets
        for row in weights
    ]
    monkeypatch.setattr(rounding, "_TOGETHER_SHARED", 20)
    blocks = round_weights(weights, moments, 0.1, 0.05, rate=0)[1]
    for row, single, comparable in zip(together, alone, same, strict=True):
        assert not comparable or np.array_equal(row, single)
    assert np.mean(blocks == together) > 0.7


def test_groups_see_their_own_inputs():
    first, second = layer(6, 20, 0.5, 1), layer(6, 20, 0.5, 2)
    weights = np.concatenate((first[0], second[0]))
    moments = np.stack((first[1], second[1]))
    quantizer, levels = round_weights(weights, moments, 0.1, 0.05, rate=0)
    swapped = round_weights(weights, moments[::-1], 0.1, 0.05, rate=0)[1]

    def total(of):
        decoded = quantizer.values(of)
        return sum(
            output_error(weights[part], decoded[part], matrix).sum()
            for part, matrix in ((slice(0, 6), first[1]), (slice(6, 12), second[1]))
        )

    assert total(levels) < 0.7 * total(swapped)


def test_what_was_chosen_is_what_the_file_holds():
    weights, moments = layer(30, 50, 0.2)
    quantizer, levels = round_weights(weights, moments, 0.1, 0.05)
    encoded = encode_rounded("ip1", weights, 0.1, 32, quantizer, levels)
    assert encoded.error_bound == 0.1
    assert np.array_equal(decode_layer(encoded), quantizer.values(levels))


def test_a_zero_that_was_given_a_value_is_refused():
    weights, moments = layer(30, 50, 0.2)
    quantizer, levels = round_weights(weights, moments, 0.1, 0.05)
    levels[tuple(np.argwhere(weights == 0)[3])] = 1
    with pytest.raises(CodecError, match="layer ip1: mixing-step decoded weight"):
        encode_rounded("ip1", weights, 0.1, 32, quantizer, levels)


def test_inputs_that_are_always_zero():
    weights, moments = layer(5, 30, 1)
    moments[:, 10:] = moments[10:] = 0
    for used in (moments, np.zeros_like(moments)):
        quantizer, levels = round_weights(weights, used, 0.1, 0.05)
        assert np.abs(quantizer.values(levels) - weights.astype(np.float64)).max() <= 0.1


@pytest.mark.parametrize(
    ("moments", "bound", "step", "rate"),
    [
        (np.eye(3), 0.1, 0.05, 0),
        (np.eye(4), 0.05, 0.1, 0),
        (np.eye(4), 0.1, 0, 0),
        (np.eye(4), 0.1, 0.05, -1),
        (np.full((4, 4), np.nan), 0.1, 0.05, 0),
        (np.full((4, 4), np.inf), 0.1, 0.05, 0),
        (-np.eye(4), 0.1, 0.05, 0),
        (np.ones((3, 4, 4)), 0.1, 0.05, 0),
    ],
)
def test_what_does_not_fit_is_refused(moments, bound, step, rate):
    weights = layer(4, 4, 1)[0]
    with pytest.raises(InputError):
        round_weights(weights, moments, bound, step, rate)


def test_blas_has_one_thread_for_as_long_as_it_rounds():
    def threads():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        with pytest.raises(KeyError), one_blas_thread():
            assert threads() == {1}
            raise KeyError
        assert threads() == before == {2}
