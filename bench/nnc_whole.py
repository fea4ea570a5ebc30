"""What `bench_whole` compares with: a whole network by NNC, the ISO coder.

One step size for the weights of all layers, as its ``qp`` sets it, a fine one for biases, each
layer by DeepCABAC; names, shapes and headers cost nothing here. The coarsest step is taken whose
loss holds on the validation split, as ours is chosen, but without a margin.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from iso_coder import iso_sizes

from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import stored_layers
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.pool import CaffePool

#: Its quantization parameters, from coarse to fine, and what it has for biases by default.
_WEIGHTS, _BIASES = range(-14, -33, -1), -75


def step(qp: int) -> float:
    """Give the distance of two levels."""
    return float((4 + qp % 4) * 2.0 ** (qp // 4 - 2))


def nnc(network: Path, weights: Path, original: Path, max_loss: float) -> tuple[int, int, int]:
    """Give the quantization parameter, the bytes, and how many of the test set are right."""
    model = read_caffemodel(weights)
    layers = {name: model[name] for name in stored_layers(model, "all")}
    matrices = {name: layer.matrix for name, layer in layers.items()}
    biases = {
        f"{name} {number}": blob.data.reshape(1, -1)
        for name, layer in layers.items()
        for number, blob in enumerate(layer.blobs[1:], 1)
    }
    with CaffePool(1) as pool:
        before = evaluate(network, original, stages=["validation"], executor=pool)
        allowed = before.top1_correct - max_loss * before.total
        for qp in _WEIGHTS:
            decoded = {n: np.float32(step(qp)) * np.rint(m / step(qp)) for n, m in matrices.items()}
            score = evaluate(
                network, weights, stages=["validation"], replace=decoded, executor=pool
            )
            if score.top1_correct >= allowed:
                break
        right = evaluate(network, weights, replace=decoded, executor=pool).top1_correct
    levels = {n: np.rint(m / step(qp)) for n, m in matrices.items()}
    levels |= {n: np.rint(m / step(_BIASES)) for n, m in biases.items()}
    return qp, sum(iso_sizes(levels).values()), right
