"""What the commands share that measure a network: options, where tests run, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import click

from deepsz_caffe.cli.output import Function, description_column, print_above, progress_bars
from deepsz_caffe.cli.values import parse_names
from deepsz_caffe.codecs.profiles import PROFILES

if TYPE_CHECKING:
    from deepsz_caffe.api import Message, Progress
    from deepsz_caffe.network.layers import ExtraBlobs, Selection
    from deepsz_caffe.runtime.data import Data
    from deepsz_caffe.runtime.pictures import Pictures
    from deepsz_caffe.steps.assess.setup import Protocol
    from deepsz_caffe.steps.assess.tester import Biases, Search

Number = TypeVar("Number", int, float)

PATH = click.Path(path_type=Path)
#: what `--profile` takes
PROFILE_CHOICES = f"{', '.join(PROFILES)}, or codecs as `bench codecs` names them"


def numbers(
    kind: Callable[[str], Number],
) -> Callable[[object, object, str | None], tuple[Number, ...] | None]:
    def parse(context: object, parameter: object, text: str | None) -> tuple[Number, ...] | None:
        if text is None:
            return None
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a list such as 1,2,3") from error

    return parse


def selection(context: object, parameter: object, text: str | None) -> Selection | None:
    if text is None:
        return None
    from deepsz_caffe.network.layers import GROUPS

    return text if text in GROUPS else parse_names(text)


_WHERE = (
    click.option(
        "--workers",
        type=int,
        help="Caffe processes on this machine [1; of deep networks one a core].",
    ),
    click.option(
        "--gpu", "gpus", metavar="0,1", callback=numbers(int), help="GPUs, a worker each."
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="A Dask scheduler whose workers run the tests, or `mpi`.",
    ),
    click.option(
        "--features",
        metavar="DIR",
        type=PATH,
        help="Keep what enters the layers in this folder.",
    ),
    click.option(
        "--features-limit",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="Keep no more of it, and compute the rest again [16 GiB].",
    ),
)


def measure_options(command: Function) -> Function:
    """Add the options that say on what, where and with which codecs tests run."""
    for option in reversed(
        (
            click.option(
                "--protocol",
                type=click.Choice(["validation", "paper"]),
                default="validation",
                show_default=True,
                help="Choose on the prototxt's stage `validation`, or as the paper: on test data.",
            ),
            click.option(
                "--profile",
                default="balanced",
                show_default=True,
                help=f"Codecs: {PROFILE_CHOICES}.",
            ),
            click.option(
                "--search",
                type=click.Choice(["default", "paper", "divergence"]),
                default="default",
                show_default=True,
                help="Few tests, the paper's range, or divergences of outputs, for whole networks.",
            ),
            click.option(
                "--layers",
                metavar="fc|conv|all|A,B",
                callback=selection,
                help="fc layers, convolutions, all, or these [all; as the paper, and assess: fc].",
            ),
            click.option(
                "--data", metavar="SOURCE", help="LMDB, list or .npz in place of the TEST phase's."
            ),
            *_WHERE,
        )
    ):
        command = option(command)
    return command


class MeasureOptions(TypedDict):
    """What `measure_options` adds to a command."""

    protocol: Protocol
    profile: str
    search: Search
    layers: Selection | None
    data: str | None
    workers: int | None
    gpus: tuple[int, ...] | None
    scheduler: str | None
    features: Path | None
    features_limit: int | None


class CompressOptions(MeasureOptions):
    """The options of `compress` that say what is asked for and what is kept."""

    max_loss: float | None
    target_ratio: float | None
    agreement: float | None
    max_change: float | None
    outputs: tuple[str, ...]
    original: Path | None
    confidence: float | None
    biases: Biases
    journal: Path | None
    with_prototxt: Path | None
    extra_blobs: ExtraBlobs


class PassedOn(TypedDict):
    """The same as `deepsz_caffe.api` takes it."""

    protocol: Protocol
    profile: str
    search: Search
    layers: Selection | None
    data: Data
    workers: int | None
    gpus: tuple[int, ...]
    executor: Executor | None
    features: Path | None
    features_limit: int | None
    progress: Progress


@contextmanager
def passed_on(options: MeasureOptions, pictures: Pictures | None = None) -> Iterator[PassedOn]:
    """Reach the scheduler, if there is one, and show progress on standard error.

    Pictures take the place of ``--data``.
    """
    gpus = options["gpus"] or ()
    with ExitStack() as stack:
        executor = None
        workers = options["workers"]
        if options["scheduler"] is not None:
            from deepsz_caffe.runtime.cluster import cluster_executor

            executor = stack.enter_context(cluster_executor(options["scheduler"]))
        yield PassedOn(
            protocol=options["protocol"],
            profile=options["profile"],
            search=options["search"],
            layers=options["layers"],
            data=options["data"] if pictures is None else pictures,
            workers=workers if workers is None else max(workers, len(gpus)),
            gpus=gpus,
            executor=executor,
            features=options["features"],
            features_limit=options["features_limit"],
            progress=stack.enter_context(measure_progress()),
        )


@contextmanager
def measure_progress() -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn

    columns = (description_column(), BarColumn(), MofNCompleteColumn())
    with progress_bars(*columns, transient=True) as bars:
        tests = 0

        def show(message: Message) -> None:
            nonlocal tests
            bar = bars()
            if message[0] == "bytes":
                print_above(bar, f"features: {message[1]:,} bytes on disk")
            elif message[0] == "body":
                body = bar.task_ids[0] if bar.task_ids else bar.add_task("features, images")
                bar.update(body, completed=message[1], total=message[2])
            else:
                _, layer, point = message
                tests += 1
                loss = point.lost - point.gained
                print_above(
                    bar,
                    f"test {tests}: {layer} at {point.bound:g}: {point.bytes:,} bytes, loses "
                    f"{loss:,} of {point.images:,}" + (", stopped" if point.stopped else ""),
                )

        yield show
