"""The two-array form: round trips against the definition, and damage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepsz_caffe.codecs.sparse import LONGEST_STEP, Sparse, to_dense, to_sparse
from deepsz_caffe.dsz.layout import longest_index
from deepsz_caffe.errors import FormatError


def by_definition(sparse):
    """The matrix, walked step by step as the specification says."""
    dense = np.zeros(sparse.shape[0] * sparse.shape[1], np.float32)
    values, position = iter(sparse.data), -1
    for step in sparse.index.tolist():
        position += step or 255
        if step:
            dense[position] = next(values)
    return dense.reshape(sparse.shape)


@st.composite
def matrices(draw):
    """Matrices of every density, with gaps of all lengths around multiples of 255."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 60)))
    size = shape[0] * shape[1]
    gaps = st.one_of(st.integers(1, 4), st.sampled_from([254, 255, 256, 509, 510, 511, 765, 766]))
    positions = np.cumsum(draw(st.lists(gaps, max_size=60)), dtype=np.int64) - draw(
        st.integers(0, 1)
    )
    positions = positions[(positions >= 0) & (positions < size)]
    values = draw(
        hnp.arrays(
            np.float32,
            positions.size,
            elements=st.floats(width=32, allow_nan=False).filter(lambda value: value != 0),
        )
    )
    flat = np.zeros(size, np.float32)
    flat[positions] = values
    return flat.reshape(shape)


@given(matrices())
def test_round_trip(matrix):
    sparse = to_sparse(matrix)
    assert sparse.data.size == np.count_nonzero(matrix) == np.count_nonzero(sparse.index)
    assert sparse.index.size <= longest_index(sparse.shape, sparse.data.size)
    np.testing.assert_array_equal(by_definition(sparse), matrix)
    np.testing.assert_array_equal(to_dense(sparse), matrix)


@given(matrices())
def test_round_trip_of_the_transpose_into_the_matrix(matrix):
    out = np.full_like(matrix, 7)
    to_dense(to_sparse(np.ascontiguousarray(matrix.T)), out.T)
    np.testing.assert_array_equal(out, matrix)


@pytest.mark.parametrize(
    ("position", "index"),
    [(0, [1]), (254, [255]), (255, [0, 1]), (509, [0, 255]), (510, [0, 0, 1])],
)
def test_steps_by_hand(position, index):
    matrix = np.zeros((1, 600), np.float32)
    matrix[0, position] = 1
    assert to_sparse(matrix).index.tolist() == index


def test_a_run_of_zeros_at_the_end_takes_nothing():
    matrix = np.zeros((3, 1000), np.float32)
    matrix[0, 0] = 1
    assert to_sparse(matrix).index.tolist() == [1]
    assert to_sparse(np.zeros((3, 1000), np.float32)).index.size == 0


def test_negative_zero_is_zero():
    assert to_sparse(np.array([[-0.0, 1]], np.float32)).index.tolist() == [2]


def test_more_than_one_block_of_entries():
    matrix = np.random.default_rng(0).standard_normal((700, 300)).astype(np.float32)
    matrix[np.abs(matrix) < 0.5] = 0
    np.testing.assert_array_equal(to_dense(to_sparse(matrix)), matrix)


@pytest.mark.parametrize(
    ("data", "index", "message"),
    [
        ([1, 2], [1], "1 steps for 2 values"),
        ([1], [1, 1], "2 steps for 1 values"),
        ([1], [1, 0], "behind the last value"),
        ([], [0], "behind the last value"),
        ([1], [7], "weight 6 of 6"),
        ([1], [0, 1], "weight 255 of 6"),
    ],
)
def test_damage_is_an_error(data, index, message):
    sparse = Sparse((2, 3), np.array(data, np.float32), np.array(index, np.uint8))
    with pytest.raises(FormatError, match=message):
        to_dense(sparse)


def test_the_longest_step_fits_a_byte():
    assert np.uint8(LONGEST_STEP) == np.iinfo(np.uint8).max
