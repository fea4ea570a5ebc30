"""Files of a few hundred bytes that give gigabytes, or decode for minutes.

143 bytes became 3.2 GB on disk, 173 bytes decoded 16 million cells by the slow kernels for eight
minutes. Now a header is compared with limits on output and time before any work; and the disk must
have room before a byte is written.
"""

import os
import time

import pytest

from deepsz_caffe import DeepSZError, LimitError, Limits, decode, expand
from deepsz_caffe.dsz import isolated
from deepsz_caffe.dsz.limits import seconds
from deepsz_caffe.dsz.reader import DszFile
from tests.hostile.forged import mixing_stream, write_forged


@pytest.fixture
def zeros(tmp_path):
    return write_forged(tmp_path / "x.dsz", (4000, 4000), data_codec="mixing", data=mixing_stream())


@pytest.fixture
def nothing(tmp_path):
    """A layer without a weight that is not 0: no stream at all."""
    return write_forged(tmp_path / "x.dsz", (40_000, 20_000), nonzeros=0, digest=0)


@pytest.mark.parametrize("how", [decode, isolated.decode])
def test_output_is_limited(how, nothing):
    assert nothing.stat().st_size < 150
    began = time.monotonic()
    with pytest.raises(LimitError, match="gives 3,200,000,000 bytes, the limit is 1,000,000,000"):
        how(nothing, limits=Limits(output=10**9))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("how", [expand, isolated.expand])
def test_output_on_the_disk_is_limited(how, nothing, tmp_path):
    with pytest.raises(LimitError, match="the limit is 1,000,000,000"):
        how(nothing, tmp_path / "out", limits=Limits(output=10**9))
    assert not (tmp_path / "out").exists()


def test_the_disk_has_room_before_anything_is_written(nothing, tmp_path, monkeypatch):
    system = os.statvfs(tmp_path)
    full = os.statvfs_result([*system[:3], 5, 5, *system[5:]])
    monkeypatch.setattr(os, "fstatvfs", lambda _: full)
    with pytest.raises(
        DeepSZError, match=r"out: can't write: it takes 3,200,000,000 bytes, the disk"
    ):
        expand(nothing, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [nothing]


@pytest.mark.parametrize("how", [decode, isolated.decode])
def test_time_is_limited_by_the_header(how, zeros):
    began = time.monotonic()
    with pytest.raises(LimitError, match=r"may take 3. s, the limit is 5"):
        how(zeros, limits=Limits(seconds=5))
    assert time.monotonic() - began < 1


def test_time_that_runs_out_ends_the_work():
    def slow():
        while True:
            yield time.sleep(0.01)

    with pytest.raises(LimitError, match=r"took more than 0\.05 s"):
        list(Limits(seconds=0.05).timed(slow(), ()))


def test_no_honest_network_meets_the_limits():
    """VGG-16, the largest of the paper's, by the slowest codec."""
    from deepsz_caffe.dsz.layout import EncodedLayer

    shapes = ((4096, 25088), (4096, 4096), (1000, 4096))
    layers = [EncodedLayer.unsealed("fc", s, 0.01, data_codec="mixing", data=b"x") for s in shapes]
    # 0.25 µs a weight on the machine where this was written.
    cells = sum(rows * columns for rows, columns in shapes)
    assert Limits().allowed_seconds(layers) > 5 * 0.25e-6 * cells
    output = sum(layer.dense_bytes for layer in layers)
    Limits().check(layers, memory=2 * output, output=output, where="vgg")


def test_seconds_follow_the_codec(zeros):
    with DszFile(zeros) as file:
        assert 30 < seconds(file.layers) < 40
        assert Limits().allowed_seconds(file.layers) == pytest.approx(60 + seconds(file.layers))
        assert Limits(seconds=7).allowed_seconds(file.layers) == 7
