"""Caffe in processes of its own: an `Executor` whose workers may abort without taking us along.

A failed CHECK in Caffe ends its process. Here that becomes a `CaffeError` with Caffe's own words,
raised by the task that caused it; the other tasks go on, and a fresh process takes the dead one's
place. Each worker starts as a new interpreter (nothing of the parent is forked, ``__main__`` is not
imported again), so BLAS threads and glog are set before Caffe is loaded. The functions sent must
be importable by name.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ParamSpec, TypeVar

from deepsz_caffe.errors import CaffeError, InputError

Params = ParamSpec("Params")
Result = TypeVar("Result")
Progress = Callable[[Any], None]

#: A worker's last words: how much of its standard error is kept (bytes).
_TAIL_BYTES = 1 << 16


class WorkerDied(CaffeError):  # noqa: N818 - it says what happened
    """A Caffe process ended without a word from Caffe, e.g. killed, or out of memory."""


def available_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processes_for(weights: str | os.PathLike[str]) -> int:
    """Say how many processes share a pass over all images: the cores, as far as memory allows.

    Half of a convolution in Caffe runs on one core, whatever BLAS does. Each process holds the
    network and one batch of every blob, guessed as 1 GiB and twice the weights; together they may
    take half of the memory.
    """
    each = 2**30 + 2 * Path(weights).stat().st_size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(available_cores(), memory // 2 // each))


def added_up(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Make one count of what several tasks report: `progress` gets (done by now, in total).

    The function returned is called with (newly done, in total), from any thread.
    """
    done = 0
    counting = threading.Lock()

    def add(count: int, total: int) -> None:
        nonlocal done
        with counting:
            done += count
            progress(done, total)

    return add


def run_in_caffe(
    function: Callable[Params, Result],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> Result:
    """Call `function` in a Caffe process of its own and return its result.

    Raises
    ------
    CaffeError
        Caffe aborted; the message is Caffe's own.
    WorkerDied
        The process died otherwise.

    Notes
    -----
    On ``KeyboardInterrupt`` the process is killed. Exceptions of `function` arrive here with the
    child's traceback as a note.

    Examples
    --------
    >>> import math
    >>> run_in_caffe(math.sqrt, 9.0)
    3.0
    """
    return run_with_progress(None, function, *args, **kwargs)


def run_with_progress(
    progress: Progress | None,
    function: Callable[Params, Result],
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> Result:
    """Do as `run_in_caffe`; each message of `worker.report` there goes to `progress` here."""
    worker = _Worker(available_cores(), None)
    try:
        result: Result = worker.run((function, args, kwargs), progress)
        return result
    finally:
        worker.kill()


class CaffePool(Executor):
    """A pool of Caffe processes on this machine.

    Parameters
    ----------
    workers
        Number of processes; they start when there is work for them.
    blas_threads
        BLAS threads of each; default: the cores divided among the workers.
    gpus
        Device numbers; given some, the workers take them in turn, normally one worker a device.
    progress
        Called with each message that a task sends by `worker.report`, in a thread of the pool.
    """

    def __init__(
        self,
        workers: int = 1,
        blas_threads: int | None = None,
        gpus: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> None:
        if workers < 1:
            raise InputError("a pool needs at least one worker", where=f"workers={workers}")
        self.workers = workers
        self.gpus = tuple(gpus)
        self._threads_each = blas_threads or max(1, available_cores() // workers)
        self._progress = progress
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[int, _Worker] = {}
        self._closed = False
        self._managers = [
            threading.Thread(
                target=self._manage, args=(gpus[i % len(gpus)] if gpus else None,), daemon=True
            )
            for i in range(workers)
        ]
        for manager in self._managers:
            manager.start()

    def submit(
        self,
        fn: Callable[Params, Result],
        /,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Future[Result]:
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.put((future, (fn, args, kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            if cancel_futures:
                self._drop_tasks()
            for _ in self._managers:
                self._tasks.put(None)
        if wait:
            for manager in self._managers:
                manager.join()

    def kill(self) -> None:
        """Stop at once: what runs fails with `WorkerDied`, what waits is cancelled."""
        with self._lock:
            self._closed = True
            self._drop_tasks()
            for _ in self._managers:
                self._tasks.put(None)
            for worker in self._running.values():
                worker.kill()

    def processes(self) -> list[int]:
        """Return the process ids of the workers that run now."""
        with self._lock:
            return [worker.pid for worker in self._running.values()]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error or Ctrl-C nobody wants the rest.
        if kind is not None:
            self.kill()
        self.shutdown(wait=True)

    def _drop_tasks(self) -> None:
        while not self._tasks.empty():
            task = self._tasks.get()
            if task is not None:
                task[0].cancel()

    def _manage(self, gpu: int | None) -> None:
        """Feed one worker, and replace it when it dies."""
        me = threading.get_ident()
        worker: _Worker | None = None
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if worker is None:
                    with self._lock:
                        if self._closed and self._tasks.empty():
                            raise WorkerDied("the pool was stopped")
                        worker = self._running[me] = _Worker(self._threads_each, gpu)
                future.set_result(worker.run(call, self._progress))
            except BaseException as error:
                if worker is not None and worker.dead:
                    worker = None
                    with self._lock:
                        del self._running[me]
                future.set_exception(error)
        if worker is not None:
            worker.kill()
            with self._lock:
                del self._running[me]


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_Task = tuple[Future[Any], _Call]


class _Worker:
    """One child process, its pipe and the end of what it wrote to standard error."""

    def __init__(self, blas_threads: int, gpu: int | None) -> None:
        ours, theirs = Pipe()
        self._pipe: Connection = ours
        threads = str(blas_threads)
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "GLOG_minloglevel": "2",
        }
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from deepsz_caffe.runtime import worker; worker.main({theirs.fileno()}, {gpu})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._words = b""
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read_words, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()
        self.dead = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, call: _Call, progress: Progress | None) -> Any:  # noqa: ANN401
        try:
            self._pipe.send(call)
            while True:
                kind, *content = self._pipe.recv()
                if kind == "result":
                    return content[0]
                if kind == "error":
                    error, trace = content
                    error.add_note(f"In the Caffe process:\n{trace}")
                    raise error
                if progress is not None:
                    progress(content[0])
        except (EOFError, ConnectionError):
            raise self._post_mortem() from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _post_mortem(self) -> CaffeError:
        self.dead = True
        status = self._process.wait()
        self._reader.join(timeout=5)
        self._pipe.close()
        words = self._words.decode(errors="replace")
        if said := caffe_message(words):
            return CaffeError(said)
        cause = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        last = words.strip().rsplit("\n", 1)[-1]
        return WorkerDied(f"the Caffe process died ({cause})" + (f": {last}" if last else ""))

    def _read_words(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 14):
                self._words = (self._words + chunk)[-_TAIL_BYTES:]


_FATAL = re.compile(
    r"^F\d{4}(?:\d{4})? [\d:.]+ +\d+ (?P<place>[\w./-]+:\d+)\] (?P<text>.*?)"
    r"(?=^\*\*\* Check failure stack trace|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR [^\]]*\] (?P<text>.*)$", re.MULTILINE)


def caffe_message(words: str) -> str:
    """Extract what Caffe said before it aborted from its log; empty when it said nothing.

    A parser's complaint (protobuf names line and column) comes before Caffe's own sentence.
    """
    fatal = _FATAL.search(words)
    if fatal is None:
        return ""
    said = [match["text"] for match in _PROTOBUF.finditer(words)]
    said.append(f"{fatal['text']} [{fatal['place']}]")
    return " ".join(" ".join(said).split())
