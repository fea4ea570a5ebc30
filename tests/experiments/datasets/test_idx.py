import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepsz_caffe.errors import DataError
from deepsz_caffe.experiments.datasets.idx import parse_idx


def idx(array):
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=5)))
def test_idx_reads_what_was_written(array):
    np.testing.assert_array_equal(parse_idx(idx(array)), array)


@given(st.integers(0, 19))
def test_idx_cut_short_is_refused(length):
    with pytest.raises(DataError):
        parse_idx(idx(np.zeros((3, 4), np.uint8) + 1)[:length])
