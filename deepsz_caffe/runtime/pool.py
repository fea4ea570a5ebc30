"""Caffe in processes of its own: an `Executor` whose workers may abort without taking us along.

A failed CHECK in Caffe ends its process. Here that becomes a `CaffeError` with Caffe's own words,
raised by the task that caused it; the other tasks go on, and a fresh process takes the dead one's
place. Each worker starts as a new interpreter (nothing of the parent is forked, ``__main__`` is not
imported again), so BLAS threads and glog are set before Caffe is loaded. The functions sent must
be importable by name.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from deepsz_caffe.errors import InputError
from deepsz_caffe.runtime.process import CaffeProcess, Call, Progress, WorkerDied

Params = ParamSpec("Params")
Result = TypeVar("Result")

_Task = tuple[Future[Any], Call]

#: Weights (bytes) of networks whose products are small.
_SMALL = 1 << 22


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


def threads_for(weights: str | os.PathLike[str]) -> int | None:
    """Say how many BLAS threads a process for a network should have; None: its share of the cores.

    Products of small matrices take less time than it takes to share them: LeNet-300-100's tests
    take half of the processor time on one thread of two.
    """
    return 1 if Path(weights).stat().st_size <= _SMALL else None


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
    process = CaffeProcess(available_cores(), None)
    try:
        result: Result = process.call((function, args, kwargs), progress)
        return result
    finally:
        process.end()


def check_workers(workers: int) -> None:
    """Check a number of processes.

    Raises
    ------
    InputError
        There are none.
    """
    if workers < 1:
        raise InputError("a pool needs at least one worker", where=f"workers={workers}")


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
        Where it raises, that is what its task fails with, and the worker is replaced.
    """

    def __init__(
        self,
        workers: int = 1,
        blas_threads: int | None = None,
        gpus: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> None:
        check_workers(workers)
        self.workers = workers
        self.gpus = tuple(gpus)
        self._threads_each = blas_threads or max(1, available_cores() // workers)
        self._progress = progress
        # Guards all that follows. No future is touched under it: their callbacks are the user's.
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._running: set[CaffeProcess] = set()
        self._closed = False
        self._killed = False
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
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append((future, (fn, args, kwargs)))
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._close(cancel=cancel_futures, kill=False)
        if wait:
            for manager in self._managers:
                if manager is not threading.current_thread():
                    manager.join()

    def kill(self) -> None:
        """Stop at once: what runs fails with `WorkerDied`, what waits is cancelled."""
        self._close(cancel=True, kill=True)

    def processes(self) -> list[int]:
        """Return the process ids of the workers that run now."""
        with self._changed:
            return [process.pid for process in self._running]

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

    def _close(self, *, cancel: bool, kill: bool) -> None:
        with self._changed:
            self._closed = True
            self._killed |= kill
            dropped = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
            if kill:
                for process in self._running:
                    process.kill()
            self._changed.notify_all()
        for future, _ in dropped:
            if future.cancel():
                future.set_running_or_notify_cancel()  # tells those who `wait` for it

    def _next(self) -> _Task | None:
        """Wait for a task; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None

    def _manage(self, gpu: int | None) -> None:
        """Feed one worker, and replace it when it dies."""
        process: CaffeProcess | None = None
        while (task := self._next()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                process = process or self._start(gpu)
                result = process.call(call, self._progress)
            except BaseException as error:
                if process is not None and process.dead:
                    self._end(process)
                    process = None
                future.set_exception(error)
            else:
                future.set_result(result)
        if process is not None:
            self._end(process)

    def _start(self, gpu: int | None) -> CaffeProcess:
        with self._changed:
            if self._killed:
                raise WorkerDied("the pool was stopped")
            process = CaffeProcess(self._threads_each, gpu)
            self._running.add(process)
        return process

    def _end(self, process: CaffeProcess) -> None:
        with self._changed:
            self._running.discard(process)
        process.end()
