"""Biases that make good what compressed weights do to the mean of a layer's outputs.

Where the weights of a layer change by E, its outputs change by E x, on average over its inputs x by
E times their mean: known exactly from the inputs' means, without labels. A bias that is less by so
much keeps the mean of every output; what is left of the error varies with the inputs around their
mean, so weights are then rounded by covariances instead of second moments. A convolution without a
bias is often followed by a BatchNorm layer, whose stored means are as good a place.

The new values lie on a grid, as coarse as the errors that are there anyway allow, with a power of
two between them: so few bits of each float32 are not 0 that what packs the rest packs them well.

What scales the outputs of a layer right behind it, variances of a BatchNorm layer and the blobs of
a Scale layer, is rounded to as few bits of its mantissa: the error of each value is then a part of
the value, so what is positive stays so, however small it is beside others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.layout import ChangedBlob
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.evaluator import Moments

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

#: Part of a layer's mean squared output error that rounding a blob may add to it.
_SHARE = 0.02
#: Rows whose errors say what that error is.
_ROWS = 256
#: What layers of a type scale with: their blobs. Stored means are a bias, see `BiasPlace`.
_SCALING = {"BatchNorm": (1,), "Scale": (0, 1)}
_MANTISSA = 23


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


def scaling_blobs(net: NetParameter, model: CaffeModel, name: str) -> tuple[tuple[str, int], ...]:
    """Find what scales a layer's outputs right behind it: names of layers, numbers of their blobs.

    Parameters
    ----------
    net, model, name
        As for `bias_place`.
    """
    place = next(n for n, layer in enumerate(net.layer) if layer.name == name)
    top, found = net.layer[place].top[0], []
    for layer in net.layer[place + 1 :]:
        if top not in layer.bottom:
            continue
        if (
            layer.type not in _SCALING
            or layer.name not in model
            or any(p.name for p in layer.param)
        ):
            break
        blobs = model[layer.name].blobs
        found += [
            (layer.name, number)
            for number in _SCALING[layer.type]
            if number < len(blobs) and not blobs[number].flaw
        ]
        top = layer.top[0]
    return tuple(found)


@dataclass(frozen=True)
class OutputError:
    """What new weights do to a layer's outputs, beside the mean of each.

    Attributes
    ----------
    squared
        Mean square of the change.
    relative
        The root of it, as a part of the root mean square of the outputs' own variation.
    """

    squared: float
    relative: float

    @classmethod
    def of(
        cls, before: NDArray[np.float32], after: NDArray[np.float32], inputs: Moments
    ) -> OutputError:
        """Measure it on some rows; parameters as of `corrected`."""
        groups = len(inputs.means)
        each = before.shape[0] // groups
        some = slice(None, None, -(-each // max(_ROWS // groups, 1)))
        rows = before.reshape(groups, each, -1)[:, some]
        errors = after.reshape(groups, each, -1)[:, some] - rows
        squared, power = (
            float(np.einsum("grc,grc->gr", np.matmul(some_rows, inputs.centered), some_rows).mean())
            for some_rows in (errors, rows)
        )
        known = squared > 0 and 0 < power < np.inf
        return cls(squared, (squared / power) ** 0.5 if known else 0.0)


def changed_blobs(
    bias: BiasPlace | None,
    scaling: Sequence[tuple[str, int]],
    model: CaffeModel,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    inputs: Moments,
) -> tuple[ChangedBlob, ...]:
    """Give all that changes with a layer's weights: its bias, and what scales its outputs.

    Parameters
    ----------
    bias
        Where the bias stands, if there is one.
    scaling
        As `scaling_blobs` gives them.
    model
        What stands there.
    before, after, inputs
        As for `corrected`.
    """
    error = OutputError.of(before, after, inputs)
    found = []
    if bias is not None:
        values = model[bias.layer].blobs[bias.blob].data
        found.append(corrected(bias, values, before, after, inputs, error))
    for layer, blob in scaling:
        found.append(rounded(layer, blob, model[layer].blobs[blob].data, error.relative))
    return tuple(each for each in found if each is not None)


def rounded(
    layer: str, blob: int, values: NDArray[np.floating], error: float
) -> ChangedBlob | None:
    """Round what scales outputs whose relative error is `error` to as few bits as that allows.

    Returns
    -------
    ChangedBlob or None
        None where it allows nothing, or a value is not finite.
    """
    if not 0 < error < np.inf:
        return None
    # Rounding a mantissa to some bits makes a relative error of at most half of the last one's.
    bits = max(ceil(-log2((12 * _SHARE) ** 0.5 * error)), 1)
    if bits >= _MANTISSA:
        return None
    old = np.ascontiguousarray(values.reshape(-1), "<f4")
    if not np.isfinite(old).all():
        return None
    gone = _MANTISSA - bits
    pattern = old.view("<u4") + np.uint32(1 << (gone - 1))  # halves go away from 0
    new = (pattern & np.uint32(2**32 - (1 << gone))).view("<f4")
    bound = float(np.abs(new.astype(np.float64) - old).max(initial=0))
    if not 0 < bound < np.inf:
        return None
    return ChangedBlob(layer, blob, bound, new.tobytes())


def corrected(
    place: BiasPlace,
    values: NDArray[np.floating],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    inputs: Moments,
    error: OutputError,
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
    error
        What the weights do to the outputs.

    Returns
    -------
    ChangedBlob or None
        None where nothing changes.
    """
    errors = (after - before).reshape(len(inputs.means), -1, before.shape[1])
    shift = np.einsum("grc,gc->gr", errors, inputs.means, dtype=np.float64).reshape(-1)
    step = _step(error.squared, abs(place.scale))
    old = values.reshape(-1).astype(np.float64)
    exact = old - place.scale * shift
    # A sum with 0 has no negative zeros, which are on no grid.
    new = exact if step == 0 else np.rint(exact / step) * step + 0.0
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
