"""What a few images say of a network with other weights: inputs of layers, and its outputs.

The images are the first of those that `features` keeps, whose order is random: always the same few
of the evaluation data. Labels play no part here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.network.layers import KINDS
from deepsz_caffe.network.shapes import window
from deepsz_caffe.runtime.features import Stored, file_of, load_array
from deepsz_caffe.runtime.net import Replacement, layer_places, read_weights
from deepsz_caffe.runtime.tail import Tail, current_tail
from deepsz_caffe.steps.divergence import (
    Divergence,
    Kind,
    divergences,
    relative_changes,
    squared_changes,
)
from deepsz_caffe.steps.evaluator import Moments

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import ConvolutionParameter, LayerParameter

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Places of an image at which a convolution's inputs are taken, at most: neighbours say the same.
_PLACES = 400
#: What enters an fc layer is one row an image: few images say less of it than it has inputs, and
#: with what is kept of others no layer has to run.
_FC_IMAGES = 4096


def measure_moments(
    folder: str,
    layer: str,
    replace: Mapping[str, Replacement],
    images: int,
    gpu: int | None = None,
) -> Moments | None:
    """Measure the mean and second moments of what enters a layer; runs in a Caffe process.

    Parameters
    ----------
    folder
        Of `features.compute_features`.
    layer
        An fc layer or a convolution.
    replace
        Layer name -> new weights, of layers before it.
    images
        So many at most; of an fc layer behind layers as they are up to 4,096 whose inputs are kept.

    Returns
    -------
    Moments or None
        None where a layer of this kind has no rows of inputs: deconvolutions, embeddings, and
        convolutions of other things than images.
    """
    tail = current_tail(folder, frozenset({*replace, layer}), None, gpu, images)
    place, definition = next(
        (place, each)
        for place, each in enumerate(tail.definition.layer)
        if each.name == layer and each.type in KINDS
    )
    before = layer_places(tail.caffe_net, tail.definition)[place] - 1
    if definition.type == "InnerProduct" and not replace:
        images = max(images, min(tail.kept, _FC_IMAGES))
    _put(tail, replace, layer)
    moments: NDArray[np.float64] | None = None
    sums: NDArray[np.float64] | float = 0.0
    count = 0
    for rows in tail.parts(images):
        tail.forward(rows, before)
        entering = tail.caffe_net.blobs[definition.bottom[0]].data[: rows.stop - rows.start]
        for inputs in _inputs(definition, entering):
            products = np.matmul(inputs.transpose(0, 2, 1), inputs)
            moments = products.astype(np.float64) if moments is None else moments + products
            sums = sums + inputs.sum(axis=1, dtype=np.float64)
            count += inputs.shape[1]
    if moments is None:
        return None
    means = np.asarray(sums / count, np.float32)
    return Moments((moments / count).astype(np.float32), means, count)


def measure_divergence(
    folder: str, replace: Mapping[str, Replacement], images: int, gpu: int | None = None
) -> Divergence:
    """Measure how far the outputs are from those of the network as it is; in a Caffe process.

    Of several outputs, how far that one is that changed most.
    """
    if Stored.load(Path(folder)).outputs:
        changes = measure_changes(folder, replace, images, gpu).values()
        return max(changes, key=lambda each: each.mean)
    tail = current_tail(folder, frozenset(replace), None, gpu, images)
    before = _before(tail, folder, images)
    _put(tail, replace, None)
    kind: Kind = "probabilities" if tail.scores_type == "Softmax" else "scores"
    return Divergence.of(divergences(before, _scores(tail, images), kind))


#: scores of the network as it is: whichever tail gives them first
_known: tuple[tuple[object, ...], Float32] | None = None


def _before(tail: Tail, folder: str, images: int) -> Float32:
    global _known
    key = (folder, tail.stamp, images)
    if _known is None or _known[0] != key:
        _put(tail, {}, None)
        _known = key, _scores(tail, images)
    return _known[1]


def _scores(tail: Tail, images: int) -> Float32:
    return np.concatenate([tail.scores(rows).copy() for rows in tail.parts(images)])


def measure_changes(
    folder: str, replace: Mapping[str, Replacement], images: int, gpu: int | None = None
) -> dict[str, Divergence]:
    """Measure the relative squared change of each output that changes; in a Caffe process.

    Parameters
    ----------
    folder
        Of `features.compute_features`, with outputs.
    replace
        Layer name -> new weights.
    images
        So many at most.

    Returns
    -------
    dict
        Blob name -> its change.
    """
    tail = current_tail(folder, frozenset(replace), None, gpu, images)
    _put(tail, replace, None)
    place, blobs = Path(folder), tail.caffe_net.blobs
    before = {v: load_array(place / file_of(v), "float32", mapped=True) for v in tail.outputs}
    found: dict[str, list[tuple[Float64, Float64]]] = {v.blob: [] for v in tail.outputs}
    for rows in tail.parts(images):
        tail.forward(rows, len(tail.caffe_net.layers) - 1)
        for version, array in before.items():
            after = blobs[version.blob].data[: rows.stop - rows.start]
            found[version.blob].append(squared_changes(array[rows], after))
    return {name: Divergence.of(relative_changes(*_joined(each))) for name, each in found.items()}


def _joined(parts: list[tuple[Float64, Float64]]) -> tuple[Float64, Float64]:
    changes, squares = zip(*parts, strict=True)
    return np.concatenate(changes), np.concatenate(squares)


def _put(tail: Tail, replace: Mapping[str, Replacement], but: str | None) -> None:
    """Put weights in, and those of the network as it is where there are no others."""
    own = tail.changed - set(replace) - {but}
    if own:
        model = read_weights(tail.weights)
        tail.put({name: model[name].matrix for name in own})
    tail.put(replace)


def _inputs(layer: LayerParameter, entering: Float32) -> Iterator[Float32]:
    """Yield float32[groups, rows, columns]: what the rows of a layer's matrix are multiplied by."""
    if layer.type == "InnerProduct":
        axis = layer.inner_product_param.axis
        yield entering.reshape(1, -1, int(np.prod(entering.shape[axis:])))
    elif layer.type == "Convolution" and entering.ndim == 4:
        random = np.random.default_rng(0)
        for image in entering:
            yield unfolded(image, layer.convolution_param, random)


def unfolded(
    image: Float32, parameters: ConvolutionParameter, random: np.random.Generator
) -> Float32:
    """Give what a convolution multiplies its weights by, at up to 400 places of an image.

    Parameters
    ----------
    image : float32[channels, height, width]
    parameters
        The layer's ``convolution_param``.
    random
        Chooses the places where there are more.

    Returns
    -------
    float32[groups, places, channels / groups · kernel]
    """
    kernel, stride, pad, dilation = window(parameters)
    padded = np.pad(image, ((0, 0), *((side, side) for side in pad)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    height, width = windows.shape[1:3]
    places = np.arange(height * width)
    if places.size > _PLACES:
        places = random.choice(places, _PLACES, replace=False)
    taken = windows[:, places // width, places % width]
    groups = parameters.group or 1
    by_group = taken.reshape(groups, -1, places.size, kernel[0] * kernel[1])
    return np.ascontiguousarray(by_group.transpose(0, 2, 1, 3)).reshape(groups, places.size, -1)
