"""What commands print: a rich table for people, one JSON document for scripts.

The one place from which text goes to a terminal: what may come from a file is made harmless here
(`printable`; no markup, links or emoji are read in it), and commands print in no other way.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from deepsz_caffe.files import open_input
from deepsz_caffe.text import printable

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.progress import Progress, ProgressColumn, TextColumn

    from deepsz_caffe.dsz.reader import Summary

Function = TypeVar("Function", bound=Callable[..., object])

#: bytes of a file that are written at a time
_PIECE = 1 << 20
#: columns of a line that is not on a terminal, where nothing is folded or cut
_ENDLESS = 1_000_000
#: what stands for the signs of our own tables and messages where the encoding lacks them
_PLAIN = {"×": "x", "→": "->", "–": "-", "−": "-", "±": "+-", "…": "...", "✓": "done"}


def json_option(command: Function) -> Function:
    """Add ``--json``: print one JSON document on standard output and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def accept_any_encoding() -> None:
    """Let standard output and error take every text: signs that they lack are written out."""
    codecs.register_error("deepsz-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="deepsz-plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _PLAIN:
        return _PLAIN[error.object[error.start]], error.start + 1
    return codecs.backslashreplace_errors(error)


def print_json(document: object) -> None:
    # JSON's own escapes leave only one control character as it is.
    _print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def print_file(path: Path) -> None:
    """Write a file's bytes to standard output."""
    with open_input(path) as file:
        while piece := file.read(_PIECE):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def print_line(text: object = "", *, err: bool = False) -> None:
    """Print one line, whatever it contains, on standard output or standard error."""
    _print(printable(text), err=err)


def _print(text: str, *, err: bool = False) -> None:
    # Not click's echo, which writes UTF-8 where the encoding is ASCII.
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; columns whose cells are numbers are set flush right.

    On a terminal long cells are folded; elsewhere each row is one line, however long.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)) if title else None, title_justify="left")
    cells = [list(row) for row in rows]
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in cells)
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(Text(printable(column)), justify=justify, overflow="fold")
    for row in cells:
        table.add_row(
            *(Text(f"{cell:,}" if isinstance(cell, int) else printable(cell)) for cell in row)
        )
    console = Console()
    if not console.is_terminal:
        console.width = _ENDLESS
    console.print(table)


def whole_file(summary: Summary) -> str:
    """Say what the whole ``.dsz`` file is to the whole caffemodel, by a `DszFile.summary`."""
    return (
        f"whole file: {summary['caffemodel_bytes']:,} bytes in {summary['file_bytes']:,}, "
        f"{summary['file_ratio']:.1f}×"
    )


@contextmanager
def progress_bars(
    *columns: ProgressColumn, transient: bool = False
) -> Iterator[Callable[[], Progress]]:
    """Give a function that returns progress bars on standard error, shown from its first call on.

    So a command that finds its input wrong prints one line, and no empty bar above it.
    """
    from rich.console import Console
    from rich.progress import Progress

    bars = Progress(*columns, console=Console(stderr=True), transient=transient)

    def shown() -> Progress:
        bars.start()
        return bars

    try:
        yield shown
    finally:
        if bars.live.is_started:
            bars.stop()


def description_column() -> TextColumn:
    """Give the column of what a progress bar is about; no markup is read in it."""
    from rich.progress import TextColumn

    return TextColumn("{task.description}", markup=False)


def print_above(bars: Progress, text: object) -> None:
    """Print one line above running progress bars."""
    from rich.text import Text

    bars.console.print(Text(printable(text)), soft_wrap=True)
