"""Networks in Caffe whose fc layers run from their compressed form.

Each InnerProduct layer that a `.dsz` file holds becomes a Python layer, of `python_layer`; the
weights of everything else are put in as ever. The dense weights of these layers are never made.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from deepsz_caffe.dsz.decode import read_layer
from deepsz_caffe.errors import InputError
from deepsz_caffe.running.network import compress_network
from deepsz_caffe.running.source import Source
from deepsz_caffe.runtime.net import build_net, load_weights, put_weights

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import NetParameter

#: what a `caffe.Net` does with all of its weights
_WHOLE = ("save", "save_hdf5", "copy_from", "load_hdf5", "share_with")


def build_compressed(caffe: ModuleType, net: NetParameter, source: Source) -> Net:
    """Build a `caffe.Net` whose fc layers run from the compressed form in a `.dsz` file.

    What stays dense says `compress_network`; ``type`` of the network's ``layers`` tells them apart:
    ``Python`` or ``InnerProduct``. The network's weights as a whole, which are not all there, can't
    be saved or replaced.

    Parameters
    ----------
    caffe
        The library.
    net
        A NetParameter of the TEST phase; it is not changed.
    source
        The file.

    Raises
    ------
    FormatError
        The file is damaged.
    ModelError, CaffeError
        Network and file don't fit, or Caffe can't build the network.
    """
    module = "deepsz_caffe.runtime.python_layer"
    found = compress_network(net, source, "CompressedInnerProduct", module=module)
    with found.at_hand():
        caffe_net = build_net(caffe, found.net)
        load_weights(caffe_net, found.net, found.rest)
        for entry in source.file.layers:
            if entry.name in caffe_net.params:
                put_weights(caffe_net, entry.name, read_layer(source.file, entry.name))
    if found.layers:
        for name in _WHOLE:
            setattr(caffe_net, name, partial(_refuse, name))
    return caffe_net


def _refuse(name: str, *_: object) -> NoReturn:
    # Caffe would write a file without these layers, or end the process.
    raise InputError(
        f"{name} is about all weights, of which a network in its compressed form lacks some",
        hint="`deepsz expand` writes them; `load_net` takes others, and without `compressed` all",
    )
