"""Every codec under the limit that its own need is: the need is true, of kernels and twins.

`packed` took 140 times its limit, `mixing` 13 times, the Python twins up to 72 times, honest zfp
2.1 and sz-lorenzo 1.5 times. Now at most 1.25 times the limit and 16 MB, honest and forged.
"""

import struct

import numpy as np
import pytest

from deepsz_caffe import DszFile, codecs
from deepsz_caffe.codecs.frames import compress, decompress
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.dsz.limits import working_bytes
from tests.hostile.forged import write_forged
from tests.hostile.measured import SLACK, measure

BOUND = 0.002


def weights(rows, columns, density):
    rng = np.random.default_rng(rows)
    matrix = rng.laplace(0, 0.05, (rows, columns)).astype(np.float32)
    return matrix * (rng.random(matrix.shape) < density)


def two_arrays(data, index, density=1.0, change=lambda stream, count: stream):
    sparse = to_sparse(weights(*SHAPE, density))
    return {
        "data_codec": data,
        "data": change(codecs.DATA[data](BOUND).encode(sparse.data), sparse.data.size),
        "index_codec": index,
        "index": codecs.INDEX[index]().encode(sparse.index),
        "index_count": sparse.index.size,
        "nonzeros": sparse.data.size,
    }


def with_much_behind(stream, count):
    """SZ's content padded with zeros to the most that is accepted."""
    head, rest = 16, len(stream)
    (payload,) = struct.unpack_from("<Q", stream, 8)
    (size,) = struct.unpack_from("<Q", stream, head)
    frame = stream[head + 8 : head + payload]
    content = decompress(frame, size) + bytes(9 * count + 4096 - size)
    changed = struct.pack("<Q", len(content)) + compress(content, 1)
    start = stream[:8] + struct.pack("<Q", len(changed))
    return start + changed + stream[head + payload : rest]


def whole(codec, shape, density, transposed=False):
    matrix = weights(*shape, density)
    source = np.ascontiguousarray(matrix.T) if transposed else matrix
    stream = codecs.MATRIX[codec](BOUND).encode(source)
    return {"data_codec": codec, "data": stream, "column_major": transposed}


SHAPE = (1200, 2000)
LARGE = {
    **{f"{data}": (SHAPE, two_arrays, (data, "raw")) for data in codecs.DATA if data != "levels"},
    **{f"sz+{index}": (SHAPE, two_arrays, ("sz", index, 0.3)) for index in codecs.INDEX},
    "sz padded": (SHAPE, two_arrays, ("sz", "raw", 1.0, with_much_behind)),
    "sz-nopred padded": (SHAPE, two_arrays, ("sz-nopred", "raw", 1.0, with_much_behind)),
    "packed": (SHAPE, whole, ("packed", SHAPE, 1.0)),
    "packed F": (SHAPE, whole, ("packed", SHAPE, 0.2, True)),
}
SMALL = {
    "mixing": ((100, 60), whole, ("mixing", (100, 60), 0.2)),
    "mixing wide": ((2, 4000), whole, ("mixing", (2, 4000), 0.2)),
}
WIDE = {"mixing wide": ((2, 1 << 19), whole, ("mixing", (2, 1 << 19), 0.05))}


QUICK = {name: LARGE[name] for name in ("zfp", "sz padded")}


@pytest.mark.parametrize(
    ("kernels", "cases"),
    [
        ("compiled", QUICK),
        pytest.param("compiled", LARGE | WIDE, marks=pytest.mark.slow),
        pytest.param("python", LARGE | SMALL, marks=pytest.mark.slow),
    ],
)
def test_no_more_than_a_quarter_over_the_limit(kernels, cases, tmp_path):
    limits = {}
    for name, (shape, make, arguments) in cases.items():
        path = write_forged(tmp_path / f"{name}.dsz", shape, bound=BOUND, **make(*arguments))
        with DszFile(path) as file:
            (layer,) = file.layers
            # The twins need more for a column.
            more = (1 << 19) * (name.startswith("mixing") and kernels == "python")
            limits[path] = layer.dense_bytes + working_bytes(layer) + more
    found = measure(limits, kernels)
    assert len(found) == 2 * len(cases)
    for path, how, limit, outcome, peak, _ in found:
        assert not outcome.startswith(("ALIEN", "LimitError")), (path, outcome)
        assert peak <= 1.25 * limit + SLACK, (path, how, limit, peak)
