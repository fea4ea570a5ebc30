"""What the benches share: ratios from interleaved runs, memory of a child process, one table.

A bench is a script ``bench_NAME.py`` that prints what was measured beside its target, and exits
with 1 where a target is missed. Ratios are of times taken in turns in one run on one machine; each
time is the best of several, so a busy neighbour lengthens a bench rather than changing its result.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: where generated networks and images are kept from one run to the next
WORK = Path(__file__).resolve().parent.parent / "data" / "bench"


@dataclass(frozen=True)
class Row:
    """One measured figure; `target` is a least value, or with `most` a greatest one."""

    what: str
    measured: float
    target: float | None = None
    most: bool = False
    unit: str = "×"

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.measured <= self.target if self.most else self.measured >= self.target


def show(title: str, rows: list[Row]) -> int:
    """Print the table; give 0 where every target is met, else 1."""
    width = max(len(row.what) for row in rows)
    print(f"\n{title}")
    for row in rows:
        target = ""
        if row.target is not None:
            word = "at most" if row.most else "at least"
            target = f"  {word} {row.target:g}{row.unit}  {'met' if row.met else 'MISSED'}"
        print(f"  {row.what:<{width}}  {row.measured:10.4g}{row.unit}{target}", flush=True)
    return 0 if all(row.met for row in rows) else 1


def best_times(rounds: int, *functions: Callable[[], object]) -> list[float]:
    """Run the functions in turns, `rounds` times; give the shortest time of each in seconds."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def peak_memory(function: Callable[..., object], *args: object) -> int:
    """Run an importable function in a fresh process; give the bytes that it added to its peak.

    Pages of mapped files that were touched count, those of imported libraries do not.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_peak, args=(theirs, function, args))
    child.start()
    theirs.close()
    try:
        return int(ours.recv())
    finally:
        child.join()


def _peak(pipe, function, args):
    before = _high_water()
    function(*args)
    pipe.send(_high_water() - before)


def _high_water() -> int:
    # ru_maxrss would start at the parent's.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise AssertionError
