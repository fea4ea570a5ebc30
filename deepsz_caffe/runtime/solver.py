"""The Caffe solver in a process of its own: training, and retraining under pruning masks.

Caffe does every step; this module adds what its own tool lacks. Masks: pruned weights are set to
0 again after every update (zeroing their gradients is not enough, momentum carries on), so every
forward pass sees the masked weights. Snapshots: an interrupted run goes on from the last one and
ends in the same bytes as one that was never interrupted, because the masks, the place in the data
and the seed of the random numbers are restored as well, not only weights and momentum (except
where a data layer crops or mirrors at random: its generator can't be reached). Choice: when the
solver tests on a validation split (``test_state { stage: "validation" }``), the result is the
state with the best accuracy there, measured every ``test_interval``; otherwise, as in Caffe, the
last state, because a test set must not decide when to stop.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deepsz_caffe.errors import CaffeError, DataError, DeepSZError, InputError, ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.runtime import worker
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.steps.prune import Trained

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

Path_ = str | os.PathLike[str]
Masks = Mapping[str, np.ndarray]

_REPORT_EVERY = 0.2  # seconds
_NEVER = 2**31 - 1  # Caffe wants a positive test_interval where there are test nets
_STATE = "state.json"
_BEST = "best.caffemodel"


class MaskRule(Protocol):
    """Masks that change in the course of training, as gradual pruning wants them."""

    @property
    def last_change(self) -> int:
        """The last iteration at which the masks change."""

    def masks(self, iteration: int, weights: Callable[[str], np.ndarray]) -> Masks | None:
        """Give the masks to hold from before this iteration on; None leaves them as they are.

        `weights` gives the present weights of a layer, float32[r, c], masked ones 0.
        """


@dataclass(frozen=True)
class FixedMasks:
    """The same masks from beginning to end, layer name -> bool[r, c], true where kept."""

    fixed: Masks
    last_change: int = 0

    def masks(self, iteration: int, weights: Callable[[str], np.ndarray]) -> Masks | None:
        return self.fixed if iteration == 0 else None


@dataclass(frozen=True)
class Progress:
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


def train(
    solver_prototxt: Path_,
    out: Path_,
    weights: Path_ | None = None,
    masks: Masks | MaskRule | None = None,
    *,
    seed: int | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
    gpu: int | None = None,
) -> Trained:
    """Train a network with the Caffe solver and write its weights.

    Parameters
    ----------
    solver_prototxt
        Caffe's solver definition. Paths in it and in its network are relative to the working
        directory, as is Caffe's custom. Its ``snapshot`` says how often a snapshot is taken; they
        lie in ``OUT.snapshots/`` while training runs, ``snapshot_prefix`` is not used.
    out
        The caffemodel to write; appears when training is complete.
    weights
        A caffemodel to start from; every layer of the network must be in it.
    masks
        Layer name -> bool[r, c], true where a weight is kept; the others are held at 0. Or a rule
        that gives them as training goes on.
    seed, iterations, lr
        In place of the solver's ``random_seed``, ``max_iter`` and ``base_lr``.
    resume
        Go on from the last snapshot of the same training, when there is one.
    progress
        Called a few times a second.
    threads
        BLAS threads; default: all cores.
    gpu
        Device number, for a Caffe with CUDA; default: the processor.

    Returns
    -------
    Trained

    Raises
    ------
    InputError
        A number makes no sense.
    DeepSZError
        `out` has no folder.
    ModelError
        A prototxt or caffemodel can't be read, they don't fit together, or a mask does not fit.
    DataError
        A data set is missing.
    CaffeError
        Caffe failed, with its own message, or the loss is no longer a number.
    """
    from deepsz_caffe.network.prototxt import read_solver

    solver = read_solver(solver_prototxt)
    _override(solver, seed, iterations, lr)
    target = Path(out)
    if not target.parent.is_dir():
        raise DeepSZError("its folder does not exist", where=target)
    net, test_net = networks_of(solver)
    epochs = _epochs(net)
    if test_net is not None:
        _epochs(test_net)
    rule = FixedMasks(masks) if isinstance(masks, Mapping) else masks
    if weights is not None:
        _check_weights(net, weights)
    work = target.with_name(f"{target.name}.snapshots")
    task = _Task(
        solver=solver.SerializeToString(),
        weights=None if weights is None else str(weights),
        rule=rule,
        work=str(work.absolute()),
        gpu=gpu,
        fingerprint=_fingerprint(solver, net, weights, rule),
        epochs=epochs,
    )
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(exist_ok=True)
    try:
        with CaffePool(workers=1, blas_threads=threads, progress=progress) as pool:
            result = pool.submit(_train, task).result()
    except BaseException:
        if not (work / _STATE).exists():  # nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        raise
    with (work / _BEST).open("rb") as made, atomic_write(target) as file:
        shutil.copyfileobj(made, file)
    shutil.rmtree(work, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Task:
    """What the Caffe process is told; protobuf messages go as bytes."""

    solver: bytes
    weights: str | None
    rule: MaskRule | None
    work: str
    gpu: int | None
    fingerprint: str
    epochs: dict[str, int]


@dataclass(frozen=True)
class _State:
    """The part of a snapshot that Caffe's own files don't hold."""

    fingerprint: str
    iteration: int = 0
    chosen: int = 0
    correct: int = -1
    total: int = 0


def _override(
    solver: SolverParameter, seed: int | None, iterations: int | None, lr: float | None
) -> None:
    if seed is not None:
        if not 0 <= seed < 2**31:
            raise InputError("a seed is a whole number from 0 to 2^31 - 1", where=f"seed {seed}")
        solver.random_seed = seed
    if iterations is not None:
        solver.max_iter = iterations
    if lr is not None:
        if not (math.isfinite(lr) and lr > 0):
            raise InputError("a learning rate is a number above 0", where=f"lr {lr}")
        solver.base_lr = lr
    if solver.max_iter < 1:
        raise InputError("at least one iteration is wanted", where=f"iterations {solver.max_iter}")


def networks_of(solver: SolverParameter) -> tuple[NetParameter, NetParameter | None]:
    """Read the training network and the first test network, as Caffe will build them.

    Raises
    ------
    ModelError
        The solver names no network, or one that is not there.
    """
    from deepsz_caffe.network.prototxt import phase, read_prototxt

    if not solver.net:
        raise ModelError(
            "the solver does not name its network as `net`",
            hint="one prototxt for training and testing is wanted, not train_net or net_param",
        )
    if not Path(solver.net).is_file():
        raise ModelError(
            "no such file, though the solver names it as its net",
            where=solver.net,
            hint="paths are relative to the working directory",
        )
    network = read_prototxt(solver.net)
    training = phase(network, "TRAIN", tuple(solver.train_state.stage))
    if not solver.test_iter:
        return training, None
    stages = tuple(solver.test_state[0].stage) if solver.test_state else ()
    return training, phase(network, "TEST", stages)


def _epochs(net: NetParameter) -> dict[str, int]:
    """Count for each LMDB layer the batches after which it is at its first record again.

    Raises
    ------
    DataError
        An LMDB is missing or empty; Caffe's own message does not name it.
    """
    import lmdb

    periods = {}
    for layer in net.layer:
        data = layer.data_param
        if layer.type != "Data" or data.backend != data.LMDB:
            continue
        where = f"layer {layer.name}, source {data.source}"
        hint = "paths are relative to the working directory; `deepsz mnist data/mnist` makes MNIST"
        try:
            with lmdb.open(data.source, readonly=True, lock=False, create=False) as env:
                records = int(env.stat()["entries"])
        except lmdb.Error as error:
            raise DataError(f"no LMDB can be read: {error}", where=where, hint=hint) from error
        if not records:
            raise DataError("the LMDB is empty", where=where, hint=hint)
        periods[layer.name] = records // math.gcd(records, data.batch_size)
    return periods


def _check_weights(net: NetParameter, weights: Path_) -> None:
    """Check that the file has every layer; Caffe would train on from random values, silently."""
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.network.layers import check_weights, compressible_layers

    model = read_caffemodel(weights)
    check_weights(compressible_layers(net), model)
    for layer in net.layer:
        if layer.type in ("Convolution", "Deconvolution") and layer.name not in model:
            raise ModelError("the network's layer is not in it", where=f"{weights}, {layer.name}")


def _fingerprint(
    solver: SolverParameter, net: NetParameter, weights: Path_ | None, rule: MaskRule | None
) -> str:
    """Digest all that decides the result, so that only the same training is resumed."""
    digest = blake2b(digest_size=16)
    digest.update(solver.SerializeToString(deterministic=True))
    digest.update(net.SerializeToString(deterministic=True))
    if weights is not None:
        digest.update(Path(weights).read_bytes())
    if isinstance(rule, FixedMasks):
        for name in sorted(rule.fixed):
            digest.update(name.encode())
            digest.update(np.packbits(rule.fixed[name]).tobytes())
    else:
        digest.update(repr(rule).encode())
    return digest.hexdigest()


def _train(task: _Task) -> Trained:
    """Run in the Caffe process."""
    caffe = worker.import_caffe(task.gpu)
    return _Run(caffe, task).go()


class _Run:
    """One training in the Caffe process: the solver, the masks that it holds, its snapshots."""

    def __init__(self, caffe: Any, task: _Task) -> None:  # noqa: ANN401
        from caffe.proto.caffe_pb2 import SolverParameter
        from google.protobuf import text_format

        self.caffe = caffe
        self.task = task
        self.work = Path(task.work)
        param = SolverParameter.FromString(task.solver)
        self.iterations = param.max_iter
        self.seed = param.random_seed
        self.snapshot_every = param.snapshot
        self.test_every = param.test_interval or self.iterations
        self.test_batches = param.test_iter[0] if param.test_iter else 0
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
        self.held: list[tuple[Any, np.ndarray]] = []
        self.masks: dict[str, np.ndarray] = {}
        self.state = _State(task.fingerprint)

    def go(self) -> Trained:
        began = last_report = time.monotonic()
        if self.task.weights is not None:
            load_weights(self.net, self.task.weights)
        resumed = self.restore()
        if self.test_batches:
            self.solver.test_nets[0].share_with(self.net)
        last = (0, 0)
        for iteration in range(resumed, self.iterations):
            self.change_masks(iteration)
            self.solver.step(1)
            self.hold()
            done = iteration + 1
            loss = self.loss(done)
            ended = done == self.iterations
            if self.test_batches and (done % self.test_every == 0 or ended):
                last = self.test()
            self.keep_if_best(done, ended, last)
            if self.snapshot_every and done % self.snapshot_every == 0 and not ended:
                self.snapshot(done)
            if ended or time.monotonic() - last_report > _REPORT_EVERY:
                last_report = time.monotonic()
                worker.report(Progress(done, self.iterations, loss, float(self.solver.lr), *last))
        return Trained(
            iterations=self.iterations,
            chosen=self.state.chosen,
            resumed=resumed,
            test_correct=max(self.state.correct, 0),
            test_total=self.state.total,
            seconds=time.monotonic() - began,
        )

    def loss(self, iteration: int) -> float:
        loss = float(sum(float(self.net.blobs[top].data.sum()) for top in self.losses))
        if not math.isfinite(loss):
            raise CaffeError(
                f"the loss became {loss}", where=f"iteration {iteration}", hint="try a lower lr"
            )
        return loss

    def change_masks(self, iteration: int) -> None:
        if self.task.rule is None:
            return
        masks = self.task.rule.masks(iteration, self.matrix)
        if masks is not None:
            for name, mask in masks.items():
                if mask.shape != self.matrix(name).shape:
                    raise ModelError(
                        f"a mask of {mask.shape} for weights of {self.matrix(name).shape}",
                        where=f"layer {name}",
                    )
            self.set_masks(masks)

    def matrix(self, name: str) -> np.ndarray:
        """Give a layer's weights as float32[r, c], a view."""
        if name not in self.net.params:
            raise ModelError(
                "the network has no such layer with weights",
                where=f"layer {name}",
                hint="it has " + ", ".join(self.net.params),
            )
        data = self.net.params[name][0].data
        return np.reshape(data, (data.shape[0], -1))

    def set_masks(self, masks: Masks) -> None:
        self.masks.update(masks)
        # Multiplying by floats made once is the fastest way to hold a mask (caching the blob, not
        # its array, keeps this right on a GPU, where `.data` brings the weights over).
        self.held = [
            (blob := self.net.params[name][0], mask.astype(np.float32).reshape(blob.data.shape))
            for name, mask in self.masks.items()
        ]
        self.hold()

    def hold(self) -> None:
        for blob, mask in self.held:
            data = blob.data
            data *= mask

    def settle(self) -> None:
        """Make the masked zeros positive ones: a weight below 0 times 0 is −0."""
        for blob, _ in self.held:
            data = blob.data
            data += np.float32(0)

    def test(self) -> tuple[int, int]:
        """Count the right answers of the first test net."""
        net = self.solver.test_nets[0]
        accuracies = [
            (net.top_names[name][0], net.bottom_names[name][1])
            for layer, name in zip(net.layers, net.top_names, strict=True)
            if layer.type == "Accuracy"
        ]
        if not accuracies:
            return 0, 0
        top, label = accuracies[0]
        correct = total = 0
        for _ in range(self.test_batches):
            net.forward()
            answers = net.blobs[label].data.size
            correct += round(float(net.blobs[top].data) * answers)
            total += answers
        return correct, total

    def keep_if_best(self, done: int, ended: bool, tested: tuple[int, int]) -> None:
        due = ended
        correct, total = tested
        if self.choose and total:
            final = self.task.rule is None or done > self.task.rule.last_change
            due = (done % self.test_every == 0 or ended) and final and correct >= self.state.correct
        if due:
            self.settle()
            self.net.save(str(self.work / f"{_BEST}.new"))
            (self.work / f"{_BEST}.new").replace(self.work / _BEST)
            self.state = replace(self.state, chosen=done, correct=correct, total=total)

    def snapshot(self, done: int) -> None:
        self.settle()
        self.solver.snapshot()
        before = self.state.iteration
        self.state = replace(self.state, iteration=done)
        np.savez(self.work / f"masks_{done}.npz", allow_pickle=False, **self.masks)
        if (self.work / _BEST).exists():
            shutil.copyfile(self.work / _BEST, self.work / f"best_{done}.caffemodel")
        with atomic_write(self.work / _STATE) as file:
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
        try:
            state = _State(**json.loads((self.work / _STATE).read_bytes()))
        except (OSError, ValueError, TypeError):
            return 0
        if state.fingerprint != self.task.fingerprint:
            return 0
        solverstate, _, masks, best = self.files(state.iteration)
        self.solver.restore(str(solverstate))
        with np.load(masks) as stored:
            self.set_masks({name: stored[name] for name in stored.files})
        if best.exists():
            shutil.copyfile(best, self.work / _BEST)
        self.state = state
        self.skip_data(state.iteration)
        self.reseed(state.iteration)
        return state.iteration

    def reseed(self, iteration: int) -> None:
        # Caffe stores no generator's state; starting anew at every snapshot makes it no part of it.
        if self.seed >= 0:
            self.caffe.set_random_seed((self.seed + iteration) % 2**31)

    def skip_data(self, iteration: int) -> None:
        """Move the data layers to where the snapshot was taken; Caffe would start at the top."""
        for index, name in enumerate(self.net.bottom_names):
            if self.net.bottom_names[name]:
                continue
            batches = iteration * self.batches
            for _ in range(batches % self.task.epochs.get(name, _NEVER)):
                self.net._forward(index, index)


def load_weights(net: Any, path: str) -> None:  # noqa: ANN401
    """Copy weights into a net; Caffe's own copy ignores HDF5 files."""
    if path.endswith(".h5"):
        net.load_hdf5(path)
    else:
        net.copy_from(path)
