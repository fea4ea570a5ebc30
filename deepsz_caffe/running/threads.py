"""Threads for parts of one product: they sleep between products, and wait without spinning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None


def in_parts(function: Callable[..., Result], parts: Sequence[tuple[int, ...]]) -> list[Result]:
    """Call `function` with each (first, last, …), the first part here; give the results.

    The others run beside it, so it must release the interpreter lock to gain from that.
    """
    if len(parts) <= 1:
        return [function(*part) for part in parts]
    others = [_executor().submit(function, *part) for part in parts[1:]]
    return [function(*parts[0]), *(other.result() for other in others)]


def available() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(available(), thread_name_prefix="deepsz")
    return _pool


def _forget() -> None:
    # A forked process has none of the threads; waiting for them would be for ever.
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)
