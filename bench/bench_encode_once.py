"""Compress LeNet-300-100 with profile `small`: how often a layer is encoded, and how long it takes.

    python bench/bench_encode_once.py [OLD]

OLD is the `deepsz` of an older version, to be timed in turns with this one's: for example of a
worktree of commit 37704c9, which encoded 66 times for 27 pairs of layer and bound.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from threading import Lock

import numpy as np
from frame import Row, show

from deepsz_caffe.api import compress
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.steps.assess import tester

ROUNDS = 3


def encodes(net: Path, weights: Path, out: Path) -> Row:
    """Count what is encoded in one run, by layer, bound and profile."""
    counted: Counter[tuple[str, float, str]] = Counter()
    lock, encode_layer = Lock(), tester.encode_layer

    def counting(name, matrix, bound, profile):
        with lock:
            counted[name, bound, profile] += 1
        return encode_layer(name, matrix, bound, profile)

    tester.encode_layer = counting
    try:
        result = compress(net, weights, out, max_loss=0.002, profile="small", layers="fc")
    finally:
        tester.encode_layer = encode_layer
    total = sum(counted.values())
    print(f"{total} encodes for {len(counted)} pairs, {result.tests} tests", flush=True)
    return Row("LeNet-300-100: encodes / pairs of layer and bound", total / len(counted), 1, True)


def seconds(command: list[object]) -> tuple[float, float]:
    """Run a command; give its time, and the processor time of it and its children."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user
    return after.elapsed - before.elapsed, busy - before.children_system


def main() -> int:
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    entry = network("lenet-300-100")
    net, weights = entry.path("train_val.prototxt"), ROOT / "models/lenet_300_100/pruned.caffemodel"
    with tempfile.TemporaryDirectory() as folder:
        rows = [encodes(net, weights, Path(folder) / "x.dsz")]
        commands = [
            [deepsz, "compress", net, weights, f"{folder}/{number}.dsz", "--max-loss", "0.002"]
            for number, deepsz in enumerate(
                [Path(sys.executable).with_name("deepsz"), *sys.argv[1:]]
            )
        ]
        if len(commands) > 1:
            spent = [seconds([*command, "--profile", "small"]) for command in ROUNDS * commands]
            ours, old = (np.min(spent[number::2], axis=0) for number in (0, 1))
            sizes = [Path(folder, f"{number}.dsz").stat().st_size for number in (0, 1)]
            for number, whose in enumerate(("this version", "the older")):
                time, busy = (ours, old)[number]
                print(f"{whose}: {time:.1f} s, {busy:.1f} s busy, {sizes[number]:,} bytes")
            for what, ratio in zip(("time", "processor time"), ours / old, strict=True):
                rows.append(
                    Row(f"LeNet-300-100: {what} of compress / the older's", ratio, 0.5, True)
                )
    return show("Each pair of layer and bound is encoded once", rows)


if __name__ == "__main__":
    sys.exit(main())
