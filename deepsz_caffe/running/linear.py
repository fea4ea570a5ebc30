"""A fully connected layer that runs from its compressed form, for users of numpy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepsz_caffe.dsz.decode import check_tally
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, FormatError, InputError
from deepsz_caffe.running.build import from_layer, working_bytes
from deepsz_caffe.running.gpu import GpuMatrix, check_gpu
from deepsz_caffe.running.mapped import read_mapped, write_mapped
from deepsz_caffe.running.product import multiply
from deepsz_caffe.running.quantized import Quantized
from deepsz_caffe.running.rest import read_rest
from deepsz_caffe.running.threads import available

Path_ = str | os.PathLike[str]
Float32 = NDArray[np.float32]

#: share of the dense matrix's additions from which BLAS is faster
DENSE_FROM = 1 / 3


class CompressedLinear:
    """``y = x Wᵀ + b`` with W as `Quantized`, or dense where that is faster.

    Parameters
    ----------
    matrix
        The weights, of shape (outputs, inputs), whose arrays fit each other (`Quantized.examine`).
    bias : float32[outputs], optional
    name
        Of the layer, for messages.
    dense
        Compute with the dense matrix, in all of its memory; by default where at least `DENSE_FROM`
        of the weights are not 0, but never on a GPU.
    threads
        At most so many for a product; by default as many as there are cores, where there is work
        for them. What is computed does not depend on it.
    gpu
        Number of the GPU that keeps the matrix and computes; default: the processor.

    Examples
    --------
    >>> from deepsz_caffe.running.build import from_dense
    >>> identity = from_dense(np.eye(3, dtype=np.float32))
    >>> layer = CompressedLinear(identity, bias=[1, 0, 0])
    >>> layer([[1, 2, 3]])
    array([[2., 2., 3.]], dtype=float32)
    """

    def __init__(
        self,
        matrix: Quantized,
        bias: ArrayLike | None = None,
        *,
        name: str = "",
        dense: bool | None = None,
        threads: int | None = None,
        gpu: int | None = None,
    ) -> None:
        self.name = name
        self.shape = matrix.shape
        self.bias = None if bias is None else np.array(bias, np.float32)
        if self.bias is not None and self.bias.shape != self.shape[:1]:
            raise InputError(
                f"a bias of {self.bias.size} values for {self.shape[0]} outputs", where=self._where
            )
        self.threads = threads
        if dense and gpu is not None:
            raise InputError("a GPU has no dense form of a layer", where=self._where)
        self.weights: Quantized | GpuMatrix | Float32
        if gpu is not None:
            self.weights = GpuMatrix(matrix, gpu)
            return
        if dense is None:
            dense = matrix.places >= DENSE_FROM * self.shape[0] * self.shape[1]
        self.weights = matrix.dense() if dense else matrix

    @classmethod
    def from_dsz(
        cls,
        path: Path_,
        name: str,
        *,
        cache: Path_ | None = None,
        bias: bool = True,
        dense: bool | None = None,
        threads: int | None = None,
        gpu: int | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Load a layer of a `.dsz` file, verified against its checksum and its digest.

        Parameters
        ----------
        path
            The file.
        name
            The layer's name.
        cache
            A folder for the weights as they are in memory, about 2.5 bytes a non-zero. The first
            process makes the file, and all map it: they share its pages and decode nothing. What is
            in it is verified, too; where it is not right, it is made anew.
        bias
            Whether to add the layer's bias, which lies in another part of the file.
        dense, threads, gpu
            See `CompressedLinear`.
        limits
            What decoding may use.

        Raises
        ------
        InputError
            There is no such layer.
        FormatError
            The file is damaged; `LimitError` where it asks for more memory than the limits allow.
        DeepSZError
            The file can't be read, or the folder not be written; or as `check_gpu`.
        """
        if gpu is not None:
            check_gpu(gpu)
        with DszFile(path, limits) as file:
            matrix = load_quantized(file, name, threads=threads, cache=cache)
            added = _bias(file, name) if bias else None
        return cls(matrix, added, name=name, dense=dense, threads=threads, gpu=gpu)

    @property
    def is_dense(self) -> bool:
        """Whether products are computed with the dense matrix."""
        return isinstance(self.weights, np.ndarray)

    @property
    def nbytes(self) -> int:
        """Bytes that weights, there or on a GPU, and bias take in memory."""
        return self.weights.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: ArrayLike, out: Float32 | None = None) -> Float32:
        """Compute the outputs for a batch.

        Parameters
        ----------
        x : float32[batch, …]
            All axes but the first are taken as one, of as many values as the layer has inputs; or
            one vector, float32[inputs].
        out : float32[batch, outputs], optional
            Where to, C-contiguous.

        Returns
        -------
        float32[batch, outputs], or float32[outputs] for one vector
            Within float32 rounding of the dense product; `multiply` states the bound, and
            `GpuMatrix.multiply` that of a GPU.

        Raises
        ------
        InputError
            The input has another number of values a row.
        """
        inputs = np.asarray(x, np.float32)
        batch = 1 if inputs.ndim == 1 else len(inputs) if inputs.ndim else 0
        if inputs.size != batch * self.shape[1]:
            raise InputError(
                f"the input is of shape {list(inputs.shape)}, the layer takes {self.shape[1]} "
                "values a row",
                where=self._where,
            )
        rows = inputs.reshape(batch, self.shape[1])
        if isinstance(self.weights, Quantized):
            y = multiply(self.weights, rows, bias=self.bias, out=out, threads=self.threads)
        else:
            if isinstance(self.weights, GpuMatrix):
                y = self.weights.multiply(rows, out)
            else:
                y = np.matmul(rows, self.weights.T, out=out)
            if self.bias is not None:
                y += self.bias
        return y[0] if inputs.ndim == 1 and out is None else y

    @property
    def _where(self) -> str | None:
        return f"layer {self.name}" if self.name else None

    def __repr__(self) -> str:
        form = "dense" if self.is_dense else "quantized"
        if isinstance(self.weights, GpuMatrix):
            form += f" on GPU {self.weights.gpu}"
        outputs, inputs = self.shape
        size = f"{outputs} × {inputs}, {form}, {self.nbytes:,} bytes"
        return f"<CompressedLinear {self.name!r} {size}>"


