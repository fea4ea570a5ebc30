"""Weightless (Reagen et al., ICML 2018): the non-zeros of a pruned layer in a Bloomier filter.

Weights are pruned and clustered to a few values; the filter maps each non-zero's position to its
cluster's number. It is a table of t-bit cells and four hash functions of the position: three name
a cell each, one in every third of the table, the fourth gives a t-bit mask. The four t-bit numbers
are combined by exclusive or. For the stored positions the result is the cluster's number; for every
other position it is as good as random, and a number that names no cluster means "zero". So a zero
comes back as a random shared value with probability ``clusters / 2**cell_bits``: the technique's
error, which the publication lets retraining of the later layers make good.

Construction (Bloomier filters, Chazelle et al. 2004): a cell that only one remaining position uses
is that position's own; take such positions away, which frees others, until none is left; then fill
the cells in the opposite order. All positions of one round are independent of each other, so a
round is a few numpy operations, and there are a few dozen of them. Where a round frees nothing, the
seed is changed. Three cells a position need a table of at least 1.22 cells a non-zero.

As published, only a network's largest layer is stored so (`largest`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from deepsz_caffe.errors import CodecError, InputError
from deepsz_caffe.experiments.baselines.kmeans import kmeans

#: cells a non-zero; published: 1.25
LOAD = 1.25
#: construction gives up after so many seeds; each fails with probability under 1/2
TRIES = 64
#: positions decoded at a time, to keep temporary arrays in the cache
_CHUNK = 1 << 16
#: rows, columns, seed, cells a third, clusters, cell bits
_HEADER = struct.Struct("<IIIIBB")


@dataclass(frozen=True)
class FilterLayer:
    """A layer in a Bloomier filter.

    Parameters
    ----------
    shape
        (rows, columns) of the weights.
    values
        float32, shape (clusters,): the shared values.
    cells
        uint16, shape (3 × cells a third,): the table, `cell_bits` bits used of each.
    cell_bits
        t.
    seed
        Of the hash functions.
    """

    shape: tuple[int, int]
    values: np.ndarray
    cells: np.ndarray
    cell_bits: int
    seed: int

    @property
    def false_positive_rate(self) -> float:
        """Expected fraction of zeros that come back as something else."""
        return float(self.values.size / (1 << self.cell_bits))

    def to_bytes(self) -> bytes:
        """Pack header, shared values and cells of `cell_bits` bits; the length is the size."""
        third = self.cells.size // 3
        head = _HEADER.pack(*self.shape, self.seed, third, self.values.size, self.cell_bits)
        places = np.arange(self.cell_bits, dtype=np.uint16)
        bits = (self.cells[:, None] >> places & 1).astype(np.uint8)
        return head + self.values.astype("<f4").tobytes() + np.packbits(bits).tobytes()

    def decode(self) -> np.ndarray:
        """Ask the filter for every position of the layer: float32, shape `shape`."""
        count = prod(self.shape)
        weights = np.empty(count, np.float32)
        # Every t-bit answer's value; answers that name no cluster are zeros.
        answer = np.zeros(1 << self.cell_bits, np.float32)
        answer[: self.values.size] = self.values
        for start in range(0, count, _CHUNK):
            positions = np.arange(start, min(start + _CHUNK, count), dtype=np.uint64)
            places, found = _hash(positions, self.seed, self.cells.size // 3, self.cell_bits)
            for place in places:
                found ^= self.cells[place]
            weights[start : start + positions.size] = answer[found]
        return weights.reshape(self.shape)


def encode(
    weights: np.ndarray, clusters: int = 9, cell_bits: int = 8, *, load: float = LOAD, seed: int = 0
) -> FilterLayer:
    """Cluster a pruned layer's non-zeros and store them in a Bloomier filter.

    Parameters
    ----------
    weights
        float32, shape (rows, columns).
    clusters
        Number of shared values, 1 to 255.
    cell_bits
        t, bits a cell, 1 to 16; ``2**t`` must be at least `clusters`.
    load
        Cells a non-zero; below 1.23 construction fails.
    seed
        First seed tried.

    Raises
    ------
    InputError
        An argument is out of range.
    CodecError
        Construction failed with `TRIES` seeds.
    """
    if not 1 <= clusters <= 255:
        raise InputError(f"the number of clusters must be between 1 and 255, not {clusters}")
    if not 1 <= cell_bits <= 16 or 1 << cell_bits < clusters:
        raise InputError(f"cells of {cell_bits} bits can't hold {clusters} clusters")
    rows, columns = weights.shape
    flat = weights.ravel()
    positions = np.flatnonzero(flat).astype(np.uint64)
    if positions.size:
        values, labels = kmeans(flat[positions.astype(np.int64)], clusters)
    else:
        values, labels = np.zeros(clusters, np.float32), np.zeros(0, np.uint16)
    # Small tables need some slack over the asymptotic threshold.
    third = int(np.ceil(load * positions.size / 3)) + 4
    for attempt in range(seed, seed + TRIES):
        places, mask = _hash(positions, attempt, third, cell_bits)
        order = _peel(places, 3 * third)
        if order is not None:
            cells = _fill(order, places, labels ^ mask, 3 * third)
            return FilterLayer((rows, columns), values, cells, cell_bits, attempt)
    raise CodecError(
        f"no Bloomier filter of {3 * third:,} cells for {positions.size:,} non-zeros was found",
        hint=f"allow more than {load} cells a non-zero",
    )


def from_bytes(buffer: bytes) -> FilterLayer:
    """Read what `FilterLayer.to_bytes` wrote.

    Raises
    ------
    CodecError
        The bytes are damaged.
    """
    try:
        rows, columns, seed, third, clusters, cell_bits = _HEADER.unpack_from(buffer)
        values = np.frombuffer(buffer, "<f4", clusters, _HEADER.size)
        packed = np.frombuffer(buffer, np.uint8, -1, _HEADER.size + 4 * clusters)
        bits = np.unpackbits(packed, count=3 * third * cell_bits).reshape(3 * third, cell_bits)
    except (struct.error, ValueError) as error:
        raise CodecError(f"damaged Weightless layer: {error}") from error
    if -(-3 * third * cell_bits // 8) != packed.size or not 1 <= cell_bits <= 16 or not third:
        raise CodecError("damaged Weightless layer: the table has another size than declared")
    cells = np.zeros(3 * third, np.uint16)
    for place in range(cell_bits):
        cells |= bits[:, place].astype(np.uint16) << place
    return FilterLayer((rows, columns), values.astype(np.float32), cells, cell_bits, seed)


def largest(layers: Mapping[str, np.ndarray]) -> str:
    """Name the layer with the most weights, the one that the publication compresses."""
    return max(layers, key=lambda name: layers[name].size)


def _mix(keys: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers (the finalizer of splitmix64)."""
    mixed: np.ndarray = keys ^ keys >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _hash(
    positions: np.ndarray, seed: int, third: int, cell_bits: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Evaluate the four hash functions.

    Returns
    -------
    places
        Three int64 arrays: one cell of each third of the table.
    mask
        uint16: `cell_bits` random bits.
    """
    key = _mix(np.array([seed + 1], np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    first = _mix(positions + key)
    second = _mix(first + np.uint64(0x9E3779B97F4A7C15))
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    # A 32-bit random number times `third`, upper half: uniform in 0 … third − 1 without a division.
    places = [
        ((part * np.uint64(third)) >> half).view(np.int64) + number * third
        for number, part in enumerate((first & low, first >> half, second & low))
    ]
    mask = (second >> np.uint64(64 - cell_bits)).astype(np.uint16)
    return places, mask


def _peel(places: list[np.ndarray], cells: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Take positions away by rounds of cells that one remaining position uses.

    Returns
    -------
    For each round (positions' numbers, the cell of each that is its own), or None when positions
    are left that share every cell.
    """
    count = places[0].size
    numbers = np.arange(count)
    degree = np.zeros(cells, np.int64)
    # The sum of the numbers of the positions that use a cell: where one is left, it is the sum.
    users = np.zeros(cells, np.int64)
    for place in places:
        np.add.at(degree, place, 1)
        np.add.at(users, place, numbers)
    rounds = []
    left = count
    candidates = np.arange(cells)
    winner = np.empty(count, np.int64)
    while left:
        own = candidates[degree[candidates] == 1]
        if not own.size:
            return None
        # A position may have found several cells of its own, or one twice; one is enough.
        taken = users[own]
        winner[taken] = np.arange(taken.size)
        only = winner[taken] == np.arange(taken.size)
        taken, own = taken[only], own[only]
        rounds.append((taken, own))
        left -= taken.size
        touched = [place[taken] for place in places]
        for place in touched:
            np.subtract.at(degree, place, 1)
            np.subtract.at(users, place, taken)
        candidates = np.concatenate(touched)
    return rounds


def _fill(
    order: list[tuple[np.ndarray, np.ndarray]],
    places: list[np.ndarray],
    targets: np.ndarray,
    size: int,
) -> np.ndarray:
    """Fill the cells, last round first, so that each position's three cells combine to its target.

    Within a round no position uses another's own cell, and cells filled earlier are not touched.
    """
    cells = np.zeros(size, np.uint16)
    for taken, own in reversed(order):
        value = targets[taken]
        for place in places:
            value = value ^ cells[place[taken]]
        cells[own] = value
    return cells
