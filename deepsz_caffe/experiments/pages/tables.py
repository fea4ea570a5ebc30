"""The paper's tables from measured runs: ours beside the paper's, as Markdown and CSV.

A cell of a network measured with several seeds is mean ± standard deviation. Rows of generated
weights say so in their first cell and have no accuracy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import log, log10, prod
from statistics import mean, stdev

from deepsz_caffe.experiments.networks import NETWORKS, Network
from deepsz_caffe.experiments.results import Accuracy, Point, Run
from deepsz_caffe.text import printable

#: shown where there is no figure
NONE = "–"
#: technique -> how tables and figures call it
TITLES = {
    "deepsz": "DeepSZ",
    "deep-compression": "Deep Compression",
    "weightless": "Weightless",
    "weightless-all": "Weightless, every layer",
}
#: unit -> what a number in this unit is multiplied by, for means that are written as 0
_SCALES = {" %": 100.0, " KB": 1e-3, " MB": 1e-6}
#: figures that Deep Compression's authors publish for the whole network
_PUBLISHED_DEEP_COMPRESSION = {"lenet-300-100": 40, "lenet-5": 39, "alexnet": 35, "vgg-16": 49}


@dataclass(frozen=True)
class Table:
    """A table ready to be written; `command` is what makes its figures."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    command: str
    #: what times were measured on
    machine: str = ""

    @property
    def origin(self) -> str:
        """The command, and the machine where that is known."""
        return f"`{self.command}`" + (f" on {self.machine}" if self.machine else "")

    def markdown(self) -> str:
        """Write the table as Markdown with title, note and command."""
        lines = [f"### {self.title}", "", *_markdown_rows(self.columns, self.rows), ""]
        if self.note:
            lines += [self.note, ""]
        lines += [f"Made by {self.origin}.", ""]
        return "\n".join(lines)

    def csv(self) -> str:
        """Write the rows as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Group:
    """The runs of one network: several seeds, or one of generated weights."""

    network: Network
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """Name the network; generated weights and runs that were not made here are marked."""
        mark = " (generated weights)" if self.generated else ""
        return self.network.title + (" (as shipped)" if self.runs[0].shipped else mark)

    @property
    def generated(self) -> bool:
        """Whether there is no accuracy."""
        return self.runs[0].generated


def groups(runs: Iterable[Run]) -> tuple[Group, ...]:
    """Gather runs by network, in the paper's order; real and generated weights apart."""
    found = tuple(runs)
    gathered = []
    for network in NETWORKS.values():
        for generated in (False, True):
            own = tuple(
                run for run in found if run.network == network.id and run.generated == generated
            )
            if own:
                gathered.append(Group(network, own))
    return tuple(gathered)


def every_table(runs: Iterable[Run]) -> tuple[Table, ...]:
    """Make all tables."""
    found = groups(runs)
    tables = (
        statistics(found),
        main(found),
        comparable_ratio(found),
        comparable_loss(found),
        whole(found),
        layers(found),
        index_codecs(found),
        costs(found),
    )
    machines = dict.fromkeys(run.machine for group in found for run in group.runs if run.machine)
    machine = "; ".join(machines)
    return tuple(replace(table, machine=machine) for table in tables if table.rows)


def statistics(found: Sequence[Group]) -> Table:
    """Architectures: fc shapes, weights kept, sizes of the whole network."""
    rows = []
    ours = {group.network.id: group for group in found}
    for network in NETWORKS.values():
        group = ours.get(network.id)
        if group is None and network.paper is None:
            continue
        for shape in network.fc:
            kept = NONE
            if group is not None:
                layer = next(one for one in group.runs[0].layers if one.name == shape.name)
                kept = percent(layer.nonzeros / prod(layer.shape), 1)
            rows.append(
                (
                    network.title if group is None else group.title,
                    shape.name,
                    f"{shape.shape[0]} × {shape.shape[1]}",
                    size(shape.dense_bytes),
                    percent(shape.keep, 0),
                    kept,
                    size(4 * network.parameters),
                    percent(network.fc_dense_bytes / (4 * network.parameters), 1),
                )
            )
    return Table(
        "statistics",
        "fc layers of the four networks",
        ("network", "layer", "shape", "dense", "kept, paper", "kept, ours", "whole network",
         "fc share"),
        tuple(rows),
        "Kept, ours: non-zeros after decoding; a weight that is within the error bound of 0 may "
        "have become 0.",
        "deepsz reproduce tables",
    )  # fmt: skip


