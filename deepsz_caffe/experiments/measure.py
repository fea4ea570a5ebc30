"""All that tables and figures show of one pruned network, measured by one evaluator.

Every setting of every technique replaces the pruned layers by what it decodes, and is scored on the
same features of the same images. Each measurement is a step of the run's folder.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.experiments.baselines import techniques
from deepsz_caffe.experiments.folder import Folder, Progress, digest, key_of
from deepsz_caffe.experiments.plan import Task
from deepsz_caffe.experiments.results import Accuracy, IndexSize, Joint, Layer, Point, SingleTest

if TYPE_CHECKING:
    from deepsz_caffe.runtime.evaluator import CaffeEvaluator
    from deepsz_caffe.runtime.pool import CaffePool
    from deepsz_caffe.steps.assess.tester import Tester

Result = TypeVar("Result")

#: codecs of the compressed file whose figures stand in the tables, and of the others
PROFILES = ("paper", "small")
#: loss limits whose best configurations make DeepSZ's curve of loss against ratio (fractions)
LIMITS = (0.0005, 0.001, 0.003, 0.005, 0.01, 0.02)
#: bounds at which every layer is tested for the figures
GRID = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
#: combinations of tested bounds for the figure of additivity
COMBINATIONS = 40
#: settings of the baselines' retraining: as published, five epochs of MNIST
RETRAINED_BITS = (5, 5)
RETRAINED_FILTER = (9, 8)
RETRAIN_ITERATIONS = 2500


class Bench:
    """One pruned network, what all techniques share: evaluator, folder, progress.

    Features are computed, and Caffe is started, when the first step is not in the folder.
    """

    def __init__(
        self, task: Task, pruned: Path, folder: Folder, stack: ExitStack, progress: Progress
    ) -> None:
        from deepsz_caffe.network.caffemodel import read_caffemodel

        self.task, self.pruned, self.folder, self.progress = task, pruned, folder, progress
        self.net = task.network.path("train_val.prototxt")
        self.key = key_of(
            task.network.id, digest(pruned), task.data, task.protocol, task.iterations
        )
        model = read_caffemodel(pruned)
        self.matrices = {shape.name: model[shape.name].matrix for shape in task.network.fc}
        self._stack = stack

    @cached_property
    def pool(self) -> CaffePool:
        from deepsz_caffe.runtime.pool import CaffePool

        return self._stack.enter_context(CaffePool(self.task.workers))

    @cached_property
    def evaluators(self) -> dict[str, CaffeEvaluator]:
        """The set that decides, and the set that is reported."""
        from deepsz_caffe.runtime.evaluator import CaffeEvaluator
        from deepsz_caffe.steps.assess.setup import read_setup

        self.progress("computing features", None)
        found: dict[str, CaffeEvaluator] = {}
        for name, protocol in (("validation", self.task.protocol), ("test", "paper")):
            if name == "test" and protocol == self.task.protocol:
                found[name] = found["validation"]
                break
            setup = read_setup(
                self.net, self.pruned, protocol=protocol, own_data=self.task.data is None
            )
            evaluator = CaffeEvaluator(
                setup,
                data=self.task.data,
                executor=self.pool,
                features=features_of(self.folder, protocol),
            )
            found[name] = self._stack.enter_context(evaluator)
        return found

    @cached_property
    def tester(self) -> Tester:
        """Tests of single layers and of configurations, on the set that decides."""
        from deepsz_caffe.steps.assess.tester import Tester

        evaluator = self.evaluators["validation"]
        journal = self.folder.path / f"{self.task.protocol}.journal"
        return Tester(evaluator.setup, evaluator, profile=PROFILES[0], journal=journal)

    def unchanged(self, name: str) -> Accuracy:
        score = self.evaluators[name].score
        return Accuracy(score.total, score.top1_correct, score.top5_correct)

    def step(
        self, name: str, kind: type[Result], make: Callable[[], Result], *parts: object
    ) -> Result:
        return self.folder.step(f"measured/{name}", key_of(self.key, *parts), kind, make)

    def measure(self, outcome: techniques.Outcome, encode_seconds: float | None = None) -> Point:
        """Score what a technique decodes, on both sets."""
        return Point(
            outcome.technique,
            outcome.setting,
            outcome.bytes,
            validation=self._score("validation", outcome.weights),
            test=self._score("test", outcome.weights),
            encode_seconds=outcome.encode_seconds if encode_seconds is None else encode_seconds,
            decode_seconds=outcome.decode_seconds,
        )

    def _score(self, name: str, weights: Mapping[str, np.ndarray]) -> Accuracy:
        outcome = self.evaluators[name].measure(dict(weights))
        return Accuracy(outcome.images, outcome.top1_correct, outcome.top5_correct)


def features_of(folder: Folder, protocol: str) -> Path:
    """Place of the features that the tests of a protocol start from."""
    return folder.path / "features" / protocol


def compressed(bench: Bench, seconds: Mapping[str, float]) -> tuple[list[Point], tuple[Layer, ...]]:
    """Score the compressed files; `seconds` is what making each took. The first's layers, too."""
    points, layers = [], []
    for profile in PROFILES:
        path = bench.folder.path / f"{profile}.dsz"
        with DszFile(path) as file:
            encoded = [file.layer(layer.name) for layer in file.layers]
        if profile == PROFILES[0]:
            layers = [layer_of(layer) for layer in encoded]
        bench.progress("the compressed files", None)
        decode = partial(techniques.deepsz, encoded, f"profile {profile}")
        score = partial(_point, bench, decode, seconds[profile])
        points.append(bench.step(f"deepsz-{profile}", Point, score, digest(path)))
    return points, tuple(layers)


