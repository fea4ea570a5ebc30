"""Read damaged and forged files by the thousand: `python -m tests.hostile.fuzz --files 100000`.

`.dsz` files are decoded; `--inputs` says how many caffemodels, HDF5 files, JSON documents of each
kind, are read beside them (`tests.hostile.inputs`). Every file must give an error of our family or
the right weights: no crash, no file that takes over 5 seconds, no memory over 1.5 times the limit
given, no wrong weight. Files are read in child processes, many in one; a child that dies or hangs
is told by the file that it was at. Nothing is excused: forged streams reach the C++ codecs too, and
where one crashes, this run has failed.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np

from deepsz_caffe import DeepSZError, Limits, codecs, decode, expand
from deepsz_caffe.dsz.layout import ChangedBlob, Contents, Packing
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.encode import assemble, encode, encode_layer, write_dsz
from tests.hostile.inputs import Input, inputs
from tests.hostile.mutations import damage, forge
from tests.hostile.samples import BOUNDS, lenet_caffemodel

#: what decoding may use, in bytes; what it may really take on top of the process as it was; seconds
MEMORY = 32 << 20
SLACK = MEMORY // 2
SECONDS = 5
_BATCH = 500
_M_MMAP_THRESHOLD = -3  # as in malloc.h


@dataclass(frozen=True)
class Sample:
    """A good file, the weights it decodes to and the caffemodel it expands to."""

    name: str
    file: bytes
    weights: dict[str, bytes]
    caffemodel: bytes


def samples(folder: Path) -> list[Sample]:
    """Make good files: one for each profile and codec, and one with biases on a grid."""
    combinations = [
        *((data, "zstd", "") for data in codecs.DATA),
        *(("sz", index, "") for index in codecs.INDEX),
        *(("", "", matrix) for matrix in codecs.MATRIX),
    ]
    model, path = folder / "net.caffemodel", folder / "net.dsz"
    model.write_bytes(lenet_caffemodel())
    deploy = folder / "deploy.prototxt"
    deploy.write_text('name: "net"\n' * 20)
    made = []
    own = {
        " ".join(filter(None, combination)): codecs.Profile(
            "own", *((name,) if name else () for name in combination)
        )
        for combination in combinations
    }
    for name, profile in {**codecs.PROFILES, **own}.items():
        codecs.PROFILES["fuzz"] = profile
        write_dsz(path, encode(None, model, BOUNDS, "fuzz", with_prototxt=deploy))
        del codecs.PROFILES["fuzz"]
        made.append(_sample(name, path))
    write_dsz(path, _with_biases(read_caffemodel(model)))
    return [*made, _sample("biases", path)]


def _sample(name: str, path: Path) -> Sample:
    expanded = path.with_name("expanded")
    expand(path, expanded)
    weights = {layer: matrix.tobytes() for layer, matrix in decode(path).items()}
    return Sample(name, path.read_bytes(), weights, expanded.read_bytes())


def _with_biases(model: CaffeModel) -> Contents:
    layers = [encode_layer(name, model[name].matrix, bound) for name, bound in BOUNDS.items()]
    changes = []
    for name in BOUNDS:
        values = np.rint(model[name].blobs[1].data * 16) / 16 + 0.0
        changes.append(ChangedBlob(name, 1, 1 / 32, values.astype("<f4").tobytes()))
    contents = assemble(model, list(BOUNDS), layers, "small", changes=changes)
    assert contents.rest.chunks[0].packing == Packing.GRIDS
    return contents


def hostile(sample: Sample | Input, seed: int) -> bytes:
    """Give the hostile file of a seed: one in four damaged, the others forged."""
    if isinstance(sample, Input):
        return sample.hostile(seed)
    random = Random(seed)
    return (damage if seed % 4 == 0 else forge)(sample.file, random)


def outcome(sample: Sample | Input, path: Path, seed: int) -> str:
    """Decode, expand or read a file; the kind of error, "right" or "read", or "WRONG"."""
    if isinstance(sample, Input):
        return sample.outcome(path)
    limits = Limits(memory=MEMORY)
    try:
        if seed % 3:
            decoded = decode(path, limits=limits, threads=1 + seed % 2)
            right = {name: matrix.tobytes() for name, matrix in decoded.items()} == sample.weights
        else:
            target = path.with_suffix(".out")
            expand(path, target, limits=limits)
            right = target.read_bytes() == sample.caffemodel
    except DeepSZError as error:
        return type(error).__name__
    return "right" if right else "WRONG"


def _child(
    given: Sequence[Sample | Input], seeds: range, folder: Path, results: Connection
) -> None:
    # glibc keeps freed blocks of growing size for later ones; here each file stands for itself.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever C code it is in
    path = folder / f"{os.getpid()}.dsz"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Far over what is allowed: a run-away allocation shall not take the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (4 << 30),) * 2)
    for seed in seeds:
        sample = given[seed % len(given)]
        path.write_bytes(hostile(sample, seed))
        signal.alarm(SECONDS)
        try:
            result = outcome(sample, path, seed)
        except BaseException as error:
            result = f"ALIEN {type(error).__name__}: {error}"
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if peak - before > MEMORY + SLACK:
            result = f"MEMORY {peak - before:,} bytes"
            before = peak
        results.send((seed, result))
    path.unlink()


def run(given: Sequence[Sample | Input], seeds: range, folder: Path) -> Iterator[tuple[int, str]]:
    """Read the hostile files of `seeds` in child processes, a fresh one after each death."""
    context = multiprocessing.get_context("fork")
    while seeds:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(given, seeds, folder, theirs))
        child.start()
        theirs.close()
        try:
            while seeds:
                yield ours.recv()
                seeds = seeds[1:]
        except EOFError:
            child.join()
            code = child.exitcode
            ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
            yield seeds[0], "HANG" if ended == "SIGALRM" else f"CRASH {ended}"
            seeds = seeds[1:]
        child.join()


def is_failure(result: str) -> bool:
    """Tell whether an outcome is one that must not be."""
    return result.split()[0].isupper()


def main() -> None:
    """Run the fuzzer from the command line; exit code 1 when it has found something."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--inputs", type=int, default=20_000, help="of each other kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first file")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: list[tuple[str, Sequence[Sample | Input], int]] = [
            (".dsz files", samples(folder), arguments.files),
            *((kind.name, [kind], arguments.inputs) for kind in inputs(folder)),
        ]
        for kind, given, count in kinds:
            seeds = range(arguments.first, arguments.first + count)
            failed |= _report(kind, given, seeds, folder, arguments.workers)
    sys.exit(failed)


def _report(
    kind: str, given: Sequence[Sample | Input], seeds: range, folder: Path, workers: int
) -> bool:
    """Read the hostile files of one kind and print what came of them; whether some failed."""
    from rich.progress import track

    began = time.monotonic()
    batches = [seeds[start : start + _BATCH] for start in range(0, len(seeds), _BATCH)]
    counts: Counter[str] = Counter()
    failures = []
    with ThreadPoolExecutor(workers) as threads:
        done = threads.map(lambda seeds: list(run(given, seeds, folder)), batches)
        for batch in track(done, kind, total=len(batches)):
            for seed, result in batch:
                counts[result.split()[0]] += 1
                if is_failure(result):
                    failures.append(f"seed {seed}, {given[seed % len(given)].name}: {result}")
    print(f"{kind}: {len(seeds):,} in {time.monotonic() - began:.0f} s, {len(given)} samples")
    for result, count in counts.most_common():
        print(f"{count:>9,}  {result}")
    for failure in failures:
        print(failure)
    return bool(failures)


if __name__ == "__main__":
    main()
