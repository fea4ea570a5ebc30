"""The exceptions: their one line, and that they survive a process boundary."""

import pickle
from pathlib import Path

import pytest

from deepsz_caffe import DeepSZError, FormatError, InputError
from deepsz_caffe.errors import needs_extra
from deepsz_caffe.files import atomic_write


def test_message_names_place_and_remedy():
    error = FormatError("the checksum is wrong", where="a.dsz, layer ip1", hint="fetch it again")
    assert str(error) == "a.dsz, layer ip1: the checksum is wrong (fetch it again)"


def test_pickle_keeps_kind_and_text():
    error = pickle.loads(pickle.dumps(InputError("no", where="x", hint="do y")))
    assert type(error) is InputError
    assert str(error) == "x: no (do y)"


def test_atomic_write_leaves_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_write_reports_a_full_disk(tmp_path):
    with (
        pytest.raises(DeepSZError, match="No space left"),
        atomic_write(tmp_path / "out"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_module_is_named_with_the_extra_that_brings_it():
    with pytest.raises(DeepSZError) as failed, needs_extra("caffe"):
        import no_such_module.below  # noqa: F401
    assert str(failed.value) == (
        "no_such_module is not installed (pip install 'deepsz-caffe[caffe]')"
    )
