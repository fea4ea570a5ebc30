"""The paper's figures from measured runs, as matplotlib figures.

One technique has one colour everywhere. Each figure says in its last line which command made it,
and marks what is the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean
from typing import TYPE_CHECKING, Any

from deepsz_caffe.errors import needs_extra
from deepsz_caffe.experiments.pages.tables import (
    TITLES,
    Group,
    best_within,
    groups,
    nearest_ratio,
)
from deepsz_caffe.experiments.results import JointDivergence, Point, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2937"
FAINT = "#6b7280"
GRID = "#e5e7eb"
PAPER = "#9ca3af"
COLOURS = {
    "deepsz": "#2563eb",
    "deep-compression": "#ea580c",
    "weightless": "#0d9488",
    "weightless-all": "#86b8b1",
}
LAYER_COLOURS = ("#2563eb", "#ea580c", "#0d9488", "#9333ea")
STEP_COLOURS = {"lossless": "#93c5fd", "values": "#2563eb", "rebuild": "#1e3a8a"}
STEP_TITLES = {
    "lossless": "lossless decoding",
    "values": "SZ, or filter",
    "rebuild": "rebuilding the matrices",
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "deepsz",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Picture:
    """A figure ready to be saved; `name` is the file's name without its ending."""

    name: str
    title: str
    caption: str
    figure: Figure


def every_figure(runs: Iterable[Run]) -> tuple[Picture, ...]:
    """Make all figures for which there are measurements."""
    with needs_extra("plots"):
        import matplotlib as mpl

    found = groups(runs)
    makers = (
        accuracy_by_bound,
        additivity,
        divergences,
        tradeoff,
        ratios,
        encoding_time,
        decoding_time,
    )
    with mpl.rc_context(_STYLE):
        made = [make(found) for make in makers]
    return tuple(picture for picture in made if picture is not None)


