"""``deepsz reproduce``: the paper's networks, tables and figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from deepsz_caffe.cli.output import (
    description_column,
    json_option,
    print_above,
    print_json,
    print_line,
    print_table,
    progress_bars,
)
from deepsz_caffe.experiments.datasets import DATA_SETS
from deepsz_caffe.experiments.networks import NETWORKS

if TYPE_CHECKING:
    from deepsz_caffe.experiments.folder import Progress
    from deepsz_caffe.experiments.results import Run

_PAGES = ("tables", "figures")


@click.command()
@click.argument("what", type=click.Choice([*NETWORKS, *_PAGES]))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of all results; a run that is there is reused.",
)
@click.option(
    "--from-models", is_flag=True, help="LeNets: start from the trained network in models/."
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="LeNets: train with seeds 1 to N, for mean and spread.  [default: 1]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="AlexNet, AlexNet/CIFAR-10, VGG-16: the trained caffemodel.",
)
@click.option(
    "--pruned",
    type=click.Path(path_type=Path),
    help="A pruned caffemodel; otherwise the network is pruned here.",
)
@click.option(
    "--freeze-body",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Prune with only the fc layers retrained, on features computed once and kept in DIR.",
)
@click.option("--data", help="AlexNet, VGG-16: the validation LMDB.")
@click.option(
    "--generated",
    is_flag=True,
    help="AlexNet, VGG-16: sizes, times and memory with generated weights.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.002,
    show_default=True,
    help="Loss of top-1 against the unpruned network, a fraction.",
)
@click.option(
    "--protocol",
    type=click.Choice(["validation", "paper"]),
    default="validation",
    show_default=True,
    help="Choose bounds on the validation split, or as the paper on the test set.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Over 0.5: keep a statistical margin, so that other images lose no more, either.",
)
@click.option(
    "--retrain", is_flag=True, help="Also measure both baselines after retraining (first seed)."
)
@click.option(
    "--deepsz-only", is_flag=True, help="Leave out the baselines: minutes saved, or hours."
)
@click.option(
    "--whole",
    is_flag=True,
    help="Also compress whole networks, convolutions and all: minutes for LeNet-5.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Caffe processes for the tests of one network.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Seeds at a time, each on its share of the cores.",
)
@json_option
def reproduce(
    what: str,
    out: Path,
    from_models: bool,
    seeds: int | None,
    weights: Path | None,
    pruned: Path | None,
    freeze_body: Path | None,
    data: str | None,
    generated: bool,
    max_loss: float,
    protocol: str,
    confidence: float,
    retrain: bool,
    deepsz_only: bool,
    whole: bool,
    workers: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Reproduce one of the paper's networks, or make its pages.

    `tables` and `figures` show what was reproduced.

    \b
    Examples:
      deepsz reproduce lenet-300-100 --from-models
      deepsz reproduce lenet-5 --seeds 5 --retrain --jobs 2
      deepsz reproduce alexnet --weights bvlc_alexnet.caffemodel --data ilsvrc12_val_lmdb
      deepsz reproduce vgg-16 --generated
      deepsz reproduce tables
    """
    if what in _PAGES:
        _write_pages(what, out, as_json)
        return
    entry = NETWORKS[what]
    if generated:
        from deepsz_caffe.experiments.full_size.measure import measure_generated

        folder = out / f"{what}-generated"
        with lanes() as lane:
            runs = [measure_generated(entry, folder, lane(folder.name))]
        report_runs(runs, [folder], as_json)
        return

    from deepsz_caffe.experiments.plan import Protocol, plan
    from deepsz_caffe.experiments.reproduce import reproduce_all

    tasks = plan(
        entry,
        out,
        from_models=from_models,
        seeds=seeds,
        weights=weights,
        pruned=pruned,
        freeze_body=freeze_body,
        data=data,
        max_loss=max_loss,
        protocol=cast(Protocol, protocol),
        confidence=confidence,
        retrain=retrain,
        baselines=not deepsz_only,
        whole=whole,
        workers=workers,
    )
    with lanes() as lane:
        runs = reproduce_all(tasks, lane, jobs)
    report_runs(runs, [task.out for task in tasks], as_json)


def _write_pages(what: str, out: Path, as_json: bool) -> None:
    """Make the tables or figures of all runs in a folder, and the page of both."""
    from deepsz_caffe.experiments import reproduce as experiment
    from deepsz_caffe.experiments.pages import page

    runs = experiment.with_shipped(experiment.runs_in(out))
    write = page.write_tables if what == "tables" else page.write_figures
    written = [*write(runs, out / what), out / "index.html"]
    page.write_page(runs, written[-1])
    _report_files(written, as_json)


def report_runs(runs: list[Run], folders: list[Path], as_json: bool) -> None:
    """Print the rows of networks beside the paper's, and what to do with the files."""
    from deepsz_caffe.experiments.pages import tables

    if as_json:
        print_json([asdict(run) for run in runs])
        return
    for group in tables.groups(runs):
        # The paper's row is long: ours and the paper's stand side by side instead.
        main = tables.main([group])
        print_table(
            # AlexNet/CIFAR-10 is not the paper's.
            ("", "ours", "paper")[: 1 + len(main.rows)],
            list(zip(main.columns, *main.rows, strict=True))[1:],
            f"{group.title} ({DATA_SETS[group.network.data_set].title})",
        )
        details = (
            [tables.costs([group])]
            if group.generated
            else [tables.comparable_ratio([group]), tables.comparable_loss([group])]
        )
        if any(run.whole for run in group.runs):
            details.append(tables.whole([group]))
        for table in details:
            print_table(table.columns[1:], [row[1:] for row in table.rows], table.title)
        for table in (main, *details):
            print_line(table.note)
    first = folders[0]
    print_line()
    print_line(f"The files are in {', '.join(map(str, folders))}. Next, for example:")
    print_line(f"  deepsz inspect {first / 'paper.dsz'}")
    print_line(f"  deepsz expand {first / 'paper.dsz'} expanded.caffemodel")
    print_line(f"  deepsz reproduce tables --out {first.parent}")
    print_line(f"  deepsz reproduce figures --out {first.parent}")


def _report_files(written: list[Path], as_json: bool) -> None:
    if as_json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            print_line(path)


@contextmanager
def lanes() -> Iterator[Callable[[str], Progress]]:
    """Show on standard error what is being done, and leave a line of each step that is done.

    Gives a function that opens a lane: a bar of its own, for steps that follow each other.
    """
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        description_column(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with progress_bars(*columns, transient=True) as shown:
        present: dict[str, tuple[str, TaskID, float]] = {}

        def finish(name: str) -> None:
            if name in present:
                text, bar, began = present.pop(name)
                shown().remove_task(bar)
                say(f"✓ {name}: {text} ({time.monotonic() - began:.1f} s)")

        def say(line: str) -> None:
            print_above(shown(), line)

        def show(name: str, text: str, fraction: float | None) -> None:
            if name not in present or present[name][0] != text:
                finish(name)
                if not shown().console.is_terminal:
                    # Without a terminal there are no bars: say what takes so long.
                    say(f"{name}: {text} …")
                bar = shown().add_task(f"{name}: {text}", total=None)
                present[name] = (text, bar, time.monotonic())
            if fraction is not None:
                shown().update(present[name][1], total=1, completed=fraction)

        yield lambda name: partial(show, name)
        for name in list(present):
            finish(name)
