"""Pruning on pictures: weights that the others make good, without labels or training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from deepsz_caffe.errors import InputError
from deepsz_caffe.files import check_output
from deepsz_caffe.network.layers import Selection
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.evaluator import BodyProgress, CaffeEvaluator
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.steps.assess.setup import Layer, read_setup
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.removal import check_keep, remove_weights

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Removed:
    """What was removed, and what that does.

    Attributes
    ----------
    layers
        Layer name -> its non-zero weights before and after. Layers whose inputs are no rows
        (deconvolutions, embeddings) stay as they are and are not in it.
    same_top1, images
        Pictures whose top-1 is what it was, and how many there are.
    divergence
        Of the class probabilities, in nats, on some of them.
    """

    layers: dict[str, tuple[int, int]]
    same_top1: int
    images: int
    divergence: Divergence


def remove(
    network: Path_,
    weights: Path_,
    out: Path_,
    keep: float | Mapping[str, float],
    pictures: Pictures,
    *,
    layers: Selection = "all",
    executor: Executor | None = None,
    progress: BodyProgress | None = None,
) -> Removed:
    """Do step 1 without labels or training: remove weights, and let the others make it good.

    Parameters
    ----------
    network, weights
        A classifier: a prototxt, see `deepsz_caffe.runtime.preprocess.picture_input`, and its
        weights.
    out
        The caffemodel to write.
    keep
        Fraction of the weights to keep: of each layer, or by layer name.
    pictures
        What the layers' inputs are measured on; labels play no part.
    layers
        Where `keep` is one fraction: of these layers.
    executor, progress
        See `CaffeEvaluator`.

    Raises
    ------
    InputError
        A fraction is not in (0, 1], or there is none.
    DeepSZError
        As `compress`.
    """
    check_output(out, (network, weights, pictures.source))
    fractions = keep.values() if isinstance(keep, Mapping) else [keep]
    for fraction in fractions:
        check_keep(fraction)
    if not fractions:
        raise InputError("no layer to remove weights of", hint="e.g. 0.3 for all")
    if isinstance(keep, Mapping):
        layers = tuple(keep)
    pictures = replace(pictures, labels=None)
    setup = read_setup(network, weights, layers=layers, own_data=False)
    with CaffeEvaluator(
        setup, data=pictures, executor=executor, whole=True, progress=progress
    ) as evaluator:
        changed = {}
        for layer in setup.layers:
            moments = evaluator.moments(layer.name, {})
            if moments is not None:
                matrix = setup.model[layer.name].matrix
                turned = np.ascontiguousarray(matrix.T if layer.transposed else matrix)
                found = remove_weights(turned, moments.matrices, _fraction(keep, layer))
                changed[layer.name] = np.ascontiguousarray(found.T if layer.transposed else found)
        if not changed:
            raise InputError("no layer whose inputs can be measured", where=weights)
        outcome, divergence = evaluator.measure(changed), evaluator.diverge(changed)
    sharers = {layer.name: layer.sharers for layer in setup.layers}
    written = {name: array for own, array in changed.items() for name in (own, *sharers[own])}
    write_caffemodel(out, setup.model, written)
    counts = {
        name: (int(np.count_nonzero(setup.model[name].matrix)), int(np.count_nonzero(array)))
        for name, array in changed.items()
    }
    return Removed(counts, outcome.top1_correct, outcome.images, divergence)


def _fraction(keep: float | Mapping[str, float], layer: Layer) -> float:
    if not isinstance(keep, Mapping):
        return keep
    return next(keep[name] for name in (layer.name, *layer.sharers) if name in keep)
