"""``deepsz compare``: how far two versions of a network are apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepsz_caffe.cli.limits import check_limits, limit_options
from deepsz_caffe.cli.measuring import PATH, measure_progress
from deepsz_caffe.cli.output import json_option, print_json, print_line, print_table
from deepsz_caffe.cli.pictures import PictureOptions, picture_options
from deepsz_caffe.cli.values import parse_names
from deepsz_caffe.errors import InputError
from deepsz_caffe.files import check_output

if TYPE_CHECKING:
    from deepsz_caffe.dsz.limits import Limits
    from deepsz_caffe.experiments.pages.comparison import Names
    from deepsz_caffe.steps.compare import Comparison

#: pictures on a page, and lines of a terminal, of images whose class changes
_DRAWN, _SHOWN = 100, 10


def _names(context: object, parameter: object, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else parse_names(text)


def _scores(context: object, parameter: object, text: str | None) -> tuple[str, ...] | None:
    return () if text == "none" else _names(context, parameter, text)


@click.command()
@click.argument("files", metavar="[NET] A B", nargs=-1, type=PATH)
@click.option(
    "--data", metavar="SOURCE", help="LMDB, list or .npz of inputs in place of the prototxt's."
)
@click.option(
    "--outputs", metavar="A,B", callback=_names, help="Blobs to compare [the network's outputs]."
)
@click.option(
    "--scores",
    metavar="A,B|none",
    callback=_scores,
    help="Outputs that hold scores of classes [Softmax, or the only one].",
)
@click.option("--classes", metavar="FILE", type=PATH, help="Names of classes, one a line.")
@click.option("--opencv", is_flag=True, help="Let OpenCV run the networks: needs no Caffe.")
@click.option("--page", metavar="FILE", type=PATH, help="Write an HTML page with pictures, too.")
@picture_options
@limit_options
@json_option
def compare(
    limits: Limits,
    pictures: PictureOptions,
    files: tuple[Path, ...],
    data: str | None,
    outputs: tuple[str, ...] | None,
    scores: tuple[str, ...] | None,
    classes: Path | None,
    opencv: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Say how far two versions of a network are apart.

    A and B are caffemodels or .dsz files. Weights are compared blob by blob; with NET, a prototxt,
    also what it puts out for the same images: pictures, arrays, or its own data. Pictures are
    prepared as a .dsz file records it, but for what is given.

    \b
    Example:
      deepsz compare deploy.prototxt net.caffemodel net.dsz --images pictures/
    """
    from deepsz_caffe.api import compare as run
    from deepsz_caffe.experiments.pages.comparison import Names, read_classes, write_comparison

    if len(files) not in (2, 3):
        raise click.UsageError("give NET, A and B; NET may be left out")
    network, a, b = (None, *files) if len(files) == 2 else files
    if network is None and (data or outputs or scores or opencv or pictures.images):
        raise InputError("outputs need a prototxt", hint="deepsz compare NET A B")
    if pictures.labels is not None:
        raise InputError("labels play no part in a comparison", hint="deepsz eval counts by them")
    if data is not None and pictures.images is not None:
        raise InputError("give either --images or --data")
    if page is not None:
        check_output(page, (*files, classes, pictures.images, data))
    for path in (a, b):
        check_limits(path, limits)
    known = () if classes is None else read_classes(classes)
    opened = None if network is None else pictures.open(network, labelled=False, recorded=(a, b))
    if opened is not None:
        opened = opened.distinct()
    with measure_progress() as show:
        found = run(
            network,
            a,
            b,
            data=data if opened is None else opened,
            outputs=outputs or (),
            scores=scores,
            opencv=opencv,
            pictures=0 if page is None else _DRAWN,
            progress=lambda done, total: show(("body", done, total)),
        )
    names = Names(str if opened is None else opened.name, known)
    if page is not None:
        write_comparison(found, a, b, page, names)
    if as_json:
        print_json(_document(found, names))
    else:
        _show(found, names)


def _document(found: Comparison, names: Names) -> dict[str, Any]:
    document: dict[str, Any] = found.to_json()
    for output in document["outputs"]:
        for changed in (output["classes"] or {"changed": ()})["changed"]:
            changed["name"] = names.image(changed["image"])
            for which in ("before", "after"):
                changed[f"{which}_name"] = names.of_class(changed[which])
    return document


def _show(found: Comparison, names: Names) -> None:
    from deepsz_caffe.experiments.pages import comparison

    columns, rows = comparison.layer_rows(found)
    if rows:
        print_table(columns, rows)
    print_line(comparison.weights_line(found))
    if found.outputs:
        title = f"outputs for {found.images:,} images"
        print_table(*comparison.output_rows(found), title)
    for output in found.outputs:
        columns, rows = comparison.changed_rows(output, names, _SHOWN)
        if rows and output.classes is not None:
            of = len(output.classes.changed)
            print_table(columns, rows, f"{len(rows)} of {of:,} images whose class changes")
    for note in comparison.notes(found):
        print_line(note)
