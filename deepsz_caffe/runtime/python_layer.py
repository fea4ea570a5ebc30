"""The Caffe layer that runs an fc layer from its compressed form; Caffe imports this module.

`deepsz_caffe.load_net` writes it into networks; by hand it is::

    layer { name: "fc6" type: "Python" bottom: "pool5" top: "fc6"
      python_param { module: "deepsz_caffe.runtime.python_layer" layer: "CompressedInnerProduct"
        param_str: '{"file": "net.dsz", "layer": "fc6"}' } }

with ``"axis"`` as in InnerProduct, 1 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import caffe

from deepsz_caffe.errors import InputError
from deepsz_caffe.running.network import runner

if TYPE_CHECKING:
    from caffe._caffe import Blob


class CompressedInnerProduct(caffe.Layer):  # type: ignore[misc]  # Caffe has no types
    """An InnerProduct layer in the TEST phase, without parameters that Caffe could train."""

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Take the layer's weights, loaded beforehand or now.

        Raises
        ------
        InputError
            The network is one for training, or the parameter is not as described above.
        """
        if self.phase != caffe.TEST:
            raise InputError(
                "a compressed layer can't be trained",
                where=f"parameter {self.param_str}",
                hint="build the network for the TEST phase",
            )
        self._runner = runner(self.param_str)

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the top the shape that InnerProduct gives it."""
        top[0].reshape(*self._runner.output_shape(bottom[0].data.shape))

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute the outputs."""
        self._runner.run(bottom[0].data, top[0].data)

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        """Refuse.

        Raises
        ------
        InputError
            Always: there are no gradients.
        """
        where = f"layer {self._runner.name}"
        raise InputError("a compressed layer has no gradients", where=where)
