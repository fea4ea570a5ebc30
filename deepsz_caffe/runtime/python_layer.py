"""The Caffe layer that runs an fc layer from its compressed form; Caffe imports this module.

`deepsz_caffe.load_net` writes it into networks; by hand it is::

    layer { name: "fc6" type: "Python" bottom: "pool5" top: "fc6"
      python_param { module: "deepsz_caffe.runtime.python_layer" layer: "CompressedInnerProduct"
        param_str: '{"file": "net.dsz", "layer": "fc6"}' } }

with ``"axis"`` as in InnerProduct, 1 by default.
"""

from __future__ import annotations

import json
from typing import Any

import caffe
import numpy as np

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.running.linear import CompressedLinear
from deepsz_caffe.runtime.compressed import ready


class CompressedInnerProduct(caffe.Layer):  # type: ignore[misc]  # Caffe has no types
    """An InnerProduct layer in the TEST phase, without parameters that Caffe could train."""

    def setup(self, bottom: Any, top: Any) -> None:  # noqa: ANN401
        """Take the layer's weights, loaded beforehand or now.

        Raises
        ------
        InputError
            The network is one for training, or the parameter is not as described above.
        """
        try:
            described = json.loads(self.param_str)
            file, name, self._axis = described["file"], described["layer"], described.get("axis", 1)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the parameter of a compressed layer is {self.param_str!r}",
                hint='it should be like {"file": "net.dsz", "layer": "fc6"}',
            ) from error
        if self.phase != caffe.TEST:
            raise InputError(
                "a compressed layer can't be trained",
                where=f"layer {name}",
                hint="build the network for the TEST phase",
            )
        self._linear = ready.get(self.param_str) or CompressedLinear.from_dsz(file, name)

    def reshape(self, bottom: Any, top: Any) -> None:  # noqa: ANN401
        """Give the top the shape that InnerProduct gives it.

        Raises
        ------
        ModelError
            The bottom has another number of values than the layer takes.
        """
        shape = tuple(bottom[0].data.shape)
        axis = self._axis if self._axis >= 0 else len(shape) + self._axis
        outputs, inputs = self._linear.shape
        if int(np.prod(shape[axis:])) != inputs:
            raise ModelError(
                f"its input is {list(shape)}, it takes {inputs} values from axis {axis} on",
                where=f"layer {self._linear.name}",
            )
        top[0].reshape(*shape[:axis], outputs)

    def forward(self, bottom: Any, top: Any) -> None:  # noqa: ANN401
        """Compute the outputs."""
        outputs, inputs = self._linear.shape
        x = bottom[0].data.reshape(-1, inputs)
        self._linear(x, out=top[0].data.reshape(-1, outputs))

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:  # noqa: ANN401
        """Refuse.

        Raises
        ------
        InputError
            Always: there are no gradients.
        """
        raise InputError("a compressed layer has no gradients", where=f"layer {self._linear.name}")
