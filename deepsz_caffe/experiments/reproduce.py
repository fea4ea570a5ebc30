"""One network from training to its row in the paper's tables; every step kept in a folder.

The order is the paper's: train, prune and retrain, assess, optimize, encode; then decode and
evaluate what was written, and both baselines on the same pruned weights through the same evaluator.
Each step leaves a file in the folder and is skipped when it is there and was made from the same
input, so an interrupted run goes on, and a second one only prints.

What is chosen (bounds, settings) is chosen on the validation split where the network has one, and
what is reported is measured on the test set. With ``protocol="paper"`` both are the test set.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepsz_caffe.errors import DataError
from deepsz_caffe.experiments import measure, results, whole
from deepsz_caffe.experiments.folder import Folder, Progress, digest, key_of
from deepsz_caffe.experiments.networks import ROOT, Network
from deepsz_caffe.experiments.plan import Task
from deepsz_caffe.experiments.results import Point, Run

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from deepsz_caffe.api import Message
    from deepsz_caffe.network.layers import Selection
    from deepsz_caffe.runtime.training import TrainingProgress
    from deepsz_caffe.steps.assess.tester import Biases, Search

    #: what a job says: its name, what is being done, and how far it is; None ends the listener
    Messages = Queue[tuple[str, str, float | None] | None]

#: name of the file in a run's folder that holds its measurements
RUN = "run.json"
#: name of the compressed whole network there, without ``.dsz``
WHOLE = "whole"


def reproduce(task: Task, progress: Progress) -> Run:
    """Do everything that is not in the folder yet.

    Raises
    ------
    DataError
        A data set is missing; says how to get it.
    TargetError
        No configuration holds the limit of loss.
    DeepSZError
        As the steps: `train`, `prune`, `compress`.
    """
    folder = Folder(task.out)
    dense = _dense(task, folder, progress)
    pruned = pruned_of(task, dense, folder, progress)
    seconds = {
        profile: _compressed(task, dense, pruned, profile, folder, progress)
        for profile in measure.PROFILES
    }
    if task.whole:
        seconds[WHOLE] = _compressed_whole(task, dense, pruned, folder, progress)
    with ExitStack() as stack:
        run = _measured(task, dense, seconds, measure.Bench(task, pruned, folder, stack, progress))
    results.save(run, task.out / RUN)
    # Only steps that are done now need them, and they are large.
    shutil.rmtree(folder.path / "features", ignore_errors=True)
    return run


def reproduce_all(
    tasks: Sequence[Task], lane: Callable[[str], Progress], jobs: int = 1
) -> list[Run]:
    """Reproduce several tasks, `jobs` at a time, each of those on its share of the cores.

    Parameters
    ----------
    tasks
        With folders of their own.
    lane
        Gives each task its progress by the task's name.
    jobs
        With more than one, each is a process of its own, to which some cores are given for good:
        networks as small as LeNets train faster so than with all cores each.

    Raises
    ------
    DeepSZError
        As `reproduce`; the others are ended.
    """
    jobs = min(jobs, len(tasks), len(os.sched_getaffinity(0)))
    if jobs <= 1:
        return [reproduce(task, lane(task.out.name)) for task in tasks]
    context = multiprocessing.get_context("spawn")
    messages: Messages = context.Queue()
    shares: Queue[list[int]] = context.Queue()
    cores = sorted(os.sched_getaffinity(0))
    for number in range(jobs):
        shares.put(cores[number::jobs])
    lanes = {task.out.name: lane(task.out.name) for task in tasks}
    listener = threading.Thread(target=_listen, args=(messages, lanes), daemon=True)
    listener.start()
    executor = ProcessPoolExecutor(jobs, context, _begin_job, (messages, shares))
    try:
        return list(executor.map(_reproduce_job, tasks))
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        messages.put(None)
        listener.join()


def _listen(messages: Messages, lanes: dict[str, Progress]) -> None:
    while (message := messages.get()) is not None:
        name, text, fraction = message
        lanes[name](text, fraction)


_messages: Messages


def _begin_job(messages: Messages, shares: Queue[list[int]]) -> None:
    global _messages
    _messages = messages
    # Caffe's processes count these cores and are bound to them, too.
    os.sched_setaffinity(0, shares.get())


def _reproduce_job(task: Task) -> Run:
    def send(text: str, fraction: float | None) -> None:
        _messages.put((task.out.name, text, fraction))

    return reproduce(task, send)


def runs_in(folder: Path) -> list[Run]:
    """Read all runs under a folder.

    Raises
    ------
    DataError
        There is none.
    """
    found = [results.load(path) for path in sorted(folder.rglob(RUN))]
    if not found:
        raise DataError(
            "no run's results are here", where=folder, hint="first: deepsz reproduce lenet-300-100"
        )
    return found


def with_shipped(runs: Sequence[Run], models: Path = ROOT / "models") -> list[Run]:
    """Add the runs that are shipped with networks, of those networks that have no run of their own.

    AlexNet/CIFAR-10 takes over an hour from its training on, and its weights are too large to ship.
    """
    measured = {run.network for run in runs if not run.generated}
    shipped = (results.load(path) for path in sorted(models.glob(f"*/{RUN}")))
    return [*runs, *(replace(run, shipped=True) for run in shipped if run.network not in measured)]


def retraining_solver(network: Network) -> Path:
    """Give the solver for pruned networks, which is that of training where there is no other."""
    own = network.path("retrain.prototxt")
    return own if own.exists() else network.path("solver.prototxt")


@dataclass(frozen=True)
class Retraining:
    """What is kept of a training: its time, and the iteration whose state was written."""

    seconds: float
    chosen: int


@dataclass(frozen=True)
class Compression:
    """What is kept of a compression: its time, the bounds that were chosen, tests run."""

    seconds: float
    bounds: dict[str, float]
    tests: int


def _dense(task: Task, folder: Folder, progress: Progress) -> Path:
    """Train the network, unless it is given."""
    if task.dense is not None:
        return task.dense
    from deepsz_caffe.runtime.solver import train

    solver = task.network.path("solver.prototxt")
    path = folder.path / "dense.caffemodel"

    def make() -> Retraining:
        trained = train(
            solver,
            path,
            seed=task.seed,
            iterations=task.iterations,
            progress=_solver_progress("training", progress),
        )
        return Retraining(trained.seconds, trained.chosen)

    key = key_of(solver.read_text(), task.seed, task.iterations)
    folder.made("dense", key, path, Retraining, make)
    return path


def pruned_of(task: Task, dense: Path, folder: Folder, progress: Progress) -> Path:
    """Prune to the paper's densities and retrain, unless pruned weights are given; gives the file.

    Raises
    ------
    DeepSZError
        As `prune`.
    """
    if task.pruned is not None:
        return task.pruned
    from deepsz_caffe.api import prune
    from deepsz_caffe.steps.prune import SCHEDULES

    network = task.network
    solver = retraining_solver(network)
    path = folder.path / "pruned.caffemodel"

    def make() -> Retraining:
        pruned = prune(
            solver,
            dense,
            network.keep,
            path,
            schedule=SCHEDULES[network.schedule],
            seed=task.seed,
            iterations=task.iterations,
            progress=_solver_progress("pruning and retraining", progress),
            freeze_body=task.freeze_body,
            body_progress=_body_progress(progress),
        )
        return Retraining(pruned.training.seconds, pruned.training.chosen)

    key = key_of(
        solver.read_text(),
        task.seed,
        task.iterations,
        digest(dense),
        network.keep,
        network.schedule,
        task.freeze_body is not None,
    )
    folder.made("pruned", key, path, Retraining, make)
    return path


def _compressed(
    task: Task, dense: Path, pruned: Path, profile: str, folder: Folder, progress: Progress
) -> float:
    """Assess, optimize, encode the fc layers, as in the paper. Gives seconds."""
    how = _How(profile, profile, "fc", "default", "exact")
    return _compress(task, dense, pruned, how, folder, progress)


def _compressed_whole(
    task: Task, dense: Path, pruned: Path, folder: Folder, progress: Progress
) -> float:
    """Do as `_compressed` with all layers, the best that is there. Gives seconds."""
    how = _How(WHOLE, whole.PROFILE, "all", "divergence", "corrected")
    if not task.network.conv:  # there counts choose better than divergences
        how = replace(how, search="default", biases="exact")
    return _compress(task, dense, pruned, how, folder, progress)


@dataclass(frozen=True)
class _How:
    """The file's name, and options of `compress`."""

    name: str
    profile: str
    layers: Selection
    search: Search
    biases: Biases


