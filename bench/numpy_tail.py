"""Tails of fc layers in numpy: counts thousands of configurations where Caffe would count one.

`NumpyTail` is an `Evaluator` over the features of a `CaffeEvaluator`. What enters a layer is
computed once for all configurations that are alike up to there. Sums are added up in another order
than in Caffe, so a count may differ by an image that is all but on the line: what a bench reports
is counted by Caffe again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.network import graph
from deepsz_caffe.network.prototxt import read_prototxt
from deepsz_caffe.runtime.evaluate import judge
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.runtime.features import NET, Stored, file_of, load_array, load_original
from deepsz_caffe.runtime.tail import _compared
from deepsz_caffe.steps.evaluator import Outcome

#: bytes of intermediate results that are kept
ROOM = 3 << 30


class NumpyTail:
    """A network of fc layers, ReLU, Dropout, Concat and Eltwise above its features.

    Everything that is not measured is the given evaluator's.
    """

    def __init__(self, evaluator: CaffeEvaluator) -> None:
        self._evaluator = evaluator
        self._folder = evaluator.features.folder
        self._net = read_prototxt(Path(self._folder) / NET)
        stored = Stored.load(Path(self._folder))
        self._ignored = stored.ignore_label
        self._scores = graph.Version(*stored.scores)
        names = [layer.name for layer in evaluator.setup.layers]
        cut = graph.cut(self._net, names, self._scores)
        self._layers, self._reads = cut.layers, graph._bottoms(self._net)
        self._inputs = {
            v: load_array(Path(self._folder) / file_of(v), "float32") for v in cut.inputs
        }
        self._labels = load_array(Path(self._folder) / "labels.npy", "int64")
        self._before = load_original(self._folder, None)
        self._first = load_original(self._folder, evaluator._original)
        self._kept: OrderedDict[object, NDArray[np.float32]] = OrderedDict()
        self._size = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._evaluator, name)

    def measure(self, layers: Mapping[str, EncodedLayer], limit: int | None = None) -> Outcome:
        """Count; never stops early, so `limit` changes nothing."""
        if not layers:
            return _compared(self._before, self._before, self._first)
        versions: dict[graph.Version, tuple[object, NDArray[np.float32]]] = {
            v: (v, array) for v, array in self._inputs.items()
        }
        for position in self._layers:
            layer = self._net.layer[position]
            keys, arrays = zip(*(versions[v] for v in self._reads[position]), strict=True)
            encoded = layers.get(layer.name)
            key = (position, None if encoded is None else encoded.digest, keys)
            if key not in self._kept:
                self._keep(key, self._forward(layer, arrays, encoded))
            self._kept.move_to_end(key)
            for top in layer.top:
                versions[graph.Version(position, top)] = key, self._kept[key]
        found = judge(versions[self._scores][1], self._labels, self._ignored)
        return _compared(np.array(found), self._before, self._first)

    def _keep(self, key: object, array: NDArray[np.float32]) -> None:
        self._kept[key] = array
        self._size += array.nbytes
        while self._size > ROOM:
            self._size -= self._kept.popitem(last=False)[1].nbytes

    def _forward(self, layer, arrays, encoded: EncodedLayer | None) -> NDArray[np.float32]:
        first = arrays[0]
        if layer.type == "InnerProduct":
            blobs = self._evaluator.setup.model[layer.name].blobs
            weights = (
                np.array(blobs[0].data, np.float32) if encoded is None else decode_layer(encoded)
            )
            if not layer.inner_product_param.transpose:
                weights = weights.reshape(layer.inner_product_param.num_output, -1).T
            result = first.reshape(len(first), -1) @ weights
            if layer.inner_product_param.bias_term:
                result += np.array(blobs[1].data, np.float32).reshape(-1)
            return result
        if layer.type == "ReLU":
            return np.maximum(first, 0)
        if layer.type == "Dropout":
            return first
        if layer.type == "Concat":
            return np.concatenate(arrays, axis=1)
        if layer.type == "Eltwise" and layer.eltwise_param.operation == 1:
            return sum(arrays[1:], first)
        raise SystemExit(f"{layer.name}: no {layer.type} in numpy")
