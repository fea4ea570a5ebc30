"""A stranger's layer names: they would clear the screen, forge lines, links, markup or formulas.

Before, `inspect` of a layer called ``[/b]`` ended in a traceback, and one with escapes set the
window's title and cleared the screen.
"""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from assessments import assessment

from deepsz_caffe import cli
from deepsz_caffe.steps.assess.report import write_report
from deepsz_caffe.text import printable
from tests.hostile.mutations import Forgery

NAMES = (
    "\x1b]0;pwned\x07\x1b[2J\x1b[31mfc",
    "fc\r\ndeepsz: done",
    "\u202etxt.fc\u2066",
    "fc[/b]",
    "[link=http://x.example]fc[/link]",
    ":boom: [a]",
    "\x9b31m\x7f\u2028",
    "fc $\\frac{$ `id` $(id)",
    "<script>alert(1)</script>&amp;",
    "x" * 200,
)


@pytest.fixture(params=range(0, len(NAMES), 3))
def forged(request, sample, tmp_path):
    """Give a file whose layers have such names, and the names; good but for the digests."""
    forgery = Forgery(sample.file)
    names = (NAMES * 2)[request.param : request.param + 3]
    for layer, name in zip(forgery.header.layers, names, strict=True):
        layer.name = name
    path = tmp_path / "names.dsz"
    path.write_bytes(forgery.file())
    return path, names


def test_a_pipe_gets_whole_names_and_nothing_that_acts(forged, deepsz):
    path, names = forged
    printed = deepsz("inspect", path)
    assert printed.returncode == 0
    assert all(line.isprintable() for line in printed.stdout.splitlines())
    for name in names:
        row = next(line for line in printed.stdout.split("\n") if printable(name) in line)
        assert row.count("│") == 9


def test_json_gives_the_names_and_nothing_that_acts(forged, deepsz):
    path, names = forged
    printed = deepsz("inspect", path, "--json").stdout
    assert printed.isascii()
    assert printed.replace("\n", "").isprintable()
    assert [layer["name"] for layer in json.loads(printed)["layers"]] == list(names)


def test_errors_are_one_printable_line(forged, deepsz, tmp_path):
    path, _ = forged
    failed = deepsz("expand", path, tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.rstrip("\n").isprintable()


def test_a_terminal_gets_colours_and_nothing_else(forged):
    path, names = forged
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "deepsz_caffe", "inspect", str(path)]
    environment = {**os.environ, "COLUMNS": "90", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=slave, stdin=slave, env=environment) as child:
        os.close(slave)
        shown = bytearray()
        try:
            while piece := os.read(master, 1 << 16):
                shown += piece
        except OSError:  # so a terminal ends
            pass
    os.close(master)
    assert child.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert plain.replace("\r\n", "").isprintable()
    # A long name is folded, not cut.
    cells = "".join(line.split("│")[1].strip() for line in plain.split("\r\n") if "│" in line)
    assert all(printable(name).replace(" ", "") in cells.replace(" ", "") for name in names)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_report_shows_names_and_obeys_none(tmp_path):
    names = ("".join(NAMES), NAMES[7])
    good = assessment()
    layers = tuple(replace(x, name=name) for x, name in zip(good.layers, names, strict=True))
    replace(good, layers=layers).save(tmp_path / "a.json")
    page = write_report(tmp_path / "a.json")[1].read_text(encoding="utf-8")
    assert page.replace("\n", "").isprintable()
    assert "<script" not in page
    assert "\\x1b]0;pwned\\x07" in page


def test_commands_print_by_one_module_only():
    for path in Path(cli.__file__).parent.glob("*.py"):
        printing = r"\bprint\(|click\.echo|console\.print|Console\("
        assert path.name == "output.py" or not re.search(printing, path.read_text()), path
