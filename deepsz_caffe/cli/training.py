"""``deepsz mnist``, ``deepsz train``, ``deepsz prune``: data, training and step 1 of the method."""

from __future__ import annotations

from pathlib import Path

import click

from deepsz_caffe.cli.output import json_option, print_json, print_table


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Take the four raw files (or .gz) from this folder instead of fetching them.",
)
@json_option
def mnist(folder: Path, source: Path | None, as_json: bool) -> None:
    """Fetch MNIST, check it, and write Caffe LMDBs for training, validation and test into DIR.

    What is there already is kept, so a second run does nothing.

    \b
    Example:
      deepsz mnist data/mnist
    """
    from deepsz_caffe.experiments.mnist import prepare_mnist

    counts = prepare_mnist(folder, source, report=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(counts)
    else:
        print_table(("LMDB", "images"), list(counts.items()))
