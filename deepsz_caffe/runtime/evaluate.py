"""One evaluator: the whole TEST network, every image exactly once, top-1 and top-5 as counts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.running.source import open_source
from deepsz_caffe.runtime.compressed import build_compressed
from deepsz_caffe.runtime.data import Data, Images, prepare_images
from deepsz_caffe.runtime.net import (
    Replacement,
    build_net,
    layer_places,
    load_weights,
    put_weights,
    read_weights,
    source_places,
)
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.runtime.pool import run_with_progress
from deepsz_caffe.runtime.worker import import_caffe, report
from deepsz_caffe.steps.agreement import check_choice
from deepsz_caffe.steps.evaluator import Score

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import NetParameter

Path_ = str | os.PathLike[str]
#: no label is as large; float32 has all whole numbers up to here
_LABELS = 1 << 24


@dataclass(frozen=True)
class Prepared:
    """A network of one phase, ready for its images, and the blobs that accuracy comes from.

    Or the outputs whose change is measured, where there is no accuracy.
    """

    net: NetParameter
    images: Images
    judged: graph.Judged
    outputs: tuple[graph.Version, ...] = ()

    @property
    def wanted(self) -> list[graph.Version]:
        """The scores, and the labels where a blob holds them; or the outputs."""
        if self.outputs:
            return list(self.outputs)
        return [self.judged.scores] + ([self.judged.labels] if self.judged.labels else [])


def evaluate(
    network: Path_,
    weights: Path_,
    *,
    stages: Sequence[str] = (),
    data: Data = None,
    replace: Mapping[str, Replacement] | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    gpu: int | None = None,
    compressed: bool = False,
) -> Score:
    """Count what the TEST phase of a network gets right.

    Parameters
    ----------
    network
        A train_val prototxt, or a deploy prototxt with arrays in `data`.
    weights
        ``.caffemodel``, ``.caffemodel.h5`` or ``.dsz``.
    stages
        Caffe's stages, e.g. ``["validation"]``.
    data
        In place of the prototxt's source: an LMDB or list, a ``.npz``, or arrays by blob name, in
        the blobs' shapes; ``label`` holds the labels. Or pictures with labels.
    replace
        Layer name -> weights in place of the file's.
    executor
        Where to run; default: a Caffe process of its own.
    progress
        Called with images done and in total (without an executor only).
    compressed
        Run the fc layers of a ``.dsz`` file from their compressed form; see
        `deepsz_caffe.runtime.load.load_net`.

    Raises
    ------
    InputError
        Both `replace` and `compressed` are given, or pictures without labels.
    ModelError, DataError
        The network, weights or data can't be read or don't fit.
    CaffeError
        Caffe aborted; the message is Caffe's own.
    """
    if compressed and replace:
        raise InputError("weights can't be replaced in layers that run from their compressed form")
    if isinstance(data, Pictures):
        data.check_labels()
    places = str(network), str(weights), tuple(stages)
    job = (*places, data, dict(replace or {}), gpu, compressed)
    if executor is not None:
        return executor.submit(_evaluate, *job).result()
    on_message = None if progress is None else lambda message: progress(*message)
    return run_with_progress(on_message, _evaluate, *job)


def prepare(
    network: Path_,
    stages: Sequence[str],
    data: Data,
    caffe: ModuleType,
    outputs: tuple[graph.Version, ...] = (),
) -> Prepared:
    """Read a network's TEST phase and find its images, scores and labels, or its outputs."""
    net = phase(read_prototxt(network), "TEST", stages)
    return prepare_net(net, data, frozenset(caffe.layer_type_list()), network, outputs)


def prepare_net(
    net: NetParameter,
    data: Data,
    layer_types: frozenset[str],
    network: Path_,
    outputs: tuple[graph.Version, ...] = (),
) -> Prepared:
    """Do as `prepare` with a network that was read, of one phase; it is changed in place.

    Parameters
    ----------
    layer_types
        What this Caffe knows, see `prepare_images`.
    network
        The file, for errors.
    """
    if outputs:
        judged = graph.Judged(outputs[0], None)
        return Prepared(net, prepare_images(net, data, layer_types), judged, outputs)
    judged = graph.find_judged(net)
    labels = None if judged.labels is None else judged.labels.blob
    images = prepare_images(net, data, layer_types, labels)
    if images.unlabelled:
        judged = graph.Judged(judged.scores, None)  # whatever a blob of labels would hold
    elif judged.labels is None and images.labels is None:
        raise ModelError(
            "no layer of the TEST phase uses labels",
            where=network,
            hint="give it an Accuracy or SoftmaxWithLoss layer, or an array named label",
        )
    return Prepared(net, images, judged)


