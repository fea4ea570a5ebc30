"""Encoding: the bound holds to the last bit, zeros stay zeros, the same input gives equal bytes."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepsz_caffe import codecs
from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.dsz.layout import fc_bytes
from deepsz_caffe.errors import DeepSZWarning, InputError, ModelError
from deepsz_caffe.steps.encode import encode, encode_layer

PROFILES = sorted(codecs.PROFILES)


def assert_within(decoded, original, bound):
    assert decoded.dtype == np.float32
    assert decoded.shape == original.shape
    error = np.abs(decoded.astype(np.float64) - original)
    assert error.max() <= bound
    assert not decoded[original == 0].any()
    assert not np.signbit(decoded[decoded == 0]).any()


@st.composite
def pruned_matrices(draw):
    """A matrix and a bound; densities from empty to full, values at and around the bound."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 80)))
    bound = draw(st.sampled_from([1e-3, 7e-3, 0.02, 0.1]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    matrix = (random.standard_normal(shape) * draw(st.sampled_from([1e-3, 0.1, 10]))).astype("f4")
    edge = np.float32(bound)
    special = np.array(
        [
            edge,
            -edge,
            np.nextafter(edge, np.float32(1)),
            np.nextafter(-edge, np.float32(-1)),
            np.float32(1e-45),
            np.float32(-1e-40),
            np.float32(3 * bound),
            -0.0,
        ]
    )
    chosen = random.random(shape) < draw(st.sampled_from([0, 0.3, 1]))
    matrix[chosen] = random.choice(special, chosen.sum())
    matrix[random.random(shape) >= draw(st.sampled_from([0, 0.01, 0.1, 0.5, 1]))] = 0
    if draw(st.booleans()):
        matrix[0, 0] = 1
    return matrix, bound


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pruned_matrices(), st.sampled_from(PROFILES))
def test_round_trip_within_the_bound(case, profile):
    matrix, bound = case
    layer = encode_layer("ip", matrix, bound, profile)
    decoded = decode_layer(layer)
    assert_within(decoded, matrix, bound)
    assert layer.nonzeros == np.count_nonzero(decoded)
    assert encode_layer("ip", matrix, bound, profile) == layer


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("gap", [1, 254, 255, 256, 510, 511, 1021])
def test_gaps(profile, gap):
    matrix = np.zeros((3, 1100), np.float32)
    matrix.reshape(-1)[[gap - 1, 2 * gap - 1, 3 * gap - 1]] = 0.5, -0.25, 1
    assert_within(decode_layer(encode_layer("ip", matrix, 0.01, profile)), matrix, 0.01)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_weight_within_the_bound_of_zero(profile):
    matrix = np.full((4, 5), 0.01, np.float32)
    layer = encode_layer("ip", matrix, 0.5, profile)
    assert_within(decode_layer(layer), matrix, 0.5)


def test_a_layer_of_zeros_has_no_streams():
    layer = encode_layer("ip", np.zeros((100, 100), np.float32), 0.01)
    assert (layer.data, layer.index, layer.nonzeros, layer.data_codec) == (b"", b"", 0, "")
    assert not decode_layer(layer).any()
    assert fc_bytes((layer,)) < 50


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(bad):
    matrix = np.ones((3, 4), np.float32)
    matrix[2, 1] = bad
    with pytest.raises(ModelError, match=r"layer ip1: weight \[2, 1\] is"):
        encode_layer("ip1", matrix, 0.01)


def test_large_finite_weights_are_no_error():
    matrix = np.full((2, 300), 3e38, np.float32)
    assert_within(decode_layer(encode_layer("ip1", matrix, 1e36)), matrix, 1e36)


@pytest.mark.parametrize("bound", [0, -1, np.nan, np.inf])
def test_a_bound_that_is_none(bound):
    with pytest.raises(InputError, match="error bound"):
        encode_layer("ip1", np.ones((3, 4), np.float32), bound)


def test_an_unknown_profile():
    with pytest.raises(InputError, match="profile"):
        encode_layer("ip1", np.ones((3, 4), np.float32), 0.1, "tiny")


def test_weights_at_an_odd_address_and_other_layouts():
    matrix = np.random.default_rng(1).standard_normal((20, 30)).astype(np.float32)
    expected = encode_layer("ip", matrix, 0.01)
    unaligned = np.frombuffer(b"x" + matrix.tobytes(), "<f4", matrix.size, 1).reshape(20, 30)
    assert encode_layer("ip", unaligned, 0.01) == expected
    assert encode_layer("ip", np.asfortranarray(matrix), 0.01) == expected


def test_an_encoded_layer_crosses_processes():
    matrix = np.random.default_rng(1).standard_normal((20, 30)).astype(np.float32)
    layer = encode_layer("ip", matrix, 0.01)
    assert pickle.loads(pickle.dumps(layer)) == layer


def test_a_layer_of_which_nothing_is_left_is_said():
    import plain

    with pytest.warns(DeepSZWarning, match="layer ip3: every weight is 0 at the error bound 5"):
        contents = encode(plain.NETWORK, plain.WEIGHTS, {"ip1": 0.05, "ip3": 5})
    assert [layer.nonzeros > 0 for layer in contents.layers] == [True, False]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("bound", [5e-324, 1e-40, 1e-9, 1e-6, 3e-6, 1e30, 1e38, 3e38, 1e39, 1e300])
def test_every_profile_takes_every_bound(profile, bound):
    rng = np.random.default_rng(1)
    matrix = rng.laplace(0, 0.1, (30, 40)).astype(np.float32)
    matrix[rng.random(matrix.shape) > 0.3] = 0
    assert_within(decode_layer(encode_layer("ip", matrix, bound, profile)), matrix, bound)
