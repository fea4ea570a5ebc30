"""The `deepsz` command: a group whose commands are imported only when they run.

One module a family of commands; a new command is a function there and a line in `COMMANDS`.
Exit codes: 0 done, 1 failed (a `DeepSZError`, printed on one line), 2 wrong use.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TextIO

import click

from deepsz_caffe.errors import DeepSZError, DeepSZWarning, InputError

#: command name -> module of `deepsz_caffe.cli` that holds a click command of that name
COMMANDS: dict[str, str] = {
    "doctor": "environment",
    "encode": "compression",
    "expand": "compression",
    "inspect": "compression",
    "bench": "codecs",
    "mnist": "training",
    "train": "training",
    "prune": "training",
    "eval": "assessment",
    "assess": "assessment",
    "optimize": "assessment",
    "compress": "assessment",
    "report": "assessment",
    "reproduce": "experiments",
    "cifar10": "data",
}


class LazyGroup(click.Group):
    """A click group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deepsz_caffe.cli.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deepsz-caffe", prog_name="deepsz")
def deepsz() -> None:
    """Compress the fully connected layers of a Caffe network (DeepSZ, HPDC 2019)."""


def _print_warnings() -> None:
    """Print the package's warnings as notes, each text once."""
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
            click.echo(f"note: {message}", err=True)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


def main() -> None:
    """Run the command line; the console script's entry point."""
    _print_warnings()
    try:
        deepsz.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("deepsz: interrupted", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DeepSZError as error:
        click.echo(f"deepsz: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
