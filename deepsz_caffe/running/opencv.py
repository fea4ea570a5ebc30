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
from deepsz_caffe.errors import CaffeError, DeepSZError, DeepSZWarning, ModelError, needs_extra
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.outline import Outline, read_outline
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.network import compress_network, runner
from deepsz_caffe.running.rest import read_rest
from deepsz_caffe.running.source import open_source

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter
    from cv2.dnn import Net

Path_ = str | os.PathLike[str]
Array = NDArray[np.float32]

_TYPE: Final = "CompressedInnerProduct"


class _Layer:
    """What OpenCV makes of a layer of our type."""

    def __init__(self, params: dict[str, str], blobs: list[object]) -> None:
        self._runner = runner(params["param_str"])

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
        OpenCV is not installed, or too new.
    """
    import_opencv()
    if compressed:
        try:
            net = phase(read_prototxt(network), "TEST")
        except (CaffeError, ModelError) as error:
            outline = read_outline(network)  # what is wrong with it in any case is said by this
            what = f"its fc layers run dense: {error.what}"
            warnings.warn(DeepSZWarning(f"{network}: {what}"), stacklevel=2)
            return _dense(outline, network, path)
        return _compressed(net, network, path, cache)
    return _dense(read_outline(network), network, path)


def dense_net(outline: Outline, model: CaffeModel, where: object, text: str | None = None) -> Net:
    """Build a `cv2.dnn.Net` of a definition and weights, both in memory.

    Parameters
    ----------
    outline
        A deploy prototxt.
    model
        The weights, of a file of any kind and age.
    where
        For errors: the definition's file.
    text
        What OpenCV reads in place of the whole definition, such as `Outline.fed` gives.

    Raises
    ------
    ModelError
        OpenCV can't build the network, or a blob can't be read.
    DeepSZError
        OpenCV is not installed, or too new.
    """
    weights = _caffemodel(model, transposed=outline.transposed)
    return _built(outline.text if text is None else text, weights, where)


def import_opencv() -> ModuleType:
    """Import OpenCV.

    Raises
    ------
    DeepSZError
        It is not installed, or is one that does not read Caffe's networks: 5 dropped that.
    """
    with needs_extra("opencv"):
        import cv2
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise DeepSZError(
            f"OpenCV {cv2.__version__} does not read Caffe's networks any more",
            hint="pip install 'opencv-python-headless<5'",
        )
    module: ModuleType = cv2
    return module


def _dense(outline: Outline, network: Path_, path: Path_) -> Net:
    with DszFile(path) as file:
        weights = _caffemodel(read_rest(file), file, transposed=outline.transposed)
    return _built(outline.text, weights, network)


def _compressed(net: NetParameter, network: Path_, path: Path_, cache: Path_ | None) -> Net:
    cv2 = import_opencv()
    cv2.dnn_unregisterLayer(_TYPE)
    layer_class: Any = _Layer
    cv2.dnn_registerLayer(_TYPE, layer_class)
    with open_source(path, cache) as source:
        found = compress_network(net, source, _TYPE)
        without = {layer.name for layer in found.layers.values()}
        fc = (layer for layer in found.net.layer if layer.inner_product_param.transpose)
        weights = _caffemodel(found.rest, source.file, without, {layer.name for layer in fc})
        with found.at_hand():
            cv_net = _built(str(found.net), weights, network)
            with opencv_errors(network):
                for name in cv_net.getLayerNames():
                    cv_net.getLayer(cv_net.getLayerId(name))  # which makes it
    return cv_net


def _built(definition: str, weights: bytes, where: object) -> Net:
    cv2 = import_opencv()
    with opencv_errors(where):
        net: Net = cv2.dnn.readNetFromCaffe(
            np.frombuffer(definition.encode(), np.uint8), np.frombuffer(weights, np.uint8)
        )
    return net


@contextmanager
def opencv_errors(where: object) -> Iterator[None]:
    """Raise what OpenCV refuses inside, to build or to run, as a `ModelError` that names a file."""
    cv2 = import_opencv()
    try:
        yield
    except cv2.error as error:
        raise ModelError(f"OpenCV can't run it: {error}", where=where) from error


def _caffemodel(
    model: CaffeModel,
    file: DszFile | None = None,
    without: Collection[str] = (),
    transposed: Collection[str] = (),
) -> bytes:
    """Write a caffemodel in memory; weights that a `.dsz` file has are taken from there.

    OpenCV does not know that fc weights may be stored the other way round: they are turned.
    """
    message = schema_pb2.NetParameter()
    for layer in model.layers:
        entry = message.layer.add(name=layer.name.encode(), type=layer.type.encode())
        if layer.name in without:
            continue
        for number, blob in enumerate(layer.blobs):
            dense = number == 0 and file is not None and layer.name in file
            values = read_layer(file, layer.name) if file is not None and dense else blob.data
            shape = blob.shape
            if number == 0 and layer.name in transposed:
                values = values.reshape(layer.matrix_shape).T
                shape = values.shape
            stored = entry.blobs.add(data=np.asarray(values, "<f4").tobytes())
            stored.shape.dim.extend(shape)
    return bytes(message.SerializeToString())
