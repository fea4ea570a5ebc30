"""Which layers of a network can be compressed, as which matrix, and whether weights fit them.

All of this is said here, once, by the table `KINDS`: everything else asks `compressible_layers` for
the layers of a network's definition, `stored_layers` for those of a weights file without one, and
`check_weights` whether the two fit together. The definition says what a layer is; a weights file is
looked up by name and judged by the number and the shapes of its blobs, as Caffe does.

Only blob 0 of a layer is compressed. It is taken as a matrix whose elements stand in the file's
order, so that a matrix is a view of the blob and never a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from warnings import warn

from deepsz_caffe.errors import DeepSZWarning, InputError, ModelError
from deepsz_caffe.network.shapes import Shape, kernel_area, product

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import (
        ConvolutionParameter,
        EmbedParameter,
        InnerProductParameter,
        NetParameter,
    )

    from deepsz_caffe.network.weights import CaffeModel

#: ``"fc"``, ``"conv"`` or ``"all"`` (see `GROUPS`), or names of layers of any kind
Selection = str | Collection[str]
#: what becomes of blobs that layers of the network don't have
ExtraBlobs = Literal["keep", "drop"]
#: rows and columns of a matrix, None where a definition alone does not say
Sides = tuple[int | None, int | None]


@dataclass(frozen=True)
class Kind:
    """A type of layer whose blob 0 can be compressed.

    Attributes
    ----------
    group
        The selection that its layers belong to, beside ``"all"``; "" where no other.
    parameters
        Field of `LayerParameter` with its parameters, among them ``num_output`` and ``bias_term``.
    sides
        These parameters and the shape of the first bottom -> rows and columns of blob 0, as far as
        they say.
    matrix
        Shape of blob 0 in a file -> rows and columns.
    """

    group: str
    parameters: str
    sides: Callable[[Any, Shape], Sides]
    matrix: Callable[[Sequence[int]], tuple[int, int]]


def _fc_sides(parameters: InnerProductParameter, bottom: Shape) -> Sides:
    outputs = parameters.num_output
    inputs = None if bottom is None else product(bottom[parameters.axis :])
    return (inputs, outputs) if parameters.transpose else (outputs, inputs)


def _fc_matrix(shape: Sequence[int]) -> tuple[int, int]:
    # Before blobs had shapes, Caffe wrote 1 × 1 × N × K.
    shape = shape[2:] if len(shape) == 4 and tuple(shape[:2]) == (1, 1) else shape
    return _first_and_rest(shape)


def _first_and_rest(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0] if shape else 1), math.prod(shape[1:])


def _conv_sides(parameters: ConvolutionParameter, bottom: Shape) -> Sides:
    # outputs × inputs of a group · kernel
    inputs = _channels(parameters, bottom)
    if inputs is None:
        return parameters.num_output, None
    return parameters.num_output, inputs // (parameters.group or 1) * kernel_area(parameters)


def _deconv_sides(parameters: ConvolutionParameter, bottom: Shape) -> Sides:
    # inputs × outputs of a group · kernel
    inputs = _channels(parameters, bottom)
    if inputs is None:
        return None, None
    return inputs, parameters.num_output // (parameters.group or 1) * kernel_area(parameters)


def _channels(parameters: ConvolutionParameter, bottom: Shape) -> int | None:
    images = bottom is not None and len(bottom) == 4 and parameters.axis in (1, -3)
    return bottom[1] if bottom is not None and images else None


def _embed_sides(parameters: EmbedParameter, bottom: Shape) -> Sides:
    return parameters.input_dim, parameters.num_output


#: type, as the definition has it -> what of it is compressed
KINDS: Final[Mapping[str, Kind]] = {
    "InnerProduct": Kind("fc", "inner_product_param", _fc_sides, _fc_matrix),
    "Convolution": Kind("conv", "convolution_param", _conv_sides, _first_and_rest),
    "Deconvolution": Kind("conv", "convolution_param", _deconv_sides, _first_and_rest),
    "Embed": Kind("", "embed_param", _embed_sides, _first_and_rest),
}

#: selections that have a name, and what the layers in it are called
GROUPS: Final[Mapping[str, str]] = {
    "fc": "fc layer (InnerProduct)",
    "conv": "convolution",
    "all": "layer that can be compressed",
}

#: types of Caffe's that have weights, too
_OTHERS_WITH_WEIGHTS: Final = frozenset(
    {"BatchNorm", "Bias", "LSTM", "PReLU", "Parameter", "RNN", "Scale"}
)


@dataclass(frozen=True)
class CompressibleLayer:
    """A layer that can be compressed, as the definition has it.

    Attributes
    ----------
    name, type, bottom, top
        Its name and type, and the names of its first input and output blob.
    num_output
        Outputs; as many biases.
    rows, columns
        The sides of blob 0 as a matrix, as far as its own parameters say; else None.
    with_input
        The same two with the shape of its input known, as far as that is.
    bias
        There is a second blob of `num_output` values.
    params
        Names by which the weights (and bias) are shared with other layers; "" where they are not.
    """

    name: str
    type: str
    bottom: str
    top: str
    num_output: int
    rows: int | None
    columns: int | None
    bias: bool = True
    params: tuple[str, ...] = ()
    with_input: Sides = (None, None)


def is_compressible(layer_type: str, selection: str = "fc") -> bool:
    """Say whether layers of this type belong to a group of `GROUPS`."""
    return layer_type in KINDS and selection in (KINDS[layer_type].group, "all")


def check_selection(selection: Selection) -> None:
    """Check that a selection is a group, or names.

    Raises
    ------
    InputError
        It is a text, and no group.
    """
    if isinstance(selection, str) and selection not in GROUPS:
        hint = f"{', '.join(GROUPS)} or names of layers"
        raise InputError(f"no selection of layers {selection!r}", hint=hint)


def matrix_shape(layer_type: str, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of blob 0 of a layer, taken as a matrix.

    A type that is not compressible or not known, as of an HDF5 file's layers, counts as an fc
    layer's: the first axis and the rest, and the old (1, 1, N, K) as N × K.
    """
    return KINDS[layer_type if layer_type in KINDS else "InnerProduct"].matrix(shape)


