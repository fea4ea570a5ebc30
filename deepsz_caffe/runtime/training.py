"""The training that runs in a Caffe process: steps, masks held, tests, snapshots.

Caffe does every step; this adds what its own tool lacks. Masks: pruned weights are set to 0 again
after every update (zeroing their gradients is not enough, momentum carries on), so every forward
pass sees the masked weights. Tests: of the whole split, every image once, whatever ``test_iter``
says, so that every test is of the same images. Snapshots: an interrupted run goes on from the last
one and ends in the same bytes as one that was never interrupted, because the masks, the places in
the data and the seed of the random numbers are restored as well, not only weights and momentum
(except where a data layer crops, mirrors or shuffles at random: its generator can't be reached).
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.documents import parse_document, read_document
from deepsz_caffe.errors import CaffeError, DataError, ModelError
from deepsz_caffe.files import atomic_write, open_input
from deepsz_caffe.network import graph
from deepsz_caffe.runtime import worker
from deepsz_caffe.runtime.data import Images, periods, prepare_images
from deepsz_caffe.runtime.distillation import copy_to_teacher, without_teacher
from deepsz_caffe.runtime.evaluate import Prepared, decisions_of
from deepsz_caffe.runtime.masked import FixedMasks, MaskedWeights, MaskRule, Masks
from deepsz_caffe.runtime.net import load_weights, source_places
from deepsz_caffe.steps.prune import Trained

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import NetParameter

#: What decides the result of a training: a name for people -> its value or digest.
Fingerprint = dict[str, str]

_REPORT_EVERY = 0.2  # seconds
_NEVER = 2**31 - 1  # Caffe wants a positive test_interval where there are test nets
STATE = "state.json"
BEST = "best.caffemodel"


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands.

    Attributes
    ----------
    iteration, iterations
        Done so far, and in all.
    loss
        Training loss of the last batch.
    lr
        Learning rate.
    test_correct, test_total
        The last accuracy on the solver's first test net as counts; a total of 0 before the first.
    """

    iteration: int
    iterations: int
    loss: float
    lr: float
    test_correct: int = 0
    test_total: int = 0


@dataclass(frozen=True)
class Task:
    """What the Caffe process is told; protobuf messages go as bytes."""

    solver: bytes
    net: bytes
    test_net: bytes | None
    weights: str | None
    teacher: str | None
    rule: MaskRule | None
    work: str
    gpu: int | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class State:
    """The part of a snapshot that Caffe's own files don't hold."""

    fingerprint: Fingerprint = field(default_factory=dict)
    iteration: int = 0
    chosen: int = 0
    correct: int = -1
    total: int = 0

    @staticmethod
    def load(folder: Path) -> State | None:
        """Read that of the last snapshot in a folder; None where there is none."""
        try:
            return read_document(folder / STATE, State)
        except DataError:
            return None


def run(task: Task) -> Trained:
    """Train; runs in a Caffe process."""
    return _Run(worker.import_caffe(task.gpu), task).go()


