"""One pass over the body: the layers below those that change, run once over all images.

What enters the layers above is the same in every test and in every epoch of a training in which
the body is frozen. This runs the body, in parts by several processes where that pays (half of a
convolution in Caffe runs on one core, whatever BLAS does); where the results go is the caller's:
memory-mapped arrays for tests (`features`), HDF5 files for training (`frozen`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError
from deepsz_caffe.network import graph
from deepsz_caffe.runtime.evaluate import Prepared, forward_batches
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.pool import CaffePool, added_up
from deepsz_caffe.runtime.process import Progress
from deepsz_caffe.runtime.worker import report


class Body:
    """The part of a network that some of its blobs depend on, in this process.

    Parameters
    ----------
    caffe, prepared
        The network and its images.
    inputs
        What enters the layers above.
    more
        What else is wanted of each batch: scores and labels.
    """

    def __init__(
        self,
        caffe: ModuleType,
        prepared: Prepared,
        inputs: Sequence[graph.Version],
        more: Sequence[graph.Version] = (),
    ) -> None:
        self.prepared = prepared
        self.inputs = tuple(inputs)
        self._wanted = sorted({*inputs, *more})
        self._layers = graph.needed_layers(prepared.net, self._wanted)
        self._net = graph.subnet(prepared.net, self._layers, ())
        self._caffe_net = build_net(caffe, self._net)

    @property
    def shapes(self) -> dict[graph.Version, tuple[int, ...]]:
        """The shape of what an image gives, for each of the inputs."""
        # The shape of a blob is that of its last version; in place nothing changes but values.
        blobs = self._caffe_net.blobs
        return {v: tuple(blobs[v.blob].data.shape[1:]) for v in self.inputs}

    @property
    def bytes_each(self) -> int:
        """Bytes of an image's features."""
        return sum(4 * math.prod(shape) for shape in self.shapes.values())

    def run(
        self, weights: str, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[slice, dict[graph.Version, NDArray[np.float32]]]]:
        """Run one of `parts` equal parts of the batches; what `forward_batches` gives.

        Reports ``("images", newly done, in total)``.
        """
        load_weights(self._caffe_net, self._net, weights)
        images = self.prepared.images
        first, last = images.part(part, parts)
        batches = forward_batches(
            self._caffe_net, self.prepared, self._wanted, first, last, self._layers
        )
        for rows, taken in batches:
            yield rows, taken
            report(("images", rows.stop - rows.start, images.total))


def room_for(folder: Path) -> int:
    """Say how many bytes features in a folder may take: nearly all that its disk has free."""
    return int(shutil.disk_usage(folder).free * 0.95)


def reserve(folder: Path, size: int, option: str) -> None:
    """Report the size of features, as ``("bytes", n)``, and see that the disk has room for them.

    Raises
    ------
    DataError
        It has not; `option` names another folder.
    """
    report(("bytes", size))
    if size > room_for(folder):
        free = shutil.disk_usage(folder).free
        raise DataError(
            f"the features need {size:,} bytes, the disk has {free:,} free",
            where=folder,
            hint=f"name a folder on a larger disk: {option} DIR",
        )


def pass_pool(
    parts: int,
    gpus: Sequence[int] = (),
    progress: Progress | None = None,
    blas_threads: int | None = None,
) -> CaffePool:
    """Start the processes that share a pass; of `gpus` they take one each, in turn.

    Parameters
    ----------
    parts, gpus, blas_threads
        As of `CaffePool`.
    progress
        Gets what `Body.run` and `reserve` report; images are added up: done by now, in total.
    """
    if progress is None:
        return CaffePool(parts, blas_threads, gpus)
    told = progress
    images = added_up(lambda done, total: told(("images", done, total)))

    def on_message(message: tuple[str, *tuple[int, ...]]) -> None:
        kind, *counts = message
        if kind == "images":
            images(*counts)
        else:
            told(message)

    return CaffePool(parts, blas_threads, gpus, on_message)
