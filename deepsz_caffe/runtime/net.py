"""A network in Caffe: built of a definition, its weights read by us and put in.

Caffe never reads a weights file here. Its own reader goes by the file's name where contents decide
(HDF5), leaves a layer that the file lacks at random values, and ends the process where shapes
differ. `read_weights` opens all kinds of files, and what it gives is put in and compared.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.dsz.expand import expand
from deepsz_caffe.dsz.layout import ChangedBlob, EncodedLayer
from deepsz_caffe.errors import CaffeError, DeepSZWarning, ModelError
from deepsz_caffe.files import nameless_file
from deepsz_caffe.folders import temporary_folder
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.kind import weights_kind
from deepsz_caffe.network.layers import check_weights, compressible_layers
from deepsz_caffe.network.weights import Blob, CaffeModel, LayerWeights

if TYPE_CHECKING:
    from caffe import Net
    from caffe._caffe import Blob as CaffeBlob
    from caffe.proto.caffe_pb2 import NetParameter, PythonParameter

Path_ = str | os.PathLike[str]
#: Weights to put in place of a layer's own: decoded ones, or encoded ones that are decoded there.
Replacement = NDArray[np.float32] | EncodedLayer


def build_net(caffe: ModuleType, net: NetParameter) -> Net:
    """Build a `caffe.Net` of a NetParameter.

    Raises
    ------
    CaffeError
        This Caffe has no such layer; the layer is named.
    ModelError
        The module of a Python layer can't be imported.
    """
    check_buildable(caffe, net)
    with nameless_file() as (descriptor, path):  # pycaffe wants a file
        with open(descriptor, "wb", closefd=False) as file:
            file.write(str(net).encode())
        return caffe.Net(path, caffe.TEST)


def check_buildable(caffe: ModuleType, net: NetParameter) -> None:
    """Find the layers that Caffe would end the process at, or fail at without a word."""
    known = frozenset(caffe.layer_type_list())
    for layer in net.layer:
        where = f"layer {layer.name}"
        if layer.type not in known:
            raise CaffeError(
                f"Unknown layer type: {layer.type}",
                where=where,
                hint="this Caffe can't build it; the network's own Caffe has it, if it is a fork's",
            )
        if layer.type == "Python":
            _check_python_layer(layer.python_param, where)


def _check_python_layer(parameters: PythonParameter, where: str) -> None:
    try:
        module = importlib.import_module(parameters.module)
    except Exception as error:  # whatever the user's module does
        raise ModelError(
            f"its Python module {parameters.module!r} can't be imported: "
            f"{type(error).__name__}: {error}",
            where=where,
            hint="set PYTHONPATH to its folder",
        ) from error
    if not hasattr(module, parameters.layer):
        raise ModelError(
            f"its Python module {parameters.module!r} has no {parameters.layer!r}", where=where
        )


def layer_places(
    caffe_net: Net,
    net: NetParameter,
    built: Iterable[int] | None = None,
) -> dict[int, int]:
    """Say where the layers of a definition are in the network that was built from them.

    Caffe puts Split layers between them, and lets layers without weights share a name.

    Parameters
    ----------
    built
        Positions in ``net.layer``, in order, of the layers that were built; default: all.

    Returns
    -------
    dict
        Position in ``net.layer`` -> place in the network.

    Raises
    ------
    CaffeError
        A layer was not built.
    """
    names = list(caffe_net._layer_names)
    places: dict[int, int] = {}
    after = 0
    for position in range(len(net.layer)) if built is None else built:
        name = net.layer[position].name
        if name not in names[after:]:
            raise CaffeError("Caffe has not built the layer", where=f"layer {name}")
        places[position] = names.index(name, after)
        after = places[position] + 1
    return places


def source_places(caffe_net: Net) -> list[int]:
    """List the places of the layers that read no blob: data and inputs."""
    return [i for i in range(len(caffe_net.layers)) if not list(caffe_net._bottom_ids(i))]


def read_weights(path: Path_) -> CaffeModel:
    """Open a weights file of any kind: a caffemodel, HDF5, or a ``.dsz``, which is decoded.

    Raises
    ------
    ModelError, FormatError
        It can't be read, is damaged, or is something else.
    """
    if weights_kind(path) != "dsz":
        try:
            return read_caffemodel(path)
        except ModelError:
            if Path(path).suffix != ".dsz":
                raise
        # What is wrong with a `.dsz` whose first bytes are damaged, its own reader says below.
    with temporary_folder() as folder:
        expanded = folder / "expanded.caffemodel"
        expand(path, expanded)
        # A memory map: it outlives the file's name.
        return read_caffemodel(expanded, named=path)


def load_weights(
    caffe_net: Net,
    net: NetParameter,
    weights: Path_ | CaffeModel,
    *,
    complete: bool = True,
    but: Collection[str] = (),
) -> None:
    """Put the weights of a file into a network.

    Parameters
    ----------
    caffe_net, net
        The network, built, and its definition.
    weights
        A file, or what `read_weights` gave.
    complete
        Every layer with weights must be in the file; otherwise those that are not stay as they are.
    but
        Layers whose weights (blob 0) are put in later; the rest of them is loaded.

    Raises
    ------
    ModelError
        A layer is missing or does not fit; or what is in the network is not what was read; or
        two layers with weights have one name, of which Caffe would load the first alone.
    """
    model = weights if isinstance(weights, CaffeModel) else read_weights(weights)
    _check_names(caffe_net)
    if complete:
        check_complete(caffe_net, net, model)
    names = [name for name in _in_file_order(model) if name in caffe_net.params]
    for name in names:
        _put_layer(caffe_net, model, name, 1 if name in but else 0)
    compared = [name for name in names if name not in but]
    _compare(caffe_net, model, compared, graph.shared_weights(net))


def check_complete(caffe_net: Net, net: NetParameter, model: CaffeModel) -> None:
    """Check that every layer with parameters finds its weights in the file.

    Raises
    ------
    ModelError
        A layer, named, is missing; Caffe would leave its weights as they are, silently.
    """
    check_weights(compressible_layers(net), model, extra_blobs=True)  # they are left out
    sharers = graph.shared_weights(net)
    for name in caffe_net.params:
        if not any(other in model for other in sharers.get(name, (name,))):
            raise ModelError(
                "the layer is not in the weights file", where=f"{model.path}, layer {name}"
            )


def put_weights(caffe_net: Net, name: str, weights: Replacement) -> None:
    """Replace the weights (blob 0) of one layer, and what was changed with them.

    Raises
    ------
    ModelError
        The network has no such layer, or another number of weights.
    """
    if name not in caffe_net.params:
        raise ModelError("no such layer with weights in the network", where=f"layer {name}")
    target = caffe_net.params[name][0].data
    shape = weights.shape
    if int(np.prod(shape)) != target.size:
        raise ModelError(
            f"weights of {' × '.join(map(str, shape))} do not fit {list(target.shape)}",
            where=f"layer {name}",
        )
    if isinstance(weights, EncodedLayer):
        decode_layer(weights, target.reshape(weights.shape))
        put_changes(caffe_net, weights.changes)
    else:
        target[...] = weights.reshape(target.shape)


def put_changes(caffe_net: Net, changes: Iterable[ChangedBlob]) -> None:
    """Replace blobs beside the weights that were encoded.

    Raises
    ------
    ModelError
        The network has no such blob, or another number of values.
    """
    for change in changes:
        blobs = caffe_net.params.get(change.layer, ())
        values = np.frombuffer(change.values, "<f4")
        if change.blob >= len(blobs) or blobs[change.blob].data.size != values.size:
            raise ModelError(
                f"the network has no blob {change.blob} of {values.size} values",
                where=f"layer {change.layer}",
            )
        target = blobs[change.blob].data
        target[...] = values.reshape(target.shape)


def _check_names(caffe_net: Net) -> None:
    named = zip(caffe_net._layer_names, caffe_net.layers, strict=True)
    weighted = [name for name, layer in named if len(layer.blobs)]
    for name in weighted:
        if weighted.count(name) > 1:
            raise ModelError(
                "two layers with weights have this name, so a file has weights for one of them",
                where=f"layer {name}",
                hint="rename one; layers share weights by `param { name: … }`",
            )


def _in_file_order(model: CaffeModel) -> list[str]:
    """List the layers with weights; of copies that layers share, Caffe takes the file's last."""
    return list({layer.name: None for layer in model.layers if layer.blobs})


