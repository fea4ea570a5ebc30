"""The digest against its definition in plain integers, and its sensitivity to single faults."""

import struct

import numpy as np
import pytest

from deepsz_caffe.codecs import weights_digest

MASK = (1 << 64) - 1


def by_definition(matrix: np.ndarray) -> int:
    total = 0
    for position, value in enumerate(matrix.reshape(-1).tolist()):
        if value != 0:
            (bits,) = struct.unpack("<I", struct.pack("<f", value))
            mixed = bits * 0x9E3779B97F4A7C15 & MASK
            total += (position + 0xD6E8FEB86659FD93) ** 2 * ((mixed ^ mixed >> 29) | 1)
    return total & MASK


@pytest.fixture
def matrix() -> np.ndarray:
    rng = np.random.default_rng(5)
    return (rng.normal(size=(60, 70)) * (rng.random((60, 70)) < 0.1)).astype(np.float32)


def test_it_is_what_it_is_defined_to_be(matrix):
    assert weights_digest(matrix) == by_definition(matrix)


def test_zeros_of_either_sign_do_not_count(matrix):
    signed = np.where(matrix == 0, np.float32(-0.0), matrix)
    assert weights_digest(signed) == weights_digest(matrix)
    assert weights_digest(np.zeros((3, 4), np.float32)) == 0
    assert weights_digest(np.zeros((0, 4), np.float32)) == 0


def test_any_single_fault_changes_it(matrix):
    right = weights_digest(matrix)
    for position in np.flatnonzero(matrix)[:50]:
        for wrong in (0.0, -matrix.flat[position], np.nextafter(matrix.flat[position], 9)):
            faulty = matrix.copy()
            faulty.flat[position] = wrong
            assert weights_digest(faulty) != right
        moved = matrix.copy()
        moved.flat[position], moved.flat[position - 1] = matrix.flat[[position - 1, position]]
        assert weights_digest(moved) != right or moved.flat[position] == matrix.flat[position]
