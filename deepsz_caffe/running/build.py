"""From the streams of a layer to its `Quantized` form.

A `packed` stream becomes one directly: its symbols are codes already. The two arrays of a layer
give values, from which a codebook is found; `mixing`, whose contexts are the dense matrix, is
decoded to that first.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.sparse import positions
from deepsz_caffe.dsz.decode import (
    check_section,
    check_tally,
    decode_unchecked,
    located,
    two_arrays,
)
from deepsz_caffe.dsz.layout import EncodedLayer, LayerEntry
from deepsz_caffe.dsz.limits import working_bytes as decoding_bytes
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.packed import best_width, from_packed
from deepsz_caffe.running.quantized import (
    MOST_COLUMNS,
    MOST_SMALL,
    WIDTHS,
    Codes,
    Panel,
    Quantized,
    row_starts,
)
from deepsz_caffe.running.threads import available, in_parts

#: different weights that a codebook may have; codes have two bytes
_MOST_LEVELS = 1 << 16
_PAGE = 4096
_NO_CODEBOOK = np.empty(0, np.float32)


def from_layer(layer: EncodedLayer, threads: int = 1, *, compared: bool = False) -> Quantized:
    """Decode one layer, verified against its checksum and its digest, as `decode_layer` does.

    The digest is that of the form in memory, the very arrays that products read.

    Parameters
    ----------
    layer
        From `encode_layer`, or `DszFile.layer`.
    threads
        Parts of the layer decoded at a time.
    compared
        Its checksum is known to be right, as `DszFile.layer` made sure.

    Raises
    ------
    FormatError
        The streams are damaged, or don't decode to the weights that were encoded.
    """
    if not compared:
        check_section(layer)
    with located(layer):
        matrix = from_streams(layer, threads)
        nonzeros, digest = matrix.examine(threads)
    check_tally(layer, digest, nonzeros)
    return matrix


def working_bytes(layer: LayerEntry) -> int:
    """Give the bytes that `from_layer` allocates at most, its result included."""
    # A column and a value for each weight, once as they come and once in groups; or the dense
    # matrix and the positions in it.
    direct = _is_direct(layer)
    dense = 0 if direct or layer.index_codec else layer.dense_bytes + layer.dense_bytes // 4
    each = 12 if direct else 64
    # Of a row under work the columns of each level begin in a page of their own.
    row = available() * min(2 * MOST_SMALL * layer.columns, MOST_SMALL * _PAGE)
    return decoding_bytes(layer) + dense + each * layer.nonzeros + row


def _is_direct(layer: LayerEntry) -> bool:
    return layer.data_codec == "packed" and layer.order == "C" and layer.columns <= MOST_COLUMNS


def from_streams(layer: EncodedLayer, threads: int = 1) -> Quantized:
    """Decode a layer's streams, without any check of checksum or digest.

    Raises
    ------
    CodecError, FormatError
        As `deepsz_caffe.dsz.decode.parts`.
    """
    rows, cols = layer.shape
    if _is_direct(layer):
        return from_packed(layer, threads)
    if not layer.index_codec:
        matrix = np.empty(layer.shape, np.float32)
        decode_unchecked(layer, matrix)
        return from_dense(matrix, threads)
    sparse = two_arrays(layer)
    places = positions(sparse)
    values = sparse.data
    if not layer.column_major:
        row, column = np.divmod(places, cols)
    else:
        column, row = np.divmod(places, rows)
        order = np.argsort(row, kind="stable")
        row, column, values = row[order], column[order], values[order]
    return _from_entries(layer.shape, row, column, values, threads)


def from_dense(matrix: NDArray[np.float32], threads: int = 1) -> Quantized:
    """Take the weights of a dense matrix, float32[rows, columns], that are not 0."""
    flat = np.ascontiguousarray(matrix).reshape(-1)
    places = np.flatnonzero(flat != 0)
    row, column = np.divmod(places, matrix.shape[1])
    shape = matrix.shape[0], matrix.shape[1]
    return _from_entries(shape, row, column, flat[places], threads)


def _from_entries(
    shape: tuple[int, int],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    values: NDArray[np.float32],
    threads: int,
) -> Quantized:
    """Take weights in order of rows, and in each row of columns."""
    rows, cols = shape
    count = -(-cols // MOST_COLUMNS)
    edges = [cols * number // count for number in range(count + 1)]
    panels = []
    for left, right in pairwise(edges):
        here = slice(None) if count == 1 else (left <= column) & (column < right)
        codes, codebook = _codes(values[here])
        columns = (column[here] - left).astype(np.uint16)
        starts = row_starts(np.bincount(row[here], minlength=rows))
        panel = Panel(right - left, 1, starts, columns.reshape(-1, 1), codes, codebook)
        panels.append(_grouped(panel, threads))
    return Quantized(shape, tuple(panels))


def _codes(values: NDArray[np.float32]) -> tuple[Codes, NDArray[np.float32]]:
    """Find the codebook of some weights, where one pays, and the code of each."""
    values = np.ascontiguousarray(values)
    levels, codes = np.empty(_MOST_LEVELS, np.float32), np.empty(values.size, np.uint16)
    found = kernels.find_levels(values, levels, codes)
    if found <= MOST_SMALL:
        return codes.astype(np.uint8), levels[:found].copy()
    if found > _MOST_LEVELS or 2 * values.size + 4 * found >= 4 * values.size:
        return values, _NO_CODEBOOK
    return codes, levels[:found].copy()


def _grouped(panel: Panel, threads: int) -> Panel:
    """Put columns of the same weight together, at the width that takes the fewest bytes."""
    width = best_width(panel, threads)
    if width == 1:
        return panel
    counts = np.empty((panel.rows, len(WIDTHS)), np.uint32)
    kernels.count_groups(panel.native, 0, panel.rows, counts)
    starts = row_starts(counts[:, WIDTHS.index(width)])
    columns = np.empty((int(starts[-1]), width), np.uint16)
    codes = np.empty(int(starts[-1]), np.uint8)
    to = replace(panel, width=width, starts=starts, columns=columns, codes=codes)
    in_parts(
        lambda first, last: kernels.fill_groups(panel.native, first, last, to.native),
        panel.parts(threads),
    )
    return to