def _compress(
    task: Task, dense: Path, pruned: Path, how: _How, folder: Folder, progress: Progress
) -> float:
    """Compress; the loss counts against the unpruned network. Gives seconds."""
    from deepsz_caffe.api import compress

    path = folder.path / f"{how.name}.dsz"
    title = f"assessing error bounds, profile {how.profile}"
    title += ", whole network" if how.name == WHOLE else ""

    def make() -> Compression:
        progress(title, None)
        began = time.perf_counter()
        result = compress(
            task.network.path("train_val.prototxt"),
            pruned,
            path,
            max_loss=task.max_loss,
            original=dense,
            protocol=task.protocol,
            confidence=task.confidence,
            profile=how.profile,
            layers=how.layers,
            search=how.search,
            biases=how.biases,
            on_test=False,  # `measure` does
            data=task.data,
            workers=task.workers,
            journal=folder.path / f"{how.name}.journal",
            features=measure.features_of(folder, task.protocol),
            progress=_assess_progress(title, progress),
        )
        seconds = time.perf_counter() - began
        return Compression(seconds, dict(result.plan.bounds), result.tests)

    key = key_of(
        digest(dense),
        digest(pruned),
        task.max_loss,
        task.protocol,
        task.confidence,
        task.data,
    )
    return folder.made(how.name, key, path, Compression, make).seconds