def accuracy_by_bound(found: Sequence[Group]) -> Picture | None:
    """Draw the loss of each layer against its error bound."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [group for group in found if group.runs[0].tested]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 4.2, 3.2)
    for axis, group in zip(axes, shown, strict=True):
        run = group.runs[0]
        for colour, layer in zip(LAYER_COLOURS, run.layers, strict=False):
            tests = sorted(
                (one for one in run.tested if one.layer == layer.name),
                key=lambda one: one.error_bound,
            )
            axis.plot(
                [one.error_bound for one in tests],
                [100 * one.lost / one.total for one in tests],
                "o-", color=colour, lw=1.8, ms=4, mec="white", mew=0.7, label=layer.name,
            )  # fmt: skip
            chosen = [one for one in tests if abs(one.error_bound - layer.error_bound) < 1e-12]
            for one in chosen:
                axis.plot(one.error_bound, 100 * one.lost / one.total, "o", ms=10, mfc="none",
                          mec=colour, mew=1.6)  # fmt: skip
        axis.axhline(0, color=FAINT, lw=0.8)
        if run.max_loss is not None:
            axis.axhline(100 * run.max_loss, color=PAPER, lw=1, ls=(0, (4, 3)))
            axis.text(0.02, 100 * run.max_loss, "limit of the whole network", color=FAINT,
                      fontsize=8, va="bottom", transform=axis.get_yaxis_transform())  # fmt: skip
        losses = [100 * one.lost / one.total for one in run.tested]
        low, high = min(0.0, *losses), min(max(losses), _highest_loss(run))
        margin = 0.06 * (high - low) or 0.1
        axis.set_ylim(low - margin, high + margin)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(group.title)
        axis.set_xlabel("error bound")
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    axes[0].set_ylabel("images lost, %")
    return _finish(
        figure, shown, "accuracy_by_bound", "Loss of top-1 when one layer is compressed",
        "One layer compressed, the others as pruned; rings mark the bounds that were chosen. "
        "Losses far over the limit are outside of the picture.",
    )  # fmt: skip


def additivity(found: Sequence[Group]) -> Picture | None:
    """Draw the measured loss of all layers together against the sum of their single losses."""
    shown = [group for group in found if any(run.joint for run in group.runs)]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 3.8, 3.7)
    for axis, group in zip(axes, shown, strict=True):
        joint = [one for run in group.runs for one in run.joint]
        x = [100 * one.sum_of_lost / one.total for one in joint]
        y = [100 * one.lost / one.total for one in joint]
        low, high = min(*x, *y, 0), max(*x, *y)
        margin = 0.06 * (high - low) or 0.1
        ends = (low - margin, high + margin)
        axis.plot(ends, ends, color=PAPER, lw=1.2, ls=(0, (4, 3)), zorder=1)
        axis.scatter(x, y, s=26, color=COLOURS["deepsz"], alpha=0.75, lw=0.6, edgecolor="white")
        axis.set_xlim(ends)
        axis.set_ylim(ends)
        axis.set_aspect("equal")
        axis.set_title(group.title)
        axis.set_xlabel("sum of the single losses, %")
    axes[0].set_ylabel("measured together, %")
    return _finish(
        figure, shown, "additivity", "Losses of single layers add up",
        "Random combinations of tested bounds; on the dashed line the joint loss is the sum, as "
        "the paper assumes.",
    )  # fmt: skip


def divergences(found: Sequence[Group]) -> Picture | None:
    """Draw the divergence of all layers together against the sum of their single ones."""
    shown = [group for group in found if any(run.divergences for run in group.runs)]
    if not shown:
        return None
    panels = {g.title: [one for run in g.runs for one in run.divergences] for g in shown}
    return _finish(
        draw_divergences(panels, "nats"), shown, "divergences", "Divergences of layers add up",
        "Random combinations of layers and error bounds; on the dashed line the divergence of the "
        "class probabilities (KL) is the sum of that of the layers alone.",
    )  # fmt: skip


def draw_divergences(panels: Mapping[str, Sequence[JointDivergence]], unit: str) -> Figure:
    """Draw a panel for each title; `unit` is that of both axes."""
    figure, axes = _panels(len(panels), 3.8, 3.7)
    for axis, (title, joint) in zip(axes, panels.items(), strict=True):
        x, y = [one.sum_of_single for one in joint], [one.together for one in joint]
        low, high = min(*x, *y), max(*x, *y)
        ends = (low / 1.5, high * 1.5)
        axis.plot(ends, ends, color=PAPER, lw=1.2, ls=(0, (4, 3)), zorder=1)
        axis.scatter(x, y, s=26, color=COLOURS["deepsz"], alpha=0.75, lw=0.6, edgecolor="white")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(ends)
        axis.set_ylim(ends)
        axis.set_aspect("equal")
        axis.set_title(title)
        axis.set_xlabel(f"sum over the layers alone, {unit}")
    axes[0].set_ylabel(f"measured together, {unit}")
    return figure


def tradeoff(found: Sequence[Group]) -> Picture | None:
    """Draw loss against compression ratio, every setting of every technique."""
    shown = [group for group in found if not group.generated and group.runs[0].points]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 4.6, 3.5)
    for axis, group in zip(axes, shown, strict=True):
        run = group.runs[0]
        assert run.pruned is not None
        top = _highest_loss(run)
        for technique, colour in COLOURS.items():
            points = [
                (run.ratio(point), 100 * run.pruned.loss(point.test))
                for point in run.of(technique)
                if point.test is not None and not point.retrained
            ]
            visible = sorted(point for point in _unbeaten(points) if point[1] <= top)
            if not visible:
                continue
            axis.plot(*zip(*visible, strict=True), marker="o", color=colour, lw=1.8, ms=4.5,
                      mec="white", mew=0.7, label=TITLES[technique])  # fmt: skip
        paper = group.network.paper
        if paper is not None and (loss := paper.losses.get("deepsz")) is not None:
            axis.plot(paper.ratio, 100 * loss, "D", color=PAPER, ms=7, label="DeepSZ, paper")
        axis.axhline(0, color=FAINT, lw=0.8)
        axis.set_ylim(top=top)
        axis.set_title(group.title)
        axis.set_xlabel("compression ratio of the fc layers")
    axes[0].set_ylabel("loss of top-1, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return _finish(
        figure, shown, "tradeoff", "What a ratio costs",
        "Test set, against the pruned network, no retraining. Settings that lose more than the "
        "axis shows are left out.",
    )  # fmt: skip


def ratios(found: Sequence[Group]) -> Picture | None:
    """Draw the ratio that each technique reaches within the limit of loss."""
    shown = [group for group in found if not group.generated] or list(found)
    if not shown:
        return None
    techniques = ("deepsz", "deep-compression", "weightless", "weightless-all")
    figure, (axis,) = _panels(1, max(6.0, 2.6 * len(shown) + 1.5), 3.6)
    width = 0.17
    for place, technique in enumerate(techniques):
        for number, group in enumerate(shown):
            if group.generated:
                points = [(run, nearest_ratio(run, technique)) for run in group.runs]
            else:
                points = [(run, best_within(run, technique)) for run in group.runs]
            values = [run.ratio(point) for run, point in points if point is not None]
            x = number + (place - 2) * width
            label = TITLES[technique] if number == 0 else None
            height = mean(values) if values else 0
            error = _deviation(values)
            axis.bar(x, height, 0.9 * width, color=COLOURS[technique], label=label,
                     yerr=error, error_kw={"ecolor": INK, "lw": 1, "capsize": 2})  # fmt: skip
            axis.text(x, height + (error or 0), f"{height:.0f}×" if values else "none", ha="center",
                      va="bottom", fontsize=8.5, color=INK if values else FAINT)  # fmt: skip
    published = [
        (number, group.network.paper.ratio)
        for number, group in enumerate(shown)
        if group.network.paper is not None
    ]
    for number, ratio in published:
        x = number + 2 * width
        axis.bar(x, ratio, 0.9 * width, color="white", edgecolor=PAPER, hatch="////", lw=1,
                 label="DeepSZ, paper" if number == published[0][0] else None)  # fmt: skip
        axis.text(x, ratio, f"{ratio:.0f}×", ha="center", va="bottom", fontsize=8.5,
                  color=FAINT)  # fmt: skip
    _name_networks(axis, shown, "compression ratio of the fc layers")
    return _finish(
        figure, shown, "ratios", "Compression ratio by technique",
        "Same pruned weights, loss within the limit on the validation split, no retraining; "
        "generated weights: settings as published.",
    )  # fmt: skip


def encoding_time(found: Sequence[Group]) -> Picture | None:
    """Draw the encoding time of each technique, in units of DeepSZ's."""
    shown = [group for group in found if _encoded(group)]
    if not shown:
        return None
    figure, (axis,) = _panels(1, max(5.5, 2.2 * len(shown) + 2), 3.4)
    techniques = ("deepsz", "deep-compression", "weightless")
    width = 0.24
    for place, technique in enumerate(techniques):
        for number, group in enumerate(shown):
            point = _encoded(group)[technique]
            base = _encoded(group)["deepsz"]
            height = point.encode_seconds / base.encode_seconds
            x = number + (place - 1) * width
            axis.bar(x, height, 0.9 * width, color=COLOURS[technique],
                     label=TITLES[technique] if number == 0 else None)  # fmt: skip
            axis.text(x, height, f"{point.encode_seconds:.0f} s", ha="center", va="bottom",
                      fontsize=8.5)  # fmt: skip
    _name_networks(axis, shown, "encoding time, DeepSZ = 1")
    return _finish(
        figure, shown, "encoding_time", "Encoding time",
        "From the pruned network to bytes: DeepSZ's tests on the validation split; the others' one "
        "round of retraining. The paper shows this figure without numbers.",
    )  # fmt: skip