def _point(
    bench: Bench, make: Callable[[], techniques.Outcome], seconds: float | None = None
) -> Point:
    return bench.measure(make(), seconds)


def scores(bench: Bench, dense: Path) -> dict[str, Accuracy]:
    """Score the networks as files: trained, pruned (on both sets) and compressed."""
    from deepsz_caffe.runtime.evaluate import evaluate

    path = bench.folder.path / f"{PROFILES[0]}.dsz"

    def whole(path: Path) -> Accuracy:
        score = evaluate(bench.net, path, data=bench.task.data, executor=bench.pool)
        return Accuracy(score.total, score.top1_correct, score.top5_correct)

    def make() -> dict[str, Accuracy]:
        return {
            "dense": whole(dense),
            "compressed": whole(path),
            "pruned": bench.unchanged("test"),
            "pruned_validation": bench.unchanged("validation"),
        }

    bench.progress("evaluating the trained network and the file", None)
    return bench.step("scores", dict[str, Accuracy], make, digest(dense), digest(path))


@dataclass(frozen=True)
class Grid:
    """What the tests of all layers at all bounds gave: they, DeepSZ's curve, combinations."""

    tested: tuple[SingleTest, ...]
    curve: tuple[Point, ...]
    joint: tuple[Joint, ...]


def assessments(bench: Bench) -> Grid:
    """Test every layer at every bound of the grid; from that the curve and the combinations."""
    bench.progress("every layer at every bound", None)
    return bench.step("grid", Grid, partial(_assessments, bench), GRID, LIMITS, COMBINATIONS)


def _assessments(bench: Bench) -> Grid:
    from deepsz_caffe.steps.assess.tester import assess
    from deepsz_caffe.steps.optimize import optimize

    tester = bench.tester
    assessment = assess(tester, LIMITS[-1], bounds=GRID)
    tested = [
        SingleTest(layer.name, one.bound, one.bytes, one.lost - one.gained, one.images)
        for layer in assessment.layers
        for one in layer.points
    ]
    curve = []
    for number, limit in enumerate(LIMITS):
        bench.progress("DeepSZ at other limits", number / len(LIMITS))
        began = time.perf_counter()
        plan = optimize(assessment, max_loss=limit)
        encoded = list(tester.encode_all(plan.bounds).values())
        setting = f"expected loss at most {100 * limit:g} %"
        outcome = techniques.deepsz(encoded, setting, time.perf_counter() - began)
        curve.append(bench.measure(outcome))
    alone = {(one.layer, one.error_bound): one.lost for one in tested}
    # The sum holds for small losses (the paper: under 2 % in total).
    usable = {
        layer.name: [
            one.bound for one in layer.points if abs(one.lost - one.gained) < 0.01 * one.images
        ]
        for layer in assessment.layers
    }
    choice = random.Random(0)
    joint = []
    for number in range(COMBINATIONS):
        bench.progress("combinations of bounds", number / COMBINATIONS)
        bounds = {name: choice.choice(options) for name, options in usable.items() if options}
        together = tester.measure(bounds)
        joint.append(
            Joint(
                bounds,
                together.lost - together.gained,
                sum(alone[one] for one in bounds.items()),
                together.images,
            )
        )
    return Grid(tuple(tested), tuple(curve), tuple(joint))


def baselines(bench: Bench) -> Iterator[Point]:
    """Measure both baselines at every setting, without retraining."""
    settings = techniques.DEEP_COMPRESSION_SETTINGS
    for number, setting in enumerate(settings):
        bench.progress("Deep Compression", number / len(settings))
        make = partial(techniques.deep_compression_outcome, bench.matrices, *setting)
        name = f"deep-compression-{setting[0]}-{setting[1]}"
        yield bench.step(name, Point, partial(_point, bench, make))
    for every in (False, True):
        title = "Weightless, every layer" if every else "Weightless"
        begin = "weightless-all" if every else "weightless"
        settings = techniques.WEIGHTLESS_SETTINGS
        for number, setting in enumerate(settings):
            bench.progress(title, number / len(settings))
            make = partial(
                techniques.weightless_outcome, bench.matrices, *setting, every_layer=every
            )
            name = f"{begin}-{setting[0]}-{setting[1]}"
            yield bench.step(name, Point, partial(_point, bench, make))


