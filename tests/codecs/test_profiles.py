"""Profiles keep what they promise, judged by trying every candidate here."""

import numpy as np
import pytest

from deepsz_caffe import codecs
from deepsz_caffe.codecs.profiles import SMALL_LAYER
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.steps.encode import encode_layer

BOUND = 2e-2


def unrelated(rows: int, cols: int, density: float) -> np.ndarray:
    """Weights whose positions have nothing to do with each other."""
    rng = np.random.default_rng(1)
    weights = (0.05 + rng.gamma(2, 0.02, (rows, cols))) * rng.choice([-1, 1], (rows, cols))
    return (weights * (rng.random((rows, cols)) < density)).astype(np.float32)


def uneven(rows: int, cols: int) -> np.ndarray:
    """Weights that stand in a few columns only: contexts tell them, gaps don't."""
    weights = unrelated(rows, cols, 0.5)
    weights[:, np.random.default_rng(2).random(cols) < 0.8] = 0
    return weights


LAYERS = {"unrelated": unrelated(200, 400, 0.1), "uneven": uneven(200, 400)}


@pytest.mark.parametrize("matrix", LAYERS.values(), ids=LAYERS.keys())
class TestLayers:
    def test_paper_is_the_best_of_sz_and_three_lossless_codecs_in_row_major_order(self, matrix):
        layer = encode_layer("ip", matrix, BOUND, "paper")
        sparse = to_sparse(matrix)
        data = {n: codecs.DATA[n](BOUND).encode(sparse.data) for n in codecs.DATA if "sz" in n}
        index = {n: codecs.INDEX[n]().encode(sparse.index) for n in ("gzip", "zstd", "blosc")}
        assert layer.order == "C"
        assert layer.data == data[layer.data_codec]
        assert layer.index == index[layer.index_codec]
        assert layer.data_bytes <= min(len(s) + len(n) for n, s in data.items())
        assert layer.index_bytes <= min(len(s) + len(n) for n, s in index.items())

    def test_small_has_least_bytes(self, matrix):
        layer = encode_layer("ip", matrix, BOUND, "small")
        assert layer.data_bytes <= min(len(c(BOUND).encode(matrix)) for c in codecs.MATRIX.values())
        for other in codecs.PROFILES:
            assert layer.bytes <= encode_layer("ip", matrix, BOUND, other).bytes

    def test_fast_is_within_a_twentieth_of_least_bytes(self, matrix):
        sizes = {n: len(c(BOUND).encode(matrix)) for n, c in codecs.MATRIX.items()}
        layer = encode_layer("ip", matrix, BOUND, "fast")
        assert layer.data_bytes <= 1.05 * (min(sizes.values()) + 8)
        assert (layer.data_codec == "packed") == (sizes["packed"] <= 1.05 * sizes["mixing"])

    def test_balanced_is_small_on_small_layers(self, matrix):
        small = encode_layer("ip", matrix, BOUND, "small")
        assert encode_layer("ip", matrix, BOUND, "balanced") == small


def test_the_two_layers_tell_the_candidates_of_fast_apart():
    chosen = [encode_layer("ip", m, BOUND, "fast").data_codec for m in LAYERS.values()]
    assert chosen == ["packed", "mixing"]


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_large_layers_decode_quickly(name):
    assert codecs.profile(name).for_layer(SMALL_LAYER).matrix[-1] == "mixing"
    assert codecs.profile(name).for_layer(SMALL_LAYER + 1).matrix == ("packed",)


def test_the_quickest_within_the_slack_is_kept():
    assert codecs.profile("fast").choose([105, 100]) == 0
    assert codecs.profile("fast").choose([106, 100]) == 1
    assert codecs.profile("small").choose([101, 100, 100]) == 1
