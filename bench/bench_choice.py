"""The configuration that `compress` chooses, against the best of an exhaustive grid.

    python bench/bench_choice.py [NETWORK.prototxt PRUNED [ORIGINAL]]

The grid has every combination of whole-digit bounds, each measured as a whole with the same joint
check. For profiles paper and small, with the loss counted against the pruned network and against
the unpruned one. Default: the shipped LeNets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from frame import Row, show

from deepsz_caffe.errors import TargetError
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


def best_of_grid(tester: Tester) -> int | None:
    """Return the least bytes of all combinations of whole-digit bounds that hold."""
    allowed = images_allowed(MAX_LOSS, tester.total)
    ranges = []
    for layer in tester.setup.layers:
        bounds = grid(layer.typical / 10, max(layer.largest, layer.typical))
        single = [tester.test(layer.name, bound) for bound in bounds]
        ranges.append([p.bound for p in single if p.loss(negative=False) <= 3 * allowed + 3])
    names = [layer.name for layer in tester.setup.layers]
    best = None
    combinations = (dict(zip(names, bounds, strict=True)) for bounds in product(*ranges))
    sized = [(sum(tester.size(n, b) for n, b in each.items()), each) for each in combinations]
    for size, bounds in sorted(sized, key=lambda pair: pair[0]):
        if images_needed(tester.measure(bounds), CONFIDENCE) <= allowed:
            best = size
            break
    return best


def compare(title: str, prototxt: Path, pruned: Path, original: Path | None) -> Iterator[Row]:
    setup = read_setup(prototxt, pruned, original=original)
    against = "unpruned" if original else "pruned"
    sizes: dict[str, int] = {}
    with CaffeEvaluator(setup) as evaluator:
        for profile in ("paper", "small"):
            what = f"{title}, {profile}, against the {against} network"
            tester = Tester(setup, evaluator, profile=profile)
            best = best_of_grid(tester)
            try:
                chosen = choose(tester, Target(max_loss=MAX_LOSS, confidence=CONFIDENCE))[1]
            except TargetError as error:
                print(f"{what}: {error}; the grid's {best}")
                continue
            sizes[profile] = chosen.plan.bytes
            print(f"{what}: {chosen.plan.bytes:,} bytes, {chosen.wholes} measured; grid {best:,}")
            if best is not None:
                yield Row(f"{what}: bytes / the grid's", chosen.plan.bytes / best, 1.03, most=True)
    if len(sizes) == 2:
        ratio = sizes["small"] / sizes["paper"]
        yield Row(f"{title}, against the {against}: small / paper", ratio, 1.0, most=True)


def main() -> int:
    os.chdir(ROOT)
    rows: list[Row] = []
    if len(sys.argv) > 1:
        prototxt, pruned, *original = (Path(argument).absolute() for argument in sys.argv[1:])
        for unpruned in [None, *original]:
            rows += compare(prototxt.parent.name, prototxt, pruned, unpruned)
        return show(f"Choice at a loss of {MAX_LOSS:.1%}", rows)
    prepare(ROOT / "data" / "mnist")
    for name in ("lenet-300-100", "lenet-5"):
        entry = network(name)
        models = ROOT / "models" / entry.folder
        for unpruned in (None, models / "dense.caffemodel"):
            prototxt = entry.path("train_val.prototxt")
            rows += compare(entry.title, prototxt, models / "pruned.caffemodel", unpruned)
    return show(f"Choice at a loss of {MAX_LOSS:.1%}", rows)


if __name__ == "__main__":
    sys.exit(main())
