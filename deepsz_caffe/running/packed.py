"""From a `packed` stream to the `Quantized` form, row by row, while a row is in the fastest cache.

The symbols of the stream are the codes, so nothing is looked up. Each thread makes a range of rows;
the chunk in which one range ends and the next begins is decompressed by both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.packed_stream import Chunk, PackedStream
from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.errors import CodecError
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.quantized import MOST_SMALL, WIDTHS, Codes, Panel, Quantized, row_starts
from deepsz_caffe.running.threads import in_parts


def from_packed(layer: EncodedLayer, threads: int = 1) -> Quantized:
    """Decode a `packed` stream of a row-major matrix of at most `MOST_COLUMNS` columns.

    Raises
    ------
    CodecError
        The stream is damaged.
    """
    rows, cols = layer.shape
    stream = PackedStream(memoryview(layer.data), layer.error_bound, rows * cols)
    source = _Source(rows, cols, stream, stream.symbols)
    try:
        width = best_width(source.listed(stream.chunks[:1]))
        panel = source.listed(stream.chunks) if width == 1 else source.grouped(width, threads)
    except ValueError as error:
        raise CodecError(f"packed: {error}") from error
    return Quantized((rows, cols), (panel,))


def best_width(panel: Panel, threads: int = 1) -> int:
    """Say at which width the groups of a panel that has a width of 1 take the fewest bytes."""
    if panel.codes.dtype != np.uint8:
        return 1
    counts = np.empty((panel.rows, len(WIDTHS)), np.uint32)
    in_parts(
        lambda first, last: kernels.count_groups(panel.native, first, last, counts),
        panel.parts(threads),
    )
    sizes = counts.sum(axis=0, dtype=np.int64) * (2 * np.array(WIDTHS) + 1)
    return WIDTHS[int(np.argmin(sizes))]


@dataclass(frozen=True)
class _Source:
    rows: int
    cols: int
    stream: PackedStream
    codebook: NDArray[np.float32]

    def listed(self, chunks: tuple[Chunk, ...]) -> Panel:
        """Take the entries of the first chunks, each column with its code."""
        small = self.codebook.size <= MOST_SMALL
        room = sum(chunk.entries for chunk in chunks)
        columns = np.empty(room, np.uint16)
        codes: Codes = np.empty(room, np.uint8) if small else np.empty(room, np.uint16)
        last_row = (chunks[-1].start + chunks[-1].cells - 1) // self.cols
        total = np.zeros(last_row + 1, np.int64)
        done = 0
        for chunk in chunks:
            first, last = self._rows_of(chunk)
            counts = np.empty(last - first, np.uint32)
            place = slice(done, done + chunk.entries)
            done += kernels.list_packed(
                *self.stream.entries(chunk),
                self.codebook.size,
                chunk.start,
                chunk.cells,
                self.cols,
                columns[place],
                codes[place],
                counts,
            )
            total[first:last] += counts
        starts = row_starts(total)
        return Panel(self.cols, 1, starts, columns[:done, None], codes[:done], self.codebook)

    def grouped(self, width: int, threads: int) -> Panel:
        """Take all entries, columns of the same weight together."""
        count = min(threads, len(self.stream.chunks))
        edges = [self.rows * number // count for number in range(count + 1)]
        made = in_parts(lambda first, last: self._part(width, first, last), list(pairwise(edges)))
        counts = [np.diff(ends, prepend=np.uint32(0)) for _, _, ends in made]
        starts = row_starts(np.concatenate(counts))
        columns, codes = made[0][:2]
        if len(made) > 1:
            columns = np.concatenate([part[0] for part in made])
            codes = np.concatenate([part[1] for part in made])
        return Panel(self.cols, width, starts, columns, codes, self.codebook)

    def _part(
        self, width: int, first: int, last: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint32]]:
        """Make groups of some rows; give their columns and codes, and the end of each row."""
        wanted = first * self.cols, last * self.cols
        chunks = [
            chunk
            for chunk in self.stream.chunks
            if chunk.start < wanted[1] and wanted[0] < chunk.start + chunk.cells
        ]
        entries = sum(chunk.entries for chunk in chunks)
        # Of each level in each row one group may be not full.
        room = min(entries, entries // width + (last - first) * self.codebook.size)
        columns, codes = np.empty((room, width), np.uint16), np.empty(room, np.uint8)
        ends = np.empty(last - first, np.uint32)
        row = np.empty(self.cols, np.uint16), np.empty(self.cols, np.uint8)
        state = np.array([chunks[0].start // self.cols, 0, 0], np.uint64)
        for chunk in chunks:
            kernels.group_packed(
                *self.stream.entries(chunk),
                self.codebook.size,
                chunk.start,
                chunk.cells,
                self.cols,
                width,
                first,
                last,
                chunk is chunks[-1],
                *row,
                state,
                columns,
                codes,
                ends,
            )
        used = int(state[2])
        return columns[:used], codes[:used], ends

    def _rows_of(self, chunk: Chunk) -> tuple[int, int]:
        return chunk.start // self.cols, (chunk.start + chunk.cells - 1) // self.cols + 1
