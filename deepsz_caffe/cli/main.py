"""The `deepsz` command: a group whose commands are imported only when they run.

One module a family of commands; a new command is a function there and a line in `COMMANDS`.
Exit codes: 0 done, 1 failed (a `DeepSZError`, printed on one line), 2 wrong use.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import signal
import sys
import traceback
from contextlib import suppress

import click

from deepsz_caffe.cli.output import accept_any_encoding, print_line
from deepsz_caffe.errors import (
    DeepSZError,
    DeepSZWarning,
    InputError,
    of_system,
    tell_of_warnings,
)
from deepsz_caffe.experiments.datasets import DATA_SETS

#: command name -> module of `deepsz_caffe.cli` that holds or makes the click command of that
#: name; in the order of `deepsz --help`: data, the four steps, the way back, and the rest
COMMANDS: dict[str, str] = {
    **{name: "data" for name, data_set in DATA_SETS.items() if data_set.source},
    "lmdb": "data",
    "train": "training",
    "prune": "training",
    "remove": "removing",
    "assess": "assessment",
    "optimize": "assessment",
    "encode": "compression",
    "compress": "assessment",
    "inspect": "compression",
    "expand": "compression",
    "eval": "assessment",
    "compare": "comparing",
    "report": "assessment",
    "bench": "codecs",
    "reproduce": "experiments",
    "formats": "environment",
    "doctor": "environment",
}


class LazyGroup(click.Group):
    """A click group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deepsz_caffe.cli.{COMMANDS[cmd_name]}")
        if cmd_name in DATA_SETS:
            command = module.data_set_command(cmd_name)
        else:
            command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OSError as error:
            # Here, because click ends without a word on any broken pipe, a worker's too.
            raise _trouble(error) from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deepsz-caffe", prog_name="deepsz")
def deepsz() -> None:
    """Compress the fully connected layers of a Caffe network (DeepSZ, HPDC 2019)."""


def _print_warnings() -> None:
    """Print the package's warnings as notes, each text once."""
    said: set[str] = set()

    def tell(warning: DeepSZWarning) -> None:
        if str(warning) not in said:
            said.add(str(warning))
            _tell(f"note: {warning}")

    tell_of_warnings(tell)


def _trouble(error: OSError) -> DeepSZError | click.exceptions.Exit:
    """Say what and where of an operating system's error that no command has foreseen.

    A reader of standard output that has seen enough (``deepsz inspect x.dsz | head -1``) is none.
    """
    trouble = of_system(error)
    if trouble.where is None and _came_from_printing(error):
        trouble.where = "standard output"
        # What could not be written shall not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return click.exceptions.Exit(1)
    return trouble


def _came_from_printing(error: OSError) -> bool:
    # All that is printed goes through these, and they write nothing else.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return (
        re.match(r"(click|rich|deepsz_caffe\.cli\.output)\b", frame.f_globals["__name__"])
        is not None
    )


def _tell(text: str) -> None:
    # Where standard error takes nothing there is nobody to tell; the exit code remains.
    with suppress(OSError):
        print_line(text, err=True)


def _keep_standard_descriptors() -> None:
    """Open what the caller has closed: no file of ours shall get the number of standard error.

    To be read only: what is printed there fails, as it would have.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")


def _end_as_by_ctrl_c() -> None:
    """Let what ends us, a batch system or a closed terminal, leave no files and processes behind.

    A signal that the caller has us ignore (``nohup``) stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def main() -> None:
    """Run the command line; the console script's entry point."""
    _keep_standard_descriptors()
    _end_as_by_ctrl_c()
    accept_any_encoding()
    _print_warnings()
    try:
        try:
            # Commands give None, what click ends early an exit code.
            sys.exit(deepsz.main(standalone_mode=False) or 0)
        except OSError as error:
            raise _trouble(error) from error
        except MemoryError as error:
            raise of_system(error) from error
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        _tell("deepsz: interrupted")
        sys.exit(1)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        for line in usage.getvalue().splitlines():
            _tell(line)
        sys.exit(error.exit_code)
    except DeepSZError as error:
        _tell(f"deepsz: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
