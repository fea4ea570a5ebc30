"""Files appear complete or not at all, and what can't be written is known before any work."""

import os
import tempfile
from pathlib import Path

import pytest

from deepsz_caffe.errors import DeepSZError, InputError
from deepsz_caffe.files import atomic_write, check_folder, check_output

NOBODY = 65534


def test_a_file_that_can_be_written_passes_and_stays_as_it_was(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    for path in (old, new):
        check_output(path, [tmp_path / "other", None])
    assert old.read_text() == "old"
    assert not new.exists()


def test_an_input_is_recognised_under_every_name(tmp_path, monkeypatch):
    weights = tmp_path / "w"
    weights.write_text("w")
    (tmp_path / "link").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    for name in ("w", "./w", "link", f"../{tmp_path.name}/w"):
        with pytest.raises(InputError, match="read and written at once"):
            check_output(name, [weights])
    os.link(weights, tmp_path / "hard")  # is replaced by name: the other stays
    check_output("hard", [weights])


@pytest.mark.parametrize("check", [check_output, check_folder])
def test_what_can_not_be_written_is_refused(tmp_path, check):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepSZError, match="can't write"):
        check(tmp_path / "file" / "x")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        superuser = os.geteuid() == 0
        if superuser:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(DeepSZError, match="no permission to write in the folder"):
                check(Path(folder) / "x")
        finally:
            if superuser:
                os.seteuid(0)


def test_a_folder_may_be_missing_with_those_above_it(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
