"""One network from training to its row in the paper's tables; every step kept in a folder.

The order is the paper's: train, prune and retrain, assess, optimize, encode; then decode and
evaluate what was written, and both baselines on the same pruned weights through the same evaluator.
Each step leaves a file in the folder and is skipped when it is there and was made from the same
input, so an interrupted run goes on, and a second one only prints.

What is chosen (bounds, settings) is chosen on the validation split where the network has one, and
what is reported is measured on the test set. With ``protocol="paper"`` both are the test set.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deepsz_caffe.container import LayerEntry
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments import results, techniques
from deepsz_caffe.experiments.networks import ROOT, Network
from deepsz_caffe.experiments.results import Accuracy, Joint, Layer, Point, Run, SingleTest
from deepsz_caffe.files import atomic_write

#: told what is being done, and how far it is (0 to 1, None where that is not known)
Progress = Callable[[str, float | None], None]
Protocol = Literal["validation", "paper"]

#: name of the file in a run's folder that holds its measurements
RUN = "run.json"
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

_HOW_TO_GET = (
    "weights: the Caffe Model Zoo's bvlc_alexnet.caffemodel or VGG_ILSVRC_16_layers.caffemodel; "
    "data: register at image-net.org, then Caffe's convert_imageset makes the LMDB; without them "
    "--generated measures sizes, times and memory at full size"
)


@dataclass(frozen=True)
class Task:
    """What to reproduce.

    Parameters
    ----------
    network
        Which network.
    out
        Folder of this run; is made.
    command
        The command to name in tables.
    seed
        Of training and pruning.
    dense
        A trained caffemodel; None trains one.
    pruned
        A pruned caffemodel; None prunes.
    data
        Evaluation data in place of the prototxt's source (an LMDB); there is no validation split
        then.
    max_loss
        Limit of the loss of top-1 against the unpruned network, a fraction.
    protocol
        Where bounds are chosen.
    confidence
        See `compress`: 0.5 holds the loss that was measured where bounds are chosen, without a
        statistical margin, as the paper does.
    retrain
        Also measure both baselines after their published retraining.
    workers
        Caffe processes for tests.
    """

    network: Network
    out: Path
    command: str
    seed: int = 1
    dense: Path | None = None
    pruned: Path | None = None
    data: str | None = None
    max_loss: float = 0.002
    protocol: Protocol = "validation"
    confidence: float = 0.5
    retrain: bool = False
    workers: int = 1


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
    pruned = _pruned(task, dense, folder, progress)
    files = {
        profile: _compressed(task, dense, pruned, profile, folder, progress) for profile in PROFILES
    }
    key = key_of(
        task.network.id,
        _digest(dense),
        _digest(pruned),
        *(_digest(task.out / f"{profile}.dsz") for profile in PROFILES),
        task.data,
        task.max_loss,
        task.protocol,
        task.confidence,
        task.retrain,
    )
    measured = folder.step(
        "measured", key, lambda: asdict(_measure(task, dense, pruned, files, folder, progress))
    )
    run = results.from_json(measured)
    run = replace(run, command=task.command, seed=task.seed)
    results.save(run, task.out / RUN)
    return run


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


class Folder:
    """Where a run's files lie; steps that are done are read instead of repeated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give the result of a step, from its file where that was made with the same key."""
        file = self.path / f"{name}.json"
        try:
            kept = json.loads(file.read_bytes())
            if kept["key"] == key:
                return dict(kept["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # Through JSON in any case, so that the first run sees what a second one would.
        text = json.dumps({"key": key, "result": make()}, indent=1)
        with atomic_write(file) as opened:
            opened.write(text.encode())
        return dict(json.loads(text)["result"])


def _dense(task: Task, folder: Folder, progress: Progress) -> Path:
    """Train the network, unless it is given."""
    if task.dense is not None:
        return task.dense
    from deepsz_caffe.runtime.solver import train

    solver = task.network.path("solver.prototxt")
    path = folder.path / "dense.caffemodel"

    def make() -> dict[str, Any]:
        result = train(
            solver, path, seed=task.seed, progress=_solver_progress("training", progress)
        )
        return {"seconds": result.seconds, "iterations": result.iterations}

    _made(folder, "dense", key_of(solver.read_text(), task.seed), path, make)
    return path


def _pruned(task: Task, dense: Path, folder: Folder, progress: Progress) -> Path:
    """Prune to the paper's densities and retrain, unless pruned weights are given."""
    if task.pruned is not None:
        return task.pruned
    from deepsz_caffe.prune import prune

    solver = _retraining_solver(task.network)
    path = folder.path / "pruned.caffemodel"

    def make() -> dict[str, Any]:
        pruned = prune(
            solver,
            dense,
            task.network.keep,
            path,
            seed=task.seed,
            progress=_solver_progress("pruning and retraining", progress),
        )
        return {"seconds": pruned.training.seconds}

    key = key_of(solver.read_text(), task.seed, _digest(dense), task.network.keep)
    _made(folder, "pruned", key, path, make)
    return path


def _retraining_solver(network: Network) -> Path:
    """Give the solver for pruned networks, which is that of training where there is no other."""
    own = network.path("retrain.prototxt")
    return own if own.exists() else network.path("solver.prototxt")


def _made(
    folder: Folder, name: str, key: str, path: Path, make: Callable[[], dict[str, Any]]
) -> None:
    """Do a step whose result is a file; a missing file makes it run again."""
    if not path.exists():
        (folder.path / f"{name}.json").unlink(missing_ok=True)
    folder.step(name, key, make)


def _compressed(
    task: Task, dense: Path, pruned: Path, profile: str, folder: Folder, progress: Progress
) -> dict[str, Any]:
    """Assess, optimize, encode; the loss counts against the unpruned network."""
    from deepsz_caffe.compress import compress

    net = task.network.path("train_val.prototxt")
    path = folder.path / f"{profile}.dsz"
    title = f"assessing error bounds, profile {profile}"

    def make() -> dict[str, Any]:
        progress(title, None)
        began = time.perf_counter()
        result = compress(
            net,
            pruned,
            path,
            max_loss=task.max_loss,
            original=dense,
            protocol=task.protocol,
            confidence=task.confidence,
            profile=profile,
            data=task.data,
            workers=task.workers,
            journal=folder.path / f"{profile}.journal",
            features=folder.path / "features",
            progress=_assess_progress(title, progress),
        )
        return {
            "seconds": time.perf_counter() - began,
            "bounds": result.plan.bounds,
            "tests": result.assessment.tests,
            "file_bytes": path.stat().st_size,
        }

    key = key_of(
        _digest(dense),
        _digest(pruned),
        task.max_loss,
        task.protocol,
        task.confidence,
        task.data,
        profile,
    )
    if not path.exists():
        (folder.path / f"{profile}.json").unlink(missing_ok=True)
    return folder.step(profile, key, make)


class _Judge:
    """The evaluator that all techniques share: the pruned network with some layers replaced."""

    def __init__(self, task: Task, pruned: Path, folder: Folder, stack: ExitStack) -> None:
        from deepsz_caffe.assess import Session
        from deepsz_caffe.runtime.pool import CaffePool

        self.pool = stack.enter_context(CaffePool(task.workers))
        net = task.network.path("train_val.prototxt")
        self.sessions: dict[str, Session] = {}
        for name, protocol in (("validation", task.protocol), ("test", "paper")):
            session = Session(
                net,
                pruned,
                protocol=protocol,
                profile=PROFILES[0],
                data=task.data,
                executor=self.pool,
                features=folder.path / "features" / name,
                journal=folder.path / f"{name}.journal",
            )
            self.sessions[name] = stack.enter_context(session)

    def unchanged(self, name: str) -> Accuracy:
        score = self.sessions[name].features.score
        return Accuracy(score.total, score.top1_correct, score.top5_correct)

    def measure(self, name: str, weights: Mapping[str, np.ndarray]) -> Accuracy:
        from deepsz_caffe.runtime.features import measure_weights

        session = self.sessions[name]
        outcome = self.pool.submit(
            measure_weights, session.features.folder, dict(weights), None, None
        ).result()
        return Accuracy(outcome.images, outcome.top1_correct, outcome.top5_correct)


def _measure(
    task: Task,
    dense: Path,
    pruned: Path,
    files: Mapping[str, dict[str, Any]],
    folder: Folder,
    progress: Progress,
) -> Run:
    """Measure everything that tables and figures show."""
    from deepsz_caffe.container import DszFile
    from deepsz_caffe.network.caffemodel import read_caffemodel

    net = task.network.path("train_val.prototxt")
    model = read_caffemodel(pruned)
    matrices = {shape.name: model[shape.name].matrix for shape in task.network.fc}
    with ExitStack() as stack:
        progress("computing features", None)
        judge = _Judge(task, pruned, folder, stack)
        points = []
        for profile in PROFILES:
            with DszFile(task.out / f"{profile}.dsz") as file:
                encoded = [file.layer(layer.name) for layer in file.layers]
            outcome = techniques.deepsz(encoded, f"profile {profile}")
            points.append(_point(outcome, judge, files[profile]["seconds"]))
            if profile == PROFILES[0]:
                layers = tuple(layer_of(layer) for layer in encoded)
        tested, curve, joint = _assessments(judge, progress)
        points += curve
        points += _baselines(matrices, judge, progress)
        if task.retrain:
            points += _retrained(task, pruned, matrices, judge, folder, progress)
        progress("index arrays", None)
        index = techniques.index_sizes(matrices)
        progress("evaluating the trained network and the file", None)
        from deepsz_caffe.runtime.forward import evaluate

        scores = {
            path: evaluate(net, path, data=task.data, executor=judge.pool)
            for path in (dense, task.out / f"{PROFILES[0]}.dsz")
        }
        whole = scores[task.out / f"{PROFILES[0]}.dsz"]
        if points[0].test is None or whole.top1_correct != points[0].test.top1:
            # One truth: the tail with replaced weights must give what the whole network gives.
            points[0] = replace(
                points[0], test=Accuracy(whole.total, whole.top1_correct, whole.top5_correct)
            )
        before = scores[dense]
        return Run(
            network=task.network.id,
            command=task.command,
            seed=task.seed,
            generated=False,
            fc_dense_bytes=task.network.fc_dense_bytes,
            file_bytes=(task.out / f"{PROFILES[0]}.dsz").stat().st_size,
            layers=layers,
            points=tuple(points),
            index=index,
            dense=Accuracy(before.total, before.top1_correct, before.top5_correct),
            pruned=judge.unchanged("test"),
            pruned_validation=judge.unchanged("validation"),
            max_loss=task.max_loss,
            protocol=task.protocol,
            tested=tested,
            joint=joint,
            forward_seconds=judge.pool.submit(
                forward_seconds, str(task.network.path("deploy.prototxt")), str(pruned)
            ).result(),
        )


def _assessments(
    judge: _Judge, progress: Progress
) -> tuple[tuple[SingleTest, ...], list[Point], tuple[Joint, ...]]:
    """Test every layer at every bound of the grid; from that the curve and the combinations."""
    from deepsz_caffe.optimize import optimize

    progress("every layer at every bound", None)
    session = judge.sessions["validation"]
    assessment = session.assess(LIMITS[-1], bounds=GRID)
    tested = tuple(
        SingleTest(layer.name, one.bound, one.bytes, one.lost - one.gained, one.images)
        for layer in assessment.layers
        for one in layer.points
    )
    curve = []
    for number, limit in enumerate(LIMITS):
        progress("DeepSZ at other limits", number / len(LIMITS))
        began = time.perf_counter()
        plan = optimize(assessment, max_loss=limit)
        encoded = [session.encode(name, bound) for name, bound in plan.bounds.items()]
        setting = f"expected loss at most {100 * limit:g} %"
        outcome = techniques.deepsz(encoded, setting, time.perf_counter() - began)
        curve.append(_point(outcome, judge))
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
        progress("combinations of bounds", number / COMBINATIONS)
        bounds = {name: choice.choice(options) for name, options in usable.items() if options}
        together = session.measure(bounds)
        joint.append(
            Joint(
                bounds,
                together.lost - together.gained,
                sum(alone[one] for one in bounds.items()),
                together.images,
            )
        )
    return tested, curve, tuple(joint)


def _baselines(
    matrices: Mapping[str, np.ndarray], judge: _Judge, progress: Progress
) -> Iterable[Point]:
    """Measure both baselines at every setting, without retraining."""
    settings = techniques.DEEP_COMPRESSION_SETTINGS
    for number, (bits, index_bits) in enumerate(settings):
        progress("Deep Compression", number / len(settings))
        yield _point(techniques.deep_compression_outcome(matrices, bits, index_bits), judge)
    for every_layer in (False, True):
        title = "Weightless, every layer" if every_layer else "Weightless"
        for number, (clusters, bits) in enumerate(techniques.WEIGHTLESS_SETTINGS):
            progress(title, number / len(techniques.WEIGHTLESS_SETTINGS))
            outcome = techniques.weightless_outcome(
                matrices, clusters, bits, every_layer=every_layer
            )
            yield _point(outcome, judge)


def _retrained(
    task: Task,
    pruned: Path,
    matrices: Mapping[str, np.ndarray],
    judge: _Judge,
    folder: Folder,
    progress: Progress,
) -> Iterable[Point]:
    """Measure both baselines after their retraining."""
    from deepsz_caffe.baselines import deep_compression, retraining, weightless
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.runtime.forward import evaluate

    solver = _retraining_solver(task.network)
    progress("retraining the codebooks (Deep Compression)", None)
    began = time.perf_counter()
    layers = {
        name: deep_compression.quantize(matrix, *RETRAINED_BITS)
        for name, matrix in matrices.items()
    }
    layers = retraining.retrain_codebooks(
        solver, pruned, layers, RETRAIN_ITERATIONS, seed=task.seed
    )
    yield replace(_point(techniques.deep_compression_of(layers, began), judge), retrained=True)

    progress("retraining around the filter (Weightless)", None)
    began = time.perf_counter()
    largest = weightless.largest(matrices)
    stored = weightless.encode(matrices[largest], *RETRAINED_FILTER)
    path = folder.path / "weightless.caffemodel"
    retraining.retrain_others(
        solver, pruned, {largest: stored.decode()}, path, RETRAIN_ITERATIONS, seed=task.seed
    )
    seconds = time.perf_counter() - began
    model = read_caffemodel(path)
    # The filter is made of the pruned layer; the other layers are what retraining made of them.
    retrained = {name: model[name].matrix for name in matrices} | {largest: matrices[largest]}
    outcome = techniques.weightless_outcome(retrained, *RETRAINED_FILTER)
    net = task.network.path("train_val.prototxt")
    accuracy = {}
    for name, session in judge.sessions.items():
        score = evaluate(net, path, stages=session.stages, data=task.data, executor=judge.pool)
        accuracy[name] = Accuracy(score.total, score.top1_correct, score.top5_correct)
    yield Point(
        outcome.technique,
        outcome.setting,
        outcome.bytes,
        validation=accuracy["validation"],
        test=accuracy["test"],
        retrained=True,
        encode_seconds=seconds,
        decode_seconds=outcome.decode_seconds,
    )


def _point(
    outcome: techniques.Outcome, judge: _Judge, encode_seconds: float | None = None
) -> Point:
    return Point(
        outcome.technique,
        outcome.setting,
        outcome.bytes,
        validation=judge.measure("validation", outcome.weights),
        test=judge.measure("test", outcome.weights),
        encode_seconds=outcome.encode_seconds if encode_seconds is None else encode_seconds,
        decode_seconds=outcome.decode_seconds,
    )


def layer_of(layer: LayerEntry) -> Layer:
    """Keep what the tables show of a compressed layer."""
    names = ("name", "shape", "nonzeros", "error_bound", "data_codec", "data_bytes",
             "index_codec", "index_bytes", "bytes")  # fmt: skip
    return Layer(**{name: getattr(layer, name) for name in names})


def forward_seconds(deploy: str, weights: str, images: int = 50) -> float:
    """Time one forward pass of the whole network; runs in a Caffe process.

    Returns
    -------
    float
        Seconds for `images` images in one batch, the best of five.
    """
    from deepsz_caffe.network.prototxt import read_prototxt
    from deepsz_caffe.runtime.forward import build_net
    from deepsz_caffe.runtime.worker import import_caffe

    net = read_prototxt(deploy)
    for layer in net.layer:
        if layer.type == "Input":
            layer.input_param.shape[0].dim[0] = images
    caffe = import_caffe()
    caffe_net = build_net(caffe, net)
    caffe_net.copy_from(weights)
    for blob in caffe_net.inputs:
        data = caffe_net.blobs[blob].data
        data[...] = np.random.default_rng(0).random(data.shape, np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        caffe_net.forward()
        times.append(time.perf_counter() - began)
    return min(times)


def _solver_progress(title: str, progress: Progress) -> Callable[[Any], None]:
    def report(state: Any) -> None:  # noqa: ANN401
        progress(title, state.iteration / state.iterations)

    return report


def _assess_progress(title: str, progress: Progress) -> Callable[[Any], None]:
    def report(message: tuple[Any, ...]) -> None:
        if message[0] == "body":
            progress("computing features", message[1] / message[2])
        elif message[0] == "test":
            progress(title, None)

    return report


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def key_of(*parts: object) -> str:
    """Digest what a step depends on."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def plan(
    network: Network,
    out: Path,
    *,
    from_models: bool = False,
    seeds: int | None = None,
    weights: Path | None = None,
    pruned: Path | None = None,
    data: str | None = None,
    max_loss: float = 0.002,
    protocol: Protocol = "validation",
    confidence: float = 0.5,
    retrain: bool = False,
    workers: int = 1,
) -> list[Task]:
    """Say what is to be run for a network with what the user has.

    Parameters
    ----------
    network
        Which network.
    out
        Folder of all results; each task gets a folder in it.
    from_models
        Start from the trained network in ``models/``.
    seeds
        Train with seeds 1 to `seeds`.
    weights, pruned, data, max_loss, protocol, confidence, retrain, workers
        As in `Task`.

    Raises
    ------
    InputError
        Something is missing: says what, how to get it, and what can be done without.
    """
    options = f" --max-loss {max_loss:g}" if max_loss != Task.max_loss else ""
    options += f" --protocol {protocol}" if protocol != Task.protocol else ""
    options += f" --confidence {confidence:g}" if confidence != Task.confidence else ""
    options += " --retrain" if retrain else ""
    begin = f"deepsz reproduce {network.id}"

    def task(folder: str, command: str, dense: Path | None, seed: int = 1) -> Task:
        return Task(
            network,
            out / folder,
            begin + command + options,
            seed,
            dense,
            pruned,
            data,
            max_loss,
            protocol,
            confidence,
            retrain,
            workers,
        )

    if network.data_set == "ImageNet":
        if weights is None or data is None:
            lacking = " and ".join(
                what
                for what, value in (
                    ("--weights (a trained caffemodel)", weights),
                    ("--data (an LMDB of the ImageNet validation set)", data),
                )
                if value is None
            )
            raise InputError(f"needs {lacking}", where=network.title, hint=_HOW_TO_GET)
        return [task(network.id, f" --weights {weights.name} --data {data}", weights)]
    check_data(network)
    if from_models:
        dense = ROOT / "models" / network.folder / "dense.caffemodel"
        if not dense.exists():
            raise InputError("the trained network is missing", where=dense)
        return [task(f"{network.id}-shipped", " --from-models", dense)]
    count = seeds or 1
    return [
        task(f"{network.id}-seed-{seed}", f" --seeds {count}", weights, seed)
        for seed in range(1, count + 1)
    ]


def check_data(network: Network) -> None:
    """See that a LeNet's prototxts are beside the package; fetch MNIST where it is missing.

    Raises
    ------
    InputError
        The package was installed without the rest of its repository.
    """
    from deepsz_caffe.experiments.mnist import prepare_mnist

    if not (ROOT / "prototxt" / network.folder).is_dir():
        raise InputError(
            "prototxt/ is missing",
            where=ROOT,
            hint="run this in a checkout of deepsz-caffe, installed with pip install -e .",
        )
    if not Path("data", "mnist", "test_lmdb").exists():
        prepare_mnist(Path("data/mnist"))
