"""Decode files from strangers in a process of its own.

The codecs of version 1 include C++ code that was not written for hostile input, and an attacker can
make every checksum right. So a child process does all the work: its memory, its processor time and
the size of what it writes are limited by the kernel, and when it crashes or takes too long, the
caller gets a `FormatError`. Nothing that the child sends is trusted: matrices come back as plain
bytes of a size that the parent fixed before, errors as text.

The child has the rights of the caller: this contains crashes and exhaustion, it is no sandbox
against code execution. POSIX only.
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
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from deepsz_caffe import codecs, errors
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, FormatError, LimitError
from deepsz_caffe.files import atomic_write, check_output

if TYPE_CHECKING:
    from deepsz_caffe.dsz.decode import Matrix

# Address space that the child may add to the decoder's own: stacks of threads, allocator arenas.
_MARGIN = 256 << 20
_FAILED = 3


def decode(
    path: str | os.PathLike[str], *, limits: Limits | None = None, timeout: float = 60
) -> dict[str, Matrix]:
    """Decode every layer in a child process; see `deepsz_caffe.dsz.decode.decode`.

    Parameters
    ----------
    limits
        What the child may use.
    timeout
        Seconds, of the clock and of one processor.

    Raises
    ------
    FormatError
        As `deepsz_caffe.dsz.decode.decode`, or the child crashed or took too long.
    """
    limits = limits or Limits()
    with DszFile(path, limits) as file:
        size = sum(layer.dense_bytes for layer in file.layers)
        working = sum(layer.working_bytes for layer in file.layers)
        limits.allow_memory(size + working, path)
        layers = file.layers
    with tempfile.TemporaryFile() as shared:
        # On the disk rather than in memory only where the system's folder for such files is.
        shared.truncate(size)
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
    timeout: float = 600,
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
        size = sum(layer.dense_bytes for layer in file.layers) + file.rest_bytes
    with atomic_write(output) as target:
        _run("expand", path, target.fileno(), size, limits, timeout)


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
    command += [what, os.fspath(path), str(output), str(size), str(limits.memory), str(timeout)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        child = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(output,),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"decoding took more than {timeout:g} s", where=path) from error
    if child.returncode == _FAILED:
        _raise_reported(child.stdout, path)
    if child.returncode == -signal.SIGXCPU:
        raise FormatError(f"decoding took more than {timeout:g} s", where=path)
    if child.returncode:
        end = child.returncode
        name = signal.Signals(-end).name if end < 0 else f"exit {end}"
        raise FormatError(f"decoding crashed ({name})", where=path, hint="the file is damaged")


def _raise_reported(report: bytes, path: str | os.PathLike[str]) -> NoReturn:
    try:
        kind, what, where, hint = json.loads(report)
        error = getattr(errors, str(kind))(str(what), where=where, hint=hint)
        known = isinstance(error, DeepSZError)
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise FormatError("decoding failed", where=path)
    raise error


def _child(what: str, path: str, output: int, size: int, memory: int, timeout: float) -> None:
    from deepsz_caffe.dsz.decode import read_layer
    from deepsz_caffe.dsz.expand import write_expanded

    for registry in (codecs.DATA, codecs.INDEX, codecs.MATRIX):
        # What they import shall not count.
        list(registry.values())
    _limit(size, memory, timeout)
    with DszFile(path, Limits(memory=memory)) as file:
        if what == "expand":
            write_expanded(file, output)
            return
        if sum(layer.dense_bytes for layer in file.layers) != size:
            raise FormatError("the file changed while it was read", where=path)
        if not file.layers:
            return
        shared, start = mmap.mmap(output, size), 0
        for layer in file.layers:
            out = np.frombuffer(shared, np.float32, layer.dense_bytes // 4, start)
            read_layer(file, layer.name, out.reshape(layer.shape))
            start += layer.dense_bytes


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
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (allowed, allowed))


def _main(arguments: list[str]) -> None:
    what, path, output, size, memory, timeout = arguments
    try:
        try:
            _child(what, path, int(output), int(size), int(memory), float(timeout))
        except MemoryError:
            raise LimitError("there is not enough memory to decode it", where=path) from None
    except DeepSZError as error:
        print(json.dumps([type(error).__name__, error.what, error.where, error.hint]))
        sys.exit(_FAILED)


if __name__ == "__main__":
    _main(sys.argv[1:])
