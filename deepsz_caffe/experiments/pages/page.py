"""Tables and figures into a folder, and one HTML page that shows all of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from deepsz_caffe.experiments.pages import html
from deepsz_caffe.experiments.pages.figures import Picture, every_figure
from deepsz_caffe.experiments.pages.tables import Table, every_table
from deepsz_caffe.experiments.results import Run
from deepsz_caffe.files import atomic_write, make_folder


def write_tables(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write every table as Markdown and CSV; returns the files."""
    make_folder(folder)
    written = []
    for table in every_table(runs):
        for ending, text in (("md", table.markdown()), ("csv", table.csv())):
            path = folder / f"{table.name}.{ending}"
            _write(path, text.encode())
            written.append(path)
    return written


def write_figures(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG; returns the files."""
    make_folder(folder)
    written = []
    for picture in every_figure(runs):
        for ending in ("png", "svg"):
            path = folder / f"{picture.name}.{ending}"
            _write(path, _rendered(picture, ending))
            written.append(path)
    return written


def write_page(runs: Iterable[Run], path: Path) -> None:
    """Write one self-contained HTML page with every table and figure."""
    found = list(runs)
    parts = [
        html.note(
            "Jin et al., HPDC 2019. Ours beside the paper's; each table and figure names the "
            "command that made it. Rows of generated weights have sizes and times, never accuracy."
        )
    ]
    parts += [_table(table) for table in every_table(found)]
    for picture in every_figure(found):
        parts.append(
            f"<h2>{html.text(picture.title)}</h2>"
            f"{html.image(_rendered(picture, 'png'), picture.title)}{html.note(picture.caption)}"
        )
    _write(path, html.document("DeepSZ reproduced", parts))


def _table(table: Table) -> str:
    return (
        html.table(table.title, table.columns, table.rows, ", paper")
        + html.note(table.note)
        + f"<p class=note>Made by <code>{html.text(table.command)}</code>"
        + (f" on {html.text(table.machine)}." if table.machine else ".")
    )


def _rendered(picture: Picture, ending: str) -> bytes:
    import matplotlib as mpl

    file = io.BytesIO()
    # Without a date, and with a fixed salt, the same runs give the same file.
    metadata = {"Date": None} if ending == "svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "deepsz"}):
        picture.figure.savefig(file, format=ending, metadata=metadata)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
