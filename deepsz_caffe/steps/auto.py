"""The smallest network for a loss: how many weights, and which bounds, of all layers together.

Networks are pruned ever further, each from the last that held (one that nearly does is trained on,
once): under one threshold over all layers, gradually, retrained with noise and with the given
network as their teacher. Each is compressed within the loss by the search for whole networks, which
decides on the validation split with the margin. So every trial is a point of the trade-off between
bytes and loss, with a file of its own that can be taken without running again. Densities fall
until the file no longer gets smaller, since the loss no longer holds or few weights need many bits
each; then the gaps on both sides of the smallest file are narrowed. Training gets what time there
is: each trial a part of the rest.

Nothing here depends on the network or its data: not the first density, nor the solver's numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path

from deepsz_caffe.documents import read_document
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import InputError, ModelError, TargetError
from deepsz_caffe.files import atomic_write, make_folder, read_input
from deepsz_caffe.steps.assess.journal import digest_of
from deepsz_caffe.steps.assess.setup import Setup
from deepsz_caffe.steps.compress import CompressResult
from deepsz_caffe.steps.densities import FIRST, next_keep, share_of_time
from deepsz_caffe.steps.evaluator import Score
from deepsz_caffe.steps.optimize import images_allowed
from deepsz_caffe.steps.prune import Trained

Path_ = str | os.PathLike[str]

#: Trainings of fewer iterations say nothing.
_FEWEST = 100
#: The time of an iteration is known from two trainings, one of them longer by this factor, that
#: differ by this part of the time at least.
_LONGER = 3
_MEASURED = 0.005
#: Where the loss can't be met, larger ones are tried, each by this factor, so many times; the first
#: of them not below the last number, a fraction.
_LOOSER, _TIMES, _LEAST = 2.0, 6, 0.001
#: Noise while training, as a part of a layer's mean magnitude.
NOISE = 0.2
#: The solver of the trainings: Adam at its usual rate, falling to 0. It tests the last state alone:
#: the best of many on the split that judges it afterwards would look better than it is.
_SOLVER = """net: {net}
type: "Adam"
test_state {{ stage: "validation" }}
test_iter: 1
test_interval: {iterations}
test_initialization: false
base_lr: 0.001
lr_policy: "poly"
power: 1
momentum: 0.9
momentum2: 0.99
max_iter: {iterations}
snapshot: {snapshot}
random_seed: {seed}
"""
STATE = "auto.json"


@dataclass(frozen=True)
class Tradeoff:
    """One network that was tried: what it weighs and what it loses.

    Attributes
    ----------
    keep
        Fraction of the weights of these layers that it keeps; 1: the network that was given.
    nonzeros
        Weights of the compressed layers that are left.
    iterations
        Iterations that it was trained for, after the network that it began with.
    weights, file
        The pruned caffemodel and the ``.dsz`` file, in the run's folder; no `weights` for the given
        network.
    allowed
        The loss of top-1 (a fraction) that it holds with the margin.
    bytes, dense_bytes
        The whole ``.dsz`` file, and the whole caffemodel.
    layer_bytes, layer_dense_bytes
        Of the compressed layers alone.
    lost, total
        Images lost on the validation split, against the given network, and its images.
    """

    keep: float
    nonzeros: int
    iterations: int
    weights: str
    file: str
    allowed: float
    bytes: int
    dense_bytes: int
    layer_bytes: int
    layer_dense_bytes: int
    lost: int
    total: int

    @property
    def ratio(self) -> float:
        """Of the whole caffemodel to the whole file."""
        return self.dense_bytes / self.bytes


@dataclass(frozen=True)
class Trial:
    """A network to be tried: what it keeps, which weights it begins with, for how long."""

    keep: float
    start: str
    iterations: int


@dataclass(frozen=True)
class State:
    """Where a run stands; what is on the disk.

    Attributes
    ----------
    key
        What decides the result.
    seconds_each, compressing
        Time of an iteration, and of compressing the last network.
    spent
        Time of all that is finished.
    points
        What was tried.
    failed
        Densities at which nothing held, at no loss that was tried.
    trial
        What is being tried.
    """

    key: dict[str, str]
    seconds_each: float = 0.0
    spent: float = 0.0
    compressing: float = 0.0
    points: tuple[Tradeoff, ...] = ()
    failed: tuple[float, ...] = ()
    trial: Trial | None = None


@dataclass(frozen=True)
class AutoResult:
    """What a run found.

    Attributes
    ----------
    path
        The file that was taken.
    taken
        Its point of the trade-off.
    points
        All of them; their networks and files are in the run's folder.
    before, after
        Counts of the given and the compressed network on the test data, which decided nothing; None
        where there is none.
    """

    path: Path
    taken: Tradeoff
    points: tuple[Tradeoff, ...]
    before: Score | None
    after: Score | None

    def to_json(self) -> dict[str, object]:
        """Give all of it for JSON."""
        counts = {"before": self.before, "after": self.after}
        with DszFile(self.path) as file:
            summary = file.summary()
        return {
            **summary,
            "taken": asdict(self.taken),
            "points": [asdict(point) | {"ratio": point.ratio} for point in self.points],
            **{f"test_{name}": each and asdict(each) for name, each in counts.items()},
        }


@dataclass(frozen=True)
class Tools:
    """What a run is given to train and to compress with.

    Attributes
    ----------
    prune
        Given a trial, its solver, the weights that it begins with (None: the given network's) and
        the caffemodel to write: prunes and trains.
    compress
        Given weights (None: the given network's), the file to write and the loss that is allowed:
        compresses, or raises `TargetError`.
    """

    prune: Callable[[Trial, Path, Path | None, Path], Trained]
    compress: Callable[[Path | None, Path, float], CompressResult]


def key_of(
    setup: Setup, max_loss: float, confidence: float, profile: str, seed: int
) -> dict[str, str]:
    """Name what decides a run's result, so that only the same run goes on."""
    return {
        "network": digest_of(read_input(setup.network, ModelError).decode(errors="replace")),
        "weights": hashlib.blake2b(read_input(setup.weights, ModelError)).hexdigest()[:32],
        "layers": ", ".join(layer.name for layer in setup.layers),
        "max-loss": repr(max_loss),
        "confidence": repr(confidence),
        "profile": profile,
        "seed": str(seed),
    }


def search(
    network: Path_,
    folder: Path_,
    tools: Tools,
    max_loss: float,
    seconds: float,
    key: dict[str, str],
    *,
    seed: int = 1,
    told: Callable[[Tradeoff | Trial], None] | None = None,
) -> tuple[Tradeoff, ...]:
    """Try networks until the gap is closed or the time is over; gives all that were tried.

    Parameters
    ----------
    network
        The prototxt.
    folder
        Where the run keeps its state, networks and files; a run that was interrupted goes on.
    tools
        Train and compress.
    max_loss
        Loss of top-1, a fraction.
    seconds
        Time of the run, over all its parts where it was interrupted. The trial in hand ends.
    key
        All that decides the result; a folder belongs to one.
    seed
        Of the trainings.
    told
        Called with each trial as it begins and each point.

    Raises
    ------
    InputError
        The folder is of another run.
    """
    images_allowed(max_loss, 1)
    if not seconds > 0:
        raise InputError("a time is a number of seconds over 0", where=f"time {seconds}")
    run = _Run(Path(network), make_folder(folder), tools, max_loss, key, seed, told)
    run.go(seconds)
    return run.state.points


def best_of(points: Sequence[Tradeoff], max_loss: float) -> Tradeoff:
    """Choose the smallest file that holds a loss.

    Raises
    ------
    TargetError
        None does; says which loss holds.
    """
    holding = [point for point in points if point.allowed <= max_loss]
    if holding:
        return min(holding, key=lambda point: point.bytes)
    hint = "allow a larger loss"
    if points:
        nearest = min(points, key=lambda point: (point.allowed, point.bytes))
        hint = f"a loss of {nearest.allowed:g} holds: {nearest.file}, {nearest.bytes:,} bytes"
    raise TargetError(f"no network that was tried loses at most {max_loss:g}", hint=hint)


class _Run:
    def __init__(
        self,
        network: Path,
        folder: Path,
        tools: Tools,
        max_loss: float,
        key: dict[str, str],
        seed: int,
        told: Callable[[Tradeoff | Trial], None] | None,
    ) -> None:
        self.network = network
        self.folder = folder
        self.tools = tools
        self.max_loss = max_loss
        self.seed = seed
        self.told = told or (lambda _: None)
        self.state = State(key)
        if (folder / STATE).exists():
            self.state = read_document(folder / STATE, State, what="the state of a run")
            if self.state.key != key:
                other = [name for name in key if self.state.key.get(name) != key[name]]
                raise InputError(
                    f"is the folder of a run with other {', '.join(other)}",
                    where=folder,
                    hint="give another folder, or remove it",
                )

    def go(self, seconds: float) -> None:
        if not self.state.seconds_each:
            self._measure(seconds)
        while (trial := self.state.trial or self._next(seconds)) is not None:
            self._keep(replace(self.state, trial=trial))
            self.told(trial)
            self._finish(trial, self._train(trial))
        # The given network is large, and takes long: it is compressed where no other will do.
        state = self.state
        tried = {*(point.keep for point in state.points), *state.failed}
        if 1.0 not in tried and all(each.allowed > self.max_loss for each in state.points):
            self._finish(Trial(1.0, "", 0), None)

    def _next(self, seconds: float) -> Trial | None:
        """Plan the next trial within the time that is left."""
        state = self.state
        tried = dict.fromkeys(state.failed, inf)
        for point in state.points:
            size = point.bytes if point.allowed <= self.max_loss else inf
            tried[point.keep] = min(size, tried.get(point.keep, inf))
        again = self._nearly()
        keep = next_keep(tried) if again is None else again.keep
        # A trial is trained and compressed; the last one says how long that takes.
        left = seconds - state.spent
        share = left * share_of_time(tried)
        # Rather fewer trials than some that are hardly trained.
        training = max(share - state.compressing, state.compressing)
        iterations = int(min(training, left - state.compressing) / state.seconds_each)
        if keep is None or left <= state.compressing + _FEWEST * state.seconds_each:
            return None
        denser = [
            point
            for point in state.points
            if point.allowed <= self.max_loss and point.keep > keep and point.weights
        ]
        start = min(denser, key=lambda point: (point.keep, point.bytes)).weights if denser else ""
        if again is not None:
            start = again.weights
        return Trial(keep, start, max(iterations, _FEWEST))

    def _nearly(self) -> Tradeoff | None:
        """Give the last network if it nearly holds the loss: it is trained on, once."""
        points = self.state.points
        if not points or not self.max_loss < points[-1].allowed <= self._looser(self.max_loss):
            return None
        return points[-1] if points[-1].keep < 1 and self._times(points[-1].keep) == 1 else None

    @staticmethod
    def _looser(loss: float) -> float:
        return max(loss * _LOOSER, _LEAST)

    def _times(self, keep: float) -> int:
        return sum(point.keep == keep for point in self.state.points)

    def _place(self, keep: float, suffix: str) -> Path:
        times = self._times(keep)
        return self.folder / f"keep-{keep:.5f}{f'-{times + 1}' if times else ''}{suffix}"

    def _train(self, trial: Trial) -> Path:
        out = self._place(trial.keep, ".caffemodel")
        if not out.exists():
            start = self.folder / trial.start if trial.start else None
            trained = self.tools.prune(trial, self._solver(trial), start, out)
            state = replace(self.state, spent=self.state.spent + trained.seconds)
            done = trained.iterations - trained.resumed
            if done > _FEWEST:
                state = replace(state, seconds_each=trained.seconds / done)
            self._keep(state)
        return out

    def _measure(self, seconds: float) -> None:
        """Find the time of an iteration from two trainings, one of them longer.

        What each takes beside its iterations, to begin and for its masks, cancels.
        """
        iterations, known = _FEWEST, 0.0
        while True:
            trained = self._train_shortly(iterations)
            if known and (trained - known) >= _MEASURED * seconds:
                break
            iterations, known = _LONGER * iterations, trained
        each = (trained - known) / (iterations - iterations // _LONGER)
        self._keep(replace(self.state, seconds_each=each))

    def _train_shortly(self, iterations: int) -> float:
        out = self.folder / "speed.caffemodel"
        trial = Trial(FIRST, "", iterations)
        trained = self.tools.prune(trial, self._solver(trial), None, out)
        out.unlink()
        return trained.seconds

    def _solver(self, trial: Trial) -> Path:
        text = _SOLVER.format(
            net=json.dumps(str(self.network)),
            iterations=trial.iterations,
            snapshot=max(1, trial.iterations // 10),
            seed=self.seed,
        )
        path = self.folder / "solver.prototxt"
        with atomic_write(path) as file:
            file.write(text.encode())
        return path

    def _finish(self, trial: Trial, weights: Path | None) -> None:
        """Compress what was trained, within the loss or the next larger one that holds."""
        began = time.monotonic()
        out = self._place(trial.keep, ".dsz")
        allowed = self.max_loss
        found: tuple[Tradeoff, ...] = ()
        for _ in range(_TIMES):
            try:
                result = self.tools.compress(weights, out, allowed)
            except TargetError:
                allowed = self._looser(allowed)
                continue
            found = (_point(trial, weights, result, allowed),)
            break
        seconds = time.monotonic() - began
        state = replace(
            self.state,
            trial=None,
            compressing=seconds,
            spent=self.state.spent + seconds,
            points=(*self.state.points, *found),
            failed=self.state.failed if found else (*self.state.failed, trial.keep),
        )
        self._keep(state)
        for point in found:
            self.told(point)

    def _keep(self, state: State) -> None:
        self.state = state
        with atomic_write(self.folder / STATE) as file:
            file.write((json.dumps(asdict(state), indent=1) + "\n").encode())


def _point(trial: Trial, weights: Path | None, result: CompressResult, allowed: float) -> Tradeoff:
    summary = result.summary
    return Tradeoff(
        keep=trial.keep,
        nonzeros=sum(layer["nonzeros"] for layer in summary["layers"]),
        iterations=trial.iterations,
        weights="" if weights is None else weights.name,
        file=result.path.name,
        allowed=allowed,
        bytes=summary["file_bytes"],
        dense_bytes=summary["caffemodel_bytes"],
        layer_bytes=summary["fc_bytes"],
        layer_dense_bytes=summary["fc_dense_bytes"],
        lost=result.chosen_before.top1_correct - result.chosen_after.top1_correct,
        total=result.chosen_after.total,
    )
