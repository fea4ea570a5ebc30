"""The default search on the pruned LeNets: its file against the exhaustive grid's, and its tests.

    python bench/bench_search.py [FOLDER]

FOLDER holds lenet_300_100.caffemodel and lenet_5.caffemodel; default: ``models/*/pruned``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from frame import Row, show

from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.steps.assess.search import grid
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.tester import Tester, assess
from deepsz_caffe.steps.optimize import optimize

MAX_LOSS = 0.002


def compare(name: str, weights: Path) -> list[Row]:
    entry = network(name)
    setup = read_setup(entry.path("train_val.prototxt"), weights)
    with CaffeEvaluator(setup) as evaluator:
        tester = Tester(setup, evaluator)
        bounds = grid(1e-3, max(layer.largest for layer in setup.layers))
        found = {
            "default": assess(tester, MAX_LOSS),
            "paper": assess(tester, MAX_LOSS, search="paper"),
            "grid": assess(tester, MAX_LOSS, bounds=bounds),
        }
    sizes = {kind: optimize(each, max_loss=MAX_LOSS).bytes for kind, each in found.items()}
    tests = {kind: each.tests for kind, each in found.items()}
    for kind in found:
        print(f"{entry.title}, {kind}: {sizes[kind]:,} bytes, {tests[kind]} tests", flush=True)
    return [
        Row(
            f"{entry.title}: bytes / the grid's", sizes["default"] / sizes["grid"], 1.02, most=True
        ),
        Row(
            f"{entry.title}: tests / the paper's", tests["default"] / tests["paper"], 0.5, most=True
        ),
    ]


def main() -> int:
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    rows = []
    for name in ("lenet-300-100", "lenet-5"):
        folder = network(name).folder
        weights = ROOT / "models" / folder / "pruned.caffemodel"
        if len(sys.argv) > 1:
            weights = Path(sys.argv[1]) / f"{folder}.caffemodel"
        rows += compare(name, weights)
    return show(f"Default search at a loss of {MAX_LOSS:.1%}", rows)


if __name__ == "__main__":
    sys.exit(main())
