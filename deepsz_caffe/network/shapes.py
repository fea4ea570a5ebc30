"""Shapes of a network's blobs, as far as the definition says them, without Caffe.

What depends on data sets or on layers that are not known here stays unknown, a size or all of a
shape; the rest is what Caffe computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import ConvolutionParameter, LayerParameter, NetParameter

#: sizes, None where one is not known; None where not even their number is
Shape = tuple[int | None, ...] | None

#: layers whose tops have the shape of their first bottom
_SAME: Final = frozenset(
    {
        "AbsVal", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Eltwise", "Exp", "LRN",
        "Log", "MVN", "PReLU", "Power", "ReLU", "Scale", "Sigmoid", "Softmax", "Split", "Swish",
        "TanH", "Threshold",
    }
)  # fmt: skip
#: layers that can be compressed: of several layers of one name these count
_WEIGHTED: Final = frozenset({"Convolution", "Deconvolution", "Embed", "InnerProduct"})


def bottom_shapes(net: NetParameter, doubtful: Collection[str] = ()) -> dict[str, Shape]:
    """Find the shape that the first bottom of each layer has.

    Parameters
    ----------
    net
        A network of one phase, from `deepsz_caffe.network.prototxt.phase`.
    doubtful
        Layers whose definition is not known as a whole: of their bottoms nothing follows, and
        their tops may have any shape.

    Returns
    -------
    dict
        Layer name -> shape.
    """
    blobs: dict[str, Shape] = {}
    found: dict[str, Shape] = {}
    for layer in net.layer:
        bottoms = [blobs.get(name) for name in layer.bottom]
        if bottoms and (layer.name not in found or layer.type in _WEIGHTED):
            found[layer.name] = None if layer.name in doubtful else bottoms[0]
        try:
            tops = [] if layer.name in doubtful else _tops(layer, bottoms)
        except (ValueError, IndexError, ZeroDivisionError, TypeError):
            tops = []  # what Caffe itself would refuse
        for place, name in enumerate(layer.top):
            blobs[name] = tops[place] if place < len(tops) else None
    return found


def product(sizes: Sequence[int | None]) -> int | None:
    """Multiply sizes; None where one is not known."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def kernel_area(parameters: ConvolutionParameter) -> int:
    """Count the weights of a convolution on images that one input and one output have."""
    return math.prod(window(parameters)[0])


def window(parameters: ConvolutionParameter) -> tuple[tuple[int, int], ...]:
    """Give kernel, stride, padding and dilation of a convolution on images, each (high, wide)."""
    wanted = (
        ("kernel_size", ("kernel_h", "kernel_w"), 0),
        ("stride", ("stride_h", "stride_w"), 1),
        ("pad", ("pad_h", "pad_w"), 0),
        ("dilation", (), 1),
    )
    return tuple(
        (_sized(parameters, name, sides, 0, default), _sized(parameters, name, sides, 1, default))
        for name, sides, default in wanted
    )


