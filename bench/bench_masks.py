"""What holding masks costs a training: steps of the solver with and without, in turns.

LeNet-300-100 (batch 100) and the fc layers of AlexNet (batch 64), the paper's densities, generated
images: a step takes as long whatever the values are.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from frame import Row, best_times, show

from deepsz_caffe.runtime.masked import FixedMasks, MaskedWeights
from deepsz_caffe.runtime.worker import import_caffe

#: name, inputs, layers with outputs and densities, batch, steps a round, rounds, cost at most
CASES = (
    ("LeNet-300-100", 784, ((300, 0.08), (100, 0.09), (10, 0.26)), 100, 40, 9, 1.08),
    ("AlexNet's fc layers", 9216, ((4096, 0.09), (4096, 0.09), (1000, 0.25)), 64, 1, 4, 1.25),
)

DATA = """layer {{ name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param {{ shape {{ dim: {batch} dim: {inputs} }} shape {{ dim: {batch} }}
    data_filler {{ type: "gaussian" }} data_filler {{ type: "constant" value: 1 }} }} }}
"""
LAYER = """layer {{ name: "ip{n}" type: "InnerProduct" bottom: "{bottom}" top: "ip{n}"
  inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}
"""
RELU = 'layer {{ name: "relu{n}" type: "ReLU" bottom: "ip{n}" top: "ip{n}" }}\n'
LOSS = 'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "{top}" bottom: "label" }}\n'
SOLVER = """net: "{net}" base_lr: 1e-4 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005
max_iter: 1000000 display: 0 snapshot_after_train: false
"""


def solver_of(folder: Path, inputs: int, sizes: list[int], batch: int):
    """Build a solver of some fc layers."""
    text, bottom = DATA.format(batch=batch, inputs=inputs), "data"
    for n, outputs in enumerate(sizes):
        text += LAYER.format(n=n, bottom=bottom, outputs=outputs)
        bottom = f"ip{n}"
        text += RELU.format(n=n) if n + 1 < len(sizes) else LOSS.format(top=bottom)
    (folder / "net.prototxt").write_text(text)
    (folder / "solver.prototxt").write_text(SOLVER.format(net=folder / "net.prototxt"))
    return import_caffe().get_solver(str(folder / "solver.prototxt"))


def measure(inputs, layers, batch, steps, rounds) -> float:
    """Return the time of masked steps over that of plain ones."""
    with tempfile.TemporaryDirectory() as folder:
        solver = solver_of(Path(folder), inputs, [outputs for outputs, _ in layers], batch)
    random = np.random.default_rng(1)
    masks = {}
    for n, (_, keep) in enumerate(layers):
        masks[f"ip{n}"] = random.random(solver.net.params[f"ip{n}"][0].data.shape, "f4") < keep
    weights = MaskedWeights(solver.net, FixedMasks(masks), 1)
    weights.change(0)
    step = partial(solver.step, 1)

    def plain() -> None:
        for _ in range(steps):
            step()

    def masked() -> None:
        for iteration in range(1, steps + 1):
            weights.change(iteration)
            weights.step(iteration, step)

    best = best_times(rounds, plain, masked)
    return best[1] / best[0]


def main() -> int:
    rows = [Row(name, measure(*sizes), most, most=True) for name, *sizes, most in CASES]
    return show("masked steps of the solver, over plain ones", rows)


if __name__ == "__main__":
    sys.exit(main())
