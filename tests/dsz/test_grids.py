"""Chunks with blobs on grids: every byte comes back, and nothing that is damaged passes."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.dsz.chunks import pack, unpack
from deepsz_caffe.dsz.grids import pack_grids, unpack_grids
from deepsz_caffe.dsz.layout import Packing
from deepsz_caffe.errors import CodecError

LEVEL = 9


def on_grid(seed, count, exponent, spread=20):
    whole = np.rint(np.random.default_rng(seed).normal(scale=spread, size=count))
    return np.ldexp(whole + 0.0, exponent).astype("<f4").tobytes()


def chunk(blobs, between=b"what lies between, "):
    return between.join((b"", *blobs, b"")) + between


BLOBS = [on_grid(1, 300, -8), on_grid(2, 1, 3), on_grid(3, 500, -4)]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(-30, 30), st.integers(1, 900)), max_size=3),
    st.binary(max_size=30),
)
def test_every_chunk_comes_back(blobs, between):
    packed = [
        on_grid(n, count, exponent, spread) for n, (count, exponent, spread) in enumerate(blobs)
    ]
    data = chunk(packed, between)
    result = pack_grids(data, packed, LEVEL)
    assert result is None or unpack_grids(result, len(data)) == data
    assert (result is None) == (not any(np.frombuffer(b"".join(packed), "<f4")))


def test_it_takes_about_the_entropy():
    data = chunk(BLOBS)
    levels = [np.unique(np.frombuffer(blob, "<f4"), return_counts=True)[1] for blob in BLOBS]
    bits = sum(-(n * np.log2(n / n.sum())).sum() for n in levels)
    packed = pack(data, BLOBS)
    assert packed.packing == Packing.GRIDS
    assert packed.bytes < bits / 8 * 1.15 + 60
    assert packed.bytes < 0.75 * pack(data).bytes
    assert unpack(packed, packed.data, len(data), "here") == data


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0, 0, 0],
        [0.5, -0.0],
        [np.inf, 1],
        [np.nan],
        [1e30, 1e-30],
        [1, 2.0**-149],
        [2.0**24 - 1, -1],
    ],
)
def test_what_is_on_no_grid_stays_where_it_is(values):
    blob = np.array(values, "<f4").tobytes()
    data = chunk([blob, BLOBS[1]])
    packed = pack_grids(data, [blob, BLOBS[1]], LEVEL)
    assert packed is not None
    assert unpack_grids(packed, len(data)) == data


def test_what_is_not_in_the_chunk_is_left_to_the_next_one():
    packed = pack_grids(chunk(BLOBS[:1]), BLOBS[::-1], LEVEL)
    assert packed is not None
    assert unpack_grids(packed, len(chunk(BLOBS[:1]))) == chunk(BLOBS[:1])
    assert pack_grids(b"nothing of it", BLOBS, LEVEL) is None


def test_damage_is_an_error_or_other_bytes_and_of_another_size_is_an_error():
    data = chunk(BLOBS)
    packed = pack_grids(data, BLOBS, LEVEL)
    assert packed is not None
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 1 << place % 8
        with suppress(CodecError):
            assert len(unpack_grids(bytes(damaged), len(data))) == len(data)
        if place % 8 == 0:
            with pytest.raises(CodecError):
                unpack_grids(packed[:place], len(data))
    for size in (0, 3, len(data) - 1, len(data) + 1, 2**40):
        with pytest.raises(CodecError):
            unpack_grids(packed, size)
    with pytest.raises(CodecError):
        unpack_grids(packed + b"x", len(data))
