"""What an assessment is of: a network's files, read and checked before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import (
    GROUPS,
    ExtraBlobs,
    Selection,
    check_selection,
    check_weights,
    compressible_layers,
    settle_extra_blobs,
)
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.biases import BiasPlace, bias_place, scaling_blobs

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

Path_ = str | os.PathLike[str]
Protocol = Literal["validation", "paper"]

#: The stage of a prototxt's validation data.
VALIDATION = "validation"


@dataclass(frozen=True)
class Layer:
    """A layer to compress.

    Attributes
    ----------
    name
        The layer.
    sharers
        Other layers that use the same weights, and change with it.
    shape
        Rows and columns of its weights.
    nonzeros
        Weights that are not 0.
    typical, largest
        Root mean square of the non-zero weights, and their largest magnitude.
    transposed
        It is an fc layer whose weights are stored as inputs × outputs.
    bias
        Where its bias stands; None where it has none, or others share its weights.
    scaling
        What scales its outputs behind it, see `scaling_blobs`; nothing where others share its
        weights.
    """

    name: str
    sharers: tuple[str, ...]
    shape: tuple[int, int]
    nonzeros: int
    typical: float
    largest: float
    transposed: bool = False
    bias: BiasPlace | None = None
    scaling: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Setup:
    """A network that is to be assessed.

    Attributes
    ----------
    network, weights
        Paths of prototxt and caffemodel, as they were given.
    original
        Path of the weights of the original (unpruned) network, that losses count against; None:
        they count against `weights`.
    protocol
        "validation": choices are made on a validation split; "paper": on the test data.
    stages
        Caffe's stages in use.
    net
        The network of the TEST phase with these stages.
    model
        The weights.
    layers
        The layers to compress, in the network's order.
    outputs
        The blobs whose change is measured, where no top-1 is.
    """

    network: str
    weights: str
    original: str | None
    protocol: Protocol
    stages: tuple[str, ...]
    net: NetParameter
    model: CaffeModel
    layers: tuple[Layer, ...]
    outputs: tuple[graph.Version, ...] = ()


def read_setup(
    network: Path_,
    weights: Path_,
    original: Path_ | None = None,
    *,
    protocol: Protocol = "validation",
    layers: Selection = "fc",
    own_data: bool = True,
    outputs: Collection[str] | None = None,
    extra_blobs: ExtraBlobs | None = None,
) -> Setup:
    """Read a network and its weights, and find the layers to compress.

    Parameters
    ----------
    network, weights
        Prototxt and caffemodel.
    original
        Weights of the original network, see `Setup`.
    protocol
        "validation": measure on the data of the prototxt's TEST phase with stage ``validation``,
        where it has one, so that nothing is chosen on the test data; "paper": on the plain TEST
        phase, as the paper does.
    layers
        The layers to compress: all of a group that the scores depend on, ``"fc"`` as in the
        paper, ``"conv"`` or ``"all"``; or names.
    own_data
        Measured is on the prototxt's own data: other data has no validation split.
    outputs
        Measure the change of these blobs, () for all that the network puts out, and no top-1.
    extra_blobs
        What becomes of blobs that layers of the network don't have; None where nothing is written.

    Raises
    ------
    InputError
        No such protocol, or group of layers.
    ModelError
        Network or weights can't be read or don't fit, or a layer is none to compress.
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"no protocol {protocol!r}", hint="validation or paper")
    check_selection(layers)
    whole = read_prototxt(network)
    stages: tuple[str, ...] = ()
    if protocol == "validation" and own_data and _has_validation(whole):
        stages = (VALIDATION,)
    net = phase(whole, "TEST", stages)
    model = read_caffemodel(weights)
    wanted = () if outputs is None else tuple(o.version for o in graph.find_outputs(net, outputs))
    found = _find_layers(net, model, layers, wanted or (graph.find_judged(net).scores,))
    if original is not None:
        check_weights(compressible_layers(net), read_caffemodel(original), extra_blobs=True)
    return Setup(
        network=str(network),
        weights=str(weights),
        original=None if original is None else str(original),
        protocol=protocol,
        stages=stages,
        net=net,
        model=settle_extra_blobs(whole, model, extra_blobs) if extra_blobs else model,
        layers=found,
        outputs=wanted,
    )


def _has_validation(net: NetParameter) -> bool:
    """Say whether a prototxt sets data apart under the stage ``validation``."""
    return any(VALIDATION in rule.stage for layer in net.layer for rule in layer.include)


def _find_layers(
    net: NetParameter, model: CaffeModel, wanted: Selection, outputs: Sequence[graph.Version]
) -> tuple[Layer, ...]:
    check_weights(compressible_layers(net, "all"), model, extra_blobs=True)
    reached = {net.layer[i].name for i in graph.needed_layers(net, outputs)}
    names = [layer.name for layer in compressible_layers(net, wanted) if layer.name in reached]
    if not names:
        what = GROUPS[wanted] if isinstance(wanted, str) else "layer that was named"
        hint = "--layers all takes convolutions, too" if wanted == "fc" else None
        blobs = ", ".join(version.blob for version in outputs)
        raise ModelError(f"the scores depend on no {what}", where=f"blob {blobs}", hint=hint)
    sharers = graph.shared_weights(net)
    transposed = {layer.name for layer in net.layer if layer.inner_product_param.transpose}
    found: list[Layer] = []
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        group = sharers.get(name, (name,))
        done.update(group)
        # HDF5 files hold shared weights once.
        name = next(each for each in group if each in model)
        others = tuple(each for each in group if each in model and each != name)
        statistics = weight_statistics(name, model[name].matrix)
        alone = len(group) == 1
        bias = bias_place(net, model, name) if alone else None
        scaling = scaling_blobs(net, model, name) if alone else ()
        found.append(Layer(name, others, *statistics, name in transposed, bias, scaling))
    return tuple(found)


def weight_statistics(
    name: str, matrix: NDArray[np.float32]
) -> tuple[tuple[int, int], int, float, float]:
    """Return shape, non-zeros, root mean square of the non-zeros and largest magnitude.

    Raises
    ------
    ModelError
        A weight is NaN or infinite.
    """
    nonzeros, squares, largest = 0, 0.0, 0.0
    for start in range(0, matrix.shape[0], 256):  # blocks: the file may be larger than memory
        block = matrix[start : start + 256]
        nonzeros += int(np.count_nonzero(block))
        with np.errstate(over="ignore", invalid="ignore"):
            squares += float(np.einsum("ij,ij->", block, block, dtype=np.float64))
        largest = max(largest, float(block.max()), -float(block.min()))
    if not np.isfinite(squares):
        raise ModelError(
            "a weight is NaN or infinite",
            where=f"layer {name}",
            hint="the network's training diverged",
        )
    shape = (matrix.shape[0], matrix.shape[1])
    if nonzeros == 0:
        return shape, 0, 1e-3, 1e-3  # any bound will do
    return shape, nonzeros, (squares / nonzeros) ** 0.5, largest
