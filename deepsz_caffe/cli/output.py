"""What commands print: a rich table for people, one JSON document for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(command: Function) -> Function:
    """Add ``--json``: print one JSON document on standard output and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; columns whose cells are numbers are set flush right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    cells = [list(row) for row in rows]
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    Console().print(table)


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
