"""Weights to small integers and back, within an absolute bound.

A weight w with |w| <= bound becomes level 0, decoded as 0. The others keep their sign; their
magnitudes are cut into cells of twice the bound, level 1 being the cell that starts at an offset of
its own for each sign, and decode to the middle of their cell. Pruning leaves a gap around zero, so
the offset that gives the levels least entropy is well above the bound; uniform bins waste that gap.
Among partitions into intervals of at most twice the bound, one of full-length cells is as good as
the optimum for the one-sided, falling densities that pruned weights have.

The offset is a multiple of 1/16 of the bound, the cells a hair narrower than twice the bound, so
that rounding the decoded value to float32 stays within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32
from deepsz_caffe.errors import CodecError

Levels = NDArray[np.int32]

#: fine steps in one cell; the offset of the first cell is a multiple of one
FINE = 32
#: cells up to the largest magnitude; above it float32 has too few digits for the bound
MAX_CELLS = 1 << 18
#: a float32 rounds by at most 2^-24 of itself; twice that, for the float64 arithmetic before it
ROUNDING = 2.0**-23


class TightBoundError(CodecError):
    """A bound gives more levels than a codec has; another codec may take it."""


_LARGEST = float(np.finfo(np.float32).max)
#: levels whose values are computed at a time
_TABLE_BLOCK = 1 << 14


@dataclass(frozen=True)
class Quantizer:
    """How one array's weights become levels.

    Parameters
    ----------
    bound
        Largest absolute error.
    cells
        Upper limit of every decoded magnitude, in cells.
    offsets
        Where level 1 begins, for positive and for negative weights, in fine steps.
    """

    bound: float
    cells: int
    offsets: tuple[int, int]

    @property
    def cell(self) -> float:
        """Width of a cell, a little less than twice the bound."""
        return 2 * (self.bound - 2 * self.bound * self.cells * ROUNDING)

    def table(self, side: int) -> Float32:
        """Return the decoded values of the levels 1, 2, … of positive (0) or negative (1) weights.

        It has every level whose value is under the limit that `cells` sets, float32.
        """
        table = np.empty(self._count(side), np.float32)
        first, scale = self._middle(side), self.cell / FINE
        scale = -scale if side else scale
        for start in range(0, table.size, _TABLE_BLOCK):
            part = table[start : start + _TABLE_BLOCK]
            fine = first + FINE * np.arange(start, start + part.size, dtype=np.float64)
            # A level beyond all of float32 is never used.
            part[...] = np.clip(fine * scale, -_LARGEST, _LARGEST)
        return table

    def values(self, levels: Levels) -> Float32:
        """Decode levels of any shape into float32."""
        positive, negative = self.table(0), self.table(1)
        if levels.max(initial=0) > positive.size or -levels.min(initial=0) > negative.size:
            raise CodecError("a level is out of range")
        lookup = np.concatenate((negative[::-1], np.zeros(1, np.float32), positive))
        decoded: Float32 = lookup[levels + negative.size]
        return decoded

    def _middle(self, side: int) -> int:
        """Middle of the first cell, in fine steps."""
        return self.offsets[side] + FINE // 2

    def _count(self, side: int) -> int:
        return max(self.cells - self.offsets[side] // FINE, 1)


def quantize(weights: Float32, bound: float, offset: int | None = None) -> tuple[Quantizer, Levels]:
    """Choose the cells that cost least and return them with the level of every weight.

    Parameters
    ----------
    weights
        Finite float32 of any shape.
    bound
        Largest absolute error.
    offset
        Where level 1 begins for both signs, in fine steps, instead of the choice by entropy; 16
        gives the uniform bins ``rint(w / (2 * bound))``.

    Returns
    -------
    Quantizer, int32 levels
        Levels have the shape of `weights`.

    Raises
    ------
    TightBoundError
        The bound is too small for float32 weights of this size.
    """
    largest = float(np.max(np.abs(weights), initial=0))
    cells = _cells(largest, bound)
    grid = Quantizer(bound, cells, (0, 0)).cell / FINE
    # Most weights are 0: the arithmetic is for the others.
    places = np.flatnonzero(weights)
    values = weights.reshape(-1)[places]
    magnitude = np.abs(values).astype(np.float64)
    fine = (magnitude / grid).astype(np.int32)
    kept = magnitude > bound
    negative = values < 0
    sides = (kept & ~negative, kept & negative)
    offsets = [_best_offset(fine[side]) if offset is None else offset for side in sides]
    found = np.zeros(places.size, np.int32)
    for side, first, sign in zip(sides, offsets, (1, -1), strict=True):
        # A weight between the bound and the offset, by a rounding, belongs to the first cell.
        found[side] = sign * np.maximum((fine[side] - first) // FINE + 1, 1)
    levels = np.zeros(weights.shape, np.int32)
    levels.reshape(-1)[places] = found
    return Quantizer(bound, cells, (offsets[0], offsets[1])), levels


def _cells(largest: float, bound: float) -> int:
    """Return how many cells, each a little narrower than twice the bound, cover `largest`."""
    wanted = largest / (2 * bound) + 2
    cells = 1.0
    while cells < min(wanted / (1 - 2 * cells * ROUNDING), MAX_CELLS):
        cells = math.ceil(min(wanted / (1 - 2 * cells * ROUNDING), MAX_CELLS))
    if cells >= MAX_CELLS:
        raise TightBoundError(
            f"an error bound of {bound:.3g} is too small for weights of {largest:.3g}"
        )
    return int(cells)


def _best_offset(fine: Levels) -> int:
    """Return the offset, at or under the smallest weight, whose levels have least entropy."""
    if fine.size == 0:
        return FINE // 2
    counts = np.bincount(fine)
    lowest = int(fine.min())
    # A negative offset makes the first cell a part of one; its middle must stay above 0.
    candidates = range(max(lowest - FINE, -FINE // 2) + 1, lowest + 1)
    return min(candidates, key=lambda first: (_cost(counts, first), abs(first - FINE // 2)))


def _cost(counts: NDArray[np.int64], first: int) -> float:
    """Return Σ −n log2 n over the cells, the part of their entropy that the offset changes."""
    before, used = max(-first, 0), counts[max(first, 0) :]
    padded = np.zeros(-(-(before + used.size) // FINE) * FINE, np.int64)
    padded[before : before + used.size] = used
    cells = padded.reshape(-1, FINE).sum(axis=1)
    cells = cells[cells > 0]
    return float(-(cells * np.log2(cells)).sum())


def entropy(symbols: NDArray[np.integer]) -> float:
    """Return the zero-order entropy of an array of integers, in bits a symbol."""
    if symbols.size == 0:
        return 0.0
    counts = np.unique(symbols, return_counts=True)[1]
    shares = counts / symbols.size
    return float(-(shares * np.log2(shares)).sum())
