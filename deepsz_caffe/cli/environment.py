"""``deepsz doctor`` and ``deepsz formats``: what is installed, and what is read and written."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from deepsz_caffe.cli.output import json_option, print_json, print_line, print_table


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say which parts are installed, and what to do about others.

    \b
    Example:
      deepsz doctor
    """
    from deepsz_caffe.runtime.environment import examine

    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        rows = [(f.name, f.found or "missing", f.advice) for f in findings]
        print_table(("part", "found", "what to do"), rows)
    if any(finding.required and not finding.found for finding in findings):
        sys.exit(1)


@click.command()
@json_option
def formats(as_json: bool) -> None:
    """Say which files are read and written, and by which codecs.

    \b
    Example:
      deepsz formats
    """
    from deepsz_caffe.runtime.formats import codec_formats, file_formats, layer_formats

    files, codecs, layers = file_formats(), codec_formats(), layer_formats()
    if as_json:
        print_json(
            {
                "files": [asdict(each) for each in files],
                "codecs": [asdict(each) for each in codecs],
                "layers": layers,
            }
        )
        return
    columns = ("kind", "file", "read by", "written by", "needs", "missing here")
    rows = [
        (f.kind, f.name, f.read, f.written, ", ".join(f.needs), ", ".join(f.missing)) for f in files
    ]
    print_table(columns, rows)
    for encodes in dict.fromkeys(each.encodes for each in codecs):
        names = [
            each.name + ("" if each.installed else " (not installed)")
            for each in codecs
            if each.encodes == encodes
        ]
        print_line(f"codecs of {encodes}: {', '.join(names)}")
    chosen = [f"{kind} (--layers {group or 'NAME'})" for kind, group in layers.items()]
    print_line(f"layers: {', '.join(chosen)}")
