"""A matrix between file and dense: for each row, groups of columns that share one weight.

A pruned and quantized layer has few different weights. In a group of `width` columns of the same
weight that weight is stored once, as a code of one byte, and a product needs one multiplication for
the whole group: the inputs are added up before. Columns take two bytes. At the paper's densities
that is 2.3 to 2.5 bytes a non-zero; columns alone with a code each take 3, steps of a byte (as the
files have them) 2, but a step has to be added to the one before it, which costs a product about
twice the time. A width of 1 has a column and a code for every weight, in order of columns.

Where there are more than 256 different weights, codes have two bytes; over 65,536 of them, or
where the weights hardly repeat, every weight stands for itself, with four.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import FormatError
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.threads import in_parts

#: columns of a panel: their numbers, and one that stands for no column, have two bytes
MOST_COLUMNS = 65535
#: different weights that a code of one byte can name
MOST_SMALL = 256
WIDTHS = (1, 2, 4, 8)

Codes = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """All rows of a matrix, and of its columns at most `MOST_COLUMNS`.

    Attributes
    ----------
    cols
        Columns; as the number of a column it stands for none, in groups that are not full.
    width
        Columns of a group: 1, 2, 4 or 8.
    starts : uint32[rows + 1]
        The first group of each row, and the number of groups.
    columns : uint16[groups, width]
    codes : uint8[groups], uint16[groups] or float32[groups]
        Of each group: the place of its weight in the codebook; or, float32, the weight.
    codebook : float32[levels]
        Empty where the codes are the weights.
    """

    cols: int
    width: int
    starts: NDArray[np.uint32]
    columns: NDArray[np.uint16]
    codes: Codes
    codebook: NDArray[np.float32]

    @property
    def rows(self) -> int:
        return self.starts.size - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.starts, self.columns, self.codes, self.codebook)
        return sum(array.nbytes for array in arrays)

    @cached_property
    def native(self) -> tuple[object, ...]:
        """What the kernels take."""
        size = self.codes.itemsize
        arrays = (self.starts, self.columns, self.codes, self.codebook)
        return (self.rows, self.cols, self.width, size, *arrays)

    def parts(self, count: int) -> list[tuple[int, int]]:
        """Split the rows into at most `count` ranges that take about the same work."""
        work = self.starts.astype(np.int64) + np.arange(self.rows + 1)
        wanted = work[-1] * np.arange(1, count) // count
        edges = [0, *np.searchsorted(work, wanted).tolist(), self.rows]
        return [(a, b) for a, b in pairwise(edges) if a < b]


@dataclass(frozen=True)
class Quantized:
    """A matrix of few different weights, as panels side by side.

    Attributes
    ----------
    shape
        Rows and columns.
    panels
        From the left to the right.
    """

    shape: tuple[int, int]
    panels: tuple[Panel, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes in memory."""
        return sum(panel.nbytes for panel in self.panels)

    @property
    def places(self) -> int:
        """Additions that a product takes for one vector: non-zeros, and empty places in groups."""
        return sum(panel.columns.size for panel in self.panels)

    def examine(self, threads: int = 1) -> tuple[int, int]:
        """Check that the arrays fit each other; count the weights and sum up their digest.

        Returns
        -------
        int, int
            Weights that are not 0, and the `deepsz_caffe.codecs.weights_digest` of all.

        Raises
        ------
        FormatError
            They don't; a product would read memory that is not theirs.
        """
        count = digest = offset = 0
        for panel in self.panels:
            _check_types(panel, self.shape[0])

            def part(
                first: int, last: int, panel: Panel = panel, at: int = offset
            ) -> tuple[int, int]:
                counted: tuple[int, int] = kernels.examine(
                    panel.native, first, last, at, self.shape[1]
                )
                return counted

            try:
                found = in_parts(part, panel.parts(threads))
            except ValueError as error:
                raise FormatError("the arrays of the matrix are damaged") from error
            count += sum(weights for weights, _ in found)
            digest += sum(part for _, part in found)
            offset += panel.cols
        if offset != self.shape[1]:
            raise FormatError(f"panels of {offset} columns for a matrix of {self.shape[1]}")
        return count, digest & 0xFFFFFFFFFFFFFFFF

    def dense(self) -> NDArray[np.float32]:
        """Return the matrix with its zeros, float32 of `shape`."""
        out = np.empty(self.shape, np.float32)
        offset = 0
        for panel in self.panels:
            kernels.densify(panel.native, 0, panel.rows, self.shape[1], offset, out)
            offset += panel.cols
        return out


def _check_types(panel: Panel, rows: int) -> None:
    arrays = (panel.starts, panel.columns, panel.codes, panel.codebook)
    kinds = [array.dtype for array in arrays]
    if (
        kinds[0] != np.uint32
        or kinds[1] != np.uint16
        or kinds[2] not in (np.uint8, np.uint16, np.float32)
        or kinds[3] != np.float32
        or not all(array.flags.c_contiguous for array in arrays)
        or panel.rows != rows
    ):
        raise FormatError("the arrays of the matrix have wrong types or sizes")


def row_starts(counts: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Return where each row begins, and the end, given how many groups each has."""
    starts = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts.astype(np.uint32)
