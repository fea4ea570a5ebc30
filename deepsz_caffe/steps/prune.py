"""Step 1: remove the smallest weights of layers and retrain the rest (paper, section 3.1).

A layer's pruning ratio is what is *kept*, as in the paper: 0.08 leaves 8 % of the weights. Which
weights go is decided by magnitude alone (`deepsz_caffe.steps.masks`); biases are never pruned.
Layers of every kind that can be compressed can be pruned, each by a ratio of its own or all of them
under one threshold, which decides what each keeps. A schedule is a function that says at which
iteration how much is still kept; whoever trains is given it and holds the masks
(`deepsz_caffe.runtime.solver` by the Caffe solver).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.codecs.quantize import quantize
from deepsz_caffe.errors import DeepSZWarning, InputError
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import (
    CompressibleLayer,
    Selection,
    compressible_layers,
    is_compressible,
    require,
)
from deepsz_caffe.network.prototxt import read_prototxt, read_solver
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.steps.masks import check_keep, magnitude_mask, surgery_weights, together_masks

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

Path_ = str | os.PathLike[str]
#: Pairs of an iteration and the fraction that each layer keeps from there on.
Steps = tuple[tuple[int, tuple[tuple[str, float], ...]], ...]
Schedule = Callable[[Mapping[str, float], int], "PruningSteps"]
#: Stands in place of a layer's name for all layers that share one threshold.
ALL = "all"
#: Bounds are seen in this last part of the training.
_BOUNDS_SEEN = 0.2


@dataclass(frozen=True)
class Shown:
    """What the network sees of its weights while it trains, in place of the weights themselves.

    The gradient at what is shown changes the weights. So they become such that it loses little.

    Attributes
    ----------
    noise
        Uniform noise, at most this part of the layer's mean magnitude: weights that are trained
        with noise bear larger error bounds.
    bounds
        Pairs of a layer and an error bound, whose levels are shown as the file would hold them.
    since
        The iteration from which on levels are shown; noise ends there.
    """

    noise: float = 0.0
    bounds: tuple[tuple[str, float], ...] = ()
    since: int = 0

    def noisy(self, iteration: int) -> bool:
        return self.noise > 0 and not (self.bounds and iteration >= self.since)

    def levels(self, iteration: int, name: str, weights: np.ndarray) -> np.ndarray | None:
        """Give the values that a file holds for a layer's weights, of any shape; None: themselves.

        `weights` are float32, and so is what comes back.
        """
        bound = dict(self.bounds).get(name)
        if bound is None or iteration < self.since:
            return None
        quantizer, levels = quantize(weights, bound)
        return quantizer.values(levels)


@dataclass(frozen=True)
class PruningSteps:
    """When a training prunes how far: a rule for the solver's masks.

    Attributes
    ----------
    steps
        Pairs of an iteration and the fraction of its weights that each layer keeps from before
        that iteration on. What is pruned stays pruned. The name `ALL` is of the layers `together`.
    held
        Layers that no step names and whose zeros stay zeros from the beginning.
    together
        Layers that share one threshold (`deepsz_caffe.steps.masks.together_masks`).
    returning
        Pruned weights go on learning unseen, and come back where a later step finds them large.
    rewinding
        At each step the weights that are left go back to their values before the training.
    shown
        What the network sees of the weights.
    """

    steps: Steps
    held: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    returning: bool = False
    rewinding: bool = False
    shown: Shown = Shown()

    @property
    def layers(self) -> frozenset[str]:
        named = {name for _, keep in self.steps for name, _ in keep} - {ALL}
        return frozenset((*named, *self.held, *self.together, *dict(self.shown.bounds)))

    @property
    def last_change(self) -> int:
        last = self.steps[-1][0]
        return max(last, self.shown.since) if self.shown.bounds else last

    def masks(
        self,
        iteration: int,
        weights: Callable[[str], np.ndarray],
        now: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray] | None:
        """Give the masks to hold from before this iteration on; None where they stay.

        Parameters
        ----------
        iteration
            Iterations done.
        weights
            Gives the present weights of a layer, float32[r, c].
        now
            Layer name -> its present mask.
        """
        held = self.held if iteration == 0 else ()
        found = {name: weights(name) != 0 for name in held}

        def of(name: str) -> np.ndarray:
            mask = (now or {}).get(name) if self.returning else None
            return weights(name) if mask is None else surgery_weights(weights(name), mask)

        for due, keep in self.steps:
            if due == iteration:
                for name, part in keep:
                    if name == ALL and self.together:
                        found |= together_masks({each: of(each) for each in self.together}, part)
                    else:
                        found[name] = magnitude_mask(of(name), part)
        return found or None

    def rewinds(self, iteration: int) -> bool:
        """Say whether the weights go back to their first values before this iteration."""
        return self.rewinding and any(due == iteration > 0 for due, _ in self.steps)

    def beginning_at(self, present: Mapping[str, float]) -> PruningSteps:
        """Let the curve of each layer begin at the fraction that it has now, and not at 1."""
        last = {name: part for _, keep in self.steps for name, part in keep}

        def scaled(name: str, part: float) -> float:
            begin, end = present.get(name, 1.0), last[name]
            if not end < begin < 1:
                return part
            return end + (part - end) * (begin - end) / (1 - end)

        steps = tuple(
            (due, tuple((name, scaled(name, part)) for name, part in keep))
            for due, keep in self.steps
        )
        return replace(self, steps=steps)


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


def iterative(
    keep: Mapping[str, float], iterations: int, *, until: float = 0.75, rounds: int = 6
) -> PruningSteps:
    """Prune by the same factor in each of several rounds, and rewind in each.

    What is left goes back to the weights that were given and is trained anew (Frankle and Carbin,
    2019; Renda et al., 2020); the momentum and the learning rate go on.

    Parameters
    ----------
    keep, iterations
        As in `gradual`.
    until
        Part of the training at which the last round begins.
    rounds
        Number of prunings, the first of them before the first iteration.
    """
    end, last = int(until * iterations), rounds - 1
    steps: dict[int, tuple[tuple[str, float], ...]] = {}
    for number in range(rounds):
        share = (number + 1) / rounds
        # Of few iterations the later rounds take the place of earlier ones.
        at = round(end * number / max(last, 1))
        steps[at] = tuple((name, part**share) for name, part in keep.items())
    return PruningSteps(tuple(steps.items()), rewinding=True)


def surgery(
    keep: Mapping[str, float],
    iterations: int,
    *,
    until: float = 0.5,
    returns_until: float = 0.8,
    steps: int = 50,
) -> PruningSteps:
    """Prune as `gradual`, by masks that may come back: dynamic network surgery (Guo et al., 2016).

    Pruned weights go on learning although the network does not see them. At each step the largest
    of all are kept, where one that was pruned must be larger than the smallest by a gap.

    Parameters
    ----------
    keep, iterations, until, steps
        As in `gradual`.
    returns_until
        Part of the training after which masks stay as they are.
    """
    pruning = gradual(keep, iterations, until=until, steps=steps).steps
    every = pruning[0][0] or 1
    later = range(pruning[-1][0] + every, int(returns_until * iterations) + 1, every)
    return PruningSteps((*pruning, *((at, tuple(keep.items())) for at in later)), returning=True)


#: name on the command line -> schedule
SCHEDULES: dict[str, Schedule] = {
    "gradual": gradual,
    "one-shot": one_shot,
    "iterative": iterative,
    "surgery": surgery,
}


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
    layers: Selection = "all",
    noise: float = 0.0,
    bounds: Mapping[str, float] | None = None,
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
        Layer name -> fraction of the weights to keep, in (0, 1]. Other layers are not pruned. The
        name `ALL` is of the layers that `layers` selects and `keep` does not name: they share one
        threshold.
    out
        The caffemodel that `train` writes.
    train
        Trains the solver's network under a rule for its masks, and writes `out`.
    schedule
        One of `SCHEDULES`, or any function of `keep` and the number of iterations.
    iterations
        In place of the solver's ``max_iter``.
    layers
        What `ALL` stands for: a group of layers, or names.
    noise, bounds
        See `Shown`; the levels of these bounds are seen in the last fifth of the training.

    Raises
    ------
    InputError
        A keep ratio is outside (0, 1], or there is none, or noise or a bound makes no sense.
    ModelError
        A layer is not in the network, or none that can be pruned.
    """
    if not keep:
        raise InputError("no layer to prune is given")
    for name, part in keep.items():
        check_keep(part, name)
    if layers != "all" and ALL not in keep:
        raise InputError(
            f"is what --keep {ALL}=PART stands for, which is not given", where="layers"
        )
    bounds = bounds or {}
    _check_shown(noise, bounds)
    solver = read_solver(solver_prototxt)
    named = solver.net or solver.train_net
    net = read_prototxt(named)
    found = compressible_layers(net, "all")
    require({*keep, *bounds} - {ALL}, [layer.name for layer in found], named, "all")
    before = read_caffemodel(weights)
    together: tuple[str, ...] = ()
    if ALL in keep:
        chosen = compressible_layers(net, layers, where=named)
        together = tuple(x.name for x in _owners(net, chosen, before) if x.name not in keep)
        if not together:
            raise InputError("no layer is left for it", where=f"keep {ALL}")
    wanted = {*keep, *bounds, *together}
    present = [x.name for x in found if x.name in wanted or is_compressible(x.type, "fc")]
    left = {name: _left(before, name) for name in present if name in before}
    groups = {name: together if name == ALL else (name,) for name in keep}
    parts = {
        name: tuple(left[each] for each in group if each in left) for name, group in groups.items()
    }
    stay = {name for name, group in parts.items() if group and _stays(name, group, keep[name])}
    pruned = {name: part for name, part in keep.items() if name not in stay}
    going = {each for name in pruned for each in groups[name]}
    held = tuple(x.name for x in left.values() if x.name not in going and x.nonzeros < x.weights)
    count = solver.max_iter if iterations is None else iterations
    rule = schedule(pruned, count) if pruned else one_shot({}, count)
    fractions = {name: _fraction(group) for name, group in parts.items() if group}
    training = train(
        replace(
            rule.beginning_at(fractions),
            held=held,
            together=together if ALL in pruned else (),
            shown=Shown(noise, tuple(bounds.items()), round((1 - _BOUNDS_SEEN) * count)),
        )
    )
    model = read_caffemodel(out)
    return Pruned(tuple(_left(model, name) for name in present), training)