class _Run:
    """One training in the Caffe process: the solver, the masks that it holds, its snapshots."""

    def __init__(self, caffe: ModuleType, task: Task) -> None:
        from caffe.proto.caffe_pb2 import NetParameter, SolverParameter
        from google.protobuf import text_format

        self.caffe = caffe
        self.task = task
        self.work = Path(task.work)
        param = SolverParameter.FromString(task.solver)
        self.iterations = param.max_iter
        self.seed = param.random_seed
        self.snapshot_every = param.snapshot
        self.test_every = param.test_interval or self.iterations
        self.batches = max(1, param.iter_size)
        self.choose = bool(param.test_state) and "validation" in param.test_state[0].stage
        # Testing and snapshots are ours, so that both see masked weights.
        param.test_interval = _NEVER
        param.test_initialization = False
        param.snapshot = 0
        param.snapshot_after_train = False
        param.snapshot_prefix = str(self.work / "snapshot")
        param.snapshot_format = SolverParameter.BINARYPROTO
        param.display = 0
        definition = self.work / "solver.prototxt"
        definition.write_text(text_format.MessageToString(param), encoding="utf-8")
        self.solver = caffe.get_solver(str(definition))
        self.net = self.solver.net
        self.losses = [
            top
            for layer, name in zip(self.net.layers, self.net.top_names, strict=True)
            if "Loss" in layer.type
            for top in self.net.top_names[name]
        ]
        self.definition = NetParameter.FromString(task.net)
        self.periods = periods(self.definition)
        self.test = None
        if task.test_net is not None:
            test_net = NetParameter.FromString(task.test_net)
            batches = param.test_iter[0]
            self.test = _Test.of(self.solver.test_nets[0], test_net, caffe, batches)
        self.state = State(task.fingerprint)

    def go(self) -> Trained:
        began = last_report = time.monotonic()
        if self.task.teacher is not None:
            load_weights(self.net, self.definition, self.task.teacher, complete=False)
            copy_to_teacher(self.net)
        if self.task.weights is not None:
            load_weights(self.net, self.definition, self.task.weights, complete=False)
        self.weights = MaskedWeights(self.net, self.task.rule or FixedMasks({}), self.seed)
        resumed = self.restore()
        if self.test is not None:
            self.solver.test_nets[0].share_with(self.net)
        last = (0, 0)
        for iteration in range(resumed, self.iterations):
            self.weights.change(iteration)
            self.weights.step(iteration, self.step)
            done = iteration + 1
            loss = self.loss(done)
            ended = done == self.iterations
            if done % self.test_every == 0 or ended:
                with self.weights.judged(done):
                    if self.test is not None:
                        last = self.test.count()
                    self.keep_if_best(done, ended, last)
            if self.snapshot_every and done % self.snapshot_every == 0 and not ended:
                self.snapshot(done)
            if ended or time.monotonic() - last_report > _REPORT_EVERY:
                last_report = time.monotonic()
                worker.report(
                    TrainingProgress(done, self.iterations, loss, float(self.solver.lr), *last)
                )
        return Trained(
            iterations=self.iterations,
            chosen=self.state.chosen,
            resumed=resumed,
            test_correct=max(self.state.correct, 0),
            test_total=self.state.total,
            seconds=time.monotonic() - began,
        )

    def step(self) -> None:
        self.solver.step(1)

    def loss(self, iteration: int) -> float:
        loss = float(sum(float(self.net.blobs[top].data.sum()) for top in self.losses))
        if not math.isfinite(loss):
            raise CaffeError(
                f"the loss became {loss}", where=f"iteration {iteration}", hint="try a lower lr"
            )
        return loss

    def keep_if_best(self, done: int, ended: bool, tested: tuple[int, int]) -> None:
        due = ended
        correct, total = tested
        if self.choose and total:
            final = self.task.rule is None or done > self.task.rule.last_change
            due = final and correct >= self.state.correct
        if due:
            self.save(self.work / f"{BEST}.new")
            (self.work / f"{BEST}.new").replace(self.work / BEST)
            self.state = replace(self.state, chosen=done, correct=correct, total=total)

    def save(self, path: Path) -> None:
        self.net.save(str(path))
        if self.task.teacher is not None:
            saved = type(self.definition).FromString(path.read_bytes())
            without_teacher(saved, self.definition)
            path.write_bytes(saved.SerializeToString())

    def snapshot(self, done: int) -> None:
        self.weights.settle()
        self.solver.snapshot()
        before = self.state.iteration
        self.state = replace(self.state, iteration=done)
        _save_masks(self.work / f"masks_{done}.npz", self.weights.masks)
        if (self.work / BEST).exists():
            shutil.copyfile(self.work / BEST, self.work / f"best_{done}.caffemodel")
        with atomic_write(self.work / STATE) as file:
            file.write(json.dumps(asdict(self.state)).encode())
        for name in self.files(before):
            name.unlink(missing_ok=True)
        self.reseed(done)

    def files(self, iteration: int) -> tuple[Path, ...]:
        return (
            self.work / f"snapshot_iter_{iteration}.solverstate",
            self.work / f"snapshot_iter_{iteration}.caffemodel",
            self.work / f"masks_{iteration}.npz",
            self.work / f"best_{iteration}.caffemodel",
        )

    def restore(self) -> int:
        """Go back to the last snapshot of this training; returns its iteration, or 0."""
        state = State.load(self.work)
        if state is None or state.fingerprint != self.task.fingerprint:
            return 0
        solverstate, _, masks, best = self.files(state.iteration)
        self.solver.restore(str(solverstate))
        self.weights.set_masks(_load_masks(masks))
        if best.exists():
            shutil.copyfile(best, self.work / BEST)
        self.state = state
        skip_data(self.net, self.periods, state.iteration * self.batches)
        if self.test is not None:
            self.test.skip(state.iteration // self.test_every)
        self.reseed(state.iteration)
        return state.iteration

    def reseed(self, iteration: int) -> None:
        # Caffe stores no generator's state; starting anew at every snapshot makes it no part of it.
        if self.seed >= 0:
            self.caffe.set_random_seed((self.seed + iteration) % 2**31)


class _Test:
    """The solver's first test net: which images it has, and by what it is judged."""

    def __init__(self, caffe_net: Net, prepared: Prepared, periods: Mapping[str, int]) -> None:
        self._net = caffe_net
        self._prepared = prepared
        self._periods = periods

    @staticmethod
    def of(caffe_net: Net, net: NetParameter, caffe: ModuleType, batches: int) -> _Test | None:
        """Make it ready; None where nothing in the network can be judged."""
        try:
            judged = graph.find_judged(net)
        except ModelError:
            return None
        if judged.labels is None:
            return None
        own = type(net)()
        own.CopyFrom(net)
        try:
            images = prepare_images(own, None, frozenset(caffe.layer_type_list()))
        except DataError:  # what can't be counted: as many batches as the solver says
            batch = int(caffe_net.blobs[judged.scores.blob].data.shape[0])
            images = Images(batches * batch, batch)
        return _Test(caffe_net, Prepared(net, images, judged), periods(net))

    def count(self) -> tuple[int, int]:
        """Count the right answers, every image once: the data layers go on from where they are."""
        counted, top1, _ = decisions_of(self._net, self._prepared)
        return int(top1.sum()), int(counted.sum())

    def skip(self, tests: int) -> None:
        """Move the data layers to where they are after so many tests."""
        images = self._prepared.images
        skip_data(self._net, self._periods, tests * -(-images.total // images.batch))


def skip_data(net: Net, periods: Mapping[str, int], batches: int) -> None:
    """Move a network's data layers on by so many batches, or by what is the same to them."""
    names = list(net._layer_names)
    for place in source_places(net):
        for _ in range(batches % periods.get(names[place], _NEVER)):
            net._forward(place, place)


def _save_masks(path: Path, masks: Masks) -> None:
    # Names are data here: as keys they would be arguments of numpy's and files in the archive.
    names = np.frombuffer(json.dumps(list(masks)).encode(), np.uint8)
    arrays = {f"mask_{number}": mask for number, mask in enumerate(masks.values())}
    np.savez(path, allow_pickle=False, names=names, **arrays)


def _load_masks(path: Path) -> Masks:
    hint = "remove the folder of its snapshots: the training begins anew"
    try:
        with open_input(path, DataError, hint=hint) as file, np.load(file) as stored:
            names = parse_document(stored["names"].tobytes(), list[str], where=path, hint=hint)
            return {name: stored[f"mask_{number}"] for number, name in enumerate(names)}
    except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError("the masks of a snapshot are damaged", where=path, hint=hint) from error
