"""The four steps on files: where the method is given Caffe to measure and to train with.

`steps` knows nothing of Caffe and `runtime` nothing of the command line; only here are they put
together. What the package exports and what the command line calls is this.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Literal

from deepsz_caffe import codecs
from deepsz_caffe.errors import InputError
from deepsz_caffe.files import check_folder, check_output
from deepsz_caffe.network.layers import ExtraBlobs, Selection
from deepsz_caffe.runtime.data import Data
from deepsz_caffe.runtime.evaluator import BodyMessage, CaffeEvaluator
from deepsz_caffe.runtime.frozen import train_frozen
from deepsz_caffe.runtime.net import read_weights
from deepsz_caffe.runtime.outputs import Job, compare_networks
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.runtime.pool import run_with_progress
from deepsz_caffe.runtime.solver import train
from deepsz_caffe.runtime.training import TrainingProgress
from deepsz_caffe.steps import compress as compressing
from deepsz_caffe.steps import prune as pruning
from deepsz_caffe.steps.agreement import Agreement, MaxChange
from deepsz_caffe.steps.assess import tester as testing
from deepsz_caffe.steps.assess.result import Assessment, Point
from deepsz_caffe.steps.assess.setup import Protocol, Setup, read_setup
from deepsz_caffe.steps.assess.tester import Biases, Search, Tested, Tester
from deepsz_caffe.steps.compare import Comparison, compare_weights
from deepsz_caffe.steps.compress import CompressResult, Target, settled, usual_layers
from deepsz_caffe.steps.encode import read_deploy
from deepsz_caffe.steps.prune import Pruned, PruningSteps, Schedule, Trained, gradual

Path_ = str | os.PathLike[str]
#: A standard error of fewer is itself hardly known.
_FEWEST_CHANGES = 10
#: Confidence with which a loss is held where none is asked for; 0.5 is the loss as measured.
USUAL_CONFIDENCE = {"validation": 0.9, "paper": 0.5}
#: What an assessment tells of its progress, see `assess`.
Message = BodyMessage | tuple[Literal["test"], str, Point]
Progress = Callable[[Message], None]
# An executor or processes and GPUs, a folder of features and their limit.
_Where = tuple[Executor | None, int | None, Sequence[int], Path_ | None, int | None]


def prune(
    solver_prototxt: Path_,
    weights: Path_,
    keep: Mapping[str, float],
    out: Path_,
    *,
    schedule: Schedule = gradual,
    layers: Selection = "all",
    noise: float = 0.0,
    bounds: Mapping[str, float] | None = None,
    teacher: Path_ | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    resume: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
    threads: int | None = None,
    gpu: int | None = None,
    freeze_body: Path_ | None = None,
    body_progress: Callable[[int, int], None] | None = None,
) -> Pruned:
    """Do step 1: prune layers by magnitude and retrain what is left with the masks held.

    Parameters
    ----------
    solver_prototxt
        Solver of the retraining.
    weights
        The trained caffemodel.
    keep
        Layer name -> fraction of the weights to keep, in (0, 1]. Other layers are not pruned, and
        none gets denser. ``"all"`` is one threshold for all of `layers` that have no ratio of their
        own: see `deepsz_caffe.steps.prune.prune`.
    out
        The caffemodel to write; appears when retraining is complete.
    schedule
        One of `deepsz_caffe.steps.prune.SCHEDULES`, or any function of `keep` and the number of
        iterations.
    layers, noise, bounds
        As in `deepsz_caffe.steps.prune.prune`.
    teacher, seed, iterations, lr, resume, progress, threads, gpu
        As in `deepsz_caffe.runtime.solver.train`; 0 iterations prune by magnitude alone.
    freeze_body, body_progress
        Retrain only the fc layers, on features that are computed once and kept in the folder
        `freeze_body`: `folder` and `body_progress` of `deepsz_caffe.runtime.frozen.train_frozen`.

    Raises
    ------
    InputError
        A keep ratio is outside (0, 1], or there is none.
    ModelError
        A layer is not in the network or can't be pruned, or the weights don't fit the network.
    DataError, CaffeError
        As in `train`.
    """
    check_output(out, (solver_prototxt, weights, teacher))
    if freeze_body is not None:
        check_folder(freeze_body)
        if teacher is not None:
            raise InputError("a frozen body and a teacher don't go together")

    def retrain(masks: PruningSteps) -> Trained:
        run = partial(train, solver_prototxt, out, weights, teacher=teacher)
        if freeze_body is not None:
            run = partial(
                train_frozen,
                solver_prototxt,
                out,
                weights,
                freeze_body,
                body_progress=body_progress,
            )
        return run(
            masks=masks,
            seed=seed,
            iterations=iterations,
            lr=lr,
            resume=resume,
            progress=progress,
            threads=threads,
            gpu=gpu,
        )

    run = pruning.without_training(weights, out) if iterations == 0 else retrain
    return pruning.prune(
        solver_prototxt,
        weights,
        keep,
        out,
        run,
        schedule=schedule,
        iterations=iterations,
        layers=layers,
        noise=noise,
        bounds=bounds,
    )


def assess(
    network: Path_,
    weights: Path_,
    *,
    max_loss: float = 0.002,
    search: Search = "default",
    bounds: Sequence[float] | None = None,
    protocol: Protocol = "validation",
    profile: str = "balanced",
    layers: Selection | None = None,
    data: Data = None,
    executor: Executor | None = None,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    journal: Path_ | None = None,
    features: Path_ | None = None,
    features_limit: int | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Do step 2: measure size and loss of layers at the error bounds that matter.

    Parameters
    ----------
    network
        A prototxt whose TEST phase has data and labels.
    weights
        The pruned network.
    max_loss
        Loss of top-1 (a fraction) for the whole network that bounds are sought for.
    search
        "default": few tests; "paper": the dynamic range of the paper.
    bounds
        Test all layers at exactly these bounds instead.
    protocol
        "validation": measure on the data of the prototxt's TEST phase with stage ``validation``,
        where it has one, so that nothing is chosen on the test data; "paper": on the plain TEST
        phase, as the paper does.
    profile
        Codecs: "paper", "small", "fast" or "balanced".
    layers
        The layers to compress: ``"fc"``, the default, as in the paper, ``"conv"`` (convolutions and
        deconvolutions) or ``"all"``, of which those are taken that the scores depend on; or names
        of layers, also of Embed layers.
    data
        In place of the prototxt's source, see `evaluate`.
    executor, workers, gpus, features, features_limit
        See `deepsz_caffe.runtime.evaluator.CaffeEvaluator`.
    journal
        A file in which every finished test is written down, and looked up.
    progress
        Called with ``("bytes", n)`` (size of the features), ``("body", done, total)`` (images) and
        ``("test", layer, Point)``, the last from several threads.

    Raises
    ------
    InputError
        A loss, bound or name out of range.
    ModelError, DataError
        Network, weights and data can't be read or don't fit, or there is no such layer.
    CaffeError
        Caffe aborted, or a test ended its process three times; it is named.
    """
    testing.check_search(max_loss, search, bounds)
    if isinstance(data, Pictures):
        data.check_labels()
    _check_options(profile, journal, features, (network, weights, _path_of(data)))
    setup = read_setup(
        network, weights, protocol=protocol, layers=layers or "fc", own_data=data is None
    )
    where = executor, workers, gpus, features, features_limit
    with _evaluator(setup, data, where, progress) as evaluator:
        tester = _tester(setup, evaluator, profile, journal, progress, search)
        return testing.assess(tester, max_loss, search=search, bounds=bounds)


