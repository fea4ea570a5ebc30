"""Biases that make good what compressed weights do to the mean of a layer's outputs.

Where the weights of a layer change by E, its outputs change by E x, on average over its inputs x by
E times their mean: known exactly from the inputs' means, without labels. A bias that is less by so
much keeps the mean of every output; what is left of the error varies with the inputs around their
mean, so weights are then rounded by covariances instead of second moments. A convolution without a
bias is often followed by a BatchNorm layer, whose stored means are as good a place.

The new values lie on a grid, as coarse as the errors that are there anyway allow, with a power of
two between them: so few bits of each float32 are not 0 that what packs the rest packs them well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.layout import ChangedBlob
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.evaluator import Moments

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

#: Part of a layer's mean squared output error that rounding the bias may add to it.
_SHARE = 0.02


@dataclass(frozen=True)
class BiasPlace:
    """Where a layer's bias stands.

    Attributes
    ----------
    layer, blob
        Name of the layer, and number of the blob.
    scale
        What is subtracted from the blob where an output would be 1 too large on average.
    """

    layer: str
    blob: int
    scale: float = 1.0


def bias_place(net: NetParameter, model: CaffeModel, name: str) -> BiasPlace | None:
    """Find what holds the bias of a layer: its own blob 1, or the means of a BatchNorm behind it.

    Parameters
    ----------
    net
        The network of the TEST phase.
    model
        Its weights.
    name
        A convolution, or an fc layer.
    """
    place = next(n for n, layer in enumerate(net.layer) if layer.name == name)
    layer = net.layer[place]
    with_bias = layer.convolution_param.bias_term and layer.inner_product_param.bias_term
    if with_bias:
        return BiasPlace(name, 1) if len(model[name].blobs) > 1 else None
    reader = next((x for x in net.layer[place + 1 :] if layer.top[0] in x.bottom), None)
    if reader is None or reader.type != "BatchNorm" or reader.name not in model:
        return None
    blobs = model[reader.name].blobs
    known = not reader.batch_norm_param.HasField("use_global_stats") or (
        reader.batch_norm_param.use_global_stats
    )
    if len(blobs) != 3 or any(blob.flaw for blob in blobs) or not known:
        return None
    # Caffe stores means times this factor.
    factor = float(blobs[2].data.reshape(-1)[0])
    return BiasPlace(reader.name, 0, -factor) if factor else None


def corrected(
    place: BiasPlace,
    values: NDArray[np.floating],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    inputs: Moments,
) -> ChangedBlob | None:
    """Give the bias that keeps the mean of each output.

    Parameters
    ----------
    place
        Where the bias stands.
    values : float[r]
        What stands there.
    before, after : float32[r, c]
        The weights, and what becomes of them; outputs are rows.
    inputs
        Of what they are multiplied by.

    Returns
    -------
    ChangedBlob or None
        None where nothing changes.
    """
    errors = (after - before).reshape(len(inputs.means), -1, before.shape[1])
    shift = np.einsum("grc,gc->gr", errors, inputs.means, dtype=np.float64).reshape(-1)
    spread = np.matmul(errors, inputs.centered)
    step = _step(float(np.einsum("grc,grc->gr", spread, errors).mean()), abs(place.scale))
    old = values.reshape(-1).astype(np.float64)
    exact = old - place.scale * shift
    new = exact if step == 0 else np.rint(exact / step) * step
    stored = new.astype("<f4")
    bound = float(np.abs(stored - old).max(initial=0))
    if not 0 < bound < np.inf:
        return None
    return ChangedBlob(place.layer, place.blob, bound, stored.tobytes())


def _step(error: float, scale: float) -> float:
    """Return the grid that adds no more than a share to an error: a power of two, 0 for none."""
    if not 0 < error < np.inf:
        return 0.0
    # Rounding to a grid makes a mean squared error of a twelfth of its square.
    return float(2.0 ** floor(log2(scale * (12 * _SHARE * error) ** 0.5)))
