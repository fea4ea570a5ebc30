"""The exceptions and warnings of this package: one family each, for one `except` or filter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class DeepSZError(Exception):
    """Base of every error that this package raises on purpose.

    Parameters
    ----------
    what
        What is wrong, one sentence without a full stop.
    where
        The file, layer or byte that it concerns, e.g. ``"net.dsz, layer ip1, byte 120"``.
    hint
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(what, self.where, hint)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries here; keyword arguments must survive pickling.
        return _rebuild, (type(self), self.what, self.where, self.hint)


def _rebuild(
    kind: type[DeepSZError], what: str, where: str | None, hint: str | None
) -> DeepSZError:
    return kind(what, where=where, hint=hint)


class DeepSZWarning(UserWarning):
    """The work goes on, but something is odd or was decided for the user; the text says what."""


def tell_of_warnings(tell: Callable[[DeepSZWarning], None]) -> None:
    """Give the package's own warnings to a function from now on; others are shown as before."""
    show = warnings.showwarning

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if isinstance(message, DeepSZWarning):
            tell(message)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


class InputError(DeepSZError):
    """An argument makes no sense: wrong use, exit code 2 on the command line."""


class ModelError(DeepSZError):
    """A prototxt or caffemodel can't be read, or the two don't fit together."""


class DataError(DeepSZError):
    """A data set or an assessment is missing, empty or not what it should be."""


class CaffeError(DeepSZError):
    """Caffe failed or aborted; the message is Caffe's own."""


class TargetError(DeepSZError):
    """What was asked for (a loss, a ratio) can't be met."""


class CodecError(DeepSZError):
    """A codec broke its promise, or was given what it can't encode."""


class FormatError(DeepSZError):
    """A `.dsz` file is damaged, hostile or of an unknown version."""


class LimitError(FormatError):
    """A `.dsz` file asks for more memory than the caller allows."""


def of_system(error: OSError | MemoryError) -> DeepSZError:
    """Say what the operating system refuses, where nothing nearer has foreseen it."""
    if isinstance(error, MemoryError):
        return DeepSZError("there is not enough memory")
    return DeepSZError(error.strerror or str(error) or type(error).__name__, where=error.filename)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Say of an import inside that fails which extra of this package brings what it needs.

    Raises
    ------
    DeepSZError
        The module is not installed, or can't be imported.
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        raise DeepSZError(
            f"{missing} is not installed" if missing else f"can't be imported: {error}",
            where=None if missing else error.name,
            hint=f"pip install 'deepsz-caffe[{extra}]'",
        ) from error