def forward_batches(
    caffe_net: Net,
    prepared: Prepared,
    versions: Sequence[graph.Version],
    first: int = 0,
    last: int | None = None,
    built: Sequence[int] | None = None,
) -> Iterator[tuple[slice, dict[graph.Version, NDArray[np.float32]]]]:
    """Run all images and give the wanted blobs of each batch, without the images that come twice.

    Parameters
    ----------
    versions
        The wanted blobs. A blob is taken right after the layer that produces this version of it,
        before a layer in place can change it. The arrays are copies.
    first, last
        Run only these batches, the last one excluded, as if the others had been run, too.
    built
        Positions of the layers that `caffe_net` was built from; default: all.

    Yields
    ------
    slice, dict
        Rows among all images, and the wanted blobs.
    """
    places = layer_places(caffe_net, prepared.net, built)
    stops: dict[int, list[graph.Version]] = {}
    for version in sorted(versions):
        stops.setdefault(places[version.producer], []).append(version)
    sources = source_places(caffe_net)
    for _ in range(first):  # a data layer can't seek
        for source in sources:
            caffe_net._forward(source, source)
    done = first * prepared.images.batch
    for rows, given in prepared.images.batches(first, last):
        for blob, array in given.items():
            if blob in caffe_net.blobs:  # labels may not be needed
                caffe_net.blobs[blob].data[:rows] = array
        taken: dict[graph.Version, NDArray[np.float32]] = {}
        start = 0
        for stop in sorted(stops):
            caffe_net._forward(start, stop)
            start = stop + 1
            for version in stops[stop]:
                blob = caffe_net.blobs[version.blob].data
                if blob.shape[:1] != (prepared.images.batch,):
                    raise ModelError(
                        f"of shape {list(blob.shape)} has no row for each of "
                        f"{prepared.images.batch} images",
                        where=f"blob {version.blob}",
                    )
                taken[version] = blob[:rows].copy()
        yield slice(done, done + rows), taken
        done += rows


def labels_of(
    prepared: Prepared, rows: slice, taken: Mapping[graph.Version, NDArray[np.float32]]
) -> NDArray[np.int64]:
    """Return the labels of a batch, from their blob or the arrays given; else the answers.

    Raises
    ------
    DataError
        One of them is no whole number. Caffe would cut it off.
    ModelError
        As `check_choice`, of answers.
    """
    labels: NDArray[np.generic]
    if prepared.judged.labels is not None:
        labels = taken[prepared.judged.labels]
    elif prepared.images.unlabelled:
        scores = taken[prepared.judged.scores]
        check_choice(scores.shape, prepared.judged.scores.blob)
        scores = averaged(scores, prepared.images.crops)
        labels = scores.reshape(len(scores), -1).argmax(axis=1)
    else:
        assert prepared.images.labels is not None
        labels = prepared.images.labels[rows]
    labels = np.asarray(labels).reshape(-1)
    whole = np.isfinite(labels) & (np.abs(labels) < _LABELS) & (labels == np.trunc(labels))
    if not whole.all():
        place = int(np.argmin(whole))
        raise DataError(
            f"the label {labels[place]:g} is no class, a whole number",
            where=f"image {rows.start + place}",
        )
    return labels.astype(np.int64)


