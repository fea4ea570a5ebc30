"""``deepsz compress --auto``: the smallest network for a loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsz_caffe.cli.measuring import CompressOptions, measure_progress
from deepsz_caffe.cli.output import Function, print_json, print_line, print_table
from deepsz_caffe.cli.pictures import PictureOptions
from deepsz_caffe.cli.training import solver_progress
from deepsz_caffe.errors import InputError

if TYPE_CHECKING:
    from deepsz_caffe.steps.auto import AutoResult, Tradeoff, Trial

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _seconds(context: object, parameter: object, text: str) -> float:
    """Read a time such as 30m."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is no time such as 90s, 30m or 2h")
    return float(match[1]) * _UNITS[match[2]]


class AutoOptions(CompressOptions):
    """The options of `compress` with those of `auto_options`."""

    auto: bool
    seconds: float
    run_folder: Path | None
    seed: int
    threads: int | None


_OPTIONS = (
    click.option(
        "--auto", is_flag=True, help="Prune and train, too: find the smallest file for --max-loss."
    ),
    click.option(
        "--time",
        "seconds",
        metavar="30m",
        default="30m",
        show_default=True,
        callback=_seconds,
        help="With --auto: time to prune, train and compress.",
    ),
    click.option(
        "--run",
        "run_folder",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="With --auto: keep all that was tried here [OUT.dsz.auto].",
    ),
    click.option(
        "--seed", type=int, default=1, show_default=True, help="With --auto: of the trainings."
    ),
    click.option("--threads", type=int, help="With --auto: BLAS threads of the trainings."),
)


def auto_options(command: Function) -> Function:
    """Add the options of ``--auto``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_auto(
    relative_bound: float | None, pictures: PictureOptions, options: AutoOptions
) -> None:
    """Check that nothing is given that means nothing with ``--auto``.

    Raises
    ------
    InputError
        Something is, or no loss is given.
    """
    for name, given in (
        ("--relative-bound", relative_bound),
        ("--images", pictures.images),
        ("--target-ratio", options["target_ratio"]),
        ("--agreement", options["agreement"]),
        ("--max-change", options["max_change"]),
        ("--outputs", options["outputs"] or None),
        ("--original", options["original"]),
        ("--journal", options["journal"]),
        ("--data", options["data"]),
        ("--scheduler", options["scheduler"]),
        ("--features", options["features"]),
        ("--features-limit", options["features_limit"]),
        ("--gpu", options["gpus"] or None),
        ("--protocol paper", options["protocol"] == "paper" or None),
        ("--search", _given("search") or None),
        ("--extra-blobs", _given("extra_blobs") or None),
    ):
        if given is not None:
            raise InputError(f"{name} and --auto don't go together")
    if options["max_loss"] is None:
        raise InputError("--auto needs --max-loss")


def check_no_auto() -> None:
    """Check that no option is given that means something with ``--auto`` alone.

    Raises
    ------
    InputError
        One is.
    """
    for name, option in (
        ("seconds", "time"),
        ("run_folder", "run"),
        ("seed",) * 2,
        ("threads",) * 2,
    ):
        if _given(name):
            raise InputError(f"--{option} goes with --auto alone")


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def smallest(
    network: Path,
    weights: Path,
    out: Path,
    options: AutoOptions,
    as_json: bool,
) -> None:
    """Run ``--auto`` and print what it found."""
    from deepsz_caffe.auto import compress_auto

    assert options["max_loss"] is not None  # see `check_auto`
    with solver_progress("training") as (training_progress, _), measure_progress() as progress:
        result = compress_auto(
            network,
            weights,
            out,
            max_loss=options["max_loss"],
            seconds=options["seconds"],
            folder=options["run_folder"],
            layers=options["layers"] or "all",
            profile=options["profile"] if _given("profile") else "small",
            confidence=0.9 if options["confidence"] is None else options["confidence"],
            biases=options["biases"] if _given("biases") else "corrected",
            with_prototxt=options["with_prototxt"],
            seed=options["seed"],
            threads=options["threads"],
            workers=1 if options["workers"] is None else options["workers"],
            told=_tell,
            progress=progress,
            training_progress=training_progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        _show(result, options["run_folder"] or Path(f"{out}.auto"))


def _tell(what: Tradeoff | Trial) -> None:
    from deepsz_caffe.steps.auto import Tradeoff

    kept = f"{what.keep:.3%} of the weights"
    if isinstance(what, Tradeoff):
        lost = f"{what.lost:,} of {what.total:,} images lost"
        held = f"holds a loss of {what.allowed:g}"
        print_line(f"{kept}: {what.bytes:,} bytes, {what.ratio:.1f}×, {lost}, {held}", err=True)
    else:
        print_line(f"{kept}: training, {what.iterations:,} iterations", err=True)


def _show(result: AutoResult, folder: Path) -> None:
    from deepsz_caffe.steps.tradeoff import by_size

    rows = [
        (
            f"{point.keep:.3%}",
            point.nonzeros,
            point.bytes,
            f"{point.ratio:.1f}×",
            point.lost,
            f"{point.allowed:g}",
            point.file + (" ←" if point == result.taken else ""),
        )
        for point in by_size(result.points)
    ]
    columns = (
        "kept",
        "non-zeros",
        "file, bytes",
        "ratio",
        "images lost",
        "loss that holds",
        "file",
    )
    total = result.taken.total
    print_table(columns, rows, f"the trade-off on {total:,} validation images, in {folder}")
    if result.before is not None and result.after is not None:
        before, after = result.before.top1_correct, result.after.top1_correct
        print_line(
            f"top-1 on the test data, which decided nothing: {before:,} → {after:,} of "
            f"{result.after.total:,} images, loss {(before - after) / result.after.total:.2%}"
        )
    taken = result.taken
    print_line(
        f"these layers: {taken.layer_dense_bytes:,} → {taken.layer_bytes:,} bytes, "
        f"{taken.layer_dense_bytes / taken.layer_bytes:.1f}×; whole file: {taken.dense_bytes:,} "
        f"bytes in {taken.bytes:,}, {taken.ratio:.1f}×"
    )
