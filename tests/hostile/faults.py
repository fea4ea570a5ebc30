"""Do some work again and again while one call after the other fails: run by `test_faults`.

``python faults.py WORK KIND FOLDER`` with the shim of ``faults.c`` preloaded. Prints a JSON
document: in how many ways it ended after a call had failed, and what was wrong, which is nothing.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from deepsz_caffe import DeepSZError, assess, expand
from deepsz_caffe.files import read_input
from deepsz_caffe.steps.assess.journal import Journal
from deepsz_caffe.steps.encode import encode, write_dsz

ERRORS = {"writes": errno.ENOSPC, "reads": errno.EIO, "memory": errno.ENOMEM}
KINDS = {"writes": 1, "reads": 2, "memory": 3}
BOUNDS = {"ip1": 0.02, "ip2": 0.03, "ip3": 0.01}


def encode_all(folder: Path) -> None:
    write_dsz(folder / "out", encode(None, folder / "net.caffemodel", BOUNDS, "fast"))


def expand_all(folder: Path) -> None:
    expand(folder / "net.dsz", folder / "out")


def assess_all(folder: Path) -> None:
    given = [Path(line) for line in read_input(folder / "toy").decode().splitlines()]
    options = {"protocol": "paper", "bounds": [0.05], "layers": ["ip"]}
    assessed = assess(*given, journal=folder / "journal", **options)
    assessed.save(folder / "out")


WORK: dict[str, Callable[[Path], None]] = {
    "encode": encode_all,
    "expand": expand_all,
    "assess": assess_all,
}


def attempt(do: Callable[[Path], None], folder: Path, kind: str, number: int) -> tuple[str, bool]:
    """Do the work while a call fails; how it ended, and whether the call came at all."""
    shim = ctypes.CDLL(None)
    shim.fault_arm(KINDS[kind], ctypes.c_long(number), ERRORS[kind])
    try:
        do(folder)
        result = "done"
    except (DeepSZError, MemoryError) as error:
        result = type(error).__name__
    except Exception as error:  # of no family: what is looked for
        result = f"ALIEN {type(error).__name__}: {error}"
    return result, bool(shim.fault_disarm())


class Failing(Executor):
    """An executor whose tasks are given to a function: `armed` or `killed`, with its arguments."""

    def __init__(self, executor: Executor, function: Callable[..., object], *arguments) -> None:
        self._executor, self._before = executor, (function, *arguments)

    def submit(self, fn, /, *args, **kwargs):
        return self._executor.submit(*self._before, fn, *args, **kwargs)


def armed(kind: str, number: int, fired: str, function: Callable[..., object], *args, **kwargs):
    """Run a task while a call fails in this process, a preloaded one; `fired` appears if it did."""
    shim = ctypes.CDLL(None)
    shim.fault_arm(KINDS[kind], ctypes.c_long(number), ERRORS[kind])
    try:
        return function(*args, **kwargs)
    finally:
        if shim.fault_disarm():
            Path(fired).touch()


def killed(signal: int, seconds: float, function: Callable[..., object], *args, **kwargs):
    """Run a task in whose middle this process gets a signal."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal))
    timer.daemon = True
    timer.start()
    try:
        return function(*args, **kwargs)
    finally:
        timer.cancel()


def forked(do: Callable[[Path], None], folder: Path, kind: str, number: int) -> tuple[str, bool]:
    """Do as `attempt` in a process of its own: numpy itself crashes where memory is short."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(attempt(do, folder, kind, number)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as report:
        said = report.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return f"crash of signal {os.WTERMSIG(status)}", True
    result, fired = json.loads(said)
    return result, fired


def check(
    folder: Path, there: list[Path], result: str, before: bytes | None, complete: bytes
) -> str:
    """Say what is wrong with what the work has left."""
    out = folder / "out"
    found = out.read_bytes() if out.exists() else None
    if result.startswith("ALIEN"):
        return "an error of no family"
    if found not in (before, complete) or (result == "done") != (found == complete):
        return "the output is neither absent nor complete"
    if (folder / "journal").exists():
        Journal(folder / "journal", "another")  # a later run must be able to read it
        (folder / "journal").unlink()
    left = [path for path in folder.iterdir() if path not in there and path != out]
    if left and not result.startswith("crash"):
        return f"left {left}"
    for path in left:
        path.unlink()
    return ""


def main(work: str, kind: str, name: str) -> None:
    folder = Path(name)
    out, do = folder / "out", WORK[work]
    do(folder)  # what is imported at first use is imported now
    complete = out.read_bytes()
    (folder / "journal").unlink(missing_ok=True)
    there = sorted(folder.iterdir())
    wrong, results = [], Counter[str]()
    for number in range(1, 1000):
        before = b"old" if number % 2 else None
        out.unlink(missing_ok=True)
        if before:
            out.write_bytes(before)
        run = forked if kind == "memory" else attempt
        result, fired = run(do, folder, kind, number)
        if fault := check(folder, there, result, before, complete):
            wrong.append(f"call {number}, {result}: {fault}")
        if not fired:
            break
        results[result] += 1
    print(json.dumps({"failed": results, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
