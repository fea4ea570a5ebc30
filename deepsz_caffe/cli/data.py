"""``deepsz mnist``, ``cifar10``, ``lmdb``: public data sets, and one's own, as LMDBs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsz_caffe.cli.output import json_option, print_json, print_line, print_table
from deepsz_caffe.cli.values import parse_numbers
from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.datasets import DATA_SETS, prepare_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def data_set_command(name: str) -> click.Command:
    """Make the command that prepares a public data set, by its id."""
    data_set = DATA_SETS[name]

    @click.command(name)
    @click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
    @click.option(
        "--from",
        "source",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help=f"Take it from {data_set.source}, instead of fetching it.",
    )
    @json_option
    def command(folder: Path, source: Path | None, as_json: bool) -> None:
        counts = prepare_of(name)(folder, source, report=_say)
        _print_counts(counts, as_json)

    command.help = (
        f"Fetch {data_set.title} and write it as LMDBs for Caffe.\n\nWhat comes is checked; DIR "
        "gets LMDBs for training, validation and test. What is there already is kept, so a second "
        "run does nothing.\n\n"
        f"\b\nExample:\n  deepsz {name} data/{name}"
    )
    return command


@click.command()
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--images",
    "source",
    required=True,
    metavar="SOURCE",
    type=click.Path(path_type=Path),
    help="A folder with a folder for each class; a list of lines `FILE LABEL`; an IDX file (or "
    ".gz); or a .npz with arrays `data` [n, channels, height, width] and `label` [n].",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="The IDX file of labels; by default the one that is named as MNIST names them.",
)
@click.option("--resize", "size", metavar="WxH", help="Scale every image, e.g. 256x256.")
@click.option("--gray/--color", default=None, help="Channels: 1, or 3.  [default: as the first is]")
@click.option(
    "--split",
    metavar="NAME=PART,...",
    help="Fractions of each class for further LMDBs, e.g. validation=0.1.",
)
@click.option(
    "--shuffle/--in-order",
    default=None,
    help="Caffe reads an LMDB in order.  [default: shuffle folders]",
)
@json_option
def lmdb(
    out: Path,
    source: Path,
    labels: Path | None,
    size: str | None,
    gray: bool | None,
    split: str | None,
    shuffle: bool | None,
    as_json: bool,
) -> None:
    """Write your own labelled images as LMDBs for Caffe.

    Classes of a folder are labels 0, 1, … in the alphabetical order of their names. With --split,
    OUT is a folder that gets NAME_lmdb for each part and train_lmdb with the rest.

    \b
    Examples:
      deepsz lmdb data/flowers --images flowers/ --resize 256x256 --split validation=0.1,test=0.1
      deepsz lmdb data/val_lmdb --images val.txt --resize 256x256
    """
    from deepsz_caffe.experiments.datasets.images import open_images, prepare_lmdbs

    images = open_images(source, labels=labels, size=parse_size(size), gray=gray)
    parts = parse_numbers(split, "--split validation=0.1") if split else {}
    counts = prepare_lmdbs(out, images, parts, shuffle=shuffle, report=_say)
    if as_json:
        print_json({"images": counts, "classes": list(images.classes)})
        return
    _print_counts(counts, as_json)
    if images.classes:
        print_table(("label", "class"), list(enumerate(images.classes)))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read ``256x256``: width and height.

    Raises
    ------
    InputError
        It is something else.
    """
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"{text!r} is no size", where="--resize", hint="write WIDTHxHEIGHT")
    return int(width), int(height)


def _say(line: str) -> None:
    print_line(line, err=True)


def _print_counts(counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        print_json(counts)
    else:
        print_table(("LMDB", "images"), list(counts.items()))
