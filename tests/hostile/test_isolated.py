"""Decoding in a confined process: the same weights, and what is no damage is not called damage."""

import resource
from pathlib import Path

import pytest

from deepsz_caffe import DeepSZError, FormatError, LimitError, Limits
from deepsz_caffe.dsz import isolated


@pytest.mark.parametrize(
    "which", [slice(0, 3), pytest.param(slice(3, None), marks=pytest.mark.slow)]
)
def test_every_codec_decodes_confined(samples, tmp_path, which):
    for sample in samples[which]:
        (tmp_path / "x.dsz").write_bytes(sample.file)
        isolated.expand(tmp_path / "x.dsz", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == sample.caffemodel, sample.name


def test_neither_a_full_disk_nor_large_limits_are_damage(sample, tmp_path, monkeypatch):
    (tmp_path / "x.dsz").write_bytes(sample.file)
    (tmp_path / "out").write_bytes(b"old")
    large = Limits(memory=1 << 80)
    isolated.expand(tmp_path / "x.dsz", tmp_path / "out", limits=large, timeout=float("inf"))
    assert (tmp_path / "out").read_bytes() == sample.caffemodel
    run = isolated._run
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(
            isolated, "_run", lambda what, path, out, *rest: run(what, path, full.fileno(), *rest)
        )
        with pytest.raises(DeepSZError, match="out: can't write: ") as failed:
            isolated.expand(tmp_path / "x.dsz", tmp_path / "out")
    assert not isinstance(failed.value, FormatError | LimitError)
    assert "damaged" not in str(failed.value)
    assert (tmp_path / "out").read_bytes() == sample.caffemodel


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("head -c 100000000 /dev/zero; exit 3", "took more than 1 s"),
        ("head -c 50000 /dev/zero | tr '\\0' '['; exit 3", "decoding failed"),
        ("head -c 100000000 /dev/zero >&2; exit 3", "decoding failed"),
    ],
)
def test_a_child_that_was_taken_over_can_not_fill_the_parents_memory(
    sample, tmp_path, monkeypatch, says, error
):
    (tmp_path / "x.dsz").write_bytes(sample.file)
    (tmp_path / "child").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "child").chmod(0o755)
    monkeypatch.setattr(isolated.sys, "executable", str(tmp_path / "child"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=error):
        isolated.decode(tmp_path / "x.dsz", timeout=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB
