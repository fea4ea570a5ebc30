"""From levels back to weights: the cells that `quantize` chose; without numpy where it can be.

A level's value is the middle of its cell, rounded to float32.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepsz_caffe.errors import CodecError

if TYPE_CHECKING:
    from deepsz_caffe.codecs.base import Float32
    from deepsz_caffe.codecs.quantize import Levels

#: fine steps in one cell; the offset of the first cell is a multiple of one
FINE = 32
#: cells up to the largest magnitude; above it float32 has too few digits for the bound
MAX_CELLS = 1 << 18
#: a float32 rounds by at most 2^-24 of itself; twice that, for the float64 arithmetic before it
ROUNDING = 2.0**-23


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
        import numpy as np

        fine = self._middle(side) + FINE * np.arange(self._count(side), dtype=np.float64)
        values = fine * (self.cell / FINE)
        return (-values if side else values).astype(np.float32)

    def first_values(self, side: int, count: int) -> array[float]:
        """Return the first `count` entries of `table`, or all where it has fewer; float32."""
        first, scale = self._middle(side), self.cell / FINE
        scale = -scale if side else scale
        count = min(count, self._count(side))
        return array("f", [(first + FINE * number) * scale for number in range(count)])

    def values(self, levels: Levels) -> Float32:
        """Decode levels of any shape into float32."""
        import numpy as np

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
