"""A network's definition in which the fc layers of a `.dsz` file are layers of another type.

What runs them, in Caffe or in OpenCV, finds their `CompressedLinear` by the parameter that the
definition gives them.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.documents import parse_document
from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.errors import DataError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.layers import check_weights, compressible_layers
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.linear import CompressedLinear
from deepsz_caffe.running.source import Source, is_sparse

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

#: characters of a wrong parameter that an error shows
_SHOWN = 200
#: what runs layers, by their parameter, while a network is built
_ready: dict[str, Runner] = {}


@dataclass(frozen=True)
class CompressedNetwork:
    """What is needed to build such a network.

    Attributes
    ----------
    net
        The NetParameter, its fc layers rewritten.
    layers
        Their parameter -> what runs them.
    rest
        All other weights; those of fc layers that stay dense are 0 in it.
    """

    net: NetParameter
    layers: Mapping[str, Runner]
    rest: CaffeModel

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Let `runner` find the layers as long as the network is built; in the end all are decoded.

        Raises
        ------
        FormatError
            One of them is damaged.
        """
        _ready.update(self.layers)
        try:
            yield
            for layer in self.layers.values():
                layer.load()
        finally:
            for parameter in self.layers:
                _ready.pop(parameter, None)


def compress_network(
    net: NetParameter, source: Source, layer_type: str, *, module: str = ""
) -> CompressedNetwork:
    """Let the fc layers that a `.dsz` file holds be layers of another type.

    Dense stay: a layer with parameters that another one shares; one of which at least
    `DENSE_FROM` of the weights are not 0, where BLAS is faster (a warning says so of both);
    convolutions, also those of 1 × 1, where at the densities that pruning leaves BLAS is mostly
    faster (``make bench running``); and what the file holds uncompressed.

    Parameters
    ----------
    net
        A NetParameter of the TEST phase; it is not changed.
    source
        The file.
    layer_type
        The new type; with `module` the class there, and the type is ``Python``.

    Raises
    ------
    ModelError
        Network and file don't fit.
    """
    file = source.file
    layers = compressible_layers(net)
    check_weights(layers, source.rest)
    names = {layer.name for layer in layers if layer.name in file}
    # Weight fillers go, too: drawing millions of random numbers takes seconds.
    rewritten = graph.subnet(net, range(len(net.layer)), ())
    shared = _shared(net)
    made: dict[str, Runner] = {}
    for layer in rewritten.layer:
        if layer.name not in names:
            continue
        reason = _why_dense(layer, file[layer.name], shared)
        if reason:
            where = f"{file.path}, layer {layer.name}"
            warnings.warn(DeepSZWarning(f"{where}: it runs dense: {reason}"), stacklevel=2)
            continue
        axis, transposed = layer.inner_product_param.axis, layer.inner_product_param.transpose
        rows, columns = file[layer.name].shape
        shape = (columns, rows) if transposed else (rows, columns)
        linear = source.linear(layer.name, transposed)
        parameter = json.dumps(asdict(_Parameter(str(file.path.resolve()), layer.name, axis)))
        made[parameter] = Runner(layer.name, shape, axis, linear.result)
        for field in ("inner_product_param", "param", "blobs"):
            layer.ClearField(field)
        layer.type = "Python" if module else layer_type
        layer.python_param.module = module
        layer.python_param.layer = layer_type
        layer.python_param.param_str = parameter
    return CompressedNetwork(rewritten, made, source.rest)


def _shared(net: NetParameter) -> set[str]:
    """List the names of parameters that more than one layer has."""
    names = [param.name for layer in net.layer for param in layer.param if param.name]
    return {name for name in names if names.count(name) > 1}


def _why_dense(layer: LayerParameter, entry: LayerEntry, shared: set[str]) -> str:
    """Say why a layer stays dense; "" where it need not."""
    if any(param.name in shared for param in layer.param):
        return "it shares its weights with another layer"
    left = entry.nonzeros / (entry.rows * entry.columns)
    return "" if is_sparse(entry) else f"{left:.0%} of its weights are not 0"


@dataclass(frozen=True)
class _Parameter:
    """What `runner` is told."""

    file: str
    layer: str
    axis: int = 1


def runner(parameter: str) -> Runner:
    """Find what runs a layer, or load it.

    Parameters
    ----------
    parameter
        JSON: the `.dsz` file's path, the layer's name and the axis from which on inputs are taken
        together, as in InnerProduct (1 by default): ``{"file": "net.dsz", "layer": "fc6"}``.

    Raises
    ------
    InputError
        The parameter is not like that.
    """
    if parameter in _ready:
        return _ready[parameter]
    try:
        described = parse_document(parameter, _Parameter)
    except DataError as error:
        raise InputError(
            f"the parameter of a compressed layer is {parameter[:_SHOWN]!r}",
            hint='it should be like {"file": "net.dsz", "layer": "fc6"}',
        ) from error
    linear = CompressedLinear.from_dsz(described.file, described.layer)
    return Runner(linear.name, linear.shape, described.axis, lambda: linear)


@dataclass(frozen=True)
class Runner:
    """What a layer of such a network does, in whatever it runs.

    Attributes
    ----------
    name
        The layer's name.
    shape
        Its outputs and inputs.
    axis
        From which on inputs are taken together.
    load
        Gives the layer, once it is decoded.
    """

    name: str
    shape: tuple[int, int]
    axis: int
    load: Callable[[], CompressedLinear]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Give the shape that InnerProduct gives its output.

        Raises
        ------
        ModelError
            The input has another number of values than the layer takes.
        """
        axis = self.axis if self.axis >= 0 else len(shape) + self.axis
        outputs, inputs = self.shape
        if math.prod(shape[axis:]) != inputs:
            raise ModelError(
                f"its input is {list(shape)}, it takes {inputs} values from axis {axis} on",
                where=f"layer {self.name}",
            )
        return (*shape[:axis], outputs)

    def run(
        self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Compute the outputs of an input of any shape, as rows of `out` where it is given."""
        outputs, inputs = self.shape
        rows = x.reshape(-1, inputs)
        return self.load()(rows, out=None if out is None else out.reshape(-1, outputs))
