"""Folders and files that several runs share, and what a killed run leaves behind.

Locks are the kernel's (`flock`): they end with the process that holds them, however it ends. So
what is not locked belongs to nobody, and the next run may remove it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deepsz_caffe.errors import DeepSZError, DeepSZWarning
from deepsz_caffe.files import make_folder, os_errors

Path_ = str | os.PathLike[str]

_LOCK = ".lock"
_YOUNG_LOCK = f"{_LOCK}.new"
_PREFIX = "deepsz-"
#: from when on a temporary folder that is not locked yet never will be (seconds)
_OLD = 86_400.0


@contextmanager
def exclusive(path: Path_) -> Iterator[None]:
    """Let one run at a time write to a path; another says that it waits, and waits.

    The lock is a hidden file beside `path`, gone afterwards.

    Raises
    ------
    DeepSZError
        The folder of `path` can't be written.
    """
    lock = _lock_file(Path(path))
    descriptor = _locked(lock, wait=False)
    if descriptor is None:
        warnings.warn(
            DeepSZWarning(f"{path}: another run is writing to it; waiting until it is done"),
            stacklevel=3,
        )
        descriptor = _waited_for(lock)
    try:
        yield
    finally:
        _release(lock, descriptor)


def kept_folder(parent: Path_, key: str, make: Callable[[Path], object]) -> Path:
    """Give the subfolder `key` of a folder that runs share; made by the first that wants it.

    Parameters
    ----------
    parent
        Created where it is missing.
    key
        A digest of all that the contents depend on, as a file name.
    make
        Fills a folder, which gets its name when it is complete. Runs that want the same wait
        meanwhile; others don't. What killed runs left half-made is removed.
    """
    folder = Path(parent).absolute()
    place = folder / key
    if place.is_dir():
        return place
    make_folder(folder)
    _remove_half_made(folder, key)
    with exclusive(place):
        if not place.is_dir():
            half = folder / f".{key}.half"
            shutil.rmtree(half, ignore_errors=True)
            with os_errors("can't write", half):
                half.mkdir()
            try:
                make(half)
                with os_errors("can't write", place):
                    half.rename(place)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return place


def _remove_half_made(folder: Path, but: str) -> None:
    for half in folder.glob(".*.half"):
        key = half.name[1 : -len(".half")]
        lock = _lock_file(folder / key)
        if key != but and (descriptor := _locked(lock, wait=False)) is not None:
            shutil.rmtree(half, ignore_errors=True)
            _release(lock, descriptor)


@contextmanager
def temporary_folder(beside: Path_ | None = None) -> Iterator[Path]:
    """Make a folder that is gone afterwards; those of runs that were killed go, too.

    Parameters
    ----------
    beside
        A file in whose folder it is made; default: where the system has temporary files.
    """
    if beside is None:
        parent, prefix = Path(tempfile.gettempdir()), _PREFIX
    else:
        parent, prefix = Path(beside).absolute().parent, f".{Path(beside).name}-{_PREFIX}"
    _remove_abandoned(parent, prefix)
    with ExitStack() as stack:
        with os_errors("can't make a temporary folder", parent):
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix=prefix, dir=parent, ignore_cleanup_errors=True
                    )
                )
            )
            # Under its own name it is locked from the first moment on.
            young = folder / _YOUNG_LOCK
            stack.callback(os.close, _waited_for(young))
            young.rename(folder / _LOCK)
        yield folder


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        lock = folder / _LOCK
        with suppress(OSError):
            inside = [path.name for path in folder.iterdir()]
            if _LOCK not in inside:
                # Killed before it was locked, or very young. With anything in it, it is not ours.
                if inside in ([], [_YOUNG_LOCK]) and _is_own(folder) and _age(folder) > _OLD:
                    shutil.rmtree(folder)
                continue
            if lock.is_symlink() or not _is_own(lock):
                continue
            descriptor = _locked(lock, wait=False, create=False)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _is_own(path: Path) -> bool:
    # Others' are theirs.
    return path.lstat().st_uid == os.geteuid()


def _age(path: Path) -> float:
    """Seconds since something was put into a folder or taken from it."""
    return time.time() - path.lstat().st_mtime


def _lock_file(path: Path) -> Path:
    target = path.absolute()
    return target.with_name(f".{target.name}{_LOCK}")


def _waited_for(lock: Path) -> int:
    descriptor = _locked(lock, wait=True)
    assert descriptor is not None  # only what does not wait goes without
    return descriptor


def _locked(lock: Path, *, wait: bool, create: bool = True) -> int | None:
    """Lock a file; gives its descriptor, or None where another has it and we don't wait."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
            with os_errors("can't write", lock):
                descriptor = os.open(lock, flags, 0o666)
        except DeepSZError:
            if not create:
                return None
            raise
        with os_errors("can't lock", lock):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
        # Who had it before has removed it: the file that has the name now is another.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)
        if not create:
            return None


def _release(lock: Path, descriptor: int) -> None:
    lock.unlink(missing_ok=True)
    os.close(descriptor)
