"""``deepsz doctor``: what is installed, and what to do about what is not."""

from __future__ import annotations

import sys

import click

from deepsz_caffe.cli.output import json_option, print_json, print_table


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
