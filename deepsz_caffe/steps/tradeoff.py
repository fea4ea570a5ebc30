"""The trade-off that a run found, bytes against loss: as JSON and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from deepsz_caffe.files import atomic_write
from deepsz_caffe.steps.auto import Tradeoff


def write_tradeoff(folder: Path, points: Sequence[Tradeoff], max_loss: float) -> list[Path]:
    """Write ``tradeoff.json``, and ``tradeoff.png`` where matplotlib is installed.

    Returns
    -------
    list of Path
        What was written.
    """
    document = {
        "max_loss": max_loss,
        "points": [asdict(point) | {"ratio": point.ratio} for point in by_size(points)],
    }
    written = folder / "tradeoff.json"
    with atomic_write(written) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return [written]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = by_size(points)
    sizes, losses = ([p.bytes for p in points], [100 * p.lost / p.total for p in points])
    axes.plot(sizes, losses, "o-")
    for point, size, loss in zip(points, sizes, losses, strict=True):
        label = f"{100 * point.keep:.2g} %"
        axes.annotate(label, (size, loss), xytext=(4, 4), textcoords="offset points")
    axes.axhline(100 * max_loss, linestyle="--", color="grey")
    axes.set_xscale("log")
    axes.set_xlabel("whole file, bytes; beside each point the weights kept")
    axes.set_ylabel("loss of top-1 on the validation split, %")
    drawn = folder / "tradeoff.png"
    with atomic_write(drawn) as file:
        figure.savefig(file, format="png", dpi=120)
    return [written, drawn]


def by_size(points: Sequence[Tradeoff]) -> list[Tradeoff]:
    """Sort points, the smallest file first."""
    return sorted(points, key=lambda point: (point.bytes, point.keep))
