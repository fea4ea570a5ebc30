"""A packed stream of a chunk for each cell, a byte in the file.

2 MB of file took 4.6 GB under a limit of 33 MB: an object for each chunk. Now a chunk has 2^18
cells at least, as any encoder gives it, and the stream is refused by its header.
"""

import pytest

from deepsz_caffe import FormatError, decode
from tests.hostile.forged import packed_stream, write_forged
from tests.hostile.measured import SLACK, measure

CELLS = 2_000_000


@pytest.mark.parametrize("kernels", ["compiled", "python"])
def test_takes_no_memory(kernels, tmp_path):
    path = write_forged(
        tmp_path / "x.dsz", (1, CELLS), data_codec="packed", data=packed_stream(0, CELLS)
    )
    for _, _, _, outcome, peak, seconds in measure({path: 33 << 20}, kernels):
        assert outcome == "FormatError: packed: the header is damaged"
        assert peak < SLACK
        assert seconds < 2


def test_the_fewest_cells_that_a_chunk_has_are_accepted(tmp_path):
    arguments = {"data_codec": "packed", "data": packed_stream(18, 8)}
    path = write_forged(tmp_path / "x.dsz", (1, CELLS), **arguments)
    with pytest.raises(FormatError, match="not those that were encoded"):
        decode(path)
