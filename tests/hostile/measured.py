"""What decoding a file really takes, measured: `python -m tests.hostile.measured FILE MEMORY …`.

Each file is decoded in a process of its own, forked when all is imported, so that nothing but the
decoding counts. With DEEPSZ_KERNELS=python the slow kernels are measured.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

#: what decoding may take over the limit, besides a quarter of it
SLACK = 16 << 20
_M_MMAP_THRESHOLD = -3  # as in malloc.h


def _resident(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) << 10


def _decode(path: str, memory: int, how: str, results) -> None:
    from deepsz_caffe import DeepSZError, Limits, decode, expand

    # Each allocation is the system's: what one file leaves behind shall not serve the next.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    began = time.monotonic()
    try:
        if how == "decode":
            decode(path, limits=Limits(memory=memory), threads=2)
        else:
            expand(path, path + ".out", limits=Limits(memory=memory))
        outcome = "done"
    except DeepSZError as error:
        outcome = f"{type(error).__name__}: {error.what}"
    except BaseException as error:
        outcome = f"ALIEN {type(error).__name__}: {error}"
    results.put((outcome, _resident("VmHWM") - before, time.monotonic() - began))


def main(arguments: list[str]) -> None:
    import numpy as np

    from deepsz_caffe import codecs
    from deepsz_caffe.dsz import expand  # noqa: F401

    for registry in (codecs.DATA, codecs.INDEX, codecs.MATRIX):
        for codec in registry.values():
            made = codec() if registry is codecs.INDEX else codec(0.1)
            sample = np.ones((2, 2)[: made.rank], made.dtype)
            made.decode(made.encode(sample), np.empty_like(sample))
    context = multiprocessing.get_context("fork")
    for path, memory in zip(arguments[::2], arguments[1::2], strict=True):
        for how in ("decode", "expand"):
            results = context.Queue()
            child = context.Process(target=_decode, args=(path, int(memory), how, results))
            child.start()
            outcome, peak, seconds = results.get()
            child.join()
            print(
                json.dumps([path, how, int(memory), outcome, peak, round(seconds, 2)]), flush=True
            )


def measure(files: dict[Path, int], kernels: str = "compiled") -> list[tuple]:
    """Decode and expand each file under its limit of memory, in bytes.

    Returns
    -------
    list of (file, "decode" or "expand", limit, outcome, peak in bytes, seconds)
    """
    arguments = [str(part) for pair in files.items() for part in pair]
    run = subprocess.run(
        [sys.executable, "-m", "tests.hostile.measured", *arguments],
        env={**os.environ, "DEEPSZ_KERNELS": kernels, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


if __name__ == "__main__":
    main(sys.argv[1:])
