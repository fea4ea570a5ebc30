"""Opening inputs and writing outputs: regular files, whole or not at all, permissions kept."""

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from deepsz_caffe.errors import DeepSZError, InputError, ModelError
from deepsz_caffe.files import (
    atomic_write,
    check_folder,
    check_output,
    make_folder,
    open_input,
    read_input,
)

NOBODY = 65534


def write(path, content=b"new"):
    with atomic_write(path) as file:
        file.write(content)


@pytest.fixture
def odd(tmp_path):
    """Give a folder with everything that is no file."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may be short only
        server.bind("socket")
        os.chdir(here)
    return tmp_path


ODD = [
    ("folder", "a folder"),
    ("pipe", "a pipe"),
    ("device", "a device"),
    ("loop", "symbolic links"),
    ("x" * 256, "name too long"),
    ("no\0name", "null byte"),
]


@pytest.mark.parametrize(("name", "says"), [*ODD, ("socket", "No such device"), ("no", "No such")])
def test_only_files_are_read(odd, name, says):
    with pytest.raises(ModelError, match=f"(?i)can't read: .*{says}") as failed:
        open_input(odd / name, ModelError, hint="do this")
    assert failed.value.where == str(odd / name)
    assert failed.value.hint == "do this"


@pytest.mark.parametrize(("name", "says"), [*ODD, ("socket", "a socket"), ("no/no", "No such")])
def test_only_files_are_replaced(odd, name, says):
    before = sorted(odd.iterdir())
    with pytest.raises(DeepSZError, match=f"(?i)can't write: .*{says}"):
        write(odd / name)
    assert sorted(odd.iterdir()) == before


def test_a_file_that_can_not_be_read_to_its_end_is_named():
    # It opens as a regular file; nothing is mapped at its beginning, so reading there is EIO.
    path = "/proc/self/mem"
    with pytest.raises(ModelError, match=f"{path}: can't read: Input/output error"):
        read_input(path, ModelError)
    with open_input(path, ModelError) as file, pytest.raises(ModelError, match="can't read"):
        file.read(10)


def test_an_input_is_read_by_what_it_is_now(tmp_path):
    write(tmp_path / "a", b"x" * 100)
    (tmp_path / "link").symlink_to("a")
    assert read_input(tmp_path / "link") == b"x" * 100
    with open_input(tmp_path / "a") as file:
        assert os.get_inheritable(file.fileno()) is False


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to("out")
    write(tmp_path / "link")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (tmp_path / "link").is_symlink()


def test_a_new_file_has_what_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "层" * 85, "x" * 250])
def test_the_longest_names_can_be_written(tmp_path, name):
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write(tmp_path / name, b"again")
    assert read_input(tmp_path / name) == b"again"


@pytest.mark.parametrize("name", ["file", "file/below", "loop/below", "x" * 256, "a\0b"])
def test_a_folder_that_can_not_be_made_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DeepSZError, match="can't make this folder") as failed:
        make_folder(tmp_path / name)
    assert failed.value.where == str(tmp_path / name)
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")


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
