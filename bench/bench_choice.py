"""The configuration that `compress` chooses, against the best of an exhaustive grid.

    python bench/bench_choice.py [NAME ... | NETWORK.prototxt PRUNED [ORIGINAL]]

The grid has every combination of bounds in half steps (1, 1.5, ... 9.5 times a power of ten) at
which a layer alone is not hopeless, each counted as a whole and judged by the same joint check. It
is counted in numpy (`numpy_tail`); Caffe counts again what is taken for the best. For profiles
paper and small, the loss counted against the pruned network and against the unpruned one.

Names: lenet-300-100, lenet-5 (as shipped), lenet-300-100-cifar, lenet-5-cifar (trained here, on
CIFAR-10 in grey, 28 x 28; CIFAR10 in the environment names a folder or archive of it) and branches
(fc layers side by side, trained here on MNIST). AlexNet/CIFAR-10 goes by its files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from frame import WORK, Row, show
from numpy_tail import NumpyTail

from deepsz_caffe.errors import TargetError
from deepsz_caffe.experiments.datasets.cifar10 import read_cifar10
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.steps.assess.search import grid
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.tester import Tester
from deepsz_caffe.steps.compress import Target, choose
from deepsz_caffe.steps.optimize import images_allowed

MAX_LOSS, CONFIDENCE = 0.002, 0.9
PLACE = WORK / "choice"
#: prototxt, pruned and unpruned weights
Files = tuple[Path, Path, Path | None]

BRANCHES = """
name: "branches"
{data}
layer {{ name: "left" type: "InnerProduct" bottom: "data" top: "left"
  inner_product_param {{ num_output: 96 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu_left" type: "ReLU" bottom: "left" top: "left" }}
layer {{ name: "right" type: "InnerProduct" bottom: "data" top: "right"
  inner_product_param {{ num_output: 48 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu_right" type: "ReLU" bottom: "right" top: "right" }}
layer {{ name: "both" type: "Concat" bottom: "left" bottom: "right" top: "both" }}
layer {{ name: "out" type: "InnerProduct" bottom: "both" top: "out"
  inner_product_param {{ num_output: 10 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "label" top: "loss" }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "out" bottom: "label" top: "accuracy"
  include {{ phase: TEST }} }}
"""


def best_of_grid(tester: Tester, evaluator: CaffeEvaluator) -> tuple[int | None, int]:
    """Return the least bytes of all combinations that hold, and how many were looked at."""
    allowed = images_allowed(MAX_LOSS, tester.total)
    ranges = []
    for layer in tester.setup.layers:
        bounds = grid(layer.typical / 10, max(layer.largest, layer.typical), halves=True)
        single = [tester.test(layer.name, bound) for bound in bounds]
        ranges.append([p.bound for p in single if p.loss(negative=False) <= 3 * allowed + 3])
    names = [layer.name for layer in tester.setup.layers]
    sized = sorted(
        (sum(tester.size(n, b) for n, b in zip(names, bounds, strict=True)), bounds)
        for bounds in product(*ranges)
    )
    for place, (size, bounds) in enumerate(sized, 1):
        configuration = dict(zip(names, bounds, strict=True))
        # One image may be decided otherwise in numpy: Caffe has the last word.
        if images_needed(tester.measure(configuration), CONFIDENCE) <= allowed + 1:
            outcome = evaluator.measure(tester.encode_all(configuration))
            if images_needed(outcome, CONFIDENCE) <= allowed:
                return size, place
    return None, len(sized)


def compare(title: str, files: Files) -> Iterator[Row]:
    prototxt, pruned, unpruned = files
    for original in (None, unpruned) if unpruned else (None,):
        setup = read_setup(prototxt, pruned, original=original)
        against = f"{title}, against the {'unpruned' if original else 'pruned'}"
        sizes: dict[str, int] = {}
        with CaffeEvaluator(setup, features=PLACE / "features") as evaluator:
            for profile in ("paper", "small"):
                best, seen = best_of_grid(
                    Tester(setup, NumpyTail(evaluator), profile=profile), evaluator
                )
                tester = Tester(setup, evaluator, profile=profile)
                try:
                    chosen = choose(tester, Target(max_loss=MAX_LOSS, confidence=CONFIDENCE))[1]
                except TargetError as error:
                    print(f"{against}, {profile}: {error}; the grid's best: {best}", flush=True)
                    if best is not None:
                        yield Row(f"{against}, {profile}: bytes / the grid's", np.inf, 1.03, True)
                    continue
                sizes[profile] = chosen.plan.bytes
                print(
                    f"{against}, {profile}: {chosen.plan.bytes:,} bytes, {tester.tests} tests; "
                    f"the grid's best: {best}, after {seen}",
                    flush=True,
                )
                if best is not None:
                    ratio = chosen.plan.bytes / best
                    yield Row(f"{against}, {profile}: bytes / the grid's", ratio, 1.03, most=True)
        if len(sizes) == 2:
            yield Row(f"{against}: small / paper", sizes["small"] / sizes["paper"], 1.0, most=True)


def shipped(name: str) -> Files:
    entry = network(name)
    models = ROOT / "models" / entry.folder
    prototxt = entry.path("train_val.prototxt")
    return prototxt, models / "pruned.caffemodel", models / "dense.caffemodel"


def on_cifar(name: str) -> Files:
    """Train and prune a LeNet for CIFAR-10 in grey, 28 x 28."""
    data = PLACE / "cifar"
    if not data.exists():
        source = os.environ.get("CIFAR10", "data/cifar-10-binary.tar.gz")
        for part, (images, labels) in zip(("train", "test"), read_cifar10(source), strict=True):
            grey = images.mean(axis=1, keepdims=True)[:, :, 2:30, 2:30].astype(np.uint8)
            order = np.random.default_rng(0).permutation(len(grey))
            np.savez(PLACE / f"{part}.npz", data=grey[order], label=labels[order])
        deepsz("lmdb", PLACE / "test_lmdb", "--images", PLACE / "test.npz")
        deepsz("lmdb", data, "--images", PLACE / "train.npz", "--split", "validation=0.2")
        (PLACE / "test_lmdb").rename(data / "test_lmdb")
    entry = network(name)
    text = entry.path("train_val.prototxt").read_text().replace("data/mnist", str(data))
    keep = {layer.name: min(2.5 * layer.keep, 0.6) for layer in entry.fc}
    return trained(f"{name}-cifar", text, 0.03, keep)


def branches() -> Files:
    text = network("lenet-300-100").path("train_val.prototxt").read_text()
    data = text[text.index("layer {") : text.index('layer {\n  name: "ip1"')]
    keep = {"left": 0.1, "right": 0.1, "out": 0.4}
    return trained("branches", BRANCHES.format(data=data), 0.05, keep)


def trained(name: str, text: str, rate: float, keep: dict[str, float]) -> Files:
    """Train a network briefly and prune it, unless that was done before."""
    place = PLACE / name
    place.mkdir(exist_ok=True)
    prototxt, solver = place / "train_val.prototxt", place / "solver.prototxt"
    dense, pruned = place / "dense.caffemodel", place / "pruned.caffemodel"
    prototxt.write_text(text)
    solver.write_text(
        f'net: "{prototxt}" test_state {{ stage: "validation" }} test_iter: 100\n'
        f"test_interval: 500 base_lr: {rate} lr_policy: 'poly' power: 1 momentum: 0.9\n"
        "weight_decay: 0.0005 max_iter: 2000 snapshot: 1000 random_seed: 1\n"
    )
    if not dense.exists():
        deepsz("train", solver, "--out", dense)
    if not pruned.exists():
        parts = ",".join(f"{layer}={part}" for layer, part in keep.items())
        deepsz("prune", solver, "--weights", dense, "--keep", parts, "--out", pruned)
    return prototxt, pruned, dense


def deepsz(*words: object) -> None:
    program = Path(sys.executable).with_name("deepsz")
    subprocess.run([program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


NETWORKS = {
    "lenet-300-100": lambda: shipped("lenet-300-100"),
    "lenet-5": lambda: shipped("lenet-5"),
    "branches": branches,
    "lenet-300-100-cifar": lambda: on_cifar("lenet-300-100"),
    "lenet-5-cifar": lambda: on_cifar("lenet-5"),
}


def main() -> int:
    words = sys.argv[1:]
    given = [Path(word).absolute() for word in words]
    os.chdir(ROOT)
    PLACE.mkdir(parents=True, exist_ok=True)
    prepare(ROOT / "data" / "mnist")
    rows: list[Row] = []
    if words and words[0] not in NETWORKS:
        prototxt, pruned, *original = given
        files = prototxt, pruned, original[0] if original else None
        rows += compare(prototxt.parent.name, files)
    else:
        for name in words or NETWORKS:
            rows += compare(name, NETWORKS[name]())
    return show(f"Choice at a loss of {MAX_LOSS:.1%}", rows)


if __name__ == "__main__":
    sys.exit(main())