def judge(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    ignore_label: int | None = None,
    crops: int = 1,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Decide for each image whether it counts, and whether top-1 and top-5 are right.

    Parameters
    ----------
    scores : float32[n, classes]
        Further axes must be of length 1.
    labels : int64[n]
    crops
        Rows that follow each other and are judged as one, by their mean scores; the first of them
        counts.

    Returns
    -------
    counted, top1, top5 : bool[n]

    Raises
    ------
    ModelError
        The scores are not one list of classes an image.
    DataError
        A label is not a class of the network.
    """
    if scores.ndim < 2 or scores.size != scores.shape[0] * scores.shape[1]:
        raise ModelError(f"scores of shape {list(scores.shape)} are not classes of whole images")
    if len(labels) != len(scores):
        raise ModelError(f"{len(labels)} labels for {len(scores)} images")
    scores = averaged(scores.reshape(len(scores), -1), crops)
    if np.isnan(scores).any():
        warnings.warn(
            DeepSZWarning("some scores are NaN, not numbers: look at the data and the weights"),
            stacklevel=2,
        )
    counted = np.ones(len(labels), bool) if ignore_label is None else labels != ignore_label
    counted &= np.arange(len(labels)) % crops == 0
    wrong = counted & ((labels < 0) | (labels >= scores.shape[1]))
    if wrong.any():
        label = labels[wrong][0]
        raise DataError(f"label {label}, but the network has {scores.shape[1]} classes")
    own = scores[np.arange(len(labels)), np.where(counted, labels, 0)]
    # The rule of Caffe's Accuracy layer: fewer than k others are as good or better.
    others = (scores >= own[:, None]).sum(axis=1) - 1
    sane = counted & ~np.isnan(own)
    return counted, sane & (others < 1), sane & (others < 5)


def averaged(scores: NDArray[np.float32], crops: int) -> NDArray[np.float32]:
    """Give each row the mean of the rows that it is judged with."""
    if crops == 1:
        return scores
    means: NDArray[np.float32] = scores.reshape(-1, crops, *scores.shape[1:]).mean(axis=1)
    return means.repeat(crops, axis=0)


def decisions_of(
    caffe_net: Net,
    prepared: Prepared,
    progress: Callable[[tuple[int, int]], None] | None = None,
    built: Sequence[int] | None = None,
) -> NDArray[np.bool_]:
    """Run all images: bool[3, n], whether each counts, and whether top-1 and top-5 are right.

    The one pass that counts, of training, pruning and `evaluate` alike. `progress` is told the
    images done and in total; `built` is as in `forward_batches`.
    """
    judged = prepared.judged
    decisions = np.empty((3, prepared.images.total), bool)
    for rows, taken in forward_batches(caffe_net, prepared, prepared.wanted, built=built):
        labels = labels_of(prepared, rows, taken)
        decisions[:, rows] = judge(
            taken[judged.scores], labels, judged.ignore_label, prepared.images.crops
        )
        if progress is not None:
            progress((rows.stop, prepared.images.total))
    return decisions


def decide(
    network: str,
    weights: str,
    stages: tuple[str, ...],
    data: Data,
    replace: Mapping[str, Replacement],
    gpu: int | None,
    compressed: bool = False,
) -> NDArray[np.bool_]:
    """Run all images through a network; runs in a Caffe process.

    Returns
    -------
    numpy.ndarray
        bool[3, images], in the order of the data: the image counts, top-1 and top-5 are right.
    """
    caffe = import_caffe(gpu)
    prepared = prepare(network, stages, data, caffe)
    needed = graph.needed_layers(prepared.net, prepared.wanted)
    net = graph.subnet(prepared.net, needed, ())
    if compressed:
        with open_source(weights, gpu=gpu) as source:
            caffe_net = build_compressed(caffe, net, source)
    else:
        model = read_weights(weights)
        caffe_net = build_net(caffe, net)
        load_weights(caffe_net, net, model)
    for name, array in replace.items():
        put_weights(caffe_net, name, array)
    decisions = decisions_of(caffe_net, prepared, report, needed)
    classes = caffe_net.blobs[prepared.judged.scores.blob].data.shape[1]
    _warn_of_guesses(weights, decisions, classes)
    return decisions


def answer(network: str, weights: str, data: Pictures) -> NDArray[np.int64]:
    """Give the class that a network says of each picture; runs in a Caffe process."""
    caffe = import_caffe()
    prepared = prepare(network, (), replace(data, labels=None), caffe)
    needed = graph.needed_layers(prepared.net, prepared.wanted)
    net = graph.subnet(prepared.net, needed, ())
    caffe_net = build_net(caffe, net)
    load_weights(caffe_net, net, read_weights(weights))
    batches = forward_batches(caffe_net, prepared, prepared.wanted, built=needed)
    said = [labels_of(prepared, rows, taken) for rows, taken in batches]
    return np.concatenate(said)[:: prepared.images.crops]


def _warn_of_guesses(weights: str, decisions: NDArray[np.bool_], classes: int) -> None:
    counted, right, _ = (int(count) for count in decisions.sum(axis=1))
    if right * classes <= counted:
        warnings.warn(
            DeepSZWarning(
                f"{weights}: gets {right:,} of {counted:,} images right, no more than guessing "
                f"among {classes:,} classes would: do the weights, the network and the data belong "
                "together?"
            ),
            stacklevel=2,
        )


def _evaluate(
    network: str,
    weights: str,
    stages: tuple[str, ...],
    data: Data,
    replace: Mapping[str, Replacement],
    gpu: int | None,
    compressed: bool,
) -> Score:
    return score_of(decide(network, weights, stages, data, replace, gpu, compressed))


def score_of(decisions: NDArray[np.bool_]) -> Score:
    """Count what `decide` gave."""
    return Score(*(int(count) for count in decisions.sum(axis=1)))
