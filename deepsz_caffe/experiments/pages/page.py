"""Tables and figures into a folder, and one HTML page that shows all of them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from deepsz_caffe.experiments.pages.figures import Picture, every_figure
from deepsz_caffe.experiments.pages.tables import Table, every_table
from deepsz_caffe.experiments.results import Run
from deepsz_caffe.files import atomic_write, make_folder
from deepsz_caffe.text import printable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; margin: 2.5rem auto; max-width: 68rem;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #9ca3af; padding: .35rem .8rem .35rem 0; }
td { border-bottom: 1px solid #e5e7eb; padding: .3rem .8rem .3rem 0; white-space: nowrap; }
tr.paper td { color: #6b7280; }
p.note { color: #6b7280; font-size: .86rem; max-width: 52rem; margin: .5rem 0; }
code { background: #f3f4f6; padding: .1em .35em; border-radius: 3px; font-size: .85em; }
img { max-width: 100%; }
"""


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
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>DeepSZ reproduced</title><style>{_STYLE}</style>",
        "<h1>DeepSZ reproduced</h1>",
        "<p class=note>Jin et al., HPDC 2019. Ours beside the paper's; each table and figure names "
        "the command that made it. Rows of generated weights have sizes and times, never accuracy.",
    ]
    parts += [_table(table) for table in every_table(found)]
    for picture in every_figure(found):
        image = base64.b64encode(_rendered(picture, "png")).decode()
        parts.append(
            f"<h2>{html.escape(picture.title)}</h2>"
            f"<img alt='{html.escape(picture.title)}' src='data:image/png;base64,{image}'>"
            f"<p class=note>{html.escape(picture.caption)}"
        )
    _write(path, "\n".join(parts).encode())


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in table.columns)
    rows = "".join(
        ("<tr class=paper>" if row[0].endswith(", paper") else "<tr>")
        + "".join(f"<td>{html.escape(printable(cell))}" for cell in row)
        for row in table.rows
    )
    return (
        f"<h2>{html.escape(table.title)}</h2><div class=scroll><table><thead><tr>{head}</thead>"
        f"<tbody>{rows}</tbody></table></div><p class=note>{html.escape(table.note)}"
        f"<p class=note>Made by <code>{html.escape(table.command)}</code>"
        + (f" on {html.escape(table.machine)}." if table.machine else ".")
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