def _measured(task: Task, dense: Path, seconds: dict[str, float], bench: measure.Bench) -> Run:
    """Measure everything that tables and figures show."""
    points, layers = measure.compressed(bench, seconds)
    grid = measure.assessments(bench)
    points += grid.curve
    if task.baselines:
        points += measure.baselines(bench)
    if task.retrain:
        points += measure.retrained(bench, retraining_solver(task.network))
    scores = measure.scores(bench, dense)
    chosen = points[0].test
    if chosen is None or chosen.top1 != scores["compressed"].top1:
        # The tail with replaced weights and the whole network must agree: one truth.
        raise DataError(
            f"{chosen} with the decoded layers, {scores['compressed']} with the file",
            where=task.out,
        )
    own: tuple[Point, ...] = ()
    if task.whole:
        file = task.out / f"{WHOLE}.dsz"
        own = tuple(whole.points(bench, file, seconds[WHOLE], retraining_solver(task.network)))
    return Run(
        network=task.network.id,
        command=task.command,
        seed=task.seed,
        generated=False,
        fc_dense_bytes=task.network.fc_dense_bytes,
        file_bytes=(task.out / f"{measure.PROFILES[0]}.dsz").stat().st_size,
        layers=layers,
        points=tuple(points),
        index=measure.index_sizes(bench),
        dense=scores["dense"],
        pruned=scores["pruned"],
        pruned_validation=scores["pruned_validation"],
        max_loss=task.max_loss,
        protocol=task.protocol,
        tested=grid.tested,
        joint=grid.joint,
        forward_seconds=measure.forward_time(bench),
        machine=bench.step("machine", str, measure.machine),
        network_bytes=dense.stat().st_size if task.whole else 0,
        whole=own,
        divergences=whole.divergences(bench) if task.whole else (),
    )


def _solver_progress(title: str, progress: Progress) -> Callable[[TrainingProgress], None]:
    def report(state: TrainingProgress) -> None:
        progress(title, state.iteration / state.iterations)

    return report


def _body_progress(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress("computing features", done / total)


def _assess_progress(title: str, progress: Progress) -> Callable[[Message], None]:
    def report(message: Message) -> None:
        if message[0] == "body":
            progress("computing features", message[1] / message[2])
        elif message[0] == "test":
            progress(title, None)

    return report
