"""A network's definition in which the fc layers of a `.dsz` file are layers of another type.

What runs them, in Caffe or in OpenCV, finds their `CompressedLinear` by the parameter that the
definition gives them.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.documents import parse_document
from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DataError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.layers import check_weights, compressible_layers
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.build import from_dense, working_bytes
from deepsz_caffe.running.linear import DENSE_FROM, CompressedLinear, load_quantized
from deepsz_caffe.running.quantized import Quantized
from deepsz_caffe.running.rest import read_rest
from deepsz_caffe.running.threads import beside

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

Path_ = str | os.PathLike[str]

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
        """Let `runner` find the layers as long as the network is built."""
        _ready.update(self.layers)
        try:
            yield
        finally:
            for parameter in self.layers:
                _ready.pop(parameter, None)


def compress_network(
    net: NetParameter,
    file: DszFile,
    layer_type: str,
    *,
    module: str = "",
    cache: Path_ | None = None,
) -> CompressedNetwork:
    """Let the fc layers that an open file holds be layers of another type.

    Dense stay: a layer with parameters that another one shares; one of which at least
    `DENSE_FROM` of the weights are not 0, where BLAS is faster (a warning says so of both); and
    what the file holds uncompressed.

    Parameters
    ----------
    net
        A NetParameter of the TEST phase; it is not changed.
    file
        The file.
    layer_type
        The new type; with `module` the class there, and the type is ``Python``.
    cache
        A folder in which processes share what they decoded; see `CompressedLinear.from_dsz`.

    Raises
    ------
    FormatError
        The file is damaged.
    ModelError
        Network and file don't fit.
    """
    layers = {layer.name: layer for layer in compressible_layers(net)}
    # Weight fillers go, too: drawing millions of random numbers takes seconds.
    rewritten = graph.subnet(net, range(len(net.layer)), ())
    shared = _shared(net)
    found: list[LayerParameter] = []
    for layer in rewritten.layer:
        if layer.name not in layers or layer.name not in file:
            continue
        reason = _why_dense(layer, file[layer.name], shared)
        if reason:
            where = f"{file.path}, layer {layer.name}"
            warnings.warn(DeepSZWarning(f"{where}: it runs dense: {reason}"), stacklevel=2)
        else:
            found.append(layer)
    with _decoded(file, found, cache) as matrices:
        rest = read_rest(file)
        check_weights(layers.values(), rest)
        made: dict[str, Runner] = {}
        for layer, matrix in zip(found, matrices, strict=True):
            bias = rest[layer.name].blobs[1].data if layers[layer.name].bias else None
            flat = None if bias is None else bias.reshape(-1)
            linear = CompressedLinear(matrix, flat, name=layer.name, dense=False)
            parameter = _rewrite(layer, file, layer_type, module)
            made[parameter] = Runner(linear, layer.inner_product_param.axis)
            layer.ClearField("inner_product_param")
    return CompressedNetwork(rewritten, made, rest)


def _rewrite(layer: LayerParameter, file: DszFile, layer_type: str, module: str) -> str:
    """Make a layer one of another type; give the parameter that describes it."""
    described = _Parameter(str(file.path.resolve()), layer.name, layer.inner_product_param.axis)
    for field in ("param", "blobs"):
        layer.ClearField(field)
    layer.type = "Python" if module else layer_type
    layer.python_param.module = module
    layer.python_param.layer = layer_type
    parameter = json.dumps(asdict(described))
    layer.python_param.param_str = parameter
    return parameter


def _decoded(
    file: DszFile, layers: Sequence[LayerParameter], cache: Path_ | None
) -> AbstractContextManager[Iterator[Quantized]]:
    """Decode layers, together where the file's limits have room for that."""

    def load(layer: LayerParameter) -> Quantized:
        return _matrix(file, layer.name, layer.inner_product_param.transpose, cache)

    needed = sum(working_bytes(file[layer.name]) + file[layer.name].dense_bytes for layer in layers)
    return beside(load, layers, 1 if needed > file.limits.memory else None)


def _shared(net: NetParameter) -> set[str]:
    """List the names of parameters that more than one layer has."""
    names = [param.name for layer in net.layer for param in layer.param if param.name]
    return {name for name in names if names.count(name) > 1}


def _why_dense(layer: LayerParameter, entry: LayerEntry, shared: set[str]) -> str:
    """Say why a layer stays dense; "" where it need not."""
    if any(param.name in shared for param in layer.param):
        return "it shares its weights with another layer"
    left = entry.nonzeros / (entry.shape[0] * entry.shape[1])
    return "" if left < DENSE_FROM else f"{left:.0%} of its weights are not 0"


def _matrix(file: DszFile, name: str, transposed: bool, cache: Path_ | None) -> Quantized:
    if not transposed:
        return load_quantized(file, name, cache=cache)
    entry = file[name]
    needed = working_bytes(entry) + entry.dense_bytes
    file.limits.allow_memory(needed, f"{file.path}, layer {name}")
    return from_dense(np.ascontiguousarray(read_layer(file, name).T))


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
    return Runner(linear, described.axis)


@dataclass(frozen=True)
class Runner:
    """What a layer of such a network does, in whatever it runs.

    Attributes
    ----------
    linear
        The layer.
    axis
        From which on inputs are taken together.
    """

    linear: CompressedLinear
    axis: int

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Give the shape that InnerProduct gives its output.

        Raises
        ------
        ModelError
            The input has another number of values than the layer takes.
        """
        axis = self.axis if self.axis >= 0 else len(shape) + self.axis
        outputs, inputs = self.linear.shape
        if math.prod(shape[axis:]) != inputs:
            raise ModelError(
                f"its input is {list(shape)}, it takes {inputs} values from axis {axis} on",
                where=f"layer {self.linear.name}",
            )
        return (*shape[:axis], outputs)

    def run(
        self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Compute the outputs of an input of any shape, as rows of `out` where it is given."""
        outputs, inputs = self.linear.shape
        rows = x.reshape(-1, inputs)
        return self.linear(rows, out=None if out is None else out.reshape(-1, outputs))
