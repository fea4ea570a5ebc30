"""Files appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deepsz_caffe.errors import DeepSZError, InputError

Path_ = str | os.PathLike[str]


@contextmanager
def atomic_write(path: Path_, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` only when the block succeeds.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed. When
    the block raises, or the disk is full, `path` is as it was and the temporary file is gone; after
    ``kill -9`` a hidden temporary file may stay, `path` is never half-written. Where `path` is a
    symbolic link, the file that it names is written.

    Parameters
    ----------
    path
        The file.
    durable
        Wait until the bytes are on the disk. Without it a power failure soon afterwards may leave
        an incomplete file: for large files that can be made again, where waiting is most of the
        time.

    Raises
    ------
    DeepSZError
        The folder does not exist or can't be written, the disk is full, or `path` is something
        that a file must not take the place of: a folder, a device, a pipe.
    """
    target = Path(path).resolve()
    _check_kind(target, path)
    # A name that is there already is an error, and next to impossible.
    temporary = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DeepSZError(f"can't write: {error.strerror}", where=path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DeepSZError(f"can't write: {error.strerror or error}", where=path) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_output(path: Path_, inputs: Iterable[Path_ | None] = ()) -> None:
    """Check before any work that a file can be written, and that it is none of those to be read.

    Parameters
    ----------
    path
        The file to write.
    inputs
        Files and folders that are read; None counts as not given.

    Raises
    ------
    InputError
        It is one of the inputs.
    DeepSZError
        Its folder does not exist or can't be written, or it is a folder, a device, a pipe.
    """
    target = Path(path).resolve()
    for given in inputs:
        if given is not None and Path(given).resolve() == target:
            raise InputError(
                "is to be read and written at once", where=path, hint="write to another file"
            )
    _check_kind(target, path)
    if not target.parent.is_dir():
        raise DeepSZError("can't write: the folder does not exist", where=path)
    _check_writable(target.parent, path)


def check_folder(path: Path_) -> None:
    """Check before any work that a folder is there, or can be made, and can be written to.

    Raises
    ------
    DeepSZError
        It is no folder, or can't be written.
    """
    target = Path(path).resolve()
    there = next(each for each in (target, *target.parents) if each.exists())
    if not there.is_dir():
        raise DeepSZError("can't write: not a folder", where=there)
    _check_writable(there, there)


def _check_kind(target: Path, path: Path_) -> None:
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise DeepSZError(f"can't write: it is {kind}", where=path)


def _check_writable(folder: Path, where: Path_) -> None:
    if not os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise DeepSZError("can't write: no permission to write in the folder", where=where)
