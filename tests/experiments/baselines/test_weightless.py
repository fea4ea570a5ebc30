import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.errors import CodecError, InputError
from deepsz_caffe.experiments.baselines import weightless
from deepsz_caffe.experiments.baselines.kmeans import kmeans
from deepsz_caffe.experiments.full_size.generated import generate
from deepsz_caffe.experiments.networks import FcShape

LAYER = FcShape("fc", (500, 800), 0.08, 0.03, 0.01)


@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.integers(1, 20), st.integers(5, 16))
@settings(deadline=None)
def test_every_stored_weight_comes_back_as_its_cluster(seed, count, clusters, cell_bits):
    random = np.random.default_rng(seed)
    weights = np.zeros((20, 30), np.float32)
    places = random.choice(weights.size, count, replace=False)
    weights.flat[places] = random.standard_normal(count)
    layer = weightless.encode(weights, clusters, cell_bits)
    found = weightless.from_bytes(layer.to_bytes()).decode()
    kept = weights != 0
    if kept.any():
        centroids, labels = kmeans(weights[kept], clusters)
        np.testing.assert_array_equal(found[kept], centroids[labels])
    assert np.isin(found[~kept], [0, *layer.values]).all()


@pytest.mark.parametrize(("clusters", "cell_bits"), [(9, 6), (9, 8), (16, 9)])
def test_false_positives_are_as_frequent_as_the_formula_says(clusters, cell_bits):
    weights = generate(LAYER)
    layer = weightless.encode(weights, clusters, cell_bits)
    zeros = weights == 0
    wrong = np.count_nonzero(layer.decode()[zeros])
    expected = clusters / 2**cell_bits
    assert layer.false_positive_rate == expected
    # Binomial: five standard deviations.
    spread = np.sqrt(expected * (1 - expected) * zeros.sum())
    assert abs(wrong - expected * zeros.sum()) < 5 * spread


def test_false_positives_take_every_shared_value_alike():
    weights = generate(LAYER)
    layer = weightless.encode(weights, 8, 6)
    found = layer.decode()[weights == 0]
    counts = np.array([np.count_nonzero(found == value) for value in layer.values])
    assert counts.min() > 0.9 * counts.mean()


def test_size_is_header_values_and_cells_of_t_bits():
    weights = generate(LAYER)
    count = np.count_nonzero(weights)
    layer = weightless.encode(weights, 9, 7)
    assert layer.cells.size == pytest.approx(1.25 * count, rel=0.001)
    assert len(layer.to_bytes()) == 18 + 4 * 9 + -(-7 * layer.cells.size // 8)


def test_too_small_a_table_tries_other_seeds_and_then_gives_up(monkeypatch):
    tried = []
    peel = weightless._peel
    monkeypatch.setattr(weightless, "_peel", lambda *args: tried.append(1) or peel(*args))
    with pytest.raises(CodecError, match="no Bloomier filter"):
        weightless.encode(generate(LAYER), load=1.1)
    assert len(tried) == weightless.TRIES


def test_another_seed_is_recorded_and_decodes():
    # Near the threshold of 1.222 cells a non-zero small filters often need a second try.
    random = np.random.default_rng(0)
    seeds = set()
    for _ in range(40):
        weights = np.zeros((30, 40), np.float32)
        weights.flat[random.choice(weights.size, 300, replace=False)] = 1.0
        layer = weightless.encode(weights, 1, 8, load=1.2)
        assert (layer.decode()[weights != 0] == 1).all()
        seeds.add(layer.seed)
    assert len(seeds) > 1


def test_same_input_same_bytes():
    weights = generate(LAYER)
    assert weightless.encode(weights).to_bytes() == weightless.encode(weights).to_bytes()


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_truncated_bytes_are_an_error(cut):
    buffer = weightless.encode(generate(LAYER)).to_bytes()
    with pytest.raises(CodecError):
        weightless.from_bytes(buffer[:cut])


def test_empty_layer():
    weights = np.zeros((6, 7), np.float32)
    layer = weightless.from_bytes(weightless.encode(weights).to_bytes())
    assert not layer.decode().any()


def test_the_largest_layer_is_the_one_with_most_weights():
    sizes = {"ip1": (300, 784), "ip2": (100, 300), "ip3": (10, 100)}
    assert weightless.largest({name: np.empty(shape) for name, shape in sizes.items()}) == "ip1"


@pytest.mark.parametrize(("clusters", "cell_bits"), [(0, 8), (256, 16), (9, 3), (9, 17)])
def test_wrong_use(clusters, cell_bits):
    with pytest.raises(InputError):
        weightless.encode(np.ones((2, 2), np.float32), clusters, cell_bits)