def compress(
    network: Path_,
    weights: Path_,
    out: Path_,
    *,
    max_loss: float | None = None,
    target_ratio: float | None = None,
    agreement: float | None = None,
    max_change: float | None = None,
    outputs: Collection[str] = (),
    original: Path_ | None = None,
    confidence: float | None = None,
    search: Search = "default",
    biases: Biases = "exact",
    with_prototxt: Path_ | None = None,
    extra_blobs: ExtraBlobs = "keep",
    on_test: bool = True,
    protocol: Protocol = "validation",
    profile: str = "balanced",
    layers: Selection | None = None,
    data: Data = None,
    executor: Executor | None = None,
    workers: int | None = None,
    gpus: Sequence[int] = (),
    journal: Path_ | None = None,
    features: Path_ | None = None,
    features_limit: int | None = None,
    progress: Progress | None = None,
) -> CompressResult:
    """Do steps 2 to 4: compress layers of a pruned network into a ``.dsz`` file.

    Parameters
    ----------
    network
        A prototxt whose TEST phase has data and labels.
    weights
        The pruned network.
    out
        The file; it appears complete or not at all.
    max_loss
        Largest loss of top-1 of the whole configuration, as a fraction.
    target_ratio
        Instead of `max_loss`: least compression ratio of these layers, at the least loss.
    agreement
        Instead of `max_loss`: least share of pictures whose top-1 stays the same, for `data` that
        are `Pictures`; labels play no part.
    max_change
        Instead of `max_loss`, for networks that are no classifiers: largest change of each output
        over pictures, relative to its root mean square.
    outputs
        With `max_change`: the blobs that count; by default all that the network puts out.
    original
        The unpruned network: then the loss, or the agreement, counts against it and not against
        `weights`.
    confidence
        Probability with which the loss on other images of the same kind is to be within
        `max_loss`, or the agreement at least `agreement`; the measured loss plus its statistical
        margin must be. Default 0.9; with the paper's protocol 0.5, which is no margin: the measured
        loss itself.
    with_prototxt
        A deploy prototxt to store in the file.
    extra_blobs
        What becomes of blobs that layers of the network don't have, as in `encode`.
    on_test
        Where bounds are chosen on a validation split, count both networks on the test data, too:
        two passes of the whole network. The file is the same without.
    search
        "divergence": for whole networks. Bounds are chosen by how far the outputs for few images
        are from the uncompressed network's, whole configurations are counted, and profiles small
        and balanced round each weight by what enters its layer. "default" is this one where other
        layers than fc layers are compressed to a largest loss, but for what is the paper's.
        Otherwise as in `assess`.
    biases
        "exact": biases, and all else that is no weight of a compressed layer, are kept bit for bit.
        "corrected": biases (without them the means of a BatchNorm layer) make good what the weights
        do to the mean of each output, and are rounded as coarsely as that allows, as are variances
        and Scale layers' blobs right behind such a layer; the file declares the bound that holds
        for each. With a search by divergences, profiles small and balanced.
    layers
        As in `assess`; by default ``"all"``, but ``"fc"`` with a target ratio and, with labels,
        with the paper's protocol, profile or search.
    protocol, profile, data, executor, workers, gpus, journal, features, \
features_limit, progress
        See `assess`.

    Raises
    ------
    TargetError
        The loss or ratio can't be met; nothing is written.
    InputError
        Not exactly one target, or one out of range, or biases that can't be corrected so.
    DeepSZError
        As `assess`, `encode` and `write_dsz`.
    """
    confidence = USUAL_CONFIDENCE.get(protocol, 0.9) if confidence is None else confidence
    target = Target(max_loss, target_ratio, agreement, max_change, confidence, search)
    if target.unlabelled is not None:
        data = _unlabelled(data, target.unlabelled, original, outputs)
    elif isinstance(data, Pictures):
        data.check_labels()
    inputs = (network, weights, original, with_prototxt, _path_of(data))
    check_output(out, inputs, (journal,))
    _check_options(profile, journal, features, inputs)
    deploy = None if with_prototxt is None else read_deploy(with_prototxt)
    setup = read_setup(
        *inputs[:3],
        protocol=protocol,
        layers=layers or usual_layers(target, protocol, profile),
        own_data=data is None,
        outputs=None if max_change is None else outputs,
        extra_blobs=extra_blobs,
    )
    target = settled(target, setup, profile, biases)
    where = executor, workers, gpus, features, features_limit
    whole = target.search == "divergence"
    with _evaluator(setup, data, where, progress, whole=whole) as evaluator:
        tester = _tester(setup, evaluator, profile, journal, progress, target.search, biases)
        how = str(data.how) if isinstance(data, Pictures) else None
        count = partial(evaluator.on_test_data, original or weights) if on_test else None
        return compressing.compress(tester, out, target, deploy=deploy, on_test=count, pictures=how)


