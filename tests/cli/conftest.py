"""What tests of commands share."""

import sys
from types import SimpleNamespace

import pytest

from deepsz_caffe.cli import main


@pytest.fixture
def deepsz(capfd, monkeypatch):
    """Run the command line in this process, which has Caffe loaded already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["deepsz", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run
