import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.errors import CodecError, InputError
from deepsz_caffe.experiments.baselines import deep_compression as dc
from deepsz_caffe.experiments.baselines.kmeans import kmeans
from deepsz_caffe.experiments.full_size.generated import generate
from deepsz_caffe.experiments.networks import FcShape

LAYER = FcShape("fc", (300, 784), 0.08, 0.05, 0.03)


def test_relative_index_of_the_published_example():
    # Han et al., figure 2: non-zeros at 1, 4, 15 with 3 bits; the distance of 11 is bridged by a
    # padding zero after 8 places.
    weights = np.zeros((1, 16), np.float32)
    weights[0, [1, 4, 15]] = [3.4, 0.9, 1.7]
    layer = dc.quantize(weights, bits=2, index_bits=3)
    np.testing.assert_array_equal(layer.steps + 1, [2, 3, 8, 3])
    np.testing.assert_array_equal(layer.codes == 0, [False, False, True, False])
    np.testing.assert_array_equal(layer.decode(), weights)


@pytest.mark.parametrize("index_bits", [4, 5])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_padding_starts_just_over_the_longest_step(index_bits, over):
    longest = 1 << index_bits
    weights = np.zeros((2, 100), np.float32)
    weights[0, 0] = 1
    weights[0, 2 * longest + over] = 2
    layer = dc.quantize(weights, 2, index_bits)
    padding = 2 if over == 1 else 1
    assert layer.codes.size == 2 + padding
    assert np.count_nonzero(layer.codes == 0) == padding
    np.testing.assert_array_equal(layer.decode(), weights)


def test_first_weight_non_zero_last_weight_non_zero_and_none():
    for places in ([0], [19], [0, 19], []):
        weights = np.zeros((4, 5), np.float32)
        weights.flat[places] = 0.5
        found = dc.from_bytes(dc.quantize(weights, 3, 4).to_bytes()).decode()
        np.testing.assert_array_equal(found, weights)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 8), st.integers(1, 8))
def test_decoded_weights_are_the_shared_values_in_place(seed, density, bits, index_bits):
    random = np.random.default_rng(seed)
    weights = random.standard_normal((13, 29)).astype(np.float32)
    weights[random.random(weights.shape) >= density] = 0
    found = dc.from_bytes(dc.quantize(weights, bits, index_bits).to_bytes()).decode()
    expected = np.zeros_like(weights)
    kept = weights != 0
    if kept.any():
        centroids, labels = kmeans(weights[kept], (1 << bits) - 1)
        expected[kept] = centroids[labels]
    np.testing.assert_array_equal(found, expected)


def test_huffman_size_is_huffmans_for_a_dyadic_source():
    # Probabilities 1/2, 1/4, … 1/512, 1/512: the code's length equals the entropy.
    counts = 64 * np.array([256, 128, 64, 32, 16, 8, 4, 2, 1, 1])
    symbols = np.repeat(np.arange(10, dtype=np.uint8), counts)
    np.random.default_rng(0).shuffle(symbols)
    entropy = float((counts / counts.sum() * np.log2(counts.sum() / counts)).sum())
    size = len(dc.huffman_encode(symbols))
    assert entropy * symbols.size / 8 == pytest.approx(size, rel=0.005)


def test_huffman_does_not_look_for_repetitions():
    # A coder with a dictionary would write this periodic sequence in a few bytes.
    symbols = np.tile(np.arange(16, dtype=np.uint8), 1000)
    assert len(dc.huffman_encode(symbols)) >= 4 * symbols.size // 8


def test_size_of_a_layer_is_header_codebook_and_both_huffman_streams():
    layer = dc.quantize(generate(LAYER), 5, 5)
    streams = len(dc.huffman_encode(layer.codes)) + len(dc.huffman_encode(layer.steps))
    assert len(layer.to_bytes()) == 18 + 4 * 31 + streams


def test_size_is_near_the_entropy_of_codes_and_steps():
    layer = dc.quantize(generate(LAYER), 5, 5)
    bits = 0.0
    for symbols in (layer.codes, layer.steps):
        share = np.bincount(symbols) / symbols.size
        share = share[share > 0]
        bits -= symbols.size * float((share * np.log2(share)).sum())
    assert 1 <= 8 * len(layer.to_bytes()) / bits < 1.04


def test_same_input_same_bytes():
    weights = generate(LAYER)
    assert dc.quantize(weights).to_bytes() == dc.quantize(weights.copy()).to_bytes()


def test_more_bits_less_error():
    weights = generate(LAYER)
    errors = [np.abs(dc.quantize(weights, bits).decode() - weights).max() for bits in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("cut", [3, 17, 60, -40, -1])
def test_truncated_bytes_are_an_error(cut):
    buffer = dc.quantize(generate(LAYER)).to_bytes()
    with pytest.raises(CodecError):
        dc.from_bytes(buffer[:cut])


def test_index_past_the_end_is_an_error():
    weights = np.zeros((4, 5), np.float32)
    weights[3, 4] = 1
    buffer = bytearray(dc.quantize(weights, 2, 5).to_bytes())
    buffer[0] = 1  # one row instead of four
    with pytest.raises(CodecError, match="past the end"):
        dc.from_bytes(bytes(buffer)).decode()


@pytest.mark.parametrize(("bits", "index_bits"), [(0, 5), (9, 5), (5, 0), (5, 9)])
def test_bits_out_of_range(bits, index_bits):
    with pytest.raises(InputError, match="between 1 and 8"):
        dc.quantize(np.ones((2, 2), np.float32), bits, index_bits)