def main(found: Sequence[Group]) -> Table:
    """Accuracy and size before and after: the paper's main table."""
    rows = []
    for group in found:
        paper = group.network.paper
        runs = group.runs
        chosen = [run.deepsz() for run in runs]
        rows.append(
            (
                group.title,
                spread([_top1(run.dense) for run in runs], percent),
                spread([_top1(run.pruned) for run in runs], percent),
                spread([_top1(point.test) for point in chosen], percent),
                spread(_top5(group, [run.dense for run in runs]), percent),
                spread(_top5(group, [point.test for point in chosen]), percent),
                size(runs[0].fc_dense_bytes),
                spread([float(point.bytes) for point in chosen], size),
                spread([run.ratio(run.deepsz()) for run in runs], times),
                str(len(runs)),
            )
        )
        if paper is None:
            continue
        rows.append(
            (
                f"{group.network.title}, paper",
                percent(paper.top1_before),
                NONE,
                percent(paper.top1_after),
                NONE if paper.top5_before is None else percent(paper.top5_before),
                NONE if paper.top5_after is None else percent(paper.top5_after),
                size(paper.fc_bytes_before),
                size(paper.fc_bytes_after),
                times(paper.ratio),
                NONE,
            )
        )
    return Table(
        "main",
        "Accuracy and size before and after",
        ("network", "top-1 before", "top-1 pruned", "top-1 after", "top-5 before", "top-5 after",
         "fc before", "fc after", "ratio", "seeds"),
        tuple(rows),
        "Measured on the test set, chosen on the validation split unless the command says "
        "otherwise. fc after counts headers and checksums. KB = 1000 bytes. As shipped: measured "
        "where the network in models/ was made, see its card there.",
        _commands(found),
    )  # fmt: skip


def comparable_ratio(found: Sequence[Group]) -> Table:
    """Loss of top-1 by each technique at about DeepSZ's ratio, without retraining."""
    rows = []
    for group in _real(found):
        for technique in ("deepsz", "deep-compression", "weightless", "weightless-all"):
            picked = [(run, nearest_ratio(run, technique)) for run in group.runs]
            pairs = [(run, point) for run, point in picked if point is not None]
            if not pairs:
                continue
            paper = group.network.paper
            published = None if paper is None else paper.losses.get(technique)
            rows.append(
                (
                    group.title,
                    TITLES[technique],
                    _setting([point for _, point in pairs]),
                    spread([run.ratio(point) for run, point in pairs], times),
                    spread([_loss(run, point) for run, point in pairs], points_of_percent),
                    NONE if published is None else points_of_percent(published),
                )
            )
    return Table(
        "comparable_ratio",
        "Loss of top-1 at a comparable ratio, before any retraining",
        ("network", "technique", "setting", "ratio", "loss", "loss, paper"),
        tuple(rows),
        "Loss against the pruned network on the test set; negative is a gain. For the others the "
        "setting whose ratio is nearest to DeepSZ's, whatever its loss. Weightless compresses the "
        "largest layer only, as published; the others count in sparse form. The paper's loss of "
        "Weightless on VGG-16 is given as more than 3 %.",
        _commands(found),
    )


