import numpy as np
import pytest

from deepsz_caffe.codecs import INDEX
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.experiments.baselines import deep_compression, techniques, weightless
from deepsz_caffe.experiments.full_size.generated import generate
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.steps.encode import encode_layer


@pytest.fixture(scope="module")
def matrices():
    return {layer.name: generate(layer) for layer in network("lenet-300-100").fc}


@pytest.mark.parametrize("profile", ["paper", "small"])
def test_deepsz_gives_the_weights_and_bytes_of_the_file(matrices, profile):
    layers = [encode_layer(name, matrix, 0.02, profile) for name, matrix in matrices.items()]
    outcome = techniques.deepsz(layers, "")
    assert outcome.bytes == sum(layer.bytes for layer in layers)
    for name, matrix in matrices.items():
        assert np.abs(outcome.weights[name] - matrix).max() <= 0.02
        assert not outcome.weights[name][matrix == 0].any()
    assert sum(outcome.decode_seconds.values()) > 0


def test_deep_compression_counts_every_layers_bytes(matrices):
    outcome = techniques.deep_compression_outcome(matrices, 4, 5)
    layers = {name: deep_compression.quantize(matrix, 4, 5) for name, matrix in matrices.items()}
    assert outcome.bytes == sum(len(layer.to_bytes()) for layer in layers.values())
    for name, layer in layers.items():
        np.testing.assert_array_equal(outcome.weights[name], layer.decode())


def test_weightless_leaves_all_but_the_largest_layer_exact(matrices):
    outcome = techniques.weightless_outcome(matrices, 9, 8)
    stored = weightless.encode(matrices["ip1"], 9, 8)
    np.testing.assert_array_equal(outcome.weights["ip1"], stored.decode())
    size = len(stored.to_bytes())
    for name in ("ip2", "ip3"):
        np.testing.assert_array_equal(outcome.weights[name], matrices[name])
        sparse = to_sparse(matrices[name])
        size += 4 * sparse.data.size + sparse.index.size
    assert outcome.bytes == size


def test_weightless_of_every_layer_is_smaller_and_changes_every_layer(matrices):
    one = techniques.weightless_outcome(matrices, 9, 8)
    every = techniques.weightless_outcome(matrices, 9, 8, every_layer=True)
    assert every.bytes < one.bytes
    assert all((every.weights[name] != matrices[name]).any() for name in matrices)


def test_index_sizes_are_those_of_the_codecs(matrices):
    sizes = techniques.index_sizes(matrices)
    assert {size.layer for size in sizes} == set(matrices)
    for size in sizes:
        index = to_sparse(matrices[size.layer]).index
        assert size.raw_bytes == index.size
        assert size.bytes == len(INDEX[size.codec]().encode(index))


def test_whole_deep_compression_has_its_published_bits(matrices):
    kernels = np.random.default_rng(3).standard_normal((20, 50)).astype(np.float32)
    layers = techniques.whole_deep_compression({"conv": kernels}, matrices)
    assert {name: layer.codebook.size for name, layer in layers.items()} == {
        "conv": 256, "ip1": 32, "ip2": 32, "ip3": 32
    }  # fmt: skip
    # Nothing of the convolution is pruned: no index, a code of at most 8 bits, and the codebook.
    size = len(layers["conv"].to_bytes())
    assert size <= kernels.size + 4 * 255 + 60
    decoded = techniques.deep_compression_of(layers, 0.0).weights["conv"]
    np.testing.assert_array_equal(decoded, layers["conv"].decode())
    assert np.abs(decoded - kernels).max() < 0.3
