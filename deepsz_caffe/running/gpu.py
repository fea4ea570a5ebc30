"""Matrices of few different weights in a graphics processor's memory, and products there (CUDA).

``native/gpu.cu`` has the kernels; ``docker/Dockerfile.gpu`` builds them. Python finds them here, so
the package needs no CUDA where nobody asks for it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DeepSZError, InputError
from deepsz_caffe.running.quantized import Panel, Quantized

#: what nvcc made of ``native/gpu.cu``
LIBRARY = Path(__file__).with_name("_gpu.so")


class _Panel(Structure):
    """`quantized` of ``native/running.h``."""

    _fields_ = (
        *((name, c_uint32) for name in ("rows", "cols", "width", "code_bytes", "levels")),
        ("groups", c_size_t),
        *((name, c_void_p) for name in ("starts", "columns", "codes", "codebook")),
    )

    @classmethod
    def of(cls, panel: Panel) -> _Panel:
        arrays = (panel.starts, panel.columns, panel.codes, panel.codebook)
        sizes = (panel.codes.itemsize, panel.codebook.size, panel.codes.size)
        pointers = (array.ctypes.data for array in arrays)
        return cls(panel.rows, panel.cols, panel.width, *sizes, *pointers)


class _Room(Structure):
    """`gpu_room` of ``native/gpu.cu``."""

    _fields_ = (("memory", c_void_p), ("count", c_size_t))


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.gpu_error.restype = c_char_p
    library.gpu_devices.argtypes = (POINTER(c_int),)
    library.gpu_keep.argtypes = (c_int, POINTER(_Panel), POINTER(_Panel))
    library.gpu_forget.argtypes = (c_int, POINTER(_Panel))
    library.gpu_leave.argtypes = (c_int, POINTER(_Room))
    library.gpu_multiply.argtypes = (
        *(c_int, POINTER(_Panel), c_size_t, c_void_p, c_size_t, c_size_t, c_void_p),
        POINTER(_Room),
    )
    return library


def check_gpu(gpu: int) -> ctypes.CDLL:
    """Check that products can be computed on a graphics processor; give the kernels.

    Parameters
    ----------
    gpu
        The device's number.

    Raises
    ------
    InputError
        There is no such number.
    DeepSZError
        The kernels are not built, or CUDA finds no such device.
    """
    if isinstance(gpu, bool) or not isinstance(gpu, int) or not 0 <= gpu < 1 << 16:
        raise InputError(f"{gpu!r} is no number of a GPU", hint="the first one is 0")
    asked = f"GPU {gpu} was asked for"
    try:
        library = _library(LIBRARY)
    except OSError as error:
        raise DeepSZError(
            f"{asked}, but the products for GPUs are not built",
            where=LIBRARY,
            hint="docker/Dockerfile.gpu builds them; without `gpu` the processor computes",
        ) from error
    count = c_int()
    failed = library.gpu_devices(byref(count))
    if failed:
        raise DeepSZError(f"{asked}, but CUDA says: {library.gpu_error(failed).decode()}")
    if gpu >= count.value:
        raise DeepSZError(f"{asked}, but CUDA finds {count.value}, from 0 on")
    return library


class GpuMatrix:
    """A `Quantized` matrix in the memory of a graphics processor.

    Parameters
    ----------
    matrix
        Whose arrays fit each other (`Quantized.examine`); it is copied.
    gpu
        The device's number.

    Attributes
    ----------
    shape
        Rows and columns.
    nbytes
        Bytes that the matrix takes on the device, the room for products apart.

    Raises
    ------
    DeepSZError
        As `check_gpu`, or the device has too little memory.
    """

    def __init__(self, matrix: Quantized, gpu: int) -> None:
        self.shape = matrix.shape
        self.nbytes = matrix.nbytes
        self.gpu = gpu
        self._library = check_gpu(gpu)
        self._lock = threading.Lock()
        self._room = _Room()
        kept: list[_Panel] = []
        weakref.finalize(self, _release, self._library, gpu, kept, self._room)
        for panel in matrix.panels:
            there = _Panel()
            self._check(self._library.gpu_keep(gpu, byref(_Panel.of(panel)), byref(there)))
            kept.append(there)
        self._panels = (_Panel * len(kept))(*kept)

    def multiply(
        self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return ``x @ matrix.T``.

        Parameters
        ----------
        x : float32[batch, columns]
        out : float32[batch, rows], optional
            Where to, C-contiguous.

        Raises
        ------
        InputError
            An array is of another type or shape.
        DeepSZError
            The device failed, or has too little memory.

        Notes
        -----
        A row of n groups of w columns is summed in float32 with an error of at most
        ``γ Σ |weight| |input|``, γ = k 2⁻²⁴ / (1 − k 2⁻²⁴), k = n / 32 + w + 8: each of 32 lanes
        sums up its groups, then lanes are added in pairs. The order depends on nothing else.
        """
        rows, columns = self.shape
        y = np.empty((len(x), rows), np.float32) if out is None else out
        for array, shape in ((x, (len(x), columns)), (y, (len(x), rows))):
            if array.shape != shape or array.dtype != np.float32:
                raise InputError(
                    f"{array.dtype.name}{list(array.shape)} where float32{list(shape)} is wanted"
                )
        if not y.flags.c_contiguous:
            raise InputError("the output is not C-contiguous")
        if not len(x):
            return y
        x = np.ascontiguousarray(x)
        with self._lock:
            given = (self._panels, len(self._panels), x.ctypes.data, columns, len(x))
            error = self._library.gpu_multiply(self.gpu, *given, y.ctypes.data, byref(self._room))
        self._check(error)
        return y

    def _check(self, error: int) -> None:
        if error:
            words = self._library.gpu_error(error).decode()
            raise DeepSZError(f"GPU {self.gpu} failed: {words}")


def _release(library: ctypes.CDLL, gpu: int, kept: list[_Panel], room: _Room) -> None:
    for panel in kept:
        library.gpu_forget(gpu, byref(panel))
    library.gpu_leave(gpu, byref(room))
