"""``deepsz cifar10``: data sets as LMDBs."""

from __future__ import annotations

from pathlib import Path

import click

from deepsz_caffe.cli.output import json_option, print_json, print_line, print_table


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Take the binary files, or train/CLASS/*.jpg and test/CLASS/*.jpg, from this folder or "
    "tar archive instead of fetching the original.",
)
@json_option
def cifar10(folder: Path, source: Path | None, as_json: bool) -> None:
    """Fetch CIFAR-10, check it, and write Caffe LMDBs (training, validation, test) into DIR.

    What is there already is kept, so a second run does nothing.

    \b
    Example:
      deepsz cifar10 data/cifar10
    """
    from deepsz_caffe.experiments.datasets.cifar10 import prepare_cifar10

    counts = prepare_cifar10(folder, source, report=lambda line: print_line(line, err=True))
    if as_json:
        print_json(counts)
    else:
        print_table(("LMDB", "images"), list(counts.items()))
