"""Runs that meet on one path, and what killed runs leave behind; with real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from deepsz_caffe.errors import DeepSZError, DeepSZWarning
from deepsz_caffe.folders import exclusive, kept_folder, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from deepsz_caffe.folders import exclusive, kept_folder, temporary_folder
def wait(folder):
    (folder / "part").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


def holder(code):
    """Start a process that holds something; gives it and the folder that it names."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + code], stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


def killed(process, number=signal.SIGKILL):
    process.send_signal(number)
    process.communicate()


def test_one_at_a_time_and_the_other_says_that_it_waits(tmp_path):
    path = tmp_path / "out"
    process, _ = holder(f"with exclusive({str(path)!r}): wait(Path({str(tmp_path)!r}))")
    threading.Timer(0.3, killed, (process,)).start()
    began = time.monotonic()
    with pytest.warns(DeepSZWarning, match="out: another run is writing to it"), exclusive(path):
        assert time.monotonic() - began > 0.2
    assert [file.name for file in tmp_path.iterdir()] == ["part"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with exclusive(path):
            pass


def test_many_threads_never_meet(tmp_path):
    inside, most = 0, 0

    def enter():
        nonlocal inside, most
        for _ in range(50):
            with exclusive(tmp_path / "x"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    with pytest.raises(DeepSZError, match="can't write"), exclusive(tmp_path / "no" / "x"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DeepSZError, match="can't make this folder"):
        kept_folder(tmp_path / "file" / "features", "key", lambda _: None)


def test_a_folder_that_can_not_get_its_name_is_said(tmp_path):
    with pytest.raises(DeepSZError, match="key: can't write"):
        kept_folder(tmp_path, "key", lambda _: (tmp_path / "key").write_text("in the way"))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_kept_folder_is_made_once_and_only_when_complete(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        time.sleep(0.1)
        (folder / "a").write_text("a")

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [
            threading.Thread(target=lambda: results.append(kept_folder(tmp_path / "f", "k", make)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [tmp_path / "f" / "k"] * 4
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["k"]

    def fail(folder):
        (folder / "b").write_text("b")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept_folder(tmp_path / "f", "other", fail)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["k"]


def test_what_a_killed_run_left_half_made_is_removed_by_the_next(tmp_path):
    process, half = holder(f"kept_folder({str(tmp_path)!r}, 'k', wait)")
    assert half.is_dir()
    kept_folder(tmp_path, "other", lambda folder: None)
    assert half.is_dir()  # its run lives
    killed(process)
    kept_folder(tmp_path, "third", lambda folder: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "third"]
    process, half = holder(f"kept_folder({str(tmp_path)!r}, 'k', wait)")
    killed(process)
    kept_folder(tmp_path, "k", lambda folder: (folder / "whole").write_text(""))
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["whole"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("beside", [True, False])
def test_temporary_folders_of_killed_runs_are_removed_by_the_next(
    tmp_path, monkeypatch, number, beside
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    out = tmp_path / "a.json" if beside else None
    given = None if out is None else str(out)
    process, folder = holder(f"with temporary_folder({given!r}) as f: wait(f)")
    (tmp_path / "deepsz-of-another-kind").mkdir()
    with temporary_folder(out) as ours:
        assert ours.parent == tmp_path
        assert folder.is_dir()
        killed(process, number)
        with temporary_folder(out) as other:
            assert other.is_dir()
            assert ours.is_dir()
            assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["deepsz-of-another-kind"]
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_folders_that_were_never_locked_go_when_they_are_old_ours_and_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    day = time.time() - 100_000
    root = os.geteuid() == 0  # who alone can give a folder away
    for name in ("old", "locking", "young", "kept", *["others"] * root):
        folder = tmp_path / f"deepsz-{name}"
        folder.mkdir()
        if name in ("locking", "kept"):
            (folder / (".lock.new" if name == "locking" else "results")).touch()
        if name != "young":
            os.utime(folder, (day, day))
    if root:
        os.chown(tmp_path / "deepsz-others", 12345, -1)
    (tmp_path / "deepsz-file").touch()
    (tmp_path / "deepsz-link").symlink_to(tmp_path / "deepsz-kept")
    with temporary_folder():
        pass
    left = {path.name.removeprefix("deepsz-") for path in tmp_path.iterdir()}
    assert left == {"young", "kept", "file", "link", *["others"] * root}
