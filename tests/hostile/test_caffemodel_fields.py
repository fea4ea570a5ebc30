"""Caffemodels of millions of tiny fields are read or refused in little time and memory.

Every field that is looked at costs Python an object, and those of a blob were looked for in lists:
0.4 MB of runs of values took 274 s to be cut, 40,000 runs 22 s, 1 MB of empty layers 15 s and 174
MB to be read, 9 MB of them 40 s and 1.6 GB. Now files have limits on what they may have of each
(`wire.MAX_FIELDS` and those in `caffemodel`), far over what networks have, and every step is
linear: 64 MB of each kind here take at most 1 s and 32 MB before they are refused, 128 MB where
they are read; 40,000 runs take 1.7 s (two cores under a load of eight, the old figures, too).
"""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import wire
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import split_weights

SIZE = 64_000_000
SECONDS = 5
TIMES_ITS_SIZE = 4


def field(number, payload):
    return wire.tag(number, wire.LEN) + wire.varint(len(payload)) + payload


def fill(unit, size=SIZE):
    return unit * (size // len(unit))


def one_blob(content):
    return field(100, field(1, b"ip") + field(2, b"InnerProduct") + field(7, content))


def shape(*dims):
    return field(7, field(1, b"".join(map(wire.varint, dims))))


VALUE, DIFF = (wire.tag(n, wire.I32) + b"abcd" for n in (5, 6))
RUNS = 40_000

KINDS = {
    "empty layers": lambda: fill(field(100, b"")),
    "empty V1 layers": lambda: fill(field(2, b"")),
    "layers of long names": lambda: fill(field(100, field(1, b"\xff" * 1000))),
    "one long name": lambda: field(100, field(1, b"\xff" * SIZE)),
    "names of the network": lambda: fill(field(1, b"")),
    "empty blobs": lambda: field(100, field(1, b"ip") + fill(field(7, b""))),
    "runs": lambda: one_blob(shape(SIZE // 10) + fill(VALUE + DIFF)),
    "pieces": lambda: one_blob(shape(SIZE // 6) + fill(field(5, b"abcd"))),
    "axes": lambda: one_blob(field(7, field(1, b"\x01" * SIZE))),
    "groups": lambda: b"\x0b" * (SIZE // 2) + b"\x0c" * (SIZE // 2),
    "one run": lambda: one_blob(shape(SIZE // 500, 100) + VALUE * (SIZE // 500 * 100)),
    "as many runs as allowed": lambda: one_blob(shape(RUNS, 1) + (VALUE + DIFF) * RUNS),
}
READ = ("one run", "as many runs as allowed")


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_read_or_refused_in_linear_time_and_memory(kind, tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(KINDS[kind]())
    with peak_memory() as peak:
        began = time.process_time()
        read = _read(path)
        seconds = time.process_time() - began
    assert read == (kind in READ)
    assert seconds < SECONDS
    assert peak() < TIMES_ITS_SIZE * SIZE


@contextmanager
def peak_memory():
    """Give a function that says by how many bytes this process grew at most meanwhile."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before, found, stop = resident(), [0], threading.Event()

    def watch():
        while not stop.wait(0.01):
            found.append(resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(found)
    finally:
        stop.set()
        thread.join()


def _read(path):
    """Read everything and cut it; say whether that was allowed."""
    try:
        model = read_caffemodel(path)
    except ModelError:
        return False
    _ = model["ip"].matrix.sum()
    split_weights(model, ["ip"])
    return True
