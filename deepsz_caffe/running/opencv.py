"""Networks in OpenCV's dnn module whose fc layers run from their compressed form."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, ModelError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.running.network import CompressedNetwork, Runner, compress_network

if TYPE_CHECKING:
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


def opencv_net(network: Path_, path: Path_, *, cache: Path_ | None = None) -> Net:
    """Load a `cv2.dnn.Net` whose fc layers run from the compressed form in a `.dsz` file.

    Parameters
    ----------
    network
        A deploy prototxt.
    path
        The file. What stays dense says `deepsz_caffe.running.network.compress_network`.
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
    try:
        import cv2
    except ImportError as error:
        hint = "pip install opencv-python-headless"
        raise DeepSZError(f"OpenCV can't be imported: {error}", hint=hint) from error
    net = phase(read_prototxt(network), "TEST")
    with DszFile(path) as file:
        found = compress_network(net, file, _TYPE, cache=cache)
        weights = _weights(found, file)
    cv2.dnn_unregisterLayer(_TYPE)
    layer_class: Any = _Layer
    cv2.dnn_registerLayer(_TYPE, layer_class)
    try:
        cv_net = cv2.dnn.readNetFromCaffe(
            np.frombuffer(str(found.net).encode(), np.uint8), np.frombuffer(weights, np.uint8)
        )
        with found.at_hand():
            for name in cv_net.getLayerNames():
                cv_net.getLayer(cv_net.getLayerId(name))  # which makes it
    except cv2.error as error:
        raise ModelError(f"OpenCV can't build it: {error}", where=network) from error
    return cv_net


def _weights(found: CompressedNetwork, file: DszFile) -> bytes:
    """Write a caffemodel of all weights that OpenCV needs."""
    message = schema_pb2.NetParameter()
    running = {linear.name for linear in found.layers.values()}
    for layer in found.rest.layers:
        entry = message.layer.add(name=layer.name.encode(), type=layer.type.encode())
        if layer.name in running:
            continue
        for number, blob in enumerate(layer.blobs):
            dense = number == 0 and layer.name in file
            values = read_layer(file, layer.name) if dense else blob.data
            stored = entry.blobs.add(data=np.asarray(values, "<f4").tobytes())
            stored.shape.dim.extend(blob.shape)
    return bytes(message.SerializeToString())