def _put_layer(caffe_net: Net, model: CaffeModel, name: str, first: int) -> None:
    blobs = caffe_net.params[name]
    stored = model[name].blobs
    where = f"{model.path}, layer {name}"
    if len(stored) < len(blobs):
        raise ModelError(f"{len(stored)} blobs where the network has {len(blobs)}", where=where)
    if len(stored) > len(blobs):
        warnings.warn(
            DeepSZWarning(
                f"{where}: {len(stored)} blobs where the network has {len(blobs)}; the rest is "
                "left out"
            ),
            stacklevel=2,
        )
    for number, (ours, theirs) in enumerate(zip(blobs, stored, strict=False)):
        if not _same_shape(tuple(ours.data.shape), theirs):
            raise ModelError(
                f"blob {number} is {list(theirs.shape)}, the network wants {list(ours.data.shape)}",
                where=where,
            )
        if number >= first:
            ours.data[...] = theirs.data.reshape(ours.data.shape)


def _same_shape(wanted: tuple[int, ...], blob: Blob) -> bool:
    """Compare shapes as Caffe does: an old one has four axes, the first of them 1 as need be."""
    if len(blob.shape) == 4 and len(wanted) < 4:
        wanted = (1,) * (4 - len(wanted)) + wanted
    return wanted == blob.shape


def _compare(
    caffe_net: Net,
    model: CaffeModel,
    names: list[str],
    sharers: dict[str, tuple[str, ...]],
) -> None:
    """Compare what is in the network with what was read, bit for bit."""
    for name in names:
        if _is_in(caffe_net.params[name], model[name]):
            continue
        where = f"{model.path}, layer {name}"
        if name not in sharers:
            raise ModelError("its weights did not reach the network unchanged", where=where)
        warnings.warn(
            DeepSZWarning(
                f"{where}: it shares its weights with {', '.join(sharers[name])}, but the file "
                "has different ones; the last count, as in Caffe"
            ),
            stacklevel=2,
        )


def _is_in(blobs: Sequence[CaffeBlob], stored: LayerWeights) -> bool:
    for ours, theirs in zip(blobs, stored.blobs, strict=False):
        wanted = theirs.data.astype(np.float32, copy=False).reshape(-1)
        there = ours.data.reshape(-1)
        if not np.array_equal(there.view(np.uint32), wanted.view(np.uint32)):
            return False
    return True
