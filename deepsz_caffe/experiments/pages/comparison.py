"""Two versions of a network as tables, for a terminal and for a page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepsz_caffe.errors import DataError
from deepsz_caffe.experiments.pages import html
from deepsz_caffe.experiments.pages.tables import NONE, percent
from deepsz_caffe.files import atomic_write, read_input
from deepsz_caffe.steps.compare import BlobChange, ChangedClass, Comparison, LayerChange

#: what a layer's figures are where there is nothing to compare
_ALONE = {"a": "only in A", "b": "only in B", "both": "another shape in B"}
_LAYERS = ("layer", "blob", "shape", "changed", "rms change", "largest change")
_OUTPUTS = (
    "output", "shape", "images", "rms change", "mean change", "largest change", "same top-1",
    "common top-5",
)  # fmt: skip
_CHANGED = ("image", "A's class", "A: its score, B's", "B's class", "B: A's score, its")

Rows = list[tuple[object, ...]]


@dataclass(frozen=True)
class Names:
    """How images and classes are called.

    Attributes
    ----------
    image
        Gives the name of an image by its place.
    classes
        Names of classes from 0 on; others are numbers.
    """

    image: Callable[[int], str] = str
    classes: Sequence[str] = ()

    def of_class(self, number: int) -> str:
        """Name a class: its number, and its name where that is known."""
        known = number < len(self.classes)
        return f"{number} {self.classes[number]}" if known else str(number)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read names of classes, one a line, such as Caffe's ``synset_words.txt``.

    Raises
    ------
    DataError
        It can't be read, or is no text.
    """
    try:
        lines = read_input(path, DataError).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"no names of classes: {error}", where=path) from error
    return tuple(line.strip() for line in lines)


def layer_rows(found: Comparison) -> tuple[Sequence[str], Rows]:
    """Give columns and rows: weights that differ, in the order of the first file."""
    return _LAYERS, [
        (
            each.layer,
            each.blob,
            "×".join(map(str, each.shape)),
            *_layer_cells(each),
        )
        for each in found.layers
        if each.changed or each.only_in
    ]


def _layer_cells(change: LayerChange) -> tuple[object, ...]:
    if change.only_in:
        return _ALONE[change.only_in], NONE, NONE
    return change.changed, percent(change.relative_change), f"{change.largest_change:.4g}"


def weights_line(found: Comparison) -> str:
    """Say how many blobs of weights are the same."""
    same = sum(not (each.changed or each.only_in) for each in found.layers)
    return f"{same:,} of {len(found.layers):,} blobs of weights are the same"


def output_rows(found: Comparison) -> tuple[Sequence[str], Rows]:
    """Give columns and rows: each output of the network."""
    return _OUTPUTS, [
        (
            each.blob,
            "×".join(map(str, each.shape)) or "1",
            each.images,
            percent(each.relative_change),
            f"{each.mean_change:.4g}",
            f"{each.largest_change:.4g}",
            *_class_cells(each),
        )
        for each in found.outputs
    ]


def _class_cells(change: BlobChange) -> tuple[object, ...]:
    classes = change.classes
    if classes is None:
        return NONE, NONE
    common = NONE if classes.top5_overlap is None else percent(classes.top5_overlap)
    return f"{classes.same:,} of {classes.places:,}, {percent(classes.agreement)}", common


def notes(found: Comparison) -> list[str]:
    """Say what a reader of the figures should know."""
    said = []
    if found.preprocessing:
        said.append(f"pictures: {found.preprocessing}")
    for each in found.outputs:
        if each.agreement_at_least is not None:
            said.append(
                f"{each.blob}: of other images like these at least "
                f"{percent(each.agreement_at_least)} keep their class, with confidence 0.9"
            )
        if each.not_compared:
            said.append(
                f"{each.blob}: {each.not_compared:,} not compared: other shapes, or values that "
                "are not finite"
            )
    if found.guessed:
        said.append(f"{found.guessed} was taken for scores of classes; --scores none if it is not")
    return said


def changed_rows(
    change: BlobChange, names: Names, most: int | None = None
) -> tuple[Sequence[str], Rows]:
    """Give columns and rows: images that the two put into different classes."""
    changed = () if change.classes is None else change.classes.changed
    return _CHANGED, [_changed_row(each, names) for each in changed[:most]]


def _changed_row(each: ChangedClass, names: Names) -> tuple[object, ...]:
    return (
        names.image(each.image),
        names.of_class(each.before),
        "{:.4g}, {:.4g}".format(*each.before_scores),
        names.of_class(each.after),
        "{:.4g}, {:.4g}".format(*each.after_scores),
    )


def write_comparison(found: Comparison, a: object, b: object, path: Path, names: Names) -> None:
    """Write a self-contained HTML page: all tables, and pictures whose class changes.

    Parameters
    ----------
    found
        What `deepsz_caffe.compare` gave.
    a, b
        What was compared, for the reader.
    path
        The page.
    names
        See `Names`.

    Raises
    ------
    DeepSZError
        It can't be written.
    """
    parts = [html.note(f"A: {a}"), html.note(f"B: {b}"), *map(html.note, notes(found))]
    if found.outputs:
        parts.append(html.table("Outputs", *output_rows(found)))
        parts.append(
            html.note("Changes are from A to B; rms change is a fraction of A's root mean square.")
        )
    for each in found.outputs:
        columns, rows = changed_rows(each, names)
        if each.classes is None or not rows:
            continue
        seen = [found.pictures.get(one.image) for one in each.classes.changed]
        drawn = [
            (html.Markup("") if png is None else html.image(png, str(row[0])), *row)
            for png, row in zip(seen, rows, strict=True)
        ]
        title = f"Images whose class changes ({each.blob})"
        parts.append(html.table(title, ("", *columns), drawn))
        parts.append(
            html.note("Pictures are what the network is given, made lighter or darker to be seen.")
        )
    parts += [html.table("Weights", *layer_rows(found)), html.note(weights_line(found))]
    with atomic_write(path) as file:
        file.write(html.document("Two versions of a network", parts))
