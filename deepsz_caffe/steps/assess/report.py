"""A picture to judge an assessment by: a PNG, and one HTML page that needs nothing else.

For each layer: loss of top-1 and bytes against the error bound, with the chosen point, and the
95 % interval of a measurement on that many images; and where the bytes go.
"""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from deepsz_caffe.errors import needs_extra
from deepsz_caffe.files import atomic_write, make_folder
from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment
from deepsz_caffe.steps.assess.significance import margin
from deepsz_caffe.steps.optimize import Plan, optimize
from deepsz_caffe.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Locator

# One-sided confidence whose margin is half of a two-sided 95 % interval.
_SIDE = 0.975
# Characters of a name in the picture.
_LONGEST_NAME = 32
_LOSS, _BYTES, _CHOSEN = "#1f6f8b", "#c05c2e", "#111111"


def write_report(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    max_loss: float | None = None,
    target_ratio: float | None = None,
) -> list[Path]:
    """Write ``NAME.png`` and ``NAME.html`` for an assessment ``NAME.json``.

    Parameters
    ----------
    path
        The assessment.
    out
        Folder, created where it is missing; default: the assessment's.
    max_loss, target_ratio
        What the marked points are chosen for; default: the assessment's own loss.

    Returns
    -------
    list of Path
        The two files.

    Raises
    ------
    InputError, TargetError
        The assessment can't be read, or the target not be met.
    DeepSZError
        matplotlib is not installed, or a file can't be written.
    """
    assessment = Assessment.load(path)
    if max_loss is None and target_ratio is None:
        max_loss = assessment.max_loss
    plan = optimize(assessment, max_loss=max_loss, target_ratio=target_ratio)
    picture = draw(assessment, plan)
    folder = make_folder(Path(path).parent if out is None else out)
    stem = Path(path).stem
    files = [folder / f"{stem}.png", folder / f"{stem}.html"]
    for file, content in zip(files, (picture, _page(assessment, plan, picture)), strict=True):
        with atomic_write(file) as target:
            target.write(content)
    return files


def draw(assessment: Assessment, plan: Plan) -> bytes:
    """Draw an assessment and a choice as a PNG."""
    with needs_extra("plots"):
        import matplotlib as mpl
    # A layer's name may have dollar signs, and is no formula.
    with mpl.rc_context({"text.parse_math": False}):
        return _drawn(assessment, plan)


def _drawn(assessment: Assessment, plan: Plan) -> bytes:
    from matplotlib.figure import Figure

    layers = assessment.layers
    figure = Figure(figsize=(4.2 * len(layers) + 3.4, 4.4), layout="constrained")
    panels = figure.subplots(
        1, len(layers) + 1, width_ratios=[4.2] * len(layers) + [3.0], squeeze=False
    )[0]
    for panel, layer in zip(panels, layers, strict=False):
        _draw_layer(panel, assessment, layer, plan.bounds[layer.name])
    _draw_bytes(panels[-1], assessment, plan)
    figure.suptitle(
        f"{_short(Path(assessment.weights).name)}: loss of top-1 on {assessment.total:,} images "
        f"({assessment.protocol} protocol) and bytes, by error bound"
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _draw_layer(panel: Axes, assessment: Assessment, layer: LayerAssessment, chosen: float) -> None:
    whole = [point for point in layer.points if not point.stopped]
    losses = [(point.lost - point.gained) / point.images for point in whole]
    bars = [margin(point.lost, point.gained, point.images, _SIDE) for point in whole]
    # What decides happens near the limit; a network that knows nothing any more is off the scale.
    known = zip(whole, losses, bars, strict=True)
    near = [loss + bar for point, loss, bar in known if point.bound <= chosen]
    top = 1.1 * max(3 * assessment.max_loss, *near, 1e-4)
    shown = [loss <= top for loss in losses]
    drawn = [[x for x, on in zip(each, shown, strict=True) if on] for each in (losses, bars)]
    bounds = [point.bound for point, on in zip(whole, shown, strict=True) if on]
    panel.errorbar(
        bounds, drawn[0], drawn[1], marker="o", markersize=4, capsize=2, color=_LOSS, linewidth=1.2
    )
    panel.set_xscale("log")
    # A margin of its own: of a single point there would be none.
    tried = [point.bound for point in layer.points]
    panel.set_xlim(min(tried) / 1.3, max(tried) * 1.3)
    low = min([0.0, *(loss - bar for loss, bar in zip(*drawn, strict=True))])
    panel.set_ylim(low - 0.05 * (top - low), top)
    _plain_ticks(panel.xaxis, decades=max(tried) > 20 * min(tried))
    panel.set_title(f"{_short(layer.name)}  {layer.shape[0]} × {layer.shape[1]}", fontsize=10)
    panel.set_xlabel(f"error bound (chosen: {chosen:g})")
    panel.set_ylabel("loss of top-1, 95 % interval", color=_LOSS)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.2%}")
    panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    panel.axhline(assessment.max_loss, color=_LOSS, linestyle="--", linewidth=0.8, zorder=0)
    above = [point.bound for point, on in zip(whole, shown, strict=True) if not on]
    cut = [point.bound for point in layer.points if point.stopped]
    for off_scale, marker in ((above, "^"), (cut, "x")):
        at_top = [top] * len(off_scale)
        panel.plot(
            off_scale,
            at_top,
            marker=marker,
            linestyle="",
            color=_LOSS,
            clip_on=False,
            in_layout=False,
        )
    picked = [(x, y) for x, y in zip(bounds, drawn[0], strict=True) if x == chosen]
    panel.plot(*zip(*picked, strict=True), marker="o", markersize=8, color=_CHOSEN)
    panel.axvline(chosen, color=_CHOSEN, linestyle=":", linewidth=1)
    sizes = panel.twinx()
    points = sorted(layer.points)
    sizes.plot(
        [point.bound for point in points],
        [point.bytes for point in points],
        color=_BYTES,
        marker="s",
        markersize=3,
        linewidth=1,
    )
    sizes.set_ylim(0, 1.1 * max(1, *(point.bytes for point in points)))
    sizes.set_ylabel("bytes", color=_BYTES)
    sizes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _draw_bytes(panel: Axes, assessment: Assessment, plan: Plan) -> None:
    names = [_short(layer.name) for layer in assessment.layers]
    sizes = [_chosen_bytes(layer, plan) for layer in assessment.layers]
    bars = panel.barh(names, sizes, color=_BYTES)
    total = sum(sizes)
    panel.bar_label(bars, [f"{size / max(1, total):.0%}" for size in sizes], padding=3)
    panel.set_xlim(0, 1.3 * max(1, *sizes))
    panel.invert_yaxis()
    panel.xaxis.set_major_locator(_few_ticks())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_title(f"where {total:,} bytes go", fontsize=10)


