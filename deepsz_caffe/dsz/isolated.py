"""Decode files from strangers in a process of its own.

The codecs of version 1 include C++ code that was not written for hostile input, and an attacker can
make every checksum right. So a child process does all the work: its memory, its processor time and
the size of what it writes are limited by the kernel, and when it crashes or takes too long, the
caller gets a `FormatError`. Nothing that the child sends is trusted: matrices come back as plain
bytes of a size that the parent fixed before, errors as text.

The child ends with its parent, however that ends, and once it has opened its input it gives up what
decoding does not need: other files, programs, sockets (`deepsz_caffe.dsz.sandbox` says on which
kernels). POSIX only; other systems than Linux contain crashes and exhaustion alone.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from math import ceil
from typing import NoReturn

import numpy as np

from deepsz_caffe import codecs, errors
from deepsz_caffe.dsz import sandbox
from deepsz_caffe.dsz.decode import Arrays, Matrix, decode_into
from deepsz_caffe.dsz.expand import check_limits, expanded_bytes, write_expanded
from deepsz_caffe.dsz.limits import Limits, working_bytes
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, FormatError, LimitError
from deepsz_caffe.files import atomic_write, check_output, reason

# Address space that the child may add to the decoder's own: stacks of threads, allocator arenas.
_MARGIN = 256 << 20
_FAILED = 3
# What the child may say: a pipe on Linux holds as much; and of each text in its report.
_PIPE_BYTES = 1 << 16
_LONGEST_TEXT = 2000
_LONGEST = 20 * 86_400.0  # milliseconds of it fit into poll's argument


def decode(
    path: str | os.PathLike[str], *, limits: Limits | None = None, timeout: float | None = None
) -> dict[str, Matrix]:
    """Decode every layer in a child process; see `deepsz_caffe.dsz.decode.decode`.

    Parameters
    ----------
    limits
        What the child may use.
    timeout
        Seconds, of the clock and of one processor; by default what the limits allow.

    Raises
    ------
    FormatError
        As `deepsz_caffe.dsz.decode.decode`, or the child crashed or took too long.
    """
    limits = limits or Limits()
    with DszFile(path, limits) as file:
        size = sum(layer.dense_bytes for layer in file.layers)
        working = sum(map(working_bytes, file.layers))
        limits.check(file.layers, memory=size + working, output=size, where=path)
        timeout = timeout or limits.allowed_seconds(file.layers)
        layers = file.layers
    with tempfile.TemporaryFile() as shared:
        # On the disk rather than in memory only where the system's folder for such files is.
        _make_room(shared.fileno(), size)
        _run("decode", path, shared.fileno(), size, limits, timeout)
        if not layers:
            return {}
        data = np.frombuffer(mmap.mmap(shared.fileno(), size, flags=mmap.MAP_PRIVATE), np.float32)
    weights, start = {}, 0
    for layer in layers:
        rows, columns = layer.shape
        weights[layer.name] = data[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
    return weights


def expand(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    timeout: float | None = None,
) -> None:
    """Write the caffemodel that a file holds, in a child process; see `expand.expand`.

    Parameters
    ----------
    limits, timeout
        As `decode`.

    Raises
    ------
    FormatError
        As `deepsz_caffe.dsz.decode.expand`, or the child crashed or took too long.
    """
    check_output(output, [path])
    limits = limits or Limits()
    with DszFile(path, limits) as file:
        check_limits(file)
        size = expanded_bytes(file)
        timeout = timeout or limits.allowed_seconds(file.layers)
    with atomic_write(output) as target:
        try:
            _run("expand", path, target.fileno(), size, limits, timeout)
        except _OutputError as error:
            raise DeepSZError(error.what, where=output) from error


class _OutputError(DeepSZError):
    """The child could not write, which is no fault of the file."""


def _make_room(descriptor: int, size: int) -> None:
    """Take the place on the disk now: on a full one, writing into a map of it ends the process."""
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise DeepSZError(
            f"no room for {size:,} bytes of weights: {reason(error)}",
            where=tempfile.gettempdir(),
            hint="set TMPDIR to a folder on a larger disk",
        ) from error


def _run(
    what: str,
    path: str | os.PathLike[str],
    output: int,
    size: int,
    limits: Limits,
    timeout: float,
) -> None:
    # -P: a module in the folder of the file must not be taken for one of ours.
    command = [sys.executable, "-P", "-m", "deepsz_caffe.dsz.isolated"]
    # More than the clock can count is no limit.
    timeout = min(timeout, _LONGEST)
    numbers = (output, size, limits.memory, timeout, os.getpid())
    command += [what, os.fspath(path), *map(str, numbers)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OPENBLAS_NUM_THREADS": "1",
    }
    # What the child says has room in the pipe; one that says more waits there for its end.
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        try:
            child = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=subprocess.DEVNULL,
                pass_fds=(output,),
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FormatError(f"decoding took more than {timeout:g} s", where=path) from error
        finally:
            os.close(writer)
        report = pipe.read(_PIPE_BYTES) or b""
    if child.returncode == _FAILED:
        _raise_reported(report, path)
    if child.returncode == -signal.SIGXCPU:
        raise FormatError(f"decoding took more than {timeout:g} s", where=path)
    if child.returncode:
        end = child.returncode
        name = signal.Signals(-end).name if end < 0 else f"exit {end}"
        raise FormatError(f"decoding crashed ({name})", where=path, hint="the file is damaged")


def _raise_reported(report: bytes, path: str | os.PathLike[str]) -> NoReturn:
    kinds = {"_OutputError": _OutputError}
    try:
        kind, what, where, hint = json.loads(report)
        error = (kinds.get(kind) or getattr(errors, str(kind)))(str(what), where=where, hint=hint)
        known = isinstance(error, DeepSZError)
    except (ValueError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise FormatError("decoding failed", where=path)
    raise error


def _child(what: str, path: str, output: int, size: int, memory: int, timeout: float) -> None:
    for registry in (codecs.DATA, codecs.INDEX, codecs.MATRIX):
        # What they import shall not count.
        list(registry.values())
    _limit(size, memory, timeout)
    # The parent has checked the other limits, and the system holds the child to them.
    with DszFile(path, Limits(memory, max(size, 1), timeout)) as file:
        _use_codecs(file)
        sandbox.confine()
        if what == "expand":
            write_expanded(file, output)
            return
        if sum(layer.dense_bytes for layer in file.layers) != size:
            raise FormatError("the file changed while it was read", where=path)
        if not file.layers:
            return
        shared, start = mmap.mmap(output, size), 0
        matrices = {}
        for layer in file.layers:
            out = np.frombuffer(shared, np.float32, layer.dense_bytes // 4, start)
            matrices[layer.name] = out.reshape(layer.shape)
            start += layer.dense_bytes
        decode_into(file, Arrays(matrices, file.layers), 1)


def _use_codecs(file: DszFile) -> None:
    """Import the codecs and use those of a file once: what they open then can't be opened later."""
    for name in codecs.__all__:
        getattr(codecs, name)
    data, index = np.array([[1, 0], [-2, 3]], np.float32), np.array([1, 2], np.uint8)
    for layer in file.layers:
        if layer.data_codec in codecs.MATRIX:
            matrix = codecs.MATRIX[layer.data_codec](1.0)
            matrix.decode(matrix.encode(data), np.empty_like(data))
        if layer.data_codec in codecs.DATA:
            values = codecs.DATA[layer.data_codec](1.0)
            values.decode(values.encode(data[0]), np.empty_like(data[0]))
        if layer.index_codec in codecs.INDEX:
            steps = codecs.INDEX[layer.index_codec]()
            steps.decode(steps.encode(index), np.empty_like(index))


def _limit(size: int, memory: int, timeout: float) -> None:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        mapped = int(statm.read().split()[0]) * mmap.PAGESIZE
    for what, limit in (
        (resource.RLIMIT_AS, mapped + memory + _MARGIN),
        (resource.RLIMIT_CPU, ceil(timeout)),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        if limit < sys.maxsize:  # what is more is no limit, and the kernel takes no such number
            resource.setrlimit(what, (limit, limit))


def _main(arguments: list[str]) -> None:
    what, path, output, size, memory, timeout, parent = arguments
    sandbox.end_with_parent(int(parent))
    try:
        try:
            _child(what, path, int(output), int(size), int(memory), float(timeout))
        except MemoryError:
            raise LimitError("there is not enough memory to decode it", where=path) from None
        except OSError as error:
            # All that is read or opened here gives errors of its own kind.
            raise _OutputError(f"can't write: {reason(error)}") from error
    except DeepSZError as error:
        said = (error.what, error.where, error.hint)
        short = [text if text is None else text[:_LONGEST_TEXT] for text in said]
        print(json.dumps([type(error).__name__, *short]))
        sys.exit(_FAILED)


if __name__ == "__main__":
    _main(sys.argv[1:])
