"""``compress --auto``: pruning, training and compressing, put together to find the smallest file.

The search itself is `deepsz_caffe.steps.auto`; this gives it the other steps as `deepsz_caffe.api`
has them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from deepsz_caffe import codecs
from deepsz_caffe.api import Progress, compress, prune
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.files import atomic_write, check_folder, check_output, open_input
from deepsz_caffe.folders import exclusive
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import Selection
from deepsz_caffe.network.writer import write_bare
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.pool import check_workers
from deepsz_caffe.runtime.solver_setup import check_run
from deepsz_caffe.runtime.training import TrainingProgress
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.tester import Biases, check_biases
from deepsz_caffe.steps.auto import (
    NOISE,
    AutoResult,
    Tools,
    Tradeoff,
    Trial,
    best_of,
    key_of,
    search,
)
from deepsz_caffe.steps.compress import CompressResult, Target
from deepsz_caffe.steps.encode import read_deploy
from deepsz_caffe.steps.prune import ALL, Pruned, Trained
from deepsz_caffe.steps.tradeoff import write_tradeoff

Path_ = str | os.PathLike[str]


def compress_auto(
    network: Path_,
    weights: Path_,
    out: Path_,
    *,
    max_loss: float,
    seconds: float = 1800.0,
    folder: Path_ | None = None,
    layers: Selection = "all",
    profile: str = "small",
    confidence: float = 0.9,
    biases: Biases = "corrected",
    with_prototxt: Path_ | None = None,
    seed: int = 1,
    workers: int = 1,
    threads: int | None = None,
    told: Callable[[Tradeoff | Trial], None] | None = None,
    progress: Progress | None = None,
    training_progress: Callable[[TrainingProgress], None] | None = None,
) -> AutoResult:
    """Find the smallest file for a loss: densities and bounds of all layers together.

    Parameters
    ----------
    network
        A prototxt with the training data in its TRAIN phase, and stage ``validation`` in its TEST
        phase, on which everything is decided.
    weights
        The trained network, from which everything begins and which the loss counts against.
    out
        The file; it appears complete or not at all.
    max_loss
        Largest loss of top-1, a fraction, with the margin.
    seconds
        Time, over all parts of a run that was interrupted; the trial in hand ends.
    folder
        Keeps all that was tried, and lets an interrupted run go on [``OUT.auto``].
    layers, profile, confidence, biases, with_prototxt, workers, progress
        As in `compress`.
    seed, threads
        Of the trainings, as in `prune`.
    told, training_progress
        Called with each trial and point, and while a network is trained.

    Raises
    ------
    TargetError
        No network that was tried holds the loss: says which loss holds, and its file.
    InputError
        A number makes no sense, the network has no stage ``validation``, or `folder` is of another
        run.
    DeepSZError
        As `prune` and `compress`.
    """
    Target(max_loss, confidence=confidence, search="divergence")
    check_output(out, (network, weights, with_prototxt))
    place = Path(f"{out}.auto") if folder is None else Path(folder)
    _check_options(place, profile, biases, with_prototxt, seed, threads, workers)
    setup = read_setup(network, weights, layers=layers)
    if not setup.stages:
        raise InputError("has no stage `validation` to decide on", where=network)
    pruned = partial(
        prune,
        layers=layers,
        noise=NOISE,
        teacher=weights,
        threads=threads,
        progress=training_progress,
    )
    within = partial(
        compress,
        original=weights,
        confidence=confidence,
        biases=biases,
        search="divergence",
        with_prototxt=with_prototxt,
        on_test=False,
        profile=profile,
        layers=layers,
        workers=workers,
        progress=progress,
    )
    key = key_of(setup, max_loss, confidence, f"{profile}, biases {biases}", seed)
    with exclusive(out), exclusive(place):
        tools = _auto_tools(network, weights, pruned, within)
        points = search(network, place, tools, max_loss, seconds, key, seed=seed, told=told)
        write_tradeoff(place, points, max_loss)
        taken = best_of(points, max_loss)
        with open_input(place / taken.file) as made, atomic_write(out) as file:
            shutil.copyfileobj(made, file)
    with suppress(DataError):
        tested = evaluate(network, weights), evaluate(network, out)
        return AutoResult(Path(out), taken, points, *tested)
    return AutoResult(Path(out), taken, points, None, None)


def _check_options(
    folder: Path,
    profile: str,
    biases: Biases,
    with_prototxt: Path_ | None,
    seed: int,
    threads: int | None,
    workers: int,
) -> None:
    """Check what would be found wrong only after the first trial."""
    check_folder(folder)
    codecs.profile(profile)
    check_biases(biases, "divergence", profile)
    check_run(seed, threads)
    check_workers(workers)
    if with_prototxt is not None:
        read_deploy(with_prototxt)


def _auto_tools(
    network: Path_,
    weights: Path_,
    prune: Callable[..., Pruned],
    compress: Callable[..., CompressResult],
) -> Tools:
    def prune_at(trial: Trial, solver: Path, start: Path | None, made: Path) -> Trained:
        trained = made.with_name(f"{made.stem}.trained.caffemodel")
        pruned = prune(solver, start or weights, {ALL: trial.keep}, trained)
        write_bare(made, read_caffemodel(trained))
        trained.unlink()
        return pruned.training

    def compress_at(pruned: Path | None, made: Path, allowed: float) -> CompressResult:
        journal = made.with_suffix(".journal")
        return compress(network, pruned or weights, made, max_loss=allowed, journal=journal)

    return Tools(prune_at, compress_at)
