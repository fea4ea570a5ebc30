"""Error bounds without anything to measure on: a part of each layer's typical weight.

Nobody knows what such bounds do to a network's answers, so what is encoded with them is unverified:
only the bound of each weight is sure. Layers differ in what they bear, by factors of ten and more.
"""

from __future__ import annotations

from math import isfinite

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.network.layers import Selection, check_selection, stored_layers
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.assess.setup import weight_statistics


def relative_bounds(model: CaffeModel, part: float, layers: Selection = "all") -> dict[str, float]:
    """Give layers an error bound each: a part of the root mean square of its non-zero weights.

    Parameters
    ----------
    model
        The weights.
    part
        Over 0, e.g. 0.05.
    layers
        A group or names of layers, as `deepsz_caffe.network.layers.stored_layers` takes them.

    Returns
    -------
    dict
        Layer name -> absolute error bound. Layers whose weights are all 0 are left out.

    Raises
    ------
    InputError
        `part` is out of range.
    ModelError
        There is no such layer, or a weight is NaN or infinite.
    """
    if not (isfinite(part) and part > 0):
        raise InputError(f"a relative bound is a number over 0, not {part}", hint="e.g. 0.05")
    check_selection(layers)
    bounds = {}
    for name in stored_layers(model, layers):
        _, nonzeros, typical, _ = weight_statistics(name, model[name].matrix)
        if nonzeros:
            bounds[name] = float(f"{part * typical:.4g}")
    if not bounds:
        raise ModelError("no layer to compress", where=model.path)
    return bounds
