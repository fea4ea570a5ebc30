"""Whole networks: convolutions, biases and all, by DeepSZ and by Deep Compression.

Bytes are those of everything that stands in the caffemodel; accuracies are those of the whole
network with all its weights replaced, counted on both sets, of which the test set decides nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.experiments.baselines import techniques
from deepsz_caffe.experiments.folder import digest
from deepsz_caffe.experiments.measure import RETRAIN_ITERATIONS, Bench, features_of
from deepsz_caffe.experiments.results import Accuracy, JointDivergence, Point

if TYPE_CHECKING:
    from deepsz_caffe.network.weights import CaffeModel
    from deepsz_caffe.steps.assess.tester import Tester

#: codecs of the whole file
PROFILE = "small"
#: for the figure of additivity: bounds as parts of a layer's typical weight, and combinations
PARTS, COMBINATIONS = (0.05, 0.1, 0.2, 0.4, 0.8), 40


def points(bench: Bench, path: Path, seconds: float, solver: Path) -> Iterator[Point]:
    """Measure the whole file `path`, made in `seconds`, and Deep Compression of all layers."""
    bench.progress("whole networks", None)
    yield bench.step("whole-deepsz", Point, partial(_file, bench, path, seconds), digest(path))
    for own, name in ((None, "whole-deep-compression"), (solver, "whole-retrained")):
        if own is None or bench.task.retrain:
            yield bench.step(name, Point, partial(_deep_compression, bench, own))


def divergences(bench: Bench) -> tuple[JointDivergence, ...]:
    """Measure combinations of all the network's layers, on the set that decides."""
    bench.progress("divergences of combinations", None)
    make = partial(_divergences, bench)
    return bench.step("divergences", tuple[JointDivergence, ...], make, PARTS, COMBINATIONS)


def _divergences(bench: Bench) -> tuple[JointDivergence, ...]:
    from deepsz_caffe.runtime.evaluator import CaffeEvaluator
    from deepsz_caffe.steps.assess.setup import read_setup
    from deepsz_caffe.steps.assess.tester import Tester

    task = bench.task
    setup = read_setup(
        bench.net, bench.pruned, protocol=task.protocol, layers="all", own_data=task.data is None
    )
    features = features_of(bench.folder, task.protocol)
    with CaffeEvaluator(setup, data=task.data, executor=bench.pool, features=features) as evaluator:
        return joint_divergences(
            Tester(setup, evaluator, profile=PROFILE, rounded=True, biases="corrected"),
            PARTS,
            COMBINATIONS,
        )


def joint_divergences(
    tester: Tester, parts: Sequence[float], combinations: int
) -> tuple[JointDivergence, ...]:
    """Measure layers one by one and in random combinations, by how far the outputs are from before.

    Parameters
    ----------
    tester
        Encodes and measures.
    parts
        Error bounds to test, as parts of a layer's typical weight.
    combinations
        Of two layers or more, each at one of these bounds.
    """
    grid = {each.name: [part * each.typical for part in parts] for each in tester.setup.layers}
    alone = {
        (name, bound): tester.evaluator.diverge(tester.encode_all({name: bound})).mean
        for name, bounds in grid.items()
        for bound in bounds
    }
    choice = random.Random(0)
    found = []
    for _ in range(combinations):
        names = choice.sample(list(grid), choice.randint(min(2, len(grid)), len(grid)))
        bounds = {name: choice.choice(grid[name]) for name in names}
        together = tester.evaluator.diverge(tester.encode_all(bounds)).mean
        found.append(JointDivergence(bounds, together, sum(alone[one] for one in bounds.items())))
    return tuple(found)


def _file(bench: Bench, path: Path, seconds: float) -> Point:
    return Point(
        "deepsz",
        f"profile {PROFILE}",
        path.stat().st_size,
        validation=_score(bench, "validation", path),
        test=_score(bench, "test", path),
        encode_seconds=seconds,
    )


def _deep_compression(bench: Bench, solver: Path | None) -> Point:
    from deepsz_caffe.experiments.baselines import retraining
    from deepsz_caffe.network.caffemodel import read_caffemodel

    began = time.perf_counter()
    model, network = read_caffemodel(bench.pruned), bench.task.network
    layers = techniques.whole_deep_compression(
        {name: model[name].matrix for name in network.conv}, bench.matrices
    )
    if solver is not None:
        iterations = bench.task.iterations or RETRAIN_ITERATIONS
        layers = retraining.retrain_codebooks(
            solver, bench.pruned, layers, iterations, seed=bench.task.seed
        )
    outcome = techniques.deep_compression_of(layers, began)
    replaced = outcome.weights
    return Point(
        outcome.technique,
        "8 bits and index 8 bits, fc layers 5 and 5",
        outcome.bytes + _other_bytes(model, layers),
        validation=_score(bench, "validation", bench.pruned, replaced),
        test=_score(bench, "test", bench.pruned, replaced),
        retrained=solver is not None,
        encode_seconds=outcome.encode_seconds,
        decode_seconds=outcome.decode_seconds,
    )


def _other_bytes(model: CaffeModel, layers: Collection[str]) -> int:
    """Count biases and such, which Deep Compression leaves as float32; no names, no headers."""
    return sum(
        blob.data.nbytes
        for layer in model.layers
        for number, blob in enumerate(layer.blobs)
        if number or layer.name not in layers
    )


def _score(
    bench: Bench, name: str, weights: Path, replaced: Mapping[str, np.ndarray] | None = None
) -> Accuracy:
    from deepsz_caffe.runtime.evaluate import evaluate

    stages = bench.evaluators[name].setup.stages
    score = evaluate(
        bench.net,
        weights,
        stages=stages,
        data=bench.task.data,
        replace=replaced,
        executor=bench.pool,
    )
    return Accuracy(score.total, score.top1_correct, score.top5_correct)