def decoding_time(found: Sequence[Group]) -> Picture | None:
    """Draw the steps of decoding for each technique beside one forward pass."""
    shown = [group for group in found if group.runs[0].deepsz().decode_seconds]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 4.0, 3.0)
    for axis, group in zip(axes, shown, strict=True):
        run = group.runs[0]
        bars: list[tuple[str, dict[str, float]]] = []
        for technique in ("deepsz", "deep-compression", "weightless"):
            point = nearest_ratio(run, technique)
            if point is not None:
                bars.append((TITLES[technique], point.decode_seconds))
        for row, (_, steps) in enumerate(bars):
            left = 0.0
            for step, colour in STEP_COLOURS.items():
                length = 1e3 * steps.get(step, 0.0)
                axis.barh(row, length, 0.6, left=left, color=colour,
                          label=STEP_TITLES[step] if row == 0 else None)  # fmt: skip
                left += length
            axis.text(left, row, f" {left:,.1f} ms", va="center", fontsize=8.5)
        names = [name for name, _ in bars]
        if run.forward_seconds is not None:
            row = len(bars)
            axis.barh(row, 1e3 * run.forward_seconds, 0.6, color=PAPER)
            axis.text(1e3 * run.forward_seconds, row, f" {1e3 * run.forward_seconds:,.1f} ms",
                      va="center", fontsize=8.5)  # fmt: skip
            names.append("forward pass,\n50 images")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.25)
        axis.set_title(group.title)
        axis.set_xlabel("ms")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return _finish(
        figure, shown, "decoding_time", "Decoding all fc layers",
        "One thread. The paper, AlexNet on a laptop: 26 ms lossless, 108 ms SZ, 162 ms rebuilding, "
        "1,100 ms a forward pass.",
    )  # fmt: skip


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    # Not pyplot: nothing global, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, width * count), height + 1.1), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, list(axes)


def _name_networks(axis: Axes, shown: Sequence[Group], height: str) -> None:
    """Name the groups of bars by their networks and the bars' height, and set the legend beside."""
    axis.set_xticks(range(len(shown)), [group.title for group in shown])
    axis.tick_params(axis="x", length=0, labelcolor=INK)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel(height)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _finish(figure: Figure, shown: Sequence[Group], name: str, title: str, caption: str) -> Picture:
    """Set the heading and the last line, with the command."""
    commands = "; ".join(dict.fromkeys(group.runs[0].command for group in shown))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(f"deepsz reproduce figures   ·   {commands}", x=0.01, ha="left", fontsize=7,
                     color=FAINT)  # fmt: skip
    return Picture(name, title, caption, figure)


def _highest_loss(run: Run) -> float:
    """Give the largest loss worth showing, in percent."""
    return max(1.0, 300 * (run.max_loss or 0.002))


def _unbeaten(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other point beats in both ratio and loss."""
    return [
        one
        for one in points
        if not any(other[0] >= one[0] and other[1] < one[1] for other in points)
    ]


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = mean(values)
    return sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _encoded(group: Group) -> dict[str, Point]:
    """Give each technique's point that was timed as published; {} if one is missing."""
    run = group.runs[0]
    timed: dict[str, Point] = {}
    if run.deepsz().encode_seconds:
        timed["deepsz"] = run.deepsz()
    for technique in ("deep-compression", "weightless"):
        retrained = [point for point in run.of(technique) if point.retrained]
        if retrained:
            timed[technique] = retrained[0]
    return timed if len(timed) == 3 else {}
