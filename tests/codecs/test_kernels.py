"""The compiled kernels against their Python twins: same bytes, same values, same refusals."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.codecs import _kernels, fallback
from deepsz_caffe.dsz.chunks import _shuffle

TWINS = (_kernels, fallback)


@st.composite
def level_matrices(draw):
    rows, cols = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10 ** draw(st.floats(-0.5, 4))
    kept = rng.random((rows, cols)) < draw(st.sampled_from([0, 0.01, 0.1, 0.5, 1]))
    return (np.rint(rng.laplace(0, scale, (rows, cols))) * kept).astype(np.int32)


@given(
    levels=level_matrices(),
    transposed=st.booleans(),
    prior=st.integers(-3000, 3000),
    low_bits=st.integers(0, 8),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_mixing_is_the_same_and_lossless(levels, transposed, prior, low_bits, data):
    rows, cols = levels.shape[::-1] if transposed else levels.shape
    stride = data.draw(st.sampled_from([0, *range(2, cols)]))
    largest = int(levels.max(initial=0)), -int(levels.min(initial=0))
    arguments = (transposed, rows, cols, stride, prior, low_bits, *largest)
    stream = _kernels.mixing_encode(levels, *arguments)
    assert fallback.mixing_encode(levels, *arguments) == stream
    for kernel in TWINS:
        decoded = np.full_like(levels, 99)
        kernel.mixing_decode(stream, decoded, *arguments)
        assert np.array_equal(decoded, levels)


def test_mixing_is_the_same_without_vectors():
    """What runs on a processor without AVX2 is run in a process that is asked to."""
    script = """
import sys
import numpy as np
from deepsz_caffe.codecs import _kernels
rng = np.random.default_rng(7)
levels = np.rint(rng.laplace(0, 3, (60, 90)) * (rng.random((60, 90)) < 0.3)).astype(np.int32)
shape = False, 60, 90, 9, 0, 2, int(levels.max()), -int(levels.min())
stream = _kernels.mixing_encode(levels, *shape)
decoded = np.empty_like(levels)
_kernels.mixing_decode(stream, decoded, *shape)
assert np.array_equal(decoded, levels)
sys.stdout.buffer.write(stream)
"""
    streams = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "DEEPSZ_KERNELS": kernels},
            check=True,
            capture_output=True,
        ).stdout
        for kernels in ("portable", "")
    ]
    assert len(streams[0]) > 1000
    assert streams[0] == streams[1]


@given(st.binary(max_size=60), st.integers(1, 20), st.integers(1, 20), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_mixing_decodes_any_bytes_alike(stream, rows, cols, low_bits):
    results = []
    for kernel in TWINS:
        decoded = np.zeros((rows, cols), np.int32)
        try:
            kernel.mixing_decode(stream, decoded, False, rows, cols, 0, -200, low_bits, 50, 50)
            results.append(decoded.tobytes())
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


@st.composite
def packed_chunks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    symbols = draw(st.sampled_from([1, 2, 3, 4, 6, 7, 16, 17, 256, 300]))
    fitting = [n for n in (1, 2, 3, 4) if symbols**n <= 256] or [0]
    per_byte = draw(st.sampled_from(fitting))
    entries = draw(st.integers(0, 2000))
    steps = rng.geometric(0.05, entries).clip(1, 256).astype(np.int64) - 1
    size = -(-entries // per_byte) if per_byte else 2 * entries
    codes = rng.integers(0, min(symbols ** max(per_byte, 1), 256), size, np.uint8)
    if per_byte == 0:
        codes[entries:] = 0
    values = rng.normal(size=symbols).astype(np.float32)
    values[0] = 0
    count = int((steps + 1).sum()) + draw(st.integers(0, 9000))
    first = draw(st.integers(0, 2**40))
    return steps.astype(np.uint8), codes, per_byte, values, max(count, 1), first


@given(packed_chunks())
@settings(max_examples=80, deadline=None)
def test_packed_scatter_is_the_same(chunk):
    *arguments, count, first = chunk
    outs, digests = [], []
    for kernel in TWINS:
        out = np.full(count, np.nan, np.float32)
        digests.append(kernel.scatter_packed(*arguments, out, first))
        outs.append(out)
    assert np.array_equal(*outs)
    assert digests[0] == digests[1]
    for kernel in TWINS:
        assert digests[0] == kernel.digest_weights(outs[0], first)
    assert digests[0][1] == np.count_nonzero(outs[0])


@given(st.binary(max_size=70))
def test_planes_are_joined_the_same(planes):
    joined = _kernels.join_planes(planes)
    assert joined == fallback.join_planes(planes)
    assert _shuffle(joined) == planes


@pytest.mark.parametrize("kernel", TWINS)
@pytest.mark.parametrize(
    ("steps", "codes", "per_byte", "symbols", "count"),
    [
        ([9], [0], 1, 1, 9),  # beyond the last cell
        ([0], [3], 1, 3, 9),  # no such symbol
        ([0], [9], 2, 3, 9),  # nor pair of them
        ([0], [0, 1], 0, 200, 9),  # nor in two planes
        ([0], [0], 2, 17, 9),  # pairs don't fit a byte
        ([0], [], 1, 1, 9),  # too few codes
        ([0], [0], 5, 1, 9),
    ],
)
def test_packed_scatter_refuses(kernel, steps, codes, per_byte, symbols, count):
    arrays = np.array(steps, np.uint8), np.array(codes, np.uint8)
    values, out = np.ones(symbols, np.float32), np.empty(count, np.float32)
    with pytest.raises(ValueError, match="damaged"):
        kernel.scatter_packed(*arrays, per_byte, values, out, 0)


@given(st.lists(st.integers(0, 255), max_size=300), st.integers(0, 9000), st.integers(-1, 1))
@settings(max_examples=150, deadline=None)
def test_scatter_of_steps_is_the_same(index, spare, wrong):
    steps = np.array(index, np.uint8)
    count = max(int(np.where(steps == 0, 255, steps.astype(int)).sum()) + spare - 4000, 1)
    data = np.arange(1, max(np.count_nonzero(steps) + wrong, 0) + 1, dtype=np.float32)
    results = []
    for kernel in TWINS:
        out = np.full(count, np.nan, np.float32)
        try:
            digest = kernel.scatter_steps(data, steps, out)
            assert digest == kernel.digest_weights(out)
            results.append((digest, out.tobytes()))
        except ValueError as error:
            results.append((str(error), b""))
    assert results[0] == results[1]


def test_scatter_of_steps_counts_from_before_the_first_cell():
    out = np.empty((2, 300), np.float32)
    _kernels.scatter_steps(
        np.array([1, 2, 3], np.float32), np.array([1, 0, 45, 255], np.uint8), out
    )
    assert np.flatnonzero(out).tolist() == [0, 300, 555]


@pytest.mark.parametrize("kernel", TWINS)
def test_levels_become_values_in_place(kernel):
    cells = np.array([0, 1, -1, 2, -3], np.int32).view(np.float32)
    positive, negative = np.array([5, 6], np.float32), np.array([-7, -8, -9], np.float32)
    kernel.values_of_levels(cells, positive, negative)
    assert cells.tolist() == [0, 5, -7, 6, -9]
    for level in (3, -4, -(2**31)):
        with pytest.raises(ValueError, match="damaged"):
            kernel.values_of_levels(
                np.array([level], np.int32).view(np.float32), positive, negative
            )


def test_digests_are_the_same():
    weights = np.random.default_rng(3).normal(size=(300, 70)).astype(np.float32)
    weights[weights < 0.5] = -0.0
    assert _kernels.digest_weights(weights) == fallback.digest_weights(weights)
