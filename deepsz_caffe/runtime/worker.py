"""The child's side of `process`: it imports Caffe and runs the functions it is sent.

Started as ``python -c "...; main(FD)"`` with one end of a socket pair. Task functions use
`import_caffe` to get the library and `report` to send progress to whoever waits for them; both
also work outside a worker (on a Dask worker, under MPI, in a notebook). Warnings
of this package are issued again in the parent; what the operating system refuses here, a full disk
or memory, is an error of this package there.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import threading
import traceback
import warnings
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from deepsz_caffe.errors import CaffeError, DeepSZWarning, of_system, tell_of_warnings

#: The way to the parent, while this process is a worker of `pool`.
_line: _Line | None = None
#: The device that this process computes on, chosen by the parent; None is the processor.
_gpu: int | None = None


def import_caffe(gpu: int | None = None) -> ModuleType:
    """Import Caffe quietly and set its mode.

    Parameters
    ----------
    gpu
        Device number; None takes the one that the pool gave this worker, else the processor.

    Raises
    ------
    CaffeError
        Caffe is not installed, or a device is asked for and Caffe was built without CUDA (left to
        itself it would abort the process at the first forward pass).
    """
    # Only honoured before the library is loaded; 2 keeps errors and the message of an abort.
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        caffe = importlib.import_module("caffe")
    except ImportError as error:
        raise CaffeError(
            f"Caffe can't be imported: {error}",
            hint="`deepsz doctor` says what is missing; docker/install-caffe.sh builds Caffe",
        ) from error
    gpu = _gpu if gpu is None else gpu
    if gpu is None:
        caffe.set_mode_cpu()
    else:
        if not _built_with_cuda():
            raise CaffeError(
                f"GPU {gpu} was asked for, but this Caffe was built without CUDA",
                hint="leave out --gpu, or build Caffe with CUDA: docker/Dockerfile.gpu",
            )
        caffe.set_device(gpu)
        caffe.set_mode_gpu()
    return caffe


def _built_with_cuda() -> bool:
    # pycaffe has no question for it; the libraries that it brought along answer.
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return "libcublas" in maps or "libcudart" in maps


def report(message: object) -> None:
    """Send a progress message to the parent's callback; does nothing outside a worker."""
    if _line is not None:
        _line.send("progress", message)


class _Line:
    """The way to the parent: what is sent carries the number of the call that it answers."""

    def __init__(self, pipe: Connection) -> None:
        self.number = 0
        self._pipe = pipe
        self._sending = threading.Lock()  # a task may report from several threads

    def send(self, kind: str, content: object) -> None:
        packed = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
        message = pickle.dumps((self.number, kind, packed), protocol=pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._pipe.send_bytes(message)

    def send_error(self, error: BaseException, told: BaseException) -> None:
        """Send what an error is told as, with the error's own traceback."""
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(told))
        except Exception:  # it does not survive pickling: keep what it says
            told = RuntimeError(f"{type(told).__name__}: {told}")
        self.send("error", (told, trace))


def main(descriptor: int, gpu: int | None) -> None:
    """Run tasks until the parent closes its end or dies."""
    global _line, _gpu
    # Ctrl-C in a terminal reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _gpu = gpu
    parent = Connection(descriptor)
    _line = line = _Line(parent)
    # Every time: the parent has filters of its own.
    warnings.simplefilter("always", DeepSZWarning)
    tell_of_warnings(partial(line.send, "warning"))
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(parent, tasks), daemon=True).start()
    while True:
        line.number, call = pickle.loads(tasks.get())
        try:
            function, args, kwargs = pickle.loads(call)
            line.send("result", function(*args, **kwargs))
        except (OSError, MemoryError) as error:
            line.send_error(error, of_system(error))
        except BaseException as error:
            line.send_error(error, error)


def _listen(parent: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    # A thread of its own, so that an orphan ends in the middle of a task too.
    try:
        while True:
            tasks.put(parent.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)