def _unlabelled(
    pictures: Data, asked: Agreement | MaxChange, original: Path_ | None, outputs: Collection[str]
) -> Pictures:
    """Check pictures that are to show something without labels; they lose those that they have."""
    if not isinstance(pictures, Pictures):
        raise InputError(
            "an agreement or a change is measured on pictures", hint="--images, or open_pictures"
        )
    pictures = pictures.distinct()
    if isinstance(asked, Agreement):
        asked.check_images(pictures.total)
        if outputs:
            raise InputError("outputs are for a largest change", hint="--max-change")
    else:
        if original is not None:
            raise InputError("a change is against the weights that are compressed", where=original)
        if pictures.how.crops > 1:
            raise InputError("outputs of ten crops are no picture's", hint="--crop center")
        if pictures.total < _FEWEST_CHANGES:
            raise InputError(f"a change needs at least {_FEWEST_CHANGES} pictures to be known")
    return dataclasses.replace(pictures, labels=None)


def _path_of(data: Data) -> Path_ | None:
    if isinstance(data, Pictures):
        return data.source
    return None if isinstance(data, Mapping) else data


def compare(
    network: Path_ | None,
    a: Path_,
    b: Path_,
    *,
    data: Data | Pictures = None,
    outputs: Collection[str] = (),
    scores: Collection[str] | None = None,
    opencv: bool = False,
    pictures: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Say how far two versions of a network are apart: weights, and outputs for the same images.

    Parameters
    ----------
    network
        A prototxt that both fit. None: only weights are compared, and no Caffe is needed.
    a, b
        Caffemodels, HDF5 weights or ``.dsz`` files; changes are from `a` to `b`.
    data
        Pictures, or what takes the place of the prototxt's own source; see `evaluate`. Labels are
        not needed.
    outputs
        Blobs to compare; by default those that no layer consumes, and what a loss judges.
    scores
        Outputs that hold scores of classes, none of them if it is empty; by default those of
        Softmax layers, those that labels are compared with, or the only output there is.
    opencv
        OpenCV runs the networks, not Caffe: for machines without Caffe, and for layers of forks
        that OpenCV has.
    pictures
        Give so many small pictures of images whose class changes; needs OpenCV.
    progress
        Called with images done and in total.

    Raises
    ------
    ModelError, FormatError, DataError
        A file can't be read, or they don't fit together.
    CaffeError
        Caffe is missing or aborted; the message is Caffe's own.
    DeepSZError
        OpenCV is missing.
    """
    if network is None:
        return Comparison(0, compare_weights(read_weights(a), read_weights(b)))
    job = Job(
        str(network),
        (str(a), str(b)),
        data,
        tuple(outputs),
        None if scores is None else tuple(scores),
        opencv,
        pictures,
    )
    on_message = None if progress is None else lambda message: progress(*message)
    return run_with_progress(on_message, compare_networks, job)


def _check_options(
    profile: str,
    journal: Path_ | None,
    features: Path_ | None,
    inputs: Iterable[Path_ | None],
) -> None:
    codecs.profile(profile)
    if journal is not None:
        check_output(journal, inputs)
    if features is not None:
        check_folder(features)


def _evaluator(
    setup: Setup, data: Data, where: _Where, progress: Progress | None, *, whole: bool = False
) -> CaffeEvaluator:
    executor, workers, gpus, features, limit = where
    return CaffeEvaluator(
        setup,
        data=data,
        executor=executor,
        workers=workers,
        gpus=gpus,
        features=features,
        features_limit=limit,
        whole=whole,
        progress=progress,
    )


def _tester(
    setup: Setup,
    evaluator: CaffeEvaluator,
    profile: str,
    journal: Path_ | None,
    progress: Progress | None,
    search: Search,
    biases: Biases = "exact",
) -> Tester:
    return Tester(
        setup,
        evaluator,
        profile=profile,
        journal=journal,
        tested=_tested(progress),
        rounded=search == "divergence",
        biases=biases,
    )


def _tested(progress: Progress | None) -> Tested | None:
    return None if progress is None else lambda layer, point: progress(("test", layer, point))