def comparable_loss(found: Sequence[Group]) -> Table:
    """Compression ratio of each technique at a loss that validation holds under the limit."""
    rows = []
    for group in _real(found):
        for technique in ("deepsz", "deep-compression", "weightless", "weightless-all"):
            picked = [best_within(run, technique) for run in group.runs]
            pairs = [(r, p) for r, p in zip(group.runs, picked, strict=True) if p is not None]
            if not any(run.of(technique) for run in group.runs):
                continue
            published = NONE
            if technique == "deepsz" and group.network.paper is not None:
                published = times(group.network.paper.ratio)
            elif technique == "deep-compression" and group.network.paper is not None:
                published = f"{_PUBLISHED_DEEP_COMPRESSION[group.network.id]}× *"
            rows.append(
                (
                    group.title,
                    TITLES[technique],
                    _setting([point for _, point in pairs]) if pairs else "none holds the limit",
                    spread([run.ratio(point) for run, point in pairs], times),
                    spread([_loss(run, point) for run, point in pairs], points_of_percent),
                    f"{len(pairs)} of {len(group.runs)}",
                    published,
                )
            )
    return Table(
        "comparable_loss",
        "Ratio at a comparable loss, before any retraining",
        ("network", "technique", "setting", "ratio", "loss on the test set", "seeds that meet it",
         "ratio, paper"),
        tuple(rows),
        "The smallest setting whose loss against the pruned network on the validation split is "
        "within the limit of the run; its loss is then measured on the test set. * published by "
        "Deep Compression's authors for the whole network, after retraining.",
        _commands(found),
    )  # fmt: skip


def whole(found: Sequence[Group]) -> Table:
    """Bytes and loss of whole networks by DeepSZ and Deep Compression."""
    rows = []
    for group in found:
        runs = [run for run in group.runs if run.whole]
        for technique in ("deepsz", "deep-compression"):
            for retrained in (False, True):
                pairs = [
                    (run, point)
                    for run in runs
                    for point in run.whole
                    if (point.technique, point.retrained) == (technique, retrained)
                ]
                if pairs:
                    rows.append(_whole_row(group, pairs))
    return Table(
        "whole",
        "Whole networks: every layer, biases and headers",
        ("network", "technique", "setting", "whole network", "file", "ratio",
         "loss on the test set", "ratio, published", "seeds"),
        tuple(rows),
        "Loss against the trained network; of pruned layers what they lost by that counts, too, "
        "and convolutions are not pruned. Deep Compression's authors prune and retrain all layers; "
        "here its biases stay float32.",
        _commands(found),
    )  # fmt: skip


def _whole_row(group: Group, pairs: Sequence[tuple[Run, Point]]) -> tuple[str, ...]:
    point = pairs[0][1]
    published = _PUBLISHED_DEEP_COMPRESSION.get(group.network.id)
    theirs = point.technique == "deep-compression" and published is not None
    losses = [run.dense.loss(one.test) if run.dense and one.test else None for run, one in pairs]
    return (
        group.title,
        TITLES[point.technique] + (", retrained" if point.retrained else ""),
        _setting([one for _, one in pairs]),
        size(pairs[0][0].network_bytes),
        spread([float(one.bytes) for _, one in pairs], size),
        spread([run.network_bytes / one.bytes for run, one in pairs], times),
        spread(losses, points_of_percent),
        f"{published}×" if theirs else NONE,
        str(len(pairs)),
    )


def layers(found: Sequence[Group]) -> Table:
    """Bounds, densities and bytes of every layer of the file."""
    rows = []
    for group in found:
        run = group.runs[0]
        for layer in run.layers:
            dense = 4 * prod(layer.shape)
            rows.append(
                (
                    group.title,
                    layer.name,
                    f"{layer.shape[0]} × {layer.shape[1]}",
                    percent(layer.nonzeros / prod(layer.shape), 2),
                    f"{layer.error_bound:.4g}",
                    f"{layer.data_codec} {layer.data_bytes:,}",
                    f"{layer.index_codec} {layer.index_bytes:,}" if layer.index_codec else NONE,
                    f"{layer.bytes:,}",
                    times(dense / layer.bytes),
                )
            )
    return Table(
        "layers",
        "Layers as compressed",
        ("network", "layer", "shape", "density", "error bound", "data, bytes", "index, bytes",
         "bytes", "ratio"),
        tuple(rows),
        "The first seed of each network. Bytes count the layer's header entry and checksums.",
        _commands(found),
    )  # fmt: skip


