"""Whole networks: every layer with weights compressed, the file against the caffemodel.

    python bench/bench_whole.py

LeNet-5 as shipped, its fc layers pruned to the paper's densities and its convolutions dense, by
``compress --layers all --search divergence --profile small --max-loss 0.002`` against the unpruned
network, whose file is the caffemodel that counts. Bounds are chosen on the validation split; the
test set is counted once. NNC's figure is that of the ISO coder, 22,177 bytes at 9,910 right.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from frame import Row, show

from deepsz_caffe import compress
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.networks import ROOT, network

MAX_LOSS = 0.002
#: bytes and right answers of the ISO coder on the same network
NNC_BYTES, NNC_RIGHT = 22_177, 9_910


def lenet_5() -> list[Row]:
    entry = network("lenet-5")
    shipped = ROOT / "models" / entry.folder
    with tempfile.TemporaryDirectory() as folder:
        result = compress(
            entry.path("train_val.prototxt"),
            shipped / "pruned.caffemodel",
            Path(folder) / "whole.dsz",
            max_loss=MAX_LOSS,
            original=shipped / "dense.caffemodel",
            layers="all",
            search="divergence",
            profile="small",
        )
    size, right = result.summary["file_bytes"], result.after.top1_correct
    print(f"{entry.title}: {size:,} bytes, {right:,} of {result.after.total:,} right", flush=True)
    return [
        Row("LeNet-5: caffemodel / file", result.summary["file_ratio"], 75),
        Row("LeNet-5: bytes / NNC's", size / NNC_BYTES, 1, most=True),
        Row("LeNet-5: right answers, less NNC's", right - NNC_RIGHT, 0, unit=""),
    ]


if __name__ == "__main__":
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    sys.exit(show("Whole networks", lenet_5()))
