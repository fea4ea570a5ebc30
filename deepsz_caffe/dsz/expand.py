"""From a `.dsz` file to the caffemodel that it holds: a file as the decoder's sink.

Two threads share the work, in parts: while one decodes, the other hands its part to the system.
More would wait for each other, as writes to one file do.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np

from deepsz_caffe.dsz.decode import Matrix, decode_into
from deepsz_caffe.dsz.layout import LayerEntry
from deepsz_caffe.dsz.limits import Limits, working_bytes
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.files import atomic_write, check_output

#: bytes handed to the system at a time: of larger ones it takes much longer for each
_PIECE = 1 << 20
_THREADS = 2


def expand(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
) -> None:
    """Write the caffemodel that a `.dsz` file holds: decoded fc weights, all else byte for byte.

    Memory: at most the largest two layers. The output is left to the system to bring to the disk,
    as `cp` does: what it holds can be had again.

    Raises
    ------
    InputError, FormatError, LimitError
        As `deepsz_caffe.dsz.decode.decode`; `output` is then as it was before.
    DeepSZError
        The output can't be written.
    """
    check_output(output, [path])
    with DszFile(path, limits) as file, atomic_write(output, durable=False) as target:
        write_expanded(file, target.fileno())


def expanded_bytes(file: DszFile) -> int:
    """Return the size of the caffemodel that an open file holds."""
    return file.rest_bytes + sum(layer.dense_bytes for layer in file.layers)


def check_limits(file: DszFile) -> None:
    """Compare what expanding an open file takes with its limits.

    Raises
    ------
    LimitError
        One of them is too low.
    """
    largest = sorted(layer.dense_bytes + working_bytes(layer) for layer in file.layers)
    file.limits.check(
        file.layers,
        memory=sum(largest[-_THREADS:]),
        output=expanded_bytes(file),
        where=file.path,
    )


def write_expanded(file: DszFile, descriptor: int) -> None:
    """Write the caffemodel that an open file holds into another, from its start; see `expand`."""
    check_limits(file)
    _reserve(descriptor, expanded_bytes(file))
    threads = min(_THREADS, os.cpu_count() or 1)
    rest = (lambda: write_rest(file, descriptor),)
    decode_into(file, _Caffemodel(file, descriptor), threads, rest)


class _Caffemodel:
    """A sink: each layer's weights lie at their place in a file."""

    def __init__(self, file: DszFile, descriptor: int) -> None:
        before = accumulate((layer.dense_bytes for layer in file.layers), initial=0)
        self._places = {
            layer.name: slot + shift
            for layer, slot, shift in zip(file.layers, file.slots, before, strict=False)
        }
        self._descriptor = descriptor
        self._room = threading.local()

    @contextmanager
    def place(self, layer: LayerEntry, start: int, cells: int) -> Iterator[Matrix]:
        buffer = self._buffer(4 * cells)
        weights: Matrix = np.frombuffer(buffer, np.float32, cells)
        yield weights
        content = weights.astype("<f4", copy=False).view(np.uint8).data
        _write(self._descriptor, content, self._places[layer.name] + 4 * start)

    def _buffer(self, size: int) -> mmap:
        # One a thread: fresh memory costs as much as decoding into it. Not numpy's own, which asks
        # for huge pages: where memory is full of cached files, the system is long about those.
        buffer: mmap | None = getattr(self._room, "buffer", None)
        if buffer is None or len(buffer) < size:
            self._room.buffer = buffer = None
            try:
                buffer = self._room.buffer = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
            except (OSError, OverflowError) as error:
                raise MemoryError from error
        return buffer


def write_rest(file: DszFile, descriptor: int) -> None:
    """Write all of a caffemodel but the layers' weights; the bytes of these stay as they were.

    Raises
    ------
    FormatError, LimitError
        As `DszFile.rest`.
    """
    before = accumulate(layer.dense_bytes for layer in file.layers)
    slots = list(zip(file.slots, before, strict=True))
    position = shift = 0
    for piece in file.rest():
        while piece:
            while slots and slots[0][0] == position:
                shift = slots.pop(0)[1]
            part = piece[: slots[0][0] - position] if slots else piece
            _write(descriptor, part, position + shift)
            position += len(part)
            piece = piece[len(part) :]


def _write(descriptor: int, content: memoryview, position: int) -> None:
    while content:
        written = os.pwrite(descriptor, content[:_PIECE], position)
        content, position = content[written:], position + written


def _reserve(descriptor: int, size: int) -> None:
    """Make room for a file, before any work; where its size is known, writing takes two thirds."""
    system = os.fstatvfs(descriptor)
    free = system.f_bavail * system.f_frsize
    if size > free:
        raise OSError(errno.ENOSPC, f"it takes {size:,} bytes, the disk has {free:,} left")
    os.ftruncate(descriptor, size)
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            # Some file systems can't; writing tells.
            if error.errno == errno.ENOSPC:
                raise
