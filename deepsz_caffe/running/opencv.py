"""Networks in OpenCV's dnn module, from memory: dense, or with fc layers in compressed form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import CaffeError, DeepSZError, DeepSZWarning, ModelError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.outline import read_outline
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.network import Runner, compress_network
from deepsz_caffe.running.rest import read_rest

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter
    from cv2.dnn import Net

Path_ = str | os.PathLike[str]
Array = NDArray[np.float32]

_TYPE: Final = "CompressedInnerProduct"


class _Layer:
    """What OpenCV makes of a layer of our type."""

    def __init__(self, params: dict[str, str], blobs: list[object]) -> None:
        self._runner = Runner(params["param_str"])

    def getMemoryShapes(self, inputs: list[list[int]]) -> list[list[int]]:  # noqa: N802 - OpenCV's name
        return [list(self._runner.output_shape([int(dim) for dim in inputs[0]]))]

    def forward(self, inputs: list[Array]) -> list[Array]:
        shape = self._runner.output_shape(inputs[0].shape)
        return [self._runner.run(inputs[0]).reshape(shape)]


def opencv_net(
    network: Path_,
    path: Path_,
    *,
    compressed: bool = True,
    cache: Path_ | None = None,
) -> Net:
    """Load a `cv2.dnn.Net` from a `.dsz` file, without a file in between.

    Parameters
    ----------
    network
        A deploy prototxt.
    path
        The file.
    compressed
        Run fc layers from their compressed form; what stays dense says
        `deepsz_caffe.running.network.compress_network`. That takes Caffe's definition of
        prototxts: where Caffe is not installed, or does not know something in the prototxt (a
        fork's layer), all layers are dense, and a warning says so. False: dense in any case.
    cache
        A folder in which processes share what they decoded; see `CompressedLinear.from_dsz`.

    Raises
    ------
    FormatError
        It is not a `.dsz` file, or damaged.
    ModelError
        Network and file don't fit, or OpenCV can't build the network.
    DeepSZError
        OpenCV is not installed.
    """
    import_opencv()
    if compressed:
        try:
            net = phase(read_prototxt(network), "TEST")
        except (CaffeError, ModelError) as error:
            outline = read_outline(network)  # what is wrong with it in any case is said by this
            what = f"its fc layers run dense: {error.what}"
            warnings.warn(DeepSZWarning(f"{network}: {what}"), stacklevel=2)
            return _dense(outline.text, network, path)
        return _compressed(net, network, path, cache)
    return _dense(read_outline(network).text, network, path)


def dense_net(definition: str, model: CaffeModel, where: object) -> Net:
    """Build a `cv2.dnn.Net` of a definition and weights, both in memory.

    Parameters
    ----------
    definition
        A deploy prototxt's text.
    model
        The weights, of a file of any kind and age.
    where
        For errors: the definition's file.

    Raises
    ------
    ModelError
        OpenCV can't build the network, or a blob can't be read.
    DeepSZError
        OpenCV is not installed.
    """
    return _built(definition, _caffemodel(model), where)


def import_opencv() -> ModuleType:
    """Import OpenCV.

    Raises
    ------
    DeepSZError
        It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        hint = "pip install opencv-python-headless"
        raise DeepSZError(f"OpenCV can't be imported: {error}", hint=hint) from error
    module: ModuleType = cv2
    return module


def _dense(definition: str, network: Path_, path: Path_) -> Net:
    with DszFile(path) as file:
        weights = _caffemodel(read_rest(file), file)
    return _built(definition, weights, network)


def _compressed(net: NetParameter, network: Path_, path: Path_, cache: Path_ | None) -> Net:
    cv2 = import_opencv()
    with DszFile(path) as file:
        found = compress_network(net, file, _TYPE, cache=cache)
        weights = _caffemodel(found.rest, file, {linear.name for linear in found.layers.values()})
    cv2.dnn_unregisterLayer(_TYPE)
    layer_class: Any = _Layer
    cv2.dnn_registerLayer(_TYPE, layer_class)
    with found.at_hand():
        cv_net = _built(str(found.net), weights, network)
        with _errors(network):
            for name in cv_net.getLayerNames():
                cv_net.getLayer(cv_net.getLayerId(name))  # which makes it
    return cv_net


def _built(definition: str, weights: bytes, where: object) -> Net:
    cv2 = import_opencv()
    with _errors(where):
        net: Net = cv2.dnn.readNetFromCaffe(
            np.frombuffer(definition.encode(), np.uint8), np.frombuffer(weights, np.uint8)
        )
    return net


@contextmanager
def _errors(where: object) -> Iterator[None]:
    cv2 = import_opencv()
    try:
        yield
    except cv2.error as error:
        raise ModelError(f"OpenCV can't build it: {error}", where=where) from error


def _caffemodel(
    model: CaffeModel, file: DszFile | None = None, without: Collection[str] = ()
) -> bytes:
    """Write a caffemodel in memory; weights that a `.dsz` file has are taken from there."""
    message = schema_pb2.NetParameter()
    for layer in model.layers:
        entry = message.layer.add(name=layer.name.encode(), type=layer.type.encode())
        if layer.name in without:
            continue
        for number, blob in enumerate(layer.blobs):
            dense = number == 0 and file is not None and layer.name in file
            values = read_layer(file, layer.name) if file is not None and dense else blob.data
            stored = entry.blobs.add(data=np.asarray(values, "<f4").tobytes())
            stored.shape.dim.extend(blob.shape)
    return bytes(message.SerializeToString())
