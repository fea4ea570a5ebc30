"""Rounding that knows a layer's inputs: levels that keep its outputs, not its weights.

A layer's output changes by e·x where its weights change by e; over many inputs x the mean square of
that is e H eᵀ, with the inputs' second moments H = mean(x xᵀ). Rounding each weight to the nearest
level is blind to H. Here the weights of a row are rounded one after the other, and each takes over
from those before it the error that it can make good (error feedback, as in Optimal Brain
Quantization and GPTQ): with H = L Lᵀ, e H eᵀ is the sum of (L_jj e_j + Σ_k>j L_kj e_k)², so going
from the last weight to the first the best real value of each is known when its turn comes.

Among the levels within the bound the one is taken that costs least: the squared error of the
output, and the bits that an entropy coder would need for the level, at a rate of exchange.

Weights that are 0 stay 0, so the weights that can make errors good differ from row to row, and each
row has a factor of its own. Its cost grows with the cube of the non-zeros; where they are many, the
columns are taken in blocks, each of which knows the errors of those before it exactly but does not
foresee that later ones will make its own errors good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.base import Float32
from deepsz_caffe.codecs.quantize import Levels, Quantizer, quantize
from deepsz_caffe.errors import InputError

Float64 = NDArray[np.float64]
Places = NDArray[np.intp]

#: Output error that a bit is worth, in squared cells of a typical weight. The optimum for many fine
#: levels, ln 2 / 6, is far too much where most levels are 0: their errors point one way.
RATE = 0.02
#: What is added to each input's second moment, as a part of their mean: few inputs say little.
DAMPING = 0.01

# Non-zeros of a row that are rounded together: twice as many would gain 1 % and take 4 times as
# long. Rows with the same zeros share a factor, and can afford more.
_TOGETHER = 224
_TOGETHER_SHARED = 2048
# Numbers in the factors of the rows that are rounded at a time.
_ROOM = 1 << 23
# Columns whose errors are passed on at a time.
_STRIP = 32
# The corner of a bordered matrix: more than any squared error, in squared steps, comes to.
_CORNER = np.float32(1e20)
# Rows whose factors say what a typical weight counts.
_SAMPLE = 16


def round_weights(
    weights: Float32,
    moments: NDArray[np.floating],
    bound: float,
    step: float,
    rate: float = RATE,
    damping: float = DAMPING,
) -> tuple[Quantizer, Levels]:
    """Choose a level for each weight so that the layer's output changes little.

    Parameters
    ----------
    weights : float32[r, c]
        Finite. A weight that is 0 gets level 0.
    moments : float[c, c] or float[g, c, c]
        Mean of x xᵀ over the layer's inputs x, symmetric; one matrix for each of g groups of r / g
        rows (convolutions in groups see different inputs).
    bound
        Largest absolute error of a weight.
    step
        Half of a quantizer's cell: what the error would be at most if each weight were rounded
        alone. Half the bound is a good choice, the bound itself leaves no choice.
    rate
        What a bit less of the coded levels may add to the squared error of the output, in squared
        cells of a typical weight; 0 minimizes the error alone.
    damping
        Added to the diagonal of the moments, as a part of its mean.

    Returns
    -------
    Quantizer, int32[r, c]
        The cells, which `step` determines, and each weight's level; every decoded weight is within
        `bound`.

    Raises
    ------
    InputError
        The moments don't fit the weights or are not finite, or `step` is over `bound`.
    CodecError
        `step` is too small for float32 weights of this size.
    """
    if not 0 < step <= bound:
        raise InputError(f"a step must be over 0 and at most the bound {bound:g}, not {step:g}")
    if not (rate >= 0 and damping > 0 and isfinite(rate + damping)):
        raise InputError(f"rate {rate} and damping {damping} must be numbers from 0 and over 0")
    groups = moments if moments.ndim == 3 else moments[None]
    rows, columns = weights.shape
    if groups.shape[1:] != (columns, columns) or rows % len(groups):
        raise InputError(
            f"second moments of shape {list(moments.shape)} don't fit {rows} × {columns} weights"
        )
    quantizer, levels = quantize(weights, step)
    grid = _Grid.of(quantizer, levels, bound)
    height = rows // len(groups)
    for number, matrix in enumerate(groups):
        part = slice(number * height, (number + 1) * height)
        _round_rows(weights[part], levels[part], _Inputs.of(matrix, damping), grid, rate)
    return quantizer, levels


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep this process's BLAS to one thread: on two, many small factors take ten times as long.

    That goes for all threads of the process, so one of them enters this, around all rounding.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


@dataclass(frozen=True)
class _Grid:
    """The decoded values of all levels, in steps, and how often each occurs so far."""

    step: float
    reach: float
    values: Float64
    zero: int
    counts: Float64

    @classmethod
    def of(cls, quantizer: Quantizer, levels: Levels, bound: float) -> _Grid:
        # One level beyond the largest of rounding alone, on either side.
        positive = quantizer.table(0)[: levels.max(initial=0) + 1]
        negative = quantizer.table(1)[: -levels.min(initial=0) + 1]
        values = np.concatenate((negative[::-1], np.zeros(1, np.float32), positive))
        counts = np.bincount(levels.reshape(-1) + negative.size, minlength=values.size)
        step = quantizer.bound
        return cls(
            step, bound / step, values / np.float64(step), negative.size, counts.astype(np.float64)
        )

    def allowed(self, weights: Float64) -> tuple[Places, Places]:
        """Return the first and the last place whose value is within the bound of each weight."""
        first = np.searchsorted(self.values, weights - self.reach)
        last = np.searchsorted(self.values, weights + self.reach, side="right") - 1
        # The sums above are rounded.
        far = np.abs(self.values[np.minimum(first, self.values.size - 1)] - weights) > self.reach
        first = first + far
        last = last - (np.abs(self.values[last] - weights) > self.reach)
        return first, last

    def bits(self) -> Float64:
        """Return what each level costs at its present frequency."""
        counts = self.counts + 0.5
        costs: Float64 = np.log2(counts.sum()) - np.log2(counts)
        return costs

    def learn(self, before: Levels, after: Levels) -> None:
        """Count levels that took the place of others."""
        for levels, sign in ((before, -1), (after, 1)):
            self.counts[:] += sign * np.bincount(
                levels.reshape(-1) + self.zero, minlength=self.values.size
            )


@dataclass(frozen=True)
class _Inputs:
    """Second moments in the order of rounding reversed: what varies most comes last."""

    order: Places
    moments: Float32

    @classmethod
    def of(cls, moments: NDArray[np.floating], damping: float) -> _Inputs:
        diagonal = moments.diagonal().astype(np.float64)
        mean = float(diagonal.mean())
        if not (isfinite(mean) and diagonal.min() >= 0):
            raise InputError("second moments must be finite and at least 0")
        order = np.argsort(diagonal, kind="stable")
        scaled = np.empty(moments.shape, np.float32)
        # Without any input all weights count the same.
        np.multiply(moments[np.ix_(order, order)], 1 / mean if mean else 0, out=scaled)
        scaled[np.diag_indices_from(scaled)] += damping if mean else 1
        if not isfinite(float(scaled.sum(dtype=np.float64))):
            raise InputError("second moments must be finite")
        return cls(order, scaled)


def _round_rows(
    weights: Float32, levels: Levels, inputs: _Inputs, grid: _Grid, rate: float
) -> None:
    """Replace the levels of rows that see the same inputs."""
    exact = weights[:, inputs.order] / np.float64(grid.step)
    kept = exact != 0
    errors = np.zeros(exact.shape, np.float32)
    ordered = levels[:, inputs.order]
    blocks = list(_blocks(kept))
    price = rate * 4 * _typical(inputs.moments, kept, blocks)
    for block in blocks:
        later = slice(block.stop, exact.shape[1])
        # What the errors of the blocks before this one do to it.
        pull = errors[:, later] @ inputs.moments[later, block]
        for rows, places, valid in _batches(kept[:, block]):
            factor, shift = _factor(inputs.moments[block, block], places, valid, pull[rows])
            here = rows[:, None], block.start + places
            # What only fills a row up is a weight that is 0, and stays so.
            found, error = _settle(exact[here], factor, shift, grid, price * grid.bits(), valid)
            grid.learn(ordered[here], found)
            ordered[here], errors[here] = found, error
    levels[:, inputs.order] = ordered


def _blocks(kept: NDArray[np.bool_]) -> Iterator[slice]:
    """Yield the columns to round together, last ones first."""
    columns = kept.shape[1]
    shared = bool((kept == kept[0]).all())
    fullest = int(kept.sum(axis=1).max(initial=0))
    count = max(-(-fullest // (_TOGETHER_SHARED if shared else _TOGETHER)), 1)
    edges = [columns * number // count for number in range(count, -1, -1)]
    for stop, start in pairwise(edges):
        yield slice(start, stop)


def _batches(kept: NDArray[np.bool_]) -> Iterator[tuple[Places, Places, NDArray[np.bool_]]]:
    """Yield rows of about as many non-zeros, where those are, and which entries are some.

    Rows that are all alike come as one batch, whose places have a single row.
    """
    counts = kept.sum(axis=1)
    if counts.any() and (kept == kept[0]).all():
        places = np.flatnonzero(kept[0])[None]
        yield np.arange(len(kept)), places, np.ones(places.shape, bool)
        return
    rows = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    start = 0
    while start < rows.size:
        longest = int(counts[rows[start]])
        batch = rows[start : start + max(_ROOM // longest**2, 1)]
        # Non-zeros first, in their order.
        places = np.argsort(~kept[batch], axis=1, kind="stable")[:, :longest]
        yield batch, places, np.arange(longest) < counts[batch][:, None]
        start += batch.size


def _factor(
    moments: Float32, places: Places, valid: NDArray[np.bool_], pull: Float32
) -> tuple[Float32, Float32]:
    """Return L for each row's non-zeros, and L⁻¹ times what pulls at them.

    Parameters
    ----------
    moments : float32[c, c]
        Of a block of columns.
    places, valid : int[b, m], bool[b, m]
        The non-zeros; one row of them stands for all.
    pull : float32[rows, c]
        The gradient of half the squared error at each weight, by errors elsewhere.
    """
    size = places.shape[1]
    if len(places) == 1:
        only = places[0]
        factor = _cholesky(moments[np.ix_(only, only)])
        return factor[None], np.linalg.solve(factor, pull[:, only].T).T
    # The factor of a matrix with one more row b has L⁻¹ b as its last row.
    bordered = np.empty((len(places), size + 1, size + 1), np.float32)
    inner = bordered[:, :size, :size]
    np.copyto(inner, moments[places[:, :, None], places[:, None, :]])
    inner *= valid[:, :, None] & valid[:, None, :]
    diagonal = np.arange(size)
    inner[:, diagonal, diagonal] += ~valid
    border = np.take_along_axis(pull, places, axis=1) * valid
    bordered[:, size, :size] = border
    bordered[:, :size, size] = border
    bordered[:, size, size] = _CORNER
    factors = _cholesky(bordered)
    return factors[:, :size, :size], factors[:, size, :size]


def _cholesky(matrices: Float32) -> Float32:
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        # With little damping float32 may not do.
        return np.linalg.cholesky(matrices.astype(np.float64)).astype(np.float32)


def _settle(
    weights: Float64,
    factor: Float32,
    shift: Float32,
    grid: _Grid,
    prices: Float64,
    valid: NDArray[np.bool_],
) -> tuple[Levels, Float32]:
    """Choose the levels of some rows, from the last weight to the first.

    Parameters
    ----------
    weights : float64[b, m]
        In steps.
    factor : float32[b or 1, m, m]
        L of each row.
    shift : float32[b, m]
        What errors elsewhere add to L e.
    prices : float64[levels]
        What each level costs beside the error it makes.
    valid : bool[b or 1, m]
        Entries that are weights; the others are 0, and stay so.

    Returns
    -------
    int32[b, m], float32[b, m]
        Levels, and the errors that they make, in steps.
    """
    rows, count = weights.shape
    first, last = grid.allowed(weights)
    chosen = np.full(weights.shape, grid.zero)
    errors = np.zeros(weights.shape, np.float32)
    pivots = factor[:, np.arange(count), np.arange(count)].astype(np.float64)
    for stop in range(count, 0, -_STRIP):
        start = max(stop - _STRIP, 0)
        carried = shift[:, start:stop].astype(np.float64)
        if stop < count:
            carried += (errors[:, None, stop:] @ factor[:, stop:, start:stop])[:, 0]
        strip = factor[:, start:stop, start:stop].astype(np.float64)
        for column in range(stop - 1, start - 1, -1):
            here = column - start
            pivot = pivots[:, column]
            wanted = weights[:, column] + carried[:, here] / pivot
            above = np.searchsorted(grid.values, wanted)
            inward = np.where(wanted > 0, above - 2, above + 1)
            options = np.stack((above - 1, above, inward, chosen[:, column]))
            options = np.clip(options, first[:, column], last[:, column])
            costs = ((wanted - grid.values[options]) * pivot) ** 2 + prices[options]
            best = options[costs.argmin(axis=0), np.arange(rows)]
            best = np.where(valid[:, column], best, grid.zero)
            error = weights[:, column] - grid.values[best]
            chosen[:, column], errors[:, column] = best, error
            carried[:, :here] += error[:, None] * strip[:, here, :here]
    return (chosen - grid.zero).astype(np.int32), errors


def _typical(moments: Float32, kept: NDArray[np.bool_], blocks: list[slice]) -> float:
    """Return the mean square of L's diagonal over some rows: what a typical weight counts."""
    used = np.flatnonzero(kept.any(axis=1))
    sample = used[:: -(-used.size // _SAMPLE) or 1]
    if (kept == kept[0]).all():
        sample = sample[:1]
    squares = []
    for row in sample:
        for block in blocks:
            only = block.start + np.flatnonzero(kept[row, block])
            if only.size:
                squares.append(_cholesky(moments[np.ix_(only, only)]).diagonal() ** 2)
    return float(np.concatenate(squares).mean()) if squares else 0.0
