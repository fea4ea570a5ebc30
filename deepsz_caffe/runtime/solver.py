"""Training by the Caffe solver in a process of its own, and retraining under pruning masks.

Choice: when the solver tests on a validation split (``test_state { stage: "validation" }``), the
result is the state with the best accuracy there, measured every ``test_interval``; otherwise, as in
Caffe, the last state, because a test set must not decide when to stop. `training` is what runs in
the Caffe process.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from deepsz_caffe.errors import DeepSZError, DeepSZWarning
from deepsz_caffe.files import atomic_write, make_folder, open_input
from deepsz_caffe.folders import exclusive
from deepsz_caffe.network.prototxt import read_solver
from deepsz_caffe.runtime import solver_setup, training
from deepsz_caffe.runtime.data import periods
from deepsz_caffe.runtime.distillation import with_teacher
from deepsz_caffe.runtime.masked import FixedMasks, MaskRule, Masks
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.training import Fingerprint, TrainingProgress
from deepsz_caffe.steps.prune import Trained

Path_ = str | os.PathLike[str]


def train(
    solver_prototxt: Path_,
    out: Path_,
    weights: Path_ | None = None,
    masks: Masks | MaskRule | None = None,
    *,
    teacher: Path_ | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    resume: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
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
    teacher
        A caffemodel of the same network, whose scores are learned along with the labels
        (`deepsz_caffe.runtime.distillation`).
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
    solver = read_solver(solver_prototxt)
    solver_setup.override(solver, seed, iterations, lr, threads)
    target = Path(out)
    if not target.parent.is_dir():
        raise DeepSZError("its folder does not exist", where=target)
    net, test_net = solver_setup.networks_of(solver)
    for each in (net, test_net):
        if each is not None:
            periods(each)  # a missing data set is better said here than by Caffe
    rule = FixedMasks(masks) if isinstance(masks, Mapping) else masks
    if weights is not None:
        solver_setup.check_start(net, weights)
    digests = solver_setup.fingerprint(solver, (net, test_net), weights, teacher, rule)
    if teacher is not None:
        solver_setup.check_start(net, teacher)
        net = with_teacher(net)
        solver_setup.train_instead(solver, net)
    work = target.with_name(f"{target.name}.snapshots")
    task = training.Task(
        solver=solver.SerializeToString(),
        net=net.SerializeToString(),
        test_net=None if test_net is None else test_net.SerializeToString(),
        weights=None if weights is None else str(weights),
        teacher=None if teacher is None else str(teacher),
        rule=rule,
        work=str(work.absolute()),
        gpu=gpu,
        fingerprint=digests,
    )
    with exclusive(target):
        return _train(task, target, resume, progress, threads)


def _train(
    task: training.Task,
    target: Path,
    resume: bool,
    progress: Callable[[TrainingProgress], None] | None,
    threads: int | None,
) -> Trained:
    work = Path(task.work)
    if not resume or _of_another_training(work, task.fingerprint):
        shutil.rmtree(work, ignore_errors=True)
    make_folder(work)
    try:
        with CaffePool(workers=1, blas_threads=threads, progress=progress) as pool:
            result = pool.submit(training.run, task).result()
    except BaseException:
        if not (work / training.STATE).exists():  # nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        raise
    with open_input(work / training.BEST) as made, atomic_write(target) as file:
        shutil.copyfileobj(made, file)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _of_another_training(work: Path, fingerprint: Fingerprint) -> bool:
    """Say whether snapshots can't be resumed, and why, so that nobody loses them unawares."""
    state = training.State.load(work)
    if state is None or state.fingerprint == fingerprint:
        return False
    known = state.fingerprint
    other = [name for name, value in fingerprint.items() if known.get(name) != value]
    warnings.warn(
        DeepSZWarning(
            f"{work}: its snapshots are of a training with other {', '.join(other)}; this one "
            "begins anew"
        ),
        stacklevel=4,
    )
    return True