def load_quantized(
    file: DszFile, name: str, *, threads: int | None = None, cache: Path_ | None = None
) -> Quantized:
    """Read and decode one layer of an open file, or map it from the folder `cache`, verified.

    Raises
    ------
    InputError, FormatError, DeepSZError
        As `CompressedLinear.from_dsz`.
    """
    if cache is None:
        return _decoded(file, name, threads)
    entry = file[name]
    path = Path(cache) / f"{entry.checksum:08x}-{entry.digest:016x}.running"
    try:
        matrix = read_mapped(path)
        if matrix.shape != entry.shape:
            raise FormatError("it is of another shape")
        nonzeros, digest = matrix.examine(threads or available())
        check_tally(entry, digest, nonzeros)
    except (FormatError, OSError):
        matrix = _decoded(file, name, threads)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeepSZError(f"can't make the folder: {error.strerror}", where=cache) from error
        write_mapped(path, matrix)
        matrix = read_mapped(path)
    return matrix


def _decoded(file: DszFile, name: str, threads: int | None) -> Quantized:
    file.limits.allow_memory(working_bytes(file[name]), f"{file.path}, layer {name}")
    try:
        return from_layer(file.layer(name), threads or available(), compared=True)
    except FormatError as error:
        # A layer's own place is named by `from_layer`, the file's by `DszFile`.
        where = error.where if str(file.path) in str(error.where) else f"{file.path}, {error.where}"
        raise type(error)(error.what, where=where, hint=error.hint) from error


def _bias(file: DszFile, name: str) -> Float32 | None:
    blobs = read_rest(file)[name].blobs
    return np.array(blobs[1].data, np.float32).reshape(-1) if len(blobs) > 1 else None
