"""How far the divergences of single layers add up to that of all: the figure as for the losses.

    python bench/bench_divergences.py [lenet-5] [resnet-50]

Random combinations of layers at random error bounds, as profile small rounds them with corrected
biases: LeNet-5 as shipped, nats on its validation split; the narrow ResNet-50 of `bench_whole`,
relative squared changes of the last features on 32 generated pictures. The figures are written
into data/bench/. The second takes ten minutes.
"""

from __future__ import annotations

import os
import sys

import narrow_resnet
import numpy as np
from frame import WORK, Row, show

from deepsz_caffe import Preprocessing, open_pictures
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.full_size.resnet import SIDE
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.experiments.pages.figures import draw_divergences
from deepsz_caffe.experiments.results import JointDivergence
from deepsz_caffe.experiments.whole import COMBINATIONS, PARTS, PROFILE, joint_divergences
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.steps.assess.setup import Setup, read_setup
from deepsz_caffe.steps.assess.tester import Tester

SEED, PICTURES = 1, 32
#: of the deep network, fewer
FEW_PARTS, FEW = (0.1, 0.3), 12


def lenet_5() -> list[Row]:
    prepare(ROOT / "data" / "mnist")
    entry = network("lenet-5")
    weights = ROOT / "models" / entry.folder / "pruned.caffemodel"
    setup = read_setup(entry.path("train_val.prototxt"), weights, layers="all")
    with CaffeEvaluator(setup, whole=True) as evaluator:
        found = joint_divergences(_tester(setup, evaluator), PARTS, COMBINATIONS)
    return _shown(entry.title, found, "nats")


def resnet_50() -> list[Row]:
    folder = WORK / "narrow_resnet"
    with CaffePool(1) as pool:
        definition, weights = pool.submit(narrow_resnet.make, folder, SEED).result()
    np.savez(folder / "some.npz", data=narrow_resnet.pictures(PICTURES, SEED + 4))
    data = open_pictures(folder / "some.npz", Preprocessing(shape=(3, SIDE, SIDE), mean=(127.5,)))
    setup = read_setup(definition, weights, layers="all", own_data=False, outputs=("pool5",))
    with CaffeEvaluator(setup, data=data, whole=True) as evaluator:
        found = joint_divergences(_tester(setup, evaluator), FEW_PARTS, FEW)
    return _shown("narrow ResNet-50", found, "squared change")


def _tester(setup: Setup, evaluator: CaffeEvaluator) -> Tester:
    return Tester(setup, evaluator, profile=PROFILE, rounded=True, biases="corrected")


def _shown(title: str, found: tuple[JointDivergence, ...], unit: str) -> list[Row]:
    """Write the figure, and give the middle and both ends of what all is of the sum."""
    file = WORK / f"divergences-{title.replace(' ', '-').lower()}.png"
    WORK.mkdir(parents=True, exist_ok=True)
    draw_divergences({title: found}, unit).savefig(file)
    print(file)
    parts = [one.together / one.sum_of_single for one in found]
    marks = {"least": 0, "a tenth": 10, "half": 50, "nine tenths": 90, "most": 100}
    return [
        Row(f"{title}: all / sum, {name} of {len(parts)}", float(np.percentile(parts, mark)))
        for name, mark in marks.items()
    ]


if __name__ == "__main__":
    os.chdir(ROOT)
    known = {"lenet-5": lenet_5, "resnet-50": resnet_50}
    rows = [row for name in sys.argv[1:] or known for row in known[name]()]
    sys.exit(show("Divergences of layers and of all together", rows))
