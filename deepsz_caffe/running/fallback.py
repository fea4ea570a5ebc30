"""The kernels in numpy: slow, for machines without the compiled ones.

Each function is the twin of one in ``native/``, whose comments explain it. Matrices are the same to
the bit, products the same within the rounding of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.fallback import digest_of, packed_entries

_DAMAGED = "the arrays are damaged or do not fit each other"
_ROWS = 16

#: rows, columns, width, bytes of a code, starts, columns, codes, codebook
Native = tuple[Any, ...]


def instruction_set() -> int:
    return 0


def multiply(
    matrix: Native,
    first: int,
    last: int,
    x: NDArray[np.float32],
    batch: int,
    offset: int,
    x_stride: int,
    bias: NDArray[np.float32],
    y: NDArray[np.float32],
    y_stride: int,
    more: bool,
    instructions: int,
) -> None:
    inputs = x.reshape(-1, x_stride)[:batch, offset : offset + matrix[1]]
    out = y.reshape(-1, y_stride)[:batch]
    for start in range(first, last, _ROWS):
        rows = slice(start, min(start + _ROWS, last))
        weights = _dense(matrix, rows.start, rows.stop)
        product = np.empty((batch, len(weights)), np.float32)
        # Zeros stay out: times infinity they would not be 0.
        kept = weights != 0
        for vector, sums in zip(inputs, product, strict=True):
            with np.errstate(invalid="ignore"):
                np.sum(weights * vector, axis=1, where=kept, out=sums)
        if bias.size:
            product += bias[rows]
        out[:, rows] = out[:, rows] + product if more else product


def examine(matrix: Native, first: int, last: int, offset: int, stride: int) -> tuple[int, int]:
    _rows, cols, width, size, starts, columns, codes, codebook = matrix
    ends = starts.astype(np.int64)
    if (
        width not in (1, 2, 4, 8)
        or (width > 1 and size > 1)
        or columns.size != codes.size * width
        or ends[0] != 0
        or ends[-1] != codes.size
        or (np.diff(ends) < 0).any()
        or columns.max(initial=0) > cols
        or (size < 4 and codes.size and int(codes.max()) >= codebook.size)
    ):
        raise ValueError(_DAMAGED)
    weights = digest = 0
    for start in range(first, last, _ROWS):
        block = _dense(matrix, start, min(start + _ROWS, last))
        rows, places = np.nonzero(block)
        weights += rows.size
        positions = (rows + start) * stride + places + offset
        digest += digest_of(positions, block[rows, places].view(np.uint32))
    return weights, digest & 0xFFFFFFFFFFFFFFFF


def densify(
    matrix: Native, first: int, last: int, stride: int, offset: int, out: NDArray[np.float32]
) -> None:
    target = out.reshape(-1, stride)[: last - first, offset : offset + matrix[1]]
    target[...] = _dense(matrix, first, last)


def _dense(matrix: Native, first: int, last: int) -> NDArray[np.float32]:
    _, cols, width, size, starts, columns, codes, codebook = matrix
    groups = slice(int(starts[first]), int(starts[last]))
    values = codes[groups] if size == 4 else codebook[codes[groups]]
    rows = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1].astype(np.int64)))
    out = np.zeros((last - first, cols + 1), np.float32)
    out[rows[:, None], columns.reshape(-1, width)[groups]] = values[:, None]
    return out[:, :cols]


def list_packed(
    steps: bytes,
    codes: bytes,
    per_byte: int,
    symbols: int,
    first: int,
    cells: int,
    cols: int,
    columns: NDArray[np.uint16],
    listed: NDArray[np.uint8] | NDArray[np.uint16],
    counts: NDArray[np.uint32],
) -> int:
    counts[...] = 0
    done = 0
    for places, picks in packed_entries(steps, codes, per_byte, symbols, cells):
        kept = picks != 0
        rows, found = np.divmod(places[kept] + first, cols)
        end = done + found.size
        columns[done:end], listed[done:end] = found, picks[kept]
        counts += np.bincount(rows - first // cols, minlength=counts.size).astype(counts.dtype)
        done = end
    return done


def bucket_room(cols: int) -> int:
    return cols


def group_packed(
    steps: bytes,
    codes: bytes,
    per_byte: int,
    levels: int,
    first: int,
    cells: int,
    cols: int,
    width: int,
    first_row: int,
    last_row: int,
    finish: bool,
    buckets: NDArray[np.uint16],
    state: NDArray[np.uint64],
    columns: NDArray[np.uint16],
    codes_out: NDArray[np.uint8],
    ends: NDArray[np.uint32],
) -> None:
    row, groups = (int(number) for number in state[:2])
    sizes_held = state[2:].astype(np.int64)
    held = int(sizes_held.sum())
    row_columns = buckets[np.arange(cols) < sizes_held[:, None]]
    row_symbols = np.repeat(np.arange(levels, dtype=np.uint8), sizes_held)
    last = (first + cells - 1) // cols
    counts = np.zeros(last - row + 1, np.uint32)
    found = np.empty(len(steps), np.uint16), np.empty(len(steps), np.uint8)
    count = list_packed(
        steps, codes, per_byte, levels, first, cells, cols, *found, counts[first // cols - row :]
    )
    counts[0] += held
    all_columns = np.concatenate([row_columns, found[0][:count]])
    all_symbols = np.concatenate([row_symbols, found[1][:count]])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    book = np.empty(levels, np.float32)
    given = (counts.size, cols, 1, 1, starts, all_columns[:, None], all_symbols, book)
    # Rows that end in this chunk, among those that are wanted.
    end = last_row if finish else last
    begin, stop = max(first_row - row, 0), min(end, last_row, last + 1) - row
    if begin < stop:
        sizes = np.zeros(counts.size + 1, np.int64)
        each = -(-_histogram(given, begin, stop) // width)
        sizes[begin + 1 : stop + 1] = each.sum(axis=1)
        to_starts = groups + np.cumsum(sizes)
        to = (counts.size, cols, width, 1, to_starts, columns, codes_out, book)
        fill_groups(given, begin, stop, to)
        groups = int(to_starts[stop])
        ends[row + begin - first_row : row + stop - first_row] = to_starts[begin + 1 : stop + 1]
    if finish and last + 1 < last_row:
        ends[max(last + 1 - first_row, 0) :] = groups
    kept = slice(int(starts[last - row]), int(starts[last - row + 1]))
    symbols = all_symbols[kept]
    order = np.argsort(symbols, kind="stable")
    sizes_held = np.bincount(symbols, minlength=levels)
    buckets[np.arange(cols) < sizes_held[:, None]] = all_columns[kept][order]
    state[0], state[1], state[2:] = last, groups, sizes_held


def find_levels(
    values: NDArray[np.float32], levels: NDArray[np.float32], codes: NDArray[np.uint16]
) -> int:
    found, firsts, places = np.unique(
        values.view(np.uint32), return_index=True, return_inverse=True
    )
    if found.size > levels.size:
        return levels.size + 1
    order = np.argsort(firsts)
    levels[: found.size] = found[order].view(np.float32)
    codes[...] = np.argsort(order)[places]
    return found.size


def count_groups(matrix: Native, first: int, last: int, counts: NDArray[np.uint32]) -> None:
    numbers = _histogram(matrix, first, last)
    for log in range(4):
        counts.reshape(-1, 4)[first:last, log] = (numbers + (1 << log) - 1 >> log).sum(axis=1)


def fill_groups(matrix: Native, first: int, last: int, to: Native) -> None:
    for start in range(first, last, _ROWS):
        _fill_rows(matrix, start, min(start + _ROWS, last), to)


def _fill_rows(matrix: Native, first: int, last: int, to: Native) -> None:
    _, cols, _, _, starts, columns, codes, codebook = matrix
    _, _, width, _, to_starts, to_columns, to_codes, _ = to
    groups = -(-_histogram(matrix, first, last) // width)
    if (groups.sum(axis=1) != np.diff(to_starts[first : last + 1].astype(np.int64))).any():
        raise ValueError(_DAMAGED)
    target = slice(int(to_starts[first]), int(to_starts[last]))
    levels = np.tile(np.arange(codebook.size), last - first)
    to_codes[target] = np.repeat(levels, groups.reshape(-1))
    entries = slice(int(starts[first]), int(starts[last]))
    rows = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1].astype(np.int64)))
    keys = rows * codebook.size + codes[entries]
    order = np.argsort(keys, kind="stable")
    # Where each (row, level) begins among the sorted entries, and among the groups.
    sizes = np.bincount(keys, minlength=groups.size)
    begins = np.cumsum(sizes) - sizes
    spaces = width * (np.cumsum(groups) - groups.reshape(-1))
    sorted_keys = keys[order]
    places = spaces[sorted_keys] + np.arange(order.size) - begins[sorted_keys]
    flat = to_columns.reshape(-1, width)[target].reshape(-1)
    flat[...] = cols
    flat[places] = columns.reshape(-1)[entries][order]


def _histogram(matrix: Native, first: int, last: int) -> NDArray[np.int64]:
    """Count how often each level occurs in each of the rows."""
    levels, starts, codes = matrix[7].size, matrix[4], matrix[6]
    rows = range(first, last)
    counts = [np.bincount(codes[starts[r] : starts[r + 1]], minlength=levels) for r in rows]
    return np.array(counts, np.int64).reshape(len(rows), levels)