def compressible_layers(
    net: NetParameter,
    selection: Selection = "fc",
    *,
    where: object = None,
    shapes: Mapping[str, Shape] | None = None,
) -> tuple[CompressibleLayer, ...]:
    """List the layers of a network that can be compressed, in the order of the definition.

    Parameters
    ----------
    net
        From `deepsz_caffe.network.prototxt.read_prototxt`. A layer that an unfiltered network
        defines once a phase under one name is listed once.
    selection
        A group, or names of layers.
    where
        For errors: the file.
    shapes
        Layer name -> shape of its first bottom, from `deepsz_caffe.network.shapes.bottom_shapes`.

    Returns
    -------
    tuple
        Empty where a group is asked for and the network has none of it.

    Raises
    ------
    ModelError
        A name is not a layer that can be compressed, or such a layer lacks bottom or top.
    """
    found: dict[str, CompressibleLayer] = {}
    for layer in net.layer:
        kind = KINDS.get(layer.type)
        if kind is None or layer.name in found:
            continue
        if isinstance(selection, str) and not is_compressible(layer.type, selection):
            continue
        if not layer.bottom or not layer.top:
            raise ModelError(f"an {layer.type} layer without bottom or top", where=layer.name)
        parameters = getattr(layer, kind.parameters)
        found[layer.name] = CompressibleLayer(
            layer.name,
            layer.type,
            layer.bottom[0],
            layer.top[0],
            parameters.num_output,
            *kind.sides(parameters, None),
            bias=parameters.bias_term,
            params=tuple(param.name for param in layer.param),
            with_input=kind.sides(parameters, (shapes or {}).get(layer.name)),
        )
    if isinstance(selection, str):
        return tuple(found.values())
    require(selection, found, where, "all")
    return tuple(layer for name, layer in found.items() if name in selection)


def stored_layers(model: CaffeModel, selection: Selection = "fc") -> tuple[str, ...]:
    """List the layers of a weights file that can be compressed, where no definition is at hand.

    Parameters
    ----------
    model
        The weights.
    selection
        A group: layers that the file says are of that kind. Or names of layers: also those whose
        type the file does not say, as HDF5 files don't, or that only a fork of Caffe knows.

    Returns
    -------
    tuple of str
        In the file's order.

    Raises
    ------
    ModelError
        A name is no layer with weights, or one that is not compressed.
    """
    stored = {layer.name: model[layer.name] for layer in model.layers if model[layer.name].blobs}
    if isinstance(selection, str):
        return tuple(name for name in stored if is_compressible(stored[name].type, selection))
    possible = [name for name, layer in stored.items() if layer.type not in _OTHERS_WITH_WEIGHTS]
    require(selection, possible, model.path, "all")
    return tuple(name for name in possible if name in selection)


