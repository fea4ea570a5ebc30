"""Files appear complete or not at all, and only files are read."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deepsz_caffe.errors import DeepSZError, InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Path_ = str | os.PathLike[str]

#: bytes of the longest file name on the file systems of Linux
_LONGEST_NAME = 255
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: True, "a device"),
)


@contextmanager
def os_errors(
    doing: str, path: Path_, kind: type[DeepSZError] = DeepSZError, *, hint: str | None = None
) -> Iterator[None]:
    """Raise what the operating system refuses inside as an error of the family.

    Parameters
    ----------
    doing
        What can't be done, e.g. "can't write".
    path
        The file or folder that it concerns.
    kind, hint
        The error to raise, and what it shall advise.

    Raises
    ------
    DeepSZError
        Of that kind, in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{doing}: {reason(error)}", where=path, hint=hint) from error


class _Input(io.FileIO):
    """A file that can be opened may still not be read to its end: that is an error of the family.

    Not an `OSError`, which would be taken for one of whatever is written meanwhile.
    """

    def __init__(
        self, descriptor: int, path: Path_, kind: type[DeepSZError], hint: str | None
    ) -> None:
        super().__init__(descriptor, "rb")
        self._errors = (path, kind, hint)

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        path, kind, hint = self._errors
        with os_errors("can't read", path, kind, hint=hint):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        path, kind, hint = self._errors
        with os_errors("can't read", path, kind, hint=hint):
            return super().readall()


def open_input(
    path: Path_, kind: type[DeepSZError] = DeepSZError, *, hint: str | None = None
) -> io.BufferedReader:
    """Open a file for reading; the one way in which inputs are opened.

    Pipes and devices are refused: a pipe without a writer would block for ever, a device may never
    end, and neither can be mapped, read twice or replaced. What reads from the file later raises
    the same kind of error where it can't be read to its end.

    Parameters
    ----------
    path
        The file.
    kind, hint
        The error to raise, and what it shall advise.

    Raises
    ------
    DeepSZError
        Of that kind: there is no such file, it can't be read or is no regular file.
    """
    try:
        # Not blocking: what a pipe's other end does must not matter.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        raise kind(f"can't read: {reason(error)}", where=path, hint=hint) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise kind(f"can't read: it is {_kind(mode)}, not a file", where=path, hint=hint)
    return io.BufferedReader(_Input(descriptor, path, kind, hint))


def read_input(
    path: Path_, kind: type[DeepSZError] = DeepSZError, *, hint: str | None = None
) -> bytes:
    """Read a whole file; parameters and errors as of `open_input`."""
    with open_input(path, kind, hint=hint) as file:
        return file.read()


def make_folder(path: Path_) -> Path:
    """Make a folder and those above it where they are missing.

    Raises
    ------
    DeepSZError
        It can't be made, or something else has its name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise DeepSZError(f"can't make this folder: {reason(error)}", where=path) from error
    return folder


def reason(error: Exception) -> str:
    """Give the operating system's words for an error, without number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def atomic_write(path: Path_, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` only when the block succeeds.

    The bytes go to a temporary name in the same folder, are flushed to the disk and renamed. When
    the block raises, or the disk is full, `path` is as it was and the temporary file is gone; after
    ``kill -9`` a hidden temporary file may stay, `path` is never half-written. Where `path` is a
    symbolic link, the file that it names is written; a file that is replaced keeps its permissions.

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
    target, permissions = _target(path)
    try:
        descriptor = os.open(
            temporary := _temporary(target),
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o666,
        )
    except OSError as error:
        raise DeepSZError(f"can't write: {reason(error)}", where=path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            if permissions is not None:
                os.fchmod(descriptor, permissions)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DeepSZError(f"can't write: {reason(error)}", where=path) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_output(
    path: Path_, inputs: Iterable[Path_ | None] = (), outputs: Iterable[Path_ | None] = ()
) -> None:
    """Check before any work that a file can be written, and that it is none of the others.

    Parameters
    ----------
    path
        The file to write.
    inputs
        Files and folders that are read; None counts as not given.
    outputs
        Other files that are written.

    Raises
    ------
    InputError
        It is one of the inputs or of the other outputs.
    DeepSZError
        Its folder does not exist or can't be written, or it is a folder, a device, a pipe.
    """
    target, _ = _target(path)
    for others, what in ((inputs, "read and written at once"), (outputs, "written twice")):
        if any(given is not None and Path(os.path.realpath(given)) == target for given in others):
            raise InputError(f"is to be {what}", where=path, hint="write to another file")
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
    target = Path(os.path.realpath(path))
    there = next(each for each in (target, *target.parents) if each.exists())
    if not there.is_dir():
        raise DeepSZError("can't write: not a folder", where=there)
    _check_writable(there, there)


def _check_writable(folder: Path, where: Path_) -> None:
    if not os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise DeepSZError("can't write: no permission to write in the folder", where=where)


def _target(path: Path_) -> tuple[Path, int | None]:
    """Give the file to write, links followed, and the permissions of what is there."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    except (OSError, ValueError) as error:
        raise DeepSZError(f"can't write: {reason(error)}", where=path) from error
    if not stat.S_ISREG(mode):
        raise DeepSZError(f"can't write: it is {_kind(mode)}", where=path)
    return target, stat.S_IMODE(mode)


def _temporary(target: Path) -> Path:
    # A name that is there already is an error, and next to impossible.
    end = f".{os.urandom(6).hex()}"
    kept = os.fsencode(target.name)[: _LONGEST_NAME - 1 - len(end)]
    return target.with_name(f".{os.fsdecode(kept)}{end}")


def _kind(mode: int) -> str:
    return next(name for is_kind, name in _KINDS if is_kind(mode))


@contextmanager
def nameless_file() -> Iterator[tuple[int, str]]:
    """Make a file that has no name, in memory where the system can; it goes when it is unused.

    Yields
    ------
    int, str
        Its descriptor, and a path by which this process, and libraries in it, may open it.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("deepsz")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        yield descriptor, f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)
