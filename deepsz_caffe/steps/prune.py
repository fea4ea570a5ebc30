"""Step 1: remove the smallest weights of layers and retrain the rest (paper, section 3.1).

A layer's pruning ratio is what is *kept*, as in the paper: 0.08 leaves 8 % of the weights. Which
weights go is decided by magnitude alone; biases and convolutions are never pruned. A schedule is a
function that says at which iteration how much of each layer is still kept; whoever trains is given
it and holds the masks (`deepsz_caffe.runtime.solver` by the Caffe solver).
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from deepsz_caffe.errors import DeepSZWarning, InputError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import compressible_layers, is_compressible, require
from deepsz_caffe.network.prototxt import read_prototxt, read_solver
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.network.writer import write_caffemodel

Path_ = str | os.PathLike[str]
#: Pairs of an iteration and the fraction that each layer keeps from there on.
Steps = tuple[tuple[int, tuple[tuple[str, float], ...]], ...]
Schedule = Callable[[Mapping[str, float], int], "PruningSteps"]


def magnitude_mask(matrix: np.ndarray, keep: float) -> np.ndarray:
    """Choose the weights of largest magnitude.

    Parameters
    ----------
    matrix
        float32[r, c]
    keep
        Fraction of the weights to keep, in (0, 1].

    Returns
    -------
    numpy.ndarray
        bool[r, c], true at exactly ``round(keep * r * c)`` weights, at least one. Between equal
        magnitudes the earlier in row-major order stays, so the mask depends on nothing else.

    Raises
    ------
    InputError
        `keep` is outside (0, 1], or a weight is not a number.
    """
    _check_keep(keep)
    magnitude = np.abs(matrix, dtype=np.float32).ravel()
    if np.isnan(magnitude).any():
        raise InputError("a weight is not a number, so the smallest can't be told")
    kept = max(1, round(keep * magnitude.size)) if magnitude.size else 0
    mask = np.zeros(magnitude.size, dtype=bool)
    if kept:
        threshold = np.partition(magnitude, magnitude.size - kept)[magnitude.size - kept]
        np.greater(magnitude, threshold, out=mask)
        ties = np.flatnonzero(magnitude == threshold)
        mask[ties[: kept - int(mask.sum())]] = True
    return mask.reshape(matrix.shape)


@dataclass(frozen=True)
class PruningSteps:
    """When a training prunes how far: a rule for the solver's masks.

    Attributes
    ----------
    steps
        Pairs of an iteration and the fraction of its weights that each layer keeps from before
        that iteration on. What is pruned stays pruned.
    held
        Layers that no step names and whose zeros stay zeros from the beginning.
    """

    steps: Steps
    held: tuple[str, ...] = ()

    @property
    def last_change(self) -> int:
        return self.steps[-1][0]

    def masks(
        self, iteration: int, weights: Callable[[str], np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        held = self.held if iteration == 0 else ()
        found = {name: weights(name) != 0 for name in held}
        for due, keep in self.steps:
            if due == iteration:
                found |= {name: magnitude_mask(weights(name), part) for name, part in keep}
        return found or None


def one_shot(keep: Mapping[str, float], iterations: int) -> PruningSteps:
    """Prune at once, before the first iteration: the paper's way."""
    return PruningSteps(((0, tuple(keep.items())),))


def gradual(
    keep: Mapping[str, float], iterations: int, *, until: float = 0.5, steps: int = 50
) -> PruningSteps:
    """Prune in steps, fast at first and ever slower, while the network retrains: the default.

    The fraction pruned follows the cubic curve of Zhu and Gupta (2017): after a part t of the
    pruning time, ``1 - (1 - t)**3`` of what is to go is gone. It costs no more iterations than
    pruning at once, loses less accuracy (at a few percent kept, far less), and the weights left
    bear larger error bounds.

    Parameters
    ----------
    keep
        Layer name -> fraction kept in the end.
    iterations
        Iterations of the whole training.
    until
        Part of the training after which pruning is over.
    steps
        Number of prunings, the first of them before the first iteration.
    """
    end = int(until * iterations)
    times = sorted({round(end * step / steps) for step in range(1, steps + 1)} - {0})
    return PruningSteps(
        tuple(
            (
                time,
                tuple(
                    (name, part + (1 - part) * (1 - time / end) ** 3) for name, part in keep.items()
                ),
            )
            for time in times
        )
        or one_shot(keep, iterations).steps
    )


