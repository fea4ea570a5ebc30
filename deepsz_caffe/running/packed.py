"""From a `packed` stream to the `Quantized` form, row by row, while a row is in the fastest cache.

The symbols of the stream are the codes, so nothing is looked up. Each thread makes a range of rows;
the chunk in which one range ends and the next begins is decompressed by both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.codecs.packed_stream import CellRange, PackedStream
from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.errors import CodecError
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.quantized import MOST_SMALL, WIDTHS, Codes, Panel, Quantized, row_starts
from deepsz_caffe.running.threads import in_parts

#: entries that tell which width takes the fewest bytes; bytes have 1, 2, 3 or 4 of them
_SAMPLE = 12 << 10


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
        width = best_width(source.listed(stream.chunks[:1], _SAMPLE))
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

    def listed(self, chunks: tuple[CellRange, ...], most: int | None = None) -> Panel:
        """Take the entries of the first chunks, at most so many of each where the stream lets.

        Each column has its code.
        """
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
            steps, symbols, per_byte = self._entries(chunk)
            if most and per_byte:
                steps, symbols = steps[:most], symbols[: most // per_byte]
            place = slice(done, done + len(steps))
            done += kernels.list_packed(
                steps,
                symbols,
                per_byte,
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
        parts = list(pairwise(self.rows * number // count for number in range(count + 1)))
        places = [0, *accumulate(self._room(width, *part) for part in parts)]
        columns, codes = np.empty((places[-1], width), np.uint16), np.empty(places[-1], np.uint8)

        def make(number: int) -> NDArray[np.uint32]:
            place = slice(places[number], places[number + 1])
            return self._part(width, *parts[number], columns[place], codes[place])

        ends = in_parts(make, [(number,) for number in range(count)])
        used = 0
        for place, part_ends in zip(places, ends, strict=False):
            size = int(part_ends[-1])
            # Towards the front, over what the part before has left.
            for array, each in ((columns.reshape(-1).data, width), (codes.data, 1)):
                array[used * each : (used + size) * each] = array[
                    place * each : (place + size) * each
                ]
            used += size
        starts = row_starts(np.concatenate([np.diff(part, prepend=np.uint32(0)) for part in ends]))
        return Panel(self.cols, width, starts, columns[:used], codes[:used], self.codebook)

    def _chunks(self, first: int, last: int) -> list[CellRange]:
        """List the chunks that hold some rows."""
        wanted = first * self.cols, last * self.cols
        return [
            chunk
            for chunk in self.stream.chunks
            if chunk.start < wanted[1] and wanted[0] < chunk.start + chunk.cells
        ]

    def _room(self, width: int, first: int, last: int) -> int:
        """Say how many groups some rows have at most."""
        entries = sum(chunk.entries for chunk in self._chunks(first, last))
        # Of each level in each row one group may be not full.
        return min(entries, entries // width + (last - first) * self.codebook.size)

    def _part(
        self,
        width: int,
        first: int,
        last: int,
        columns: NDArray[np.uint16],
        codes: NDArray[np.uint8],
    ) -> NDArray[np.uint32]:
        """Make groups of some rows; give the end of each row."""
        chunks = self._chunks(first, last)
        ends = np.empty(last - first, np.uint32)
        levels = self.codebook.size
        row = np.empty((levels, kernels.bucket_room(self.cols)), np.uint16)
        state = np.zeros(2 + levels, np.uint64)
        state[0] = chunks[0].start // self.cols
        for chunk in chunks:
            kernels.group_packed(
                *self._entries(chunk),
                levels,
                chunk.start,
                chunk.cells,
                self.cols,
                width,
                first,
                last,
                chunk is chunks[-1],
                row,
                state,
                columns,
                codes,
                ends,
            )
        return ends

    def _entries(self, chunk: CellRange) -> tuple[bytes, bytes, int]:
        return self.stream.entries(chunk) if chunk.start else self._first

    @cached_property
    def _first(self) -> tuple[bytes, bytes, int]:
        # It tells the width before.
        return self.stream.entries(self.stream.chunks[0])

    def _rows_of(self, chunk: CellRange) -> tuple[int, int]:
        return chunk.start // self.cols, (chunk.start + chunk.cells - 1) // self.cols + 1
