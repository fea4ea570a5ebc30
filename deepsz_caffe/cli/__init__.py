"""The command line: parse, call the API, print. No logic lives here."""

from deepsz_caffe.cli.main import main

__all__ = ["main"]