def retrained(bench: Bench, solver: Path) -> Iterator[Point]:
    """Measure both baselines after their retraining."""
    bench.progress("retraining the codebooks (Deep Compression)", None)
    make = partial(_retrained_codebooks, bench, solver)
    yield bench.step("deep-compression-retrained", Point, make)
    bench.progress("retraining around the filter (Weightless)", None)
    yield bench.step("weightless-retrained", Point, partial(_retrained_filter, bench, solver))


def _retrained_codebooks(bench: Bench, solver: Path) -> Point:
    from deepsz_caffe.experiments.baselines import deep_compression, retraining

    began = time.perf_counter()
    layers = {
        name: deep_compression.quantize(matrix, *RETRAINED_BITS)
        for name, matrix in bench.matrices.items()
    }
    iterations = bench.task.iterations or RETRAIN_ITERATIONS
    layers = retraining.retrain_codebooks(
        solver, bench.pruned, layers, iterations, seed=bench.task.seed
    )
    return replace(
        bench.measure(techniques.deep_compression_of(layers, began)),
        retrained=True,
    )


def _retrained_filter(bench: Bench, solver: Path) -> Point:
    from deepsz_caffe.experiments.baselines import retraining, weightless
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.runtime.evaluate import evaluate

    began = time.perf_counter()
    largest = weightless.largest(bench.matrices)
    stored = weightless.encode(bench.matrices[largest], *RETRAINED_FILTER)
    path = bench.folder.path / "weightless.caffemodel"
    retraining.retrain_others(
        solver,
        bench.pruned,
        {largest: stored.decode()},
        path,
        bench.task.iterations or RETRAIN_ITERATIONS,
        seed=bench.task.seed,
    )
    seconds = time.perf_counter() - began
    model = read_caffemodel(path)
    # The filter is made of the pruned layer; the other layers are what retraining made of them.
    layers = {name: model[name].matrix for name in bench.matrices}
    outcome = techniques.weightless_outcome(
        layers | {largest: bench.matrices[largest]}, *RETRAINED_FILTER
    )
    accuracy = {}
    for name, evaluator in bench.evaluators.items():
        score = evaluate(
            bench.net,
            path,
            stages=evaluator.setup.stages,
            data=bench.task.data,
            executor=bench.pool,
        )
        accuracy[name] = Accuracy(score.total, score.top1_correct, score.top5_correct)
    return Point(
        outcome.technique,
        outcome.setting,
        outcome.bytes,
        validation=accuracy["validation"],
        test=accuracy["test"],
        retrained=True,
        encode_seconds=seconds,
        decode_seconds=outcome.decode_seconds,
    )


def index_sizes(bench: Bench) -> tuple[IndexSize, ...]:
    """Sizes of the index arrays under every lossless codec."""
    bench.progress("index arrays", None)
    make = partial(techniques.index_sizes, bench.matrices)
    return bench.step("index", tuple[IndexSize, ...], make)


def layer_of(layer: LayerEntry) -> Layer:
    """Keep what the tables show of a compressed layer."""
    names = ("name", "shape", "nonzeros", "error_bound", "data_codec", "data_bytes",
             "index_codec", "index_bytes", "bytes")  # fmt: skip
    return Layer(**{name: getattr(layer, name) for name in names})


def forward_time(bench: Bench) -> float:
    """Time one forward pass of 50 images, in seconds."""
    deploy = bench.task.network.path("deploy.prototxt")

    def make() -> float:
        return bench.pool.submit(forward_seconds, str(deploy), str(bench.pruned)).result()

    return bench.step("forward", float, make)


def forward_seconds(deploy: str, weights: str, images: int = 50) -> float:
    """Time one forward pass of the whole network; runs in a Caffe process.

    Returns
    -------
    float
        Seconds for `images` images in one batch, the best of five.
    """
    from deepsz_caffe.network.prototxt import read_prototxt
    from deepsz_caffe.runtime.net import build_net, load_weights
    from deepsz_caffe.runtime.worker import import_caffe

    net = read_prototxt(deploy)
    for layer in net.layer:
        if layer.type == "Input":
            layer.input_param.shape[0].dim[0] = images
    caffe = import_caffe()
    caffe_net = build_net(caffe, net)
    load_weights(caffe_net, net, weights)
    for blob in caffe_net.inputs:
        data = caffe_net.blobs[blob].data
        data[...] = np.random.default_rng(0).random(data.shape, np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        caffe_net.forward()
        times.append(time.perf_counter() - began)
    return min(times)


def machine() -> str:
    """Name the processor and how many of its cores may be used."""
    import platform

    from deepsz_caffe.runtime.pool import available_cores

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {available_cores()} of {os.cpu_count()} cores"
