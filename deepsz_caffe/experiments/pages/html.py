"""Parts of self-contained HTML pages; what comes from files is shown as text, whatever it is."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

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


def document(title: str, parts: Iterable[str]) -> bytes:
    """Write a page: its title, and parts that are HTML."""
    shown = text(title)
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{shown}</title><style>{_STYLE}</style>",
        f"<h1>{shown}</h1>",
    )
    return "\n".join((*head, *parts)).encode()


def text(value: object) -> str:
    """Write a value as HTML that shows it."""
    return html.escape(printable(value))


def note(value: object) -> str:
    """Write a paragraph in small print."""
    return f"<p class=note>{text(value)}"


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], pale: str | None = None
) -> str:
    """Write a table under a heading; rows whose first cell ends in `pale` stand back."""
    head = "".join(f"<th>{text(name)}" for name in columns)
    body = "\n".join(
        ("<tr class=paper>" if pale is not None and str(row[0]).endswith(pale) else "<tr>")
        + "".join(f"<td>{cell if isinstance(cell, Markup) else text(cell)}" for cell in row)
        for row in rows
    )
    return (
        f"<h2>{text(title)}</h2><div class=scroll><table><thead><tr>{head}</thead>"
        f"<tbody>{body}\n</tbody></table></div>"
    )


class Markup(str):
    """A cell that is HTML already."""

    __slots__ = ()


def image(png: bytes, description: str) -> Markup:
    """Write an image that is part of the page."""
    content = base64.b64encode(png).decode()
    return Markup(f"<img alt='{text(description)}' src='data:image/png;base64,{content}'>")
