"""The state that `mixing` keeps for columns, in a file of 92 bytes.

A layer of one row and 8 million columns, walked row by row with neighbours 4 million cells apart,
took 581 MB under a limit of 45 MB. Now vectors are walked as one column and neighbours are at most
512 cells apart, as encoders have it; what is left of the state counts before anything is read.
"""

import pytest

from tests.hostile.forged import mixing_stream, write_forged
from tests.hostile.measured import SLACK, measure


@pytest.mark.parametrize("kernels", ["compiled", "python"])
def test_takes_no_memory(kernels, tmp_path):
    row, far, wide = (tmp_path / f"{name}.dsz" for name in ("row", "far", "wide"))
    stream = mixing_stream(stride=3_999_999)
    write_forged(row, (1, 8_000_000), data_codec="mixing", data=stream)
    write_forged(far, (2, 4_000_000), data_codec="mixing", data=stream)
    write_forged(wide, (2, 4_000_000), data_codec="mixing", data=mixing_stream())
    assert row.stat().st_size < 120
    limits = {row: 45 << 20, far: 300 << 20, wide: 45 << 20}
    for path, _, limit, outcome, peak, seconds in measure(limits, kernels):
        refused = (
            "LimitError: decoding takes" if "wide" in path else "FormatError: mixing: the header"
        )
        assert outcome.startswith(refused)
        # Of the matrix itself nothing was touched.
        assert peak < SLACK < limit
        assert seconds < 2
