"""A `caffe.Net` in this process, of a prototxt and weights of any kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.folders import temporary_folder
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.running.gpu import check_gpu
from deepsz_caffe.running.source import open_source
from deepsz_caffe.runtime.compressed import build_compressed
from deepsz_caffe.runtime.net import check_buildable, load_weights, read_weights
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

if TYPE_CHECKING:
    from caffe import Net

Path_ = str | os.PathLike[str]


def load_net(
    network: Path_,
    weights: Path_ | None = None,
    *,
    compressed: bool = False,
    cache: Path_ | None = None,
    gpu: int | None = None,
    trial: bool | None = None,
) -> Net:
    """Load a ready `caffe.Net` (TEST phase) into this process.

    Parameters
    ----------
    network
        A prototxt; a deploy prototxt needs no data. Or, without `weights`, a ``.dsz`` file in which
        a deploy prototxt is stored.
    weights
        ``.caffemodel``, ``.caffemodel.h5`` or ``.dsz``.
    compressed
        Let the fc layers of a ``.dsz`` file run from their compressed form: their dense weights are
        never made, and outputs are those of the dense layers within float32 rounding. What stays
        dense says `deepsz_caffe.runtime.compressed.build_compressed`. Such a network can't be
        trained.
    cache
        With `compressed`: a folder in which processes share what they decoded, so that only the
        first one decodes; see `CompressedLinear.from_dsz`.
    gpu
        Number of the GPU that runs the network (Caffe's mode of this process is that from then on);
        with `compressed`, it keeps the compressed form in its memory. Default: the processor.
    trial
        Whether to do the same in a child process before, because Caffe ends the process where a
        network can't be built. That takes a second: by default not with `compressed`, and not
        needed for networks of one's own that have been built before.

    Raises
    ------
    ModelError, CaffeError, FormatError
        As `deepsz_caffe.runtime.evaluate.evaluate`.
    InputError
        A cache is given, but `compressed` is not.
    DeepSZError
        There is no such GPU, or what is needed for it is not built: known before anything is read.
    """
    if cache is not None and not compressed:
        raise InputError("a cache is for compressed layers", hint="compressed=True")
    if gpu is not None and compressed:
        check_gpu(gpu)
    names = str(network), None if weights is None else str(weights)
    form = _Form(compressed, None if cache is None else str(cache), gpu)
    if not compressed if trial is None else trial:
        run_in_caffe(_try_net, *names, form)
    return _net(*names, form)


@dataclass(frozen=True)
class _Form:
    """How fc layers run: dense, or from their compressed form, which may be cached in a folder."""

    compressed: bool
    cache: str | None = None
    gpu: int | None = None


def _net(network: str, weights: str | None, form: _Form) -> Net:
    caffe = import_caffe(form.gpu)
    if weights is None:
        with DszFile(network) as file, temporary_folder() as folder:
            stored = file.deploy()
            if stored is None:
                raise ModelError(
                    "no deploy prototxt is stored in it",
                    where=network,
                    hint="give one, or store it with `deepsz encode --with-prototxt`",
                )
            path = folder / "deploy.prototxt"
            path.write_bytes(stored)
            return _built(caffe, str(path), network, form)
    return _built(caffe, network, weights, form)


def _built(caffe: ModuleType, network: str, weights: str, form: _Form) -> Net:
    if form.compressed:
        # It is decoded while the definition is read.
        with open_source(weights, form.cache, form.gpu) as source:
            return build_compressed(caffe, phase(read_prototxt(network), "TEST"), source)
    net = phase(read_prototxt(network), "TEST")
    model = read_weights(weights)
    check_buildable(caffe, net)
    caffe_net = caffe.Net(network, caffe.TEST)
    load_weights(caffe_net, net, model)
    return caffe_net


def _try_net(network: str, weights: str | None, form: _Form) -> None:
    _net(network, weights, form)
