"""Options that say what decoding a file may use."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from deepsz_caffe.dsz.limits import Limits

Given = ParamSpec("Given")

_OPTIONS = (
    click.option(
        "--max-memory",
        type=int,
        metavar="BYTES",
        help="Refuse a .dsz file that takes more memory [8 GiB].",
    ),
    click.option(
        "--max-output",
        type=int,
        metavar="BYTES",
        help="Refuse one that gives more bytes [16 GiB].",
    ),
    click.option(
        "--max-seconds",
        type=float,
        metavar="S",
        help="Refuse one that takes longer [what its weights may take].",
    ),
)


def limit_options(command: Callable[Concatenate[Limits, Given], None]) -> Callable[..., None]:
    """Add the options; the command gets the limits first."""

    @wraps(command)
    def run(*args: Given.args, **options: Given.kwargs) -> None:
        # Taken out here, so that other decorators may give their own first arguments.
        limits = _limits(
            *(options.pop(name) for name in ("max_memory", "max_output", "max_seconds"))
        )
        command(limits, *args, **options)

    decorated: Callable[..., None] = run
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _limits(memory: object, output: object, seconds: object) -> Limits:
    from deepsz_caffe.dsz.limits import Limits

    usual = Limits()
    return Limits(
        memory if isinstance(memory, int) else usual.memory,
        output if isinstance(output, int) else usual.output,
        seconds if isinstance(seconds, float) else None,
    )


def check_limits(path: Path, limits: Limits) -> None:
    """Compare what a `.dsz` file declares with the limits; other files have none.

    Raises
    ------
    LimitError
        It takes more.
    """
    from deepsz_caffe.dsz import expand
    from deepsz_caffe.dsz.layout import MAGIC
    from deepsz_caffe.dsz.reader import DszFile
    from deepsz_caffe.files import open_input

    with open_input(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
    with DszFile(path, limits) as opened:
        expand.check_limits(opened)
