"""The three techniques on the same pruned weights: bytes, decoded weights, times.

Every function takes the pruned fc layers (name -> float32[r, c]) and gives an `Outcome`; who
evaluates the decoded weights is not decided here. Sizes are those of files: headers, codebooks and
checksums count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import numpy as np

from deepsz_caffe import codecs
from deepsz_caffe.codecs.sparse import Sparse, to_dense, to_sparse
from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.experiments.baselines import deep_compression, weightless
from deepsz_caffe.experiments.results import IndexSize

Matrices = Mapping[str, np.ndarray]
Result = TypeVar("Result")

#: settings of the baselines, from coarse to fine: (bits, index bits) and (clusters, cell bits)
DEEP_COMPRESSION_SETTINGS = tuple((bits, index) for bits in range(2, 9) for index in (4, 5))
#: as published for whole networks: of convolutions, and of fc layers
WHOLE_DEEP_COMPRESSION = (8, 8), (5, 5)
WEIGHTLESS_SETTINGS = tuple(
    (clusters, bits) for clusters in (5, 9, 15) for bits in (6, 7, 8, 9, 10)
)


@dataclass(frozen=True)
class Outcome:
    """What one setting of one technique gives.

    Parameters
    ----------
    technique, setting
        As in `results.Point`.
    bytes
        All fc layers.
    weights
        Layer name -> decoded float32[r, c].
    encode_seconds
        Without tests and retraining.
    decode_seconds
        Step -> time, the same three steps for every technique: ``lossless`` (entropy decoding or
        unpacking), ``values`` (SZ, codebook or filter), ``rebuild`` (the dense matrix).
    """

    technique: str
    setting: str
    bytes: int
    weights: dict[str, np.ndarray]
    encode_seconds: float
    decode_seconds: dict[str, float]


class _Clock:
    """Adds up the time of steps by name."""

    def __init__(self) -> None:
        self.steps = dict.fromkeys(("lossless", "values", "rebuild"), 0.0)

    def time(self, step: str, action: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = action()
        self.steps[step] += time.perf_counter() - began
        return result


def deepsz(layers: Iterable[EncodedLayer], setting: str, encode_seconds: float = 0.0) -> Outcome:
    """Decode layers that DeepSZ encoded, step by step."""
    clock = _Clock()
    weights, size = {}, 0
    for layer in layers:
        weights[layer.name] = _decode_deepsz(layer, clock)
        size += layer.bytes
    return Outcome("deepsz", setting, size, weights, encode_seconds, clock.steps)


def _decode_deepsz(layer: EncodedLayer, clock: _Clock) -> np.ndarray:
    if not layer.index_codec:
        # One codec for zeros and values together: its steps can't be told apart.
        return clock.time("values", lambda: decode_layer(layer))
    bound = layer.error_bound
    index = clock.time(
        "lossless",
        lambda: codecs.INDEX[layer.index_codec]().decode(
            layer.index, np.empty(layer.index_count, np.uint8)
        ),
    )
    data = np.empty(np.count_nonzero(index), np.float32)
    clock.time("values", lambda: codecs.DATA[layer.data_codec](bound).decode(layer.data, data))
    rows, columns = layer.shape if layer.order == "C" else layer.shape[::-1]
    sparse = Sparse((rows, columns), data, index)
    dense = clock.time("rebuild", lambda: to_dense(sparse))
    return dense if layer.order == "C" else np.ascontiguousarray(dense.T)


def deep_compression_outcome(matrices: Matrices, bits: int, index_bits: int) -> Outcome:
    """Deep Compression of every layer, without retraining."""
    began = time.perf_counter()
    layers = {
        name: deep_compression.quantize(matrix, bits, index_bits)
        for name, matrix in matrices.items()
    }
    return deep_compression_of(layers, began)


def whole_deep_compression(conv: Matrices, fc: Matrices) -> dict[str, deep_compression.SharedLayer]:
    """Quantize every layer of a network at the published bits, without retraining."""
    return {
        name: deep_compression.quantize(matrix, *bits)
        for matrices, bits in zip((conv, fc), WHOLE_DEEP_COMPRESSION, strict=True)
        for name, matrix in matrices.items()
    }


def deep_compression_of(
    layers: Mapping[str, deep_compression.SharedLayer], began: float
) -> Outcome:
    """Write and read back quantized layers; `began` is when encoding began (perf_counter)."""
    buffers = {name: layer.to_bytes() for name, layer in layers.items()}
    seconds = time.perf_counter() - began
    clock = _Clock()
    weights = {}
    for name, buffer in buffers.items():
        layer = clock.time("lossless", partial(deep_compression.from_bytes, buffer))
        weights[name] = clock.time("rebuild", layer.decode)
    first = next(iter(layers.values()))
    bits = first.codebook.size.bit_length() - 1
    setting = f"{bits} bits, index {first.index_bits} bits"
    size = sum(map(len, buffers.values()))
    return Outcome("deep-compression", setting, size, weights, seconds, clock.steps)


def weightless_outcome(
    matrices: Matrices, clusters: int, cell_bits: int, *, every_layer: bool = False
) -> Outcome:
    """Weightless: the largest layer in a filter, the others in sparse form; or every layer.

    The sparse form costs 4 bytes a non-zero and 1 byte a step.
    """
    stored = set(matrices) if every_layer else {weightless.largest(matrices)}
    began = time.perf_counter()
    filters = {
        name: weightless.encode(matrix, clusters, cell_bits).to_bytes()
        for name, matrix in matrices.items()
        if name in stored
    }
    others = {name: to_sparse(matrix) for name, matrix in matrices.items() if name not in stored}
    seconds = time.perf_counter() - began
    clock = _Clock()
    weights = {}
    for name, buffer in filters.items():
        layer = clock.time("lossless", partial(weightless.from_bytes, buffer))
        weights[name] = clock.time("values", layer.decode)
    for name, sparse in others.items():
        weights[name] = clock.time("rebuild", partial(to_dense, sparse))
    size = sum(map(len, filters.values()))
    size += sum(sparse.data.nbytes + sparse.index.nbytes for sparse in others.values())
    technique = "weightless-all" if every_layer else "weightless"
    setting = f"{clusters} clusters, cells of {cell_bits} bits"
    return Outcome(technique, setting, size, weights, seconds, clock.steps)


def index_sizes(matrices: Matrices) -> tuple[IndexSize, ...]:
    """Sizes of every layer's index array under every lossless codec."""
    sizes = []
    for name, matrix in matrices.items():
        index = to_sparse(matrix).index
        for codec, kind in codecs.INDEX.items():
            # Brotli is an extra; without it its column is missing.
            if codec != "brotli" or find_spec("brotli"):
                sizes.append(IndexSize(name, codec, index.nbytes, len(kind().encode(index))))
    return tuple(sizes)
