"""Networks in Caffe whose fc layers run from their compressed form.

Each InnerProduct layer that a `.dsz` file holds becomes a Python layer, `python_layer`, which works
on the `CompressedLinear` made of it; the weights of everything else are put in as ever. The dense
weights of these layers are never made.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

import numpy as np

from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.network import graph
from deepsz_caffe.network.layers import check_weights, compressible_layers
from deepsz_caffe.running.build import from_dense, working_bytes
from deepsz_caffe.running.linear import DENSE_FROM, CompressedLinear, load_quantized
from deepsz_caffe.running.quantized import Quantized
from deepsz_caffe.running.rest import read_rest
from deepsz_caffe.runtime.net import build_net, load_weights, put_weights

Path_ = str | os.PathLike[str]

MODULE: Final = "deepsz_caffe.runtime.python_layer"
CLASS: Final = "CompressedInnerProduct"

#: layers by the parameter that their Python layer gets, while a network is built
ready: dict[str, CompressedLinear] = {}


def build_compressed(
    caffe: Any,  # noqa: ANN401
    net: Any,  # noqa: ANN401
    path: Path_,
    cache: Path_ | None = None,
) -> Any:  # noqa: ANN401
    """Build a `caffe.Net` whose fc layers run from the compressed form in a `.dsz` file.

    Dense stay: a layer with parameters that another one shares; one of which at least
    `deepsz_caffe.running.linear.DENSE_FROM` of the weights are not 0, where BLAS is faster; and
    what the file holds uncompressed. ``type`` of the network's ``layers`` tells them apart:
    ``Python`` or ``InnerProduct``.

    Parameters
    ----------
    caffe
        The library.
    net
        A NetParameter of the TEST phase; it is not changed.
    path
        The file.
    cache
        A folder in which processes share what they decoded; see `CompressedLinear.from_dsz`.

    Raises
    ------
    FormatError
        It is not a `.dsz` file, or damaged.
    ModelError, CaffeError
        Network and file don't fit, or Caffe can't build the network.
    """
    with DszFile(path) as file:
        rest = read_rest(file)
        layers = compressible_layers(net)
        check_weights(layers, rest)
        biases = {layer.name: layer.bias for layer in layers if layer.name in file}
        # Weight fillers go, too: drawing millions of random numbers takes seconds.
        rewritten = graph.subnet(net, range(len(net.layer)), ())
        shared = _shared(net)
        made: dict[str, CompressedLinear] = {}
        for layer in rewritten.layer:
            if layer.name not in biases or not _can_run(layer, file[layer.name], shared):
                continue
            bias = rest[layer.name].blobs[1].data.reshape(-1) if biases[layer.name] else None
            matrix = _matrix(file, layer.name, layer.inner_product_param.transpose, cache)
            linear = CompressedLinear(matrix, bias, name=layer.name, dense=False)
            made[_rewrite(layer, file)] = linear
        ready.update(made)
        try:
            caffe_net = build_net(caffe, rewritten)
        finally:
            for key in made:
                ready.pop(key, None)
        load_weights(caffe_net, rewritten, rest)
        for entry in file.layers:
            if entry.name in caffe_net.params:
                put_weights(caffe_net, entry.name, read_layer(file, entry.name))
    return caffe_net


def _shared(net: Any) -> set[str]:  # noqa: ANN401
    """List the names of parameters that more than one layer has."""
    names = [param.name for layer in net.layer for param in layer.param if param.name]
    return {name for name in names if names.count(name) > 1}


def _can_run(layer: Any, entry: LayerEntry, shared: set[str]) -> bool:  # noqa: ANN401
    sparse = entry.nonzeros < DENSE_FROM * entry.shape[0] * entry.shape[1]
    return (
        layer.type == "InnerProduct"
        and sparse
        and not any(param.name in shared for param in layer.param)
    )


def _rewrite(layer: Any, file: DszFile) -> str:  # noqa: ANN401
    """Make an InnerProduct layer a Python layer; give the parameter of that."""
    described = {
        "file": str(file.path.resolve()),
        "layer": layer.name,
        "axis": layer.inner_product_param.axis,
    }
    layer.type = "Python"
    for field in ("inner_product_param", "param", "blobs"):
        layer.ClearField(field)
    layer.python_param.module = MODULE
    layer.python_param.layer = CLASS
    layer.python_param.param_str = json.dumps(described)
    return str(layer.python_param.param_str)


def _matrix(file: DszFile, name: str, transposed: bool, cache: Path_ | None) -> Quantized:
    if transposed:
        entry = file[name]
        file.limits.allow_memory(
            working_bytes(entry) + entry.dense_bytes, f"{file.path}, layer {name}"
        )
        return from_dense(np.ascontiguousarray(read_layer(file, name).T))
    return load_quantized(file, name, cache=cache)