def index_codecs(found: Sequence[Group]) -> Table:
    """Compression ratio of index arrays by lossless codec."""
    rows = []
    names = list(dict.fromkeys(size.codec for group in found for size in group.runs[0].index))
    for group in found:
        sizes = group.runs[0].index
        for layer in dict.fromkeys(entry.layer for entry in sizes):
            own = {entry.codec: entry for entry in sizes if entry.layer == layer}
            raw = next(iter(own.values())).raw_bytes
            cells = [f"{raw / own[name].bytes:.3f}×" if name in own else NONE for name in names]
            rows.append((group.title, layer, f"{raw:,}", *cells))
    return Table(
        "index_codecs",
        "Lossless codecs on the index arrays: ratio",
        ("network", "layer", "raw bytes", *names),
        tuple(rows),
        "Against one byte an entry. The paper shows AlexNet's and VGG-16's ratios in a figure "
        "without numbers; Zstandard is its best there.",
        _commands(found),
    )


def costs(found: Sequence[Group]) -> Table:
    """Time and peak memory of the commands on networks of full size."""
    rows = [
        (group.title, cost.command, f"{cost.seconds:.1f} s", size(cost.peak_bytes))
        for group in found
        for cost in group.runs[0].costs
    ]
    return Table(
        "costs",
        "Time and memory, command by command",
        ("network", "command", "time", "peak memory"),
        tuple(rows),
        "Each command is a process of its own, interpreter start included; memory is its largest "
        "resident set, mapped files included.",
        _commands(found),
    )


def nearest_ratio(run: Run, technique: str) -> Point | None:
    """Pick the technique's setting whose ratio is nearest to the file's, without retraining."""
    if technique == "deepsz":
        return run.deepsz()
    target = log(run.ratio(run.deepsz()))
    own = [point for point in run.of(technique) if not point.retrained]
    return min(own, key=lambda point: abs(log(run.ratio(point)) - target), default=None)


def best_within(run: Run, technique: str) -> Point | None:
    """Pick the technique's smallest setting whose validation loss is within the run's limit."""
    assert run.pruned_validation is not None
    assert run.max_loss is not None
    own = [
        point
        for point in run.of(technique)
        if not point.retrained
        and point.validation is not None
        and run.pruned_validation.loss(point.validation) <= run.max_loss
    ]
    return min(own, key=lambda point: point.bytes, default=None)


def spread(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    """Write mean ± standard deviation; `write` gives one number and its unit."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    if len(known) == 1:
        return write(known[0])
    middle = write(mean(known))
    number = middle.rstrip(" %×KMB")
    unit = middle[len(number) :]
    # The deviation in the unit and with the digits of the mean.
    shown = float(number.replace("−", "-"))
    scale = 10.0 ** round(log10(shown / mean(known))) if shown else _SCALES.get(unit, 1.0)
    digits = len(number.partition(".")[2])
    return f"{number} ± {scale * stdev(known):.{digits}f}{unit}"


def percent(fraction: float, digits: int = 2) -> str:
    """Write a fraction as percent."""
    return f"{100 * fraction:.{digits}f} %"


def points_of_percent(fraction: float) -> str:
    """Write a difference of two accuracies, with a true minus."""
    return f"{100 * fraction:.2f} %".replace("-0.00", "0.00").replace("-", "−")


def times(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.1f}×"


def size(count: float) -> str:
    """Write bytes, KB or MB of 1000."""
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} KB"


def _top1(accuracy: Accuracy | None) -> float | None:
    return None if accuracy is None else accuracy.top1 / accuracy.total


def _top5(group: Group, accuracies: Iterable[Accuracy | None]) -> list[float | None]:
    # Top-5 of ten classes says nothing, and the paper leaves it out.
    if group.network.data_set != "imagenet":
        return []
    return [None if one is None else one.top5 / one.total for one in accuracies]


def _loss(run: Run, point: Point) -> float | None:
    if run.pruned is None or point.test is None:
        return None
    return run.pruned.loss(point.test)


def _setting(points: Sequence[Point]) -> str:
    settings = list(dict.fromkeys(point.setting for point in points))
    return settings[0] if len(settings) == 1 else "by seed: " + "; ".join(settings)


def _real(found: Sequence[Group]) -> list[Group]:
    return [group for group in found if not group.generated]


def _commands(found: Sequence[Group]) -> str:
    return "; ".join(dict.fromkeys(run.command for group in found for run in group.runs))


def _markdown_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(map(_markdown_cell, row)) + " |" for row in rows),
    ]


def _markdown_cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
