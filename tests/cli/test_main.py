"""The overview that `deepsz --help` prints."""

from __future__ import annotations

from click.testing import CliRunner

from deepsz_caffe.cli.main import COMMANDS, deepsz


def test_each_command_has_a_whole_line_in_the_overview() -> None:
    shown = CliRunner().invoke(deepsz, ["--help"], terminal_width=80).output
    lines = shown.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    # click ends a line that is too long with three dots.
    assert not [line for line in lines if line.endswith("...")]