def _tops(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    if layer.type in _SAME:
        return [bottoms[0]] * len(layer.top)
    rule = _RULES.get(layer.type)
    return [] if rule is None else rule(layer, bottoms)


def _input(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    shapes: list[Shape] = [tuple(shape.dim) for shape in layer.input_param.shape]
    return shapes * len(layer.top) if len(shapes) == 1 else shapes


def _memory_data(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    sizes = layer.memory_data_param
    images = (sizes.batch_size, sizes.channels, sizes.height, sizes.width)
    return [images, (sizes.batch_size,)]


def _fc(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters, shape = layer.inner_product_param, bottoms[0]
    if shape is None:
        return [(None, parameters.num_output) if parameters.axis == 1 else None]
    return [(*shape[: _axis(parameters.axis, shape)], parameters.num_output)]


def _convolution(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters = layer.convolution_param
    wide = layer.type == "Deconvolution"
    shape = bottoms[0] or (None,) * 4
    if parameters.axis not in (1, 1 - len(shape)) or len(shape) != 4:
        return []
    sizes: list[int | None] = []
    for size, kernel, stride, pad, dilation in zip(shape[2:], *window(parameters), strict=True):
        reach = dilation * (kernel - 1) + 1
        if size is None:
            sizes.append(None)
        elif wide:
            sizes.append(stride * (size - 1) + reach - 2 * pad)
        else:
            sizes.append((size + 2 * pad - reach) // stride + 1)
    return [(shape[0], parameters.num_output, *sizes)] * len(layer.top)


def _pooling(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters, shape = layer.pooling_param, bottoms[0]
    if shape is None or len(shape) != 4:
        return []
    if parameters.global_pooling:
        return [(*shape[:2], 1, 1)] * len(layer.top)
    sizes: list[int | None] = []
    for size, letter in zip(shape[2:], "hw", strict=True):
        kernel, stride, pad = (
            getattr(parameters, f"{name}_{letter}") or getattr(parameters, whole)
            for name, whole in (("kernel", "kernel_size"), ("stride", "stride"), ("pad", "pad"))
        )
        if size is None:
            sizes.append(None)
            continue
        over = size + 2 * pad - kernel
        floor = getattr(parameters, "round_mode", 0) == 1
        pooled = (over // stride if floor else -(-over // stride)) + 1
        # The last window must begin in the image or its padding on the left.
        sizes.append(pooled - 1 if pad and (pooled - 1) * stride >= size + pad else pooled)
    return [(*shape[:2], *sizes)] * len(layer.top)


def _flatten(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    shape = bottoms[0]
    if shape is None:
        return []
    first = _axis(layer.flatten_param.axis, shape)
    last = _axis(layer.flatten_param.end_axis, shape) + 1
    return [(*shape[:first], product(shape[first:last]), *shape[last:])]


def _concat(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters = layer.concat_param
    axis = parameters.concat_dim if parameters.HasField("concat_dim") else parameters.axis
    known = [shape for shape in bottoms if shape is not None]
    if len(known) != len(bottoms):
        return []
    axis = _axis(axis, known[0])
    sizes = [shape[axis] for shape in known]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    return [(*known[0][:axis], total, *known[0][axis + 1 :])]


def _slice(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters, shape = layer.slice_param, bottoms[0]
    if shape is None:
        return []
    axis = parameters.slice_dim if parameters.HasField("slice_dim") else parameters.axis
    axis, size = _axis(axis, shape), shape[_axis(axis, shape)]
    if size is None:
        return []
    points = [0, *parameters.slice_point, size]
    if not parameters.slice_point:
        points = list(range(0, size + 1, size // len(layer.top)))
    parts = [end - start for start, end in pairwise(points)]
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def _reshape(layer: LayerParameter, bottoms: list[Shape]) -> Sequence[Shape]:
    parameters, shape = layer.reshape_param, bottoms[0]
    if shape is None or parameters.axis != 0 or parameters.num_axes != -1:
        return []
    dims = list(parameters.shape.dim)
    sizes = [shape[place] if dim == 0 else dim for place, dim in enumerate(dims)]
    if -1 in sizes:
        whole, rest = product(shape), product([size for size in sizes if size != -1])
        sizes[sizes.index(-1)] = None if whole is None or rest is None else whole // rest
    return [tuple(sizes)]


def _axis(axis: int, shape: tuple[int | None, ...]) -> int:
    return axis + len(shape) if axis < 0 else axis


def _sized(
    parameters: ConvolutionParameter,
    name: str,
    sides: tuple[str, ...],
    place: int,
    default: int,
) -> int:
    """Give one side of a convolution's parameter, which is said once, for each side, or by name."""
    if sides and parameters.HasField(sides[place]):
        return int(getattr(parameters, sides[place]))
    values = getattr(parameters, name)
    return int(values[place if len(values) > 1 else 0]) if values else default


_RULES: Final[dict[str, Callable[[LayerParameter, list[Shape]], Sequence[Shape]]]] = {
    "Concat": _concat,
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Flatten": _flatten,
    "InnerProduct": _fc,
    "Input": _input,
    "MemoryData": _memory_data,
    "Pooling": _pooling,
    "Reshape": _reshape,
    "Slice": _slice,
}
