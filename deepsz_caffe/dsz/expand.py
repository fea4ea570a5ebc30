"""From a `.dsz` file to the caffemodel that it holds, straight into the output file.

Two threads share the work, in pieces: while one decodes, the other hands its piece to the system.
More would wait for each other, as writes to one file do. Nothing here needs numpy unless a layer's
codec does: its import takes as long as all of AlexNet.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING

from deepsz_caffe.codecs.packed_stream import Chunk, PackedStream
from deepsz_caffe.dsz.layout import LayerEntry, seal
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import CodecError, FormatError, LimitError
from deepsz_caffe.files import atomic_write, check_output

if TYPE_CHECKING:
    from deepsz_caffe.dsz.decode import Matrix

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


def write_expanded(file: DszFile, descriptor: int) -> None:
    """Write the caffemodel that an open file holds into another, from its start; see `expand`."""
    two_largest = sorted(layer.dense_bytes + layer.working_bytes for layer in file.layers)[-2:]
    file.limits.allow_memory(sum(two_largest), file.path)
    _reserve(descriptor, file.rest_bytes + sum(layer.dense_bytes for layer in file.layers))
    digests: dict[str, list[int]] = {}
    _run(_jobs(file, descriptor, digests))
    for layer in file.layers:
        found = sum(digests[layer.name]) & 0xFFFFFFFFFFFFFFFF if layer.name in digests else None
        if found is not None and layer.digest != seal(
            layer.name, layer.shape, layer.error_bound, layer.nonzeros, found
        ):
            raise FormatError(
                "the decoded weights are not those that were encoded", where=_at(file, layer)
            )


_Job = Callable[[], None]


def _jobs(file: DszFile, descriptor: int, digests: dict[str, list[int]]) -> Iterator[_Job]:
    dense = [layer.dense_bytes for layer in file.layers]
    before = list(accumulate(dense, initial=0))
    slots = file.slots
    yield lambda: write_rest(file, descriptor)
    for layer, slot, shift in zip(file.layers, slots, before, strict=False):
        position = slot + shift
        if _is_packed(layer):
            with _located(file, layer):
                section = memoryview(file.layer(layer.name).data)
                stream = PackedStream(section, layer.error_bound, layer.dense_bytes // 4)
            parts = digests[layer.name] = []
            for chunk in stream.chunks:
                yield partial(_write_chunk, file, layer, stream, chunk, descriptor, position, parts)
        else:
            yield partial(_write_layer, file, layer, descriptor, position)


def _is_packed(layer: LayerEntry) -> bool:
    form = layer.data_codec, layer.index_codec, layer.order, sys.byteorder
    return form == ("packed", "", "C", "little")


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


def _write_chunk(
    file: DszFile,
    layer: LayerEntry,
    stream: PackedStream,
    chunk: Chunk,
    descriptor: int,
    position: int,
    digests: list[int],
) -> None:
    with _located(file, layer):
        digests.append(stream.write(chunk, descriptor, position))


def _write_layer(file: DszFile, layer: LayerEntry, descriptor: int, position: int) -> None:
    import numpy as np

    from deepsz_caffe.dsz.decode import read_layer

    # Not numpy's own memory, which asks for huge pages: where memory is full of cached files,
    # putting those together takes the kernel longer than all else here.
    try:
        buffer = mmap(-1, layer.dense_bytes, MAP_PRIVATE | MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise LimitError(
            "there is not enough memory to decode it", where=_at(file, layer)
        ) from error
    out: Matrix = np.frombuffer(buffer, np.float32).reshape(layer.shape)
    read_layer(file, layer.name, out)
    _write(descriptor, np.asarray(out, "<f4").reshape(-1).view(np.uint8).data, position)


def _write(descriptor: int, content: memoryview, position: int) -> None:
    while content:
        written = os.pwrite(descriptor, content[:_PIECE], position)
        content, position = content[written:], position + written


def _reserve(descriptor: int, size: int) -> None:
    # Where the file system knows its size and place beforehand, writing takes two thirds.
    os.ftruncate(descriptor, size)
    if size and hasattr(os, "posix_fallocate"):
        with suppress(OSError):
            os.posix_fallocate(descriptor, 0, size)


@contextmanager
def _located(file: DszFile, layer: LayerEntry) -> Iterator[None]:
    """Say of an error which layer it concerns."""
    try:
        yield
    except CodecError as error:
        raise FormatError(error.what, where=_at(file, layer), hint=error.hint) from error
    except MemoryError as error:
        raise LimitError(
            "there is not enough memory to decode it", where=_at(file, layer)
        ) from error


def _at(file: DszFile, layer: LayerEntry) -> str:
    return f"{file.path}, layer {layer.name}"


def _run(jobs: Iterator[_Job]) -> None:
    """Do the jobs on all threads; the first error ends it.

    Not an executor: importing one takes a tenth of the time that all of this may take.
    """
    turn = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with turn:
                    job = next(jobs, None)
                if job is None:
                    return
                job()
        except BaseException as error:  # raised again below, in the thread of the caller
            errors.append(error)

    others = [threading.Thread(target=work) for _ in range(min(_THREADS, os.cpu_count() or 1) - 1)]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()
    if errors:
        raise errors[0]
