"""Products against the dense matrix in float64, within the bound that `multiply` states."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.errors import InputError
from deepsz_caffe.running.build import from_dense
from deepsz_caffe.running.kernels import kernels as compiled
from deepsz_caffe.running.product import multiply
from deepsz_caffe.running.quantized import MOST_COLUMNS

SETS = range(compiled.instruction_set() + 1)


def bound(matrix, quantized, x):
    """The closed form of `multiply`'s docstring, float64[batch, rows]."""
    steps = np.zeros(matrix.shape[0])
    for panel in quantized.panels:
        groups = np.diff(panel.starts.astype(np.int64))
        steps += groups / 2 + panel.width + 4
    gamma = steps * 2.0**-24 / (1 - steps * 2.0**-24)
    return gamma * (np.abs(x.astype(np.float64)) @ np.abs(matrix.T.astype(np.float64)))


def random_matrix(random, rows, cols, levels, density):
    values = random.standard_normal(levels).astype(np.float32)
    kept = random.random((rows, cols)) < density
    return values[random.integers(0, levels, (rows, cols))] * kept


#: levels that lead to groups of 8, of 4 or 2, of 1; to codes of two bytes; to values
KINDS = [(2, 0.9), (6, 0.4), (40, 0.15), (200, 0.3), (1000, 0.9), (60_000, 0.9)]


@pytest.mark.parametrize(("levels", "density"), KINDS)
@pytest.mark.parametrize("batch", [1, 2, 5, 16, 17, 40])
def test_products_are_within_the_bound(kernels, levels, density, batch):
    random = np.random.default_rng(levels + batch)
    matrix = random_matrix(random, 33, 257, levels, density)
    x = random.standard_normal((batch, 257)).astype(np.float32)
    quantized = from_dense(matrix)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    y = multiply(quantized, x)
    assert (np.abs(y - exact) <= bound(matrix, quantized, x)).all()


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 20),
    cols=st.integers(1, 90),
    batch=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    threads=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_one_vector_gives_the_same_bits_in_any_batch_on_any_instructions_and_threads(
    seed, rows, cols, batch, kind, threads
):
    random = np.random.default_rng(seed)
    quantized = from_dense(random_matrix(random, rows, cols, *kind))
    x = random.standard_normal((batch, cols)).astype(np.float32)
    bias = random.standard_normal(rows).astype(np.float32)
    alone = np.concatenate([multiply(quantized, v[None], bias=bias, threads=1) for v in x])
    for instructions in SETS:
        together = multiply(quantized, x, bias=bias, threads=threads, instructions=instructions)
        assert together.tobytes() == alone.tobytes()


def test_threads_split_large_layers_without_a_change(monkeypatch):
    monkeypatch.setattr("deepsz_caffe.running.product._WORTH_A_THREAD", 1)
    random = np.random.default_rng(1)
    quantized = from_dense(random_matrix(random, 100, 300, 6, 0.3))
    for batch in (1, 9, 40):
        x = random.standard_normal((batch, 300)).astype(np.float32)
        results = {multiply(quantized, x, threads=threads).tobytes() for threads in (1, 2, 3, 7)}
        assert len(results) == 1


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr("deepsz_caffe.running.product._WORTH_A_THREAD", 1)
    random = np.random.default_rng(1)
    quantized = from_dense(random_matrix(random, 100, 300, 6, 0.3))
    x = random.standard_normal((1, 300)).astype(np.float32)
    expected = multiply(quantized, x, threads=3).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if multiply(quantized, x, threads=3).tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_panels_add_up(kernels):
    random = np.random.default_rng(2)
    matrix = np.zeros((3, MOST_COLUMNS + 100), np.float32)
    matrix[:, ::5000] = random.standard_normal((3, 14)).astype(np.float32)
    matrix[1, -1] = 2
    quantized = from_dense(matrix)
    x = random.standard_normal((6, matrix.shape[1])).astype(np.float32)
    bias = np.arange(3, dtype=np.float32)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64) + bias
    y = multiply(quantized, x, bias=bias)
    assert (np.abs(y - exact) <= bound(matrix, quantized, x) + 1e-6).all()


def test_what_a_zero_weight_meets_does_not_matter(kernels):
    quantized = from_dense(np.array([[0, 1, 0, 2]], np.float32))
    x = np.array([[np.nan, 3, np.inf, 4], [0, np.nan, 0, 0]], np.float32)
    y = multiply(quantized, x)
    assert y[0, 0] == 11
    assert np.isnan(y[1, 0])


def test_rows_without_weights_give_the_bias(kernels):
    quantized = from_dense(np.zeros((3, 4), np.float32))
    y = multiply(quantized, np.ones((2, 4), np.float32), bias=np.array([1, 2, 3], np.float32))
    assert y.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert multiply(quantized, np.empty((0, 4), np.float32)).shape == (0, 3)


def test_output_goes_where_it_is_wanted(kernels):
    quantized = from_dense(np.eye(4, dtype=np.float32))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    out = np.empty((2, 4), np.float32)
    assert multiply(quantized, x, out=out) is out
    assert np.array_equal(out, x)
    assert np.array_equal(multiply(quantized, np.asfortranarray(x)), x)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (np.ones((2, 5), np.float32), {}),
        (np.ones((2, 4)), {}),
        (np.ones(4, np.float32), {}),
        (np.ones((2, 4), np.float32), {"bias": np.ones(3, np.float32)}),
        (np.ones((2, 4), np.float32), {"out": np.ones((2, 3), np.float32)}),
        (np.ones((2, 4), np.float32), {"out": np.ones((2, 4))}),
        (np.ones((2, 4), np.float32), {"out": np.ones((4, 2), np.float32).T}),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, options):
    with pytest.raises(InputError):
        multiply(from_dense(np.eye(4, dtype=np.float32)), x, **options)