def _check_shown(noise: float, bounds: Mapping[str, float]) -> None:
    if not 0 <= noise < 1:
        raise InputError("noise is a part of the mean magnitude, from 0 to below 1", where=noise)
    for name, bound in bounds.items():
        if not 0 < bound < float("inf"):
            raise InputError(f"an error bound must be a number over 0, not {bound}", where=name)


def _owners(
    net: NetParameter, layers: Sequence[CompressibleLayer], model: CaffeModel
) -> list[CompressibleLayer]:
    """Leave out layers whose weights are another's, and those that the file lacks."""
    sharers = graph.shared_weights(net)
    return [
        layer
        for layer in layers
        if layer.name in model and sharers.get(layer.name, (layer.name,))[0] == layer.name
    ]


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


def _stays(name: str, layers: Sequence[PrunedLayer], keep: float) -> bool:
    """Say whether zeros of layers are to stay, because there are more than `keep` leaves."""
    nonzeros, weights = (sum(x.nonzeros for x in layers), sum(x.weights for x in layers))
    if nonzeros > round(keep * weights) or nonzeros == weights:
        return False
    what = "all layers together" if name == ALL and len(layers) > 1 else f"layer {layers[0].name}"
    if nonzeros < round(keep * weights):
        warnings.warn(
            DeepSZWarning(
                f"{what}: only {nonzeros:,} of {'their' if len(layers) > 1 else 'its'} "
                f"{weights:,} weights are not 0, less than the {keep:g} to keep; "
                f"{'they stay' if len(layers) > 1 else 'it stays'} so"
            ),
            stacklevel=3,
        )
    return True


def _fraction(layers: Sequence[PrunedLayer]) -> float:
    return sum(x.nonzeros for x in layers) / max(1, sum(x.weights for x in layers))


def _left(model: CaffeModel, name: str) -> PrunedLayer:
    data = model[name].blobs[0].data
    return PrunedLayer(
        name, (data.shape[0], data.size // data.shape[0]), int(np.count_nonzero(data))
    )