def require(
    names: Iterable[str], known: Collection[str], where: object = None, group: str = "fc"
) -> None:
    """Check that every name is one of the layers of a group, which are `known`.

    Raises
    ------
    ModelError
        One is not; the layers that there are, are named.
    """
    for name in names:
        if not known:
            raise ModelError(f"the network has no {GROUPS[group]}", where=where)
        if name not in known:
            place = f"{where}, layer {name}" if where else f"layer {name}"
            raise ModelError(
                f"the network has no such {GROUPS[group].partition(' (')[0]}",
                where=place,
                hint="it has " + ", ".join(known),
            )


def without_extra_blobs(net: NetParameter, model: CaffeModel) -> CaffeModel:
    """Leave out of a network's weights the blobs that its layers don't have.

    Forks of Caffe store masks behind weights and bias; BVLC Caffe refuses a file with them.

    Parameters
    ----------
    net
        The network.
    model
        Its weights.

    Returns
    -------
    CaffeModel
        The same where there is nothing to leave out.
    """
    wanted = {
        layer.name: 1 + getattr(layer, KINDS[layer.type].parameters).bias_term
        for layer in net.layer
        if layer.type in KINDS
    }
    return model.with_fewer_blobs(wanted)


def settle_extra_blobs(net: NetParameter, model: CaffeModel, choice: ExtraBlobs) -> CaffeModel:
    """Keep or drop the blobs that a network's layers don't have, and say so where there are any.

    Returns
    -------
    CaffeModel
        The weights that are to be stored.
    """
    fitting = without_extra_blobs(net, model)
    if fitting is not model:
        what = "are dropped" if choice == "drop" else "are kept: Caffe will refuse the file"
        warn(
            f"{model.path}: blobs that the network's layers don't have {what}",
            DeepSZWarning,
            stacklevel=4,
        )
    return fitting if choice == "drop" else model


def check_weights(
    layers: Iterable[CompressibleLayer], model: CaffeModel, *, extra_blobs: bool = False
) -> None:
    """Check that layers have weights that fit them.

    Caffe leaves a layer that the weights file lacks at random values, silently, and aborts the
    process where shapes differ. Layers of the file that are not asked for are fine, as in Caffe.

    Parameters
    ----------
    layers
        From `compressible_layers`.
    model
        The weights.
    extra_blobs
        Layers may have more blobs than Caffe would take.

    Raises
    ------
    ModelError
        A layer is missing or does not fit; it is named.
    """
    layers = tuple(layers)
    for layer in layers:
        where = f"{model.path}, layer {layer.name}"
        if layer.name not in model:
            if _owner_present(layer, layers, model):
                continue
            raise ModelError(
                "the network's layer is not in the weights file",
                where=where,
                hint="it has " + (", ".join(x.name for x in model.layers if x.blobs) or "none"),
            )
        blobs = model[layer.name].blobs
        wanted = 2 if layer.bias else 1
        if len(blobs) < wanted or (len(blobs) > wanted and not extra_blobs):
            raise ModelError(f"{len(blobs)} blobs where {wanted} are wanted", where=where)
        for blob in blobs[:wanted]:
            blob.check()
        rows, columns = matrix_shape(layer.type, blobs[0].shape)
        for side, is_, must in (("rows", rows, layer.rows), ("columns", columns, layer.columns)):
            if must not in (None, is_):
                raise ModelError(
                    f"weights of {rows} × {columns}, but num_output is {layer.num_output} and must "
                    f"be the number of {side}",
                    where=where,
                )
        if any(
            must not in (None, is_)
            for is_, must in zip((rows, columns), layer.with_input, strict=True)
        ):
            known = " × ".join("?" if side is None else str(side) for side in layer.with_input)
            raise ModelError(
                f"weights of {rows} × {columns}, but with the input that the network gives it the "
                f"layer has {known}",
                where=where,
            )
        if layer.bias and math.prod(blobs[1].shape) != layer.num_output:
            raise ModelError(
                f"{math.prod(blobs[1].shape)} biases, but num_output is {layer.num_output}",
                where=where,
            )


def _owner_present(
    layer: CompressibleLayer, layers: Iterable[CompressibleLayer], model: CaffeModel
) -> bool:
    """Shared weights need to be in the file once: HDF5 snapshots hold only the owner's."""
    shared = layer.params[0] if layer.params else ""
    return bool(shared) and any(
        other.params[:1] == (shared,) and other.name in model for other in layers
    )
