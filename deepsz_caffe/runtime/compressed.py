"""Networks in Caffe whose fc layers run from their compressed form.

Each InnerProduct layer that a `.dsz` file holds becomes a Python layer, of `python_layer`; the
weights of everything else are put in as ever. The dense weights of these layers are never made.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.running.network import compress_network
from deepsz_caffe.runtime.net import build_net, load_weights, put_weights

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import NetParameter

Path_ = str | os.PathLike[str]


def build_compressed(
    caffe: ModuleType,
    net: NetParameter,
    path: Path_,
    cache: Path_ | None = None,
) -> Net:
    """Build a `caffe.Net` whose fc layers run from the compressed form in a `.dsz` file.

    What stays dense says `compress_network`; ``type`` of the network's ``layers`` tells them apart:
    ``Python`` or ``InnerProduct``.

    Parameters
    ----------
    caffe
        The library.
    net
        A NetParameter of the TEST phase; it is not changed.
    path
        The file.
    cache
        A folder in which processes share what they decoded; see `CompressedLinear.from_dsz`.

    Raises
    ------
    FormatError
        It is not a `.dsz` file, or damaged.
    ModelError, CaffeError
        Network and file don't fit, or Caffe can't build the network.
    """
    with DszFile(path) as file:
        module = "deepsz_caffe.runtime.python_layer"
        found = compress_network(net, file, "CompressedInnerProduct", module=module, cache=cache)
        with found.at_hand():
            caffe_net = build_net(caffe, found.net)
        load_weights(caffe_net, found.net, found.rest)
        for entry in file.layers:
            if entry.name in caffe_net.params:
                put_weights(caffe_net, entry.name, read_layer(file, entry.name))
    return caffe_net
