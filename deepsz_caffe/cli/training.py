"""``deepsz train``, ``deepsz prune``: training and step 1 of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from deepsz_caffe.cli.measuring import selection
from deepsz_caffe.cli.output import (
    Function,
    description_column,
    json_option,
    print_json,
    print_table,
    progress_bars,
)
from deepsz_caffe.cli.values import parse_numbers
from deepsz_caffe.steps.prune import SCHEDULES

if TYPE_CHECKING:
    from deepsz_caffe.network.layers import Selection
    from deepsz_caffe.runtime.training import TrainingProgress
    from deepsz_caffe.steps.prune import Trained


class SolverOptions(TypedDict):
    """What `solver_options` adds to a command."""

    seed: int | None
    iterations: int | None
    lr: float | None
    resume: bool
    threads: int | None
    gpu: int | None


def solver_options(command: Function) -> Function:
    """Add the options that everything shares which runs the Caffe solver."""
    for option in (
        click.option("--seed", type=int, help="In place of the solver's random_seed."),
        click.option("--iterations", type=int, help="In place of the solver's max_iter."),
        click.option("--lr", type=float, help="In place of the solver's base_lr."),
        click.option(
            "--resume/--anew",
            default=True,
            show_default=True,
            help="Go on from the last snapshot of an interrupted run.",
        ),
        click.option("--threads", type=int, help="BLAS threads; default: all cores."),
        click.option("--gpu", type=int, help="Device number, for a Caffe with CUDA."),
    ):
        command = option(command)
    return command


freeze_option = click.option(
    "--freeze-body",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Train the fc layers alone, on features computed once and kept in DIR.",
)


@click.command()
@click.argument("solver", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Caffemodel to write.")
@click.option("--weights", type=click.Path(path_type=Path), help="Caffemodel to start from.")
@freeze_option
@solver_options
@json_option
def train(
    solver: Path,
    out: Path,
    weights: Path | None,
    freeze_body: Path | None,
    as_json: bool,
    **options: Unpack[SolverOptions],
) -> None:
    """Train a network with the Caffe solver.

    An interrupted run goes on from its last snapshot and gives the same bytes. When the solver
    tests on stage "validation", the best state there is written, otherwise the last. With
    --freeze-body, fc layers that are not in --weights start anew.

    \b
    Example:
      deepsz train prototxt/lenet_300_100/solver.prototxt --out dense.caffemodel
    """
    from deepsz_caffe.runtime.frozen import train_frozen
    from deepsz_caffe.runtime.solver import train as run

    if freeze_body is not None and weights is None:
        raise click.UsageError("--freeze-body needs --weights with the body's weights")
    with solver_progress("training") as (progress, body_progress):
        if freeze_body is None or weights is None:
            trained = run(solver, out, weights, progress=progress, **options)
        else:
            trained = train_frozen(
                solver,
                out,
                weights,
                freeze_body,
                progress=progress,
                body_progress=body_progress,
                **options,
            )
    if as_json:
        print_json({"out": str(out)} | asdict(trained))
    else:
        print_training(out, trained)


@click.command()
@click.argument("solver", type=click.Path(path_type=Path))
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="Trained network.")
@click.option(
    "--keep",
    required=True,
    metavar="LAYER=PART,...",
    help="Part of each layer's weights to keep, in (0, 1]; all=PART: of all layers together.",
)
@click.option(
    "--layers",
    metavar="fc|conv|all|A,B",
    default="all",
    show_default=True,
    callback=selection,
    help="What all=PART stands for: layers under one threshold.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Caffemodel to write.")
@click.option(
    "--schedule",
    type=click.Choice(list(SCHEDULES)),
    default="gradual",
    show_default=True,
    help="In steps through the first half of the retraining; at once; in rounds that begin with "
    "the given weights again; or with masks that may come back.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Learn the scores of these weights, too, such as --weights again.",
)
@click.option(
    "--noise",
    type=float,
    default=0.0,
    help="Train with noise of this part of the mean weight: larger error bounds hold.",
)
@click.option(
    "--bounds",
    metavar="LAYER=BOUND,...",
    help="End the retraining on the levels of these error bounds.",
)
@freeze_option
@solver_options
@json_option
def prune(
    solver: Path,
    weights: Path,
    keep: str,
    out: Path,
    layers: Selection,
    schedule: str,
    teacher: Path | None,
    noise: float,
    bounds: str | None,
    freeze_body: Path | None,
    as_json: bool,
    **options: Unpack[SolverOptions],
) -> None:
    """Do step 1: prune layers by magnitude and retrain what is left.

    What is pruned stays 0. Zeros of layers that are sparser than asked, or not named, stay zeros.
    With --iterations 0 there is no retraining.

    With --freeze-body the convolutions stay as they are and are computed once, which makes
    retraining of networks as large as AlexNet possible on a CPU.

    \b
    Example:
      deepsz prune prototxt/lenet_300_100/retrain.prototxt --weights dense.caffemodel \\
        --keep ip1=0.08,ip2=0.09,ip3=0.26 --out pruned.caffemodel
      deepsz prune prototxt/lenet_5/retrain.prototxt --weights dense.caffemodel \\
        --keep all=0.03 --teacher dense.caffemodel --out pruned.caffemodel
    """
    from deepsz_caffe.api import prune as run

    ratios = parse_numbers(keep, "LAYER=PART,LAYER=PART")
    levels = None if bounds is None else parse_numbers(bounds, "LAYER=BOUND,LAYER=BOUND")
    with solver_progress("retraining") as (progress, body_progress):
        pruned = run(
            solver,
            weights,
            ratios,
            out,
            layers=layers,
            schedule=SCHEDULES[schedule],
            teacher=teacher,
            noise=noise,
            bounds=levels,
            freeze_body=freeze_body,
            progress=progress,
            body_progress=body_progress,
            **options,
        )
    if as_json:
        print_json({"out": str(out)} | asdict(pruned))
        return
    print_table(
        ("layer", "shape", "non-zeros", "kept"),
        [
            (x.name, f"{x.shape[0]} × {x.shape[1]}", x.nonzeros, _percent(x.nonzeros, x.weights))
            for x in pruned.layers
        ],
    )
    print_training(out, pruned.training)


@contextmanager
def solver_progress(
    what: str,
) -> Iterator[tuple[Callable[[TrainingProgress], None], Callable[[int, int], None]]]:
    """Show a running solver on standard error: iteration, loss, learning rate, accuracy.

    Gives a function to be told of it, and one to be told of a frozen body: images done and in all.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        description_column(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with progress_bars(*columns) as bars:
        tasks: dict[str, TaskID] = {}

        def task(name: str) -> TaskID:
            if name not in tasks:
                tasks[name] = bars().add_task(name, figures="")
            return tasks[name]

        def show_body(done: int, images: int) -> None:
            bars().update(task("features"), completed=done, total=images)

        def show(now: TrainingProgress) -> None:
            figures = f"loss {now.loss:.4f} lr {now.lr:.2g}"
            if now.test_total:
                figures += f" top-1 {_percent(now.test_correct, now.test_total)}"
            bars().update(
                task(what), completed=now.iteration, total=now.iterations, figures=figures
            )

        yield show, show_body


def print_training(out: Path, trained: Trained) -> None:
    accuracy = _percent(trained.test_correct, trained.test_total)
    print_table(
        ("iterations", "written", "right", "of", "top-1", "seconds"),
        [
            (
                trained.iterations,
                trained.chosen,
                trained.test_correct,
                trained.test_total,
                accuracy,
                round(trained.seconds),
            )
        ],
        title=str(out),
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "–"
