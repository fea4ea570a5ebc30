"""A `Quantized` layer in a file that processes map: they share its pages, and none copies them.

Little-endian: 8 bytes of magic; rows, columns and the number of panels; of every panel its columns,
width, groups, levels and the bytes of a code; and the arrays, each from the next multiple of 64 on:
of every panel `starts`, `columns`, `codes` and `codebook`. It is a cache, made anew where it is not
right: what it holds is compared with the digest in the `.dsz` file before it is used.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import FormatError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.running.quantized import Panel, Quantized

MAGIC = b"\x89DSR\r\n\x1a\x02"
_MATRIX = struct.Struct("<3Q")
_PANEL = struct.Struct("<5Q")
_ALIGNED = 64
_CODES = {1: np.uint8, 2: np.uint16, 4: np.float32}

Path_ = str | os.PathLike[str]
#: What an array is: type and shape.
_Form = tuple[type[Any], tuple[int, ...]]


def write_mapped(path: Path_, matrix: Quantized) -> None:
    """Write the file; it appears complete or not at all.

    Raises
    ------
    DeepSZError
        It can't be written.
    """
    panels = [
        _PANEL.pack(p.cols, p.width, p.codes.size, p.codebook.size, p.codes.itemsize)
        for p in matrix.panels
    ]
    arrays: list[NDArray[np.generic]] = []
    for panel in matrix.panels:
        arrays += [panel.starts, panel.columns, panel.codes, panel.codebook]
    with atomic_write(path, durable=False) as file:
        file.write(MAGIC + _MATRIX.pack(*matrix.shape, len(panels)) + b"".join(panels))
        for array in arrays:
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)


def read_mapped(path: Path_) -> Quantized:
    """Map the file.

    The arrays are as the file has them: `Quantized.examine` must find them right before they are
    used in products.

    Raises
    ------
    FormatError
        The file is damaged, or not of this kind.
    OSError
        It can't be opened.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError("the file was cut short", where=path)
        source = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _read(source)
    except FormatError as error:
        raise FormatError(error.what, where=path) from error
    except (struct.error, KeyError, ValueError, OverflowError) as error:
        raise FormatError("the header is damaged", where=path) from error


def _read(source: memoryview) -> Quantized:
    start = len(MAGIC) + _MATRIX.size
    if source[: len(MAGIC)] != MAGIC:
        raise FormatError("not a file of this kind")
    rows, cols, count = _MATRIX.unpack(source[len(MAGIC) : start])
    end = start + count * _PANEL.size
    headers = list(_PANEL.iter_unpack(source[start:end]))
    if end > len(source):
        raise FormatError("the file was cut short")
    forms: list[_Form] = []
    for _, width, groups, levels, code_bytes in headers:
        forms += [(np.uint32, (rows + 1,)), (np.uint16, (groups, width))]
        forms += [(_CODES[code_bytes], (groups,)), (np.float32, (levels,))]
    arrays = list(_arrays(source, end, forms))
    panels = tuple(
        Panel(p[0], p[1], *arrays[4 * number : 4 * number + 4]) for number, p in enumerate(headers)
    )
    return Quantized((rows, cols), panels)


def _arrays(source: memoryview, position: int, forms: list[_Form]) -> Iterator[NDArray[Any]]:
    for kind, shape in forms:
        dtype = np.dtype(kind).newbyteorder("<")
        position += -position % _ALIGNED
        size = dtype.itemsize * prod(shape)
        if not all(0 <= side <= len(source) for side in shape) or position + size > len(source):
            raise FormatError("the file was cut short")
        array = np.frombuffer(source, dtype, prod(shape), position).reshape(shape)
        yield array.astype(kind, copy=False)
        position += size
    if position != len(source):
        raise FormatError("something follows the last array")
