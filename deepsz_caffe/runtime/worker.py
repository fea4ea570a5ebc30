"""The child's side of `pool`: a process that imports Caffe and runs the functions it is sent.

Started as ``python -c "...; main(FD)"`` with one end of a socket pair. Task functions use
`import_caffe` to get the library and `report` to send progress to whoever waits for them; both
also work outside a worker (on a Dask worker, under MPI, in a notebook).
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepsz_caffe.errors import CaffeError

#: The parent's end, while this process is a worker of `pool`.
_parent: Connection | None = None
#: The device that this process computes on, chosen by the parent; None is the processor.
_gpu: int | None = None


def import_caffe(gpu: int | None = None) -> Any:  # noqa: ANN401
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
        import caffe
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
    if _parent is not None:
        _parent.send(("progress", message))


def main(descriptor: int, gpu: int | None) -> None:
    """Run tasks until the parent closes its end or dies."""
    global _parent, _gpu
    # Ctrl-C in a terminal reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _gpu = gpu
    _parent = parent = Connection(descriptor)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(parent, tasks), daemon=True).start()
    while True:
        try:
            function, args, kwargs = pickle.loads(tasks.get())
            answer = ("result", function(*args, **kwargs))
            reply = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            reply = _pickled_error(error)
        parent.send_bytes(reply)


def _listen(parent: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    # A thread of its own, so that an orphan ends in the middle of a task too.
    try:
        while True:
            tasks.put(parent.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _pickled_error(error: BaseException) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        reply = pickle.dumps(("error", error, trace))
        pickle.loads(reply)
    except Exception:  # an exception that does not survive pickling: keep what it says
        reply = pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return reply
