"""A `.dsz` file whose fc layers threads decode beside other work, such as reading a definition."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.build import from_dense, working_bytes
from deepsz_caffe.running.gpu import check_gpu
from deepsz_caffe.running.linear import DENSE_FROM, CompressedLinear, load_quantized
from deepsz_caffe.running.quantized import Quantized
from deepsz_caffe.running.rest import read_rest
from deepsz_caffe.running.threads import available

Path_ = str | os.PathLike[str]


class Source:
    """An open file, its caffemodel, and its layers as they are decoded.

    Attributes
    ----------
    file
        The file.
    rest
        All other weights; those of its layers are 0 in it.
    """

    def __init__(
        self,
        file: DszFile,
        rest: CaffeModel,
        cache: Path_ | None,
        gpu: int | None,
        threads: ThreadPoolExecutor,
        parts: int,
    ) -> None:
        self.file = file
        self.rest = rest
        self._cache = cache
        self._gpu = gpu
        self._threads = threads
        self._parts = parts
        self._layers: dict[tuple[str, bool], Future[CompressedLinear]] = {}

    def linear(self, name: str, transposed: bool = False) -> Future[CompressedLinear]:
        """Give a layer, with its bias, that is decoded, or will be from now on."""
        key = name, transposed
        if key not in self._layers:
            self._layers[key] = self._threads.submit(self._load, name, transposed)
        return self._layers[key]

    def _load(self, name: str, transposed: bool) -> CompressedLinear:
        blobs = self.rest[name].blobs
        bias = blobs[1].data.reshape(-1) if len(blobs) > 1 else None
        matrix = self._matrix(name, transposed)
        return CompressedLinear(matrix, bias, name=name, dense=False, gpu=self._gpu)

    def _matrix(self, name: str, transposed: bool) -> Quantized:
        entry = self.file[name]
        if transposed:
            needed = working_bytes(entry) + 2 * entry.dense_bytes
            self.file.limits.allow_memory(needed, f"{self.file.path}, layer {name}")
        matrix = load_quantized(self.file, name, threads=self._parts, cache=self._cache)
        return from_dense(np.ascontiguousarray(matrix.dense().T)) if transposed else matrix


@contextmanager
def open_source(
    path: Path_, cache: Path_ | None = None, gpu: int | None = None
) -> Iterator[Source]:
    """Open a `.dsz` file, and begin to decode what its caffemodel says are fc layers.

    As many layers as there are cores are decoded at a time; where there are fewer, each in parts,
    which have to be put together. Where the file's limits have no room for that, one.

    Parameters
    ----------
    path
        The file.
    cache
        A folder in which processes share what they decoded; see `CompressedLinear.from_dsz`.
    gpu
        Number of the GPU that keeps the layers and computes; default: the processor.

    Raises
    ------
    FormatError
        It is not a `.dsz` file, or damaged.
    DeepSZError
        As `check_gpu`.
    """
    if gpu is not None:
        check_gpu(gpu)
    with DszFile(path) as file:
        rest = read_rest(file)
        early = [x for x in file.layers if is_sparse(x) and rest[x.name].type == "InnerProduct"]
        needed = sum(working_bytes(entry) for entry in early)
        at_once = max(1, min(len(early), available())) if needed <= file.limits.memory else 1
        threads = ThreadPoolExecutor(at_once)
        try:
            source = Source(file, rest, cache, gpu, threads, -(-available() // at_once))
            for entry in early:
                source.linear(entry.name)
            yield source
        finally:
            threads.shutdown(cancel_futures=True)


def is_sparse(entry: LayerEntry) -> bool:
    """Say whether so few weights are not 0 that a product with them beats BLAS."""
    return entry.nonzeros < DENSE_FROM * entry.rows * entry.columns
