"""One Caffe process: started, called, watched, ended.

The child is a new interpreter that runs `worker.main`. Every call has a number, which every answer
carries; an answer to another call is dropped. Where a call ends before its answer has come, because
a progress callback raised or the user pressed Ctrl-C, the process is killed, as its task would go
on and can't be told to stop. A process that died is dead for good: its owner starts another.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

from deepsz_caffe.errors import CaffeError

#: What is sent: a function that can be imported by name, and its arguments.
Call = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]
Progress = Callable[[Any], None]

#: A process's last words: how much of its standard error is kept (bytes).
_TAIL_BYTES = 1 << 16
#: How long a process that has closed its pipe may take to end (seconds).
_GRACE = 5.0


class WorkerDied(CaffeError):  # noqa: N818 - it says what happened
    """A Caffe process ended without a word from Caffe, e.g. killed, or out of memory."""


class CaffeProcess:
    """A child process, its pipe and the end of what it wrote to standard error.

    Belongs to one thread; only `kill` may be called from any.

    Parameters
    ----------
    blas_threads
        Set before BLAS is loaded.
    gpu
        Device number; None: the processor.
    """

    def __init__(self, blas_threads: int, gpu: int | None) -> None:
        self.dead = False
        self._calls = 0
        self._words = b""
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
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read_words, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, call: Call, progress: Progress | None) -> Any:  # noqa: ANN401
        """Run a function there and return its result; what it raises is raised here.

        Raises
        ------
        CaffeError
            Caffe aborted; the message is Caffe's own.
        WorkerDied
            The process died otherwise.
        """
        self._calls += 1
        packed = pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
        message = pickle.dumps((self._calls, packed), protocol=pickle.HIGHEST_PROTOCOL)
        try:
            kind, content = self._answer(message, progress)
        except BaseException:
            self.end()
            raise
        if kind == "error":
            error, trace = pickle.loads(content)
            error.add_note(f"In the Caffe process:\n{trace}")
            raise error
        return pickle.loads(content)

    def kill(self) -> None:
        """Kill it now; a call that runs in another thread ends with `WorkerDied`."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and let go of what it holds."""
        self.dead = True
        self.kill()
        self._process.wait()
        self._pipe.close()

    def _answer(self, message: bytes, progress: Progress | None) -> tuple[str, bytes]:
        """Send a call and wait for its result or error, as bytes."""
        try:
            self._pipe.send_bytes(message)
        except OSError:
            raise self._post_mortem() from None
        while True:
            try:
                number, kind, content = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                raise self._post_mortem() from None
            if number != self._calls:
                continue
            if kind == "warning":
                warnings.warn(pickle.loads(content), stacklevel=2)
            elif kind != "progress":
                return kind, content
            elif progress is not None:
                progress(pickle.loads(content))

    def _post_mortem(self) -> CaffeError:
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.kill()  # it lives, but can't be heard any more
            status = self._process.wait()
        self._reader.join(timeout=_GRACE)
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