def _short(name: str) -> str:
    """Give a name as it is shown in a picture, where a long one would leave no room."""
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _plain_ticks(axis: Axis, *, decades: bool) -> None:
    """Label a logarithmic axis of error bounds with plain numbers, as they are typed."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _few_ticks() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3)


def _chosen_bytes(layer: LayerAssessment, plan: Plan) -> int:
    return next(p.bytes for p in layer.points if p.bound == plan.bounds[layer.name])


def _page(assessment: Assessment, plan: Plan, picture: bytes) -> bytes:
    image = base64.b64encode(picture).decode()
    rows = []
    for layer in assessment.layers:
        for point in layer.points:
            chosen = point.bound == plan.bounds[layer.name]
            width = margin(point.lost, point.gained, point.images, _SIDE)
            loss = (point.lost - point.gained) / point.images
            cells = (
                layer.name,
                f"{point.bound:g}",
                f"{point.bytes:,}",
                f"{point.images:,}" + (" (stopped)" if point.stopped else ""),
                f"{point.lost:,}",
                f"{point.gained:,}",
                f"{loss:.2%} ± {width:.2%}",
                "chosen" if chosen else "",
            )
            mark = ' class="chosen"' if chosen else ""
            rows.append(
                f"<tr{mark}>{''.join(f'<td>{html.escape(printable(c))}</td>' for c in cells)}</tr>"
            )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("layer", "error bound", "bytes", "images", "lost", "gained", "loss", "")
    )
    title = html.escape(printable(f"Assessment of {Path(assessment.weights).name}"))
    data = "the validation split" if assessment.stages else "the test data"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222 }}
img {{ max-width: 100% }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4 }}
td:first-child, th:first-child {{ text-align: left }}
.chosen {{ background: #fbf0e8; font-weight: 600 }}
</style></head><body>
<h1>{title}</h1>
<p>Measured on {data}: {assessment.total:,} images, {assessment.top1_correct:,} of them right
(top-1) before compression. Codecs: profile {html.escape(assessment.profile)}.
Search: {html.escape(assessment.search)}, {assessment.tests} tests.</p>
<p>Chosen: {plan.dense_bytes:,} → {plan.bytes:,} bytes ({plan.ratio:.1f}×) at an expected loss of
{plan.loss:,} images ({plan.loss / plan.total:.2%}): the sum over the layers, each measured alone.
</p>
<img alt="Loss of accuracy and bytes against the error bound of each layer"
 src="data:image/png;base64,{image}">
<p>Bars: what another sample of {assessment.total:,} images could have given, with 95 % probability.
It comes from the images on which the two networks differ (lost, gained), not from the accuracy.
The dashed line is the limit of {assessment.max_loss:.2%} for the whole network; the large dot is
the chosen bound. A triangle at the top marks a loss far over the limit, a cross a test that was
stopped because its loss was certainly too large.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>
</body></html>
"""
    return page.encode()