#: name on the command line -> schedule
SCHEDULES: dict[str, Schedule] = {"gradual": gradual, "one-shot": one_shot}


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes
    ----------
    iterations
        Iterations done in all.
    chosen
        The iteration whose weights were written.
    resumed
        The iteration that an interrupted run was resumed from, 0 when it began anew.
    test_correct, test_total
        Accuracy of the written weights on the solver's first test net (the validation split where
        there is one) as counts; a total of 0 when the solver has none.
    seconds
        Time of this run.
    """

    iterations: int
    chosen: int
    resumed: int
    test_correct: int
    test_total: int
    seconds: float


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning left of one layer; `shape` is (rows, columns)."""

    name: str
    shape: tuple[int, int]
    nonzeros: int

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Pruned:
    """What pruning came to: the fc layers and what else was pruned, and the retraining."""

    layers: tuple[PrunedLayer, ...]
    training: Trained


def prune(
    solver_prototxt: Path_,
    weights: Path_,
    keep: Mapping[str, float],
    out: Path_,
    train: Callable[[PruningSteps], Trained],
    *,
    schedule: Schedule = gradual,
    iterations: int | None = None,
) -> Pruned:
    """Prune layers by magnitude and retrain what is left with the masks held.

    No layer gets denser: where one has fewer weights than are to be kept, which is said, and in
    layers that are not named, zeros stay zeros.

    Parameters
    ----------
    solver_prototxt
        Solver of the retraining.
    weights
        The trained caffemodel.
    keep
        Layer name -> fraction of the weights to keep, in (0, 1]. Other layers are not pruned.
    out
        The caffemodel that `train` writes.
    train
        Trains the solver's network under a rule for its masks, and writes `out`.
    schedule
        `gradual`, `one_shot`, or any function of `keep` and the number of iterations.
    iterations
        In place of the solver's ``max_iter``.

    Raises
    ------
    InputError
        A keep ratio is outside (0, 1], or there is none.
    ModelError
        A layer is not in the network, or none that can be pruned.
    """
    if not keep:
        raise InputError("no layer to prune is given")
    for name, part in keep.items():
        _check_keep(part, name)
    solver = read_solver(solver_prototxt)
    named = solver.net or solver.train_net
    found = compressible_layers(read_prototxt(named), "all")
    require(keep, [layer.name for layer in found], named, "all")
    present = [x.name for x in found if x.name in keep or is_compressible(x.type, "fc")]
    before = read_caffemodel(weights)
    left = {name: _left(before, name) for name in present if name in before}
    held = [name for name, layer in left.items() if _stays(layer, keep.get(name))]
    pruned = {name: part for name, part in keep.items() if name not in held}
    count = solver.max_iter if iterations is None else iterations
    rule = schedule(pruned, count) if pruned else one_shot({}, count)
    training = train(replace(rule, held=tuple(held)))
    model = read_caffemodel(out)
    return Pruned(tuple(_left(model, name) for name in present), training)


def without_training(weights: Path_, out: Path_) -> Callable[[PruningSteps], Trained]:
    """Give a `train` for `prune` that trains nothing: what is left stays as it is in `weights`."""

    def train(rule: PruningSteps) -> Trained:
        began = time.perf_counter()
        model = read_caffemodel(weights)
        masks: dict[str, np.ndarray] = {}
        for iteration, _ in rule.steps:
            masks |= rule.masks(iteration, lambda name: model[name].matrix) or {}
        zero = np.float32(0)
        changed = {name: np.where(mask, model[name].matrix, zero) for name, mask in masks.items()}
        write_caffemodel(out, model, changed)
        return Trained(0, 0, 0, 0, 0, time.perf_counter() - began)

    return train


def _stays(layer: PrunedLayer, keep: float | None) -> bool:
    """Say whether a layer's zeros are to stay, because there are more than `keep` leaves."""
    if keep is None:
        return layer.nonzeros < layer.weights
    if layer.nonzeros >= round(keep * layer.weights):
        return False
    warnings.warn(
        DeepSZWarning(
            f"layer {layer.name}: only {layer.nonzeros:,} of its {layer.weights:,} weights are not "
            f"0, less than the {keep:g} to keep; it stays so"
        ),
        stacklevel=3,
    )
    return True


def _left(model: CaffeModel, name: str) -> PrunedLayer:
    data = model[name].blobs[0].data
    return PrunedLayer(
        name, (data.shape[0], data.size // data.shape[0]), int(np.count_nonzero(data))
    )


def _check_keep(keep: float, name: str | None = None) -> None:
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise InputError(
            f"keep ratio {keep} is not in (0, 1]",
            where=name,
            hint="0.08 keeps 8 % of the weights",
        )
