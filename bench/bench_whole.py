"""Whole networks: every layer with weights compressed, the file against the caffemodel.

    python bench/bench_whole.py [lenet-5] [resnet-50] [squeezenet] [alexnet-cifar10]

LeNet-5 as shipped, its fc layers pruned to the paper's densities and its convolutions dense, by
``compress --layers all --search divergence --profile small --biases corrected --max-loss 0.001``
against the unpruned network, whose file is the caffemodel that counts. Bounds are chosen on the
validation split; the test set is counted once. NNC's figures are 22,177 bytes at 9,910 right, from
elsewhere, and what its coder takes here (`nnc_whole`); Deep Compression has its published bits, and
nothing is retrained.

A ResNet-50 of half the width, 5.9 million weights, and pictures, both generated (`narrow_resnet`:
trained weights compress better), without labels by ``--max-change``: chosen on 32 pictures, judged
on 32 others. It takes some ten minutes.

SqueezeNet with Deep Compression's pruned weights, nothing retrained: a random half of the pictures
and their labels choose by ``--max-loss 0.01 --confidence 0.5``, the loss as counted; the other half
judges. It takes ``DEEPSZ_SQUEEZENET``, a folder with deploy.prototxt and squeezenet.caffemodel, and
``DEEPSZ_PICTURES``, one with pictures and labels.txt, lines ``FILE CLASS``; it is left out where
these are not set. Deep Compression's own file has 675,763 bytes.

AlexNet/CIFAR-10 from its shipped file, whose convolutions are those that were trained and whose fc
layers are within their bounds of the pruned ones: the caffemodel before it is too large to ship.
What it loses counts against the network as it was trained, by that network's card. It needs
`deepsz cifar10 data/cifar10`, is left out without, and takes half an hour.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import narrow_resnet
import numpy as np
from frame import WORK, Row, show
from nnc_whole import nnc

from deepsz_caffe import (
    Preprocessing,
    compare,
    compress,
    evaluate,
    expand,
    open_pictures,
    preprocessing_of,
)
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.experiments.baselines.techniques import whole_deep_compression
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.full_size.resnet import SIDE
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.pool import CaffePool

MAX_LOSS = 0.001
#: bytes and right answers of the ISO coder on the same network
NNC_BYTES, NNC_RIGHT = 22_177, 9_910
SEED, PICTURES = 1, 32
#: largest relative change of the last features, and the least ratio to have then
CHANGES = {0.17: 9, 0.08: 7}
#: of SqueezeNet: bytes, and the part of the pictures that may be lost
SQUEEZENET_BYTES, SQUEEZENET_LOSS = 340_000, 0.01
#: of AlexNet/CIFAR-10: the loss, what the trained network has right of the test set, and the bytes
#: of the fc layers in the shipped file
ALEXNET_LOSS, ALEXNET_RIGHT, ALEXNET_FC = 0.0025, 8_138, 3_797_468


def lenet_5() -> list[Row]:
    entry = network("lenet-5")
    shipped = ROOT / "models" / entry.folder
    definition, weights = entry.path("train_val.prototxt"), shipped / "pruned.caffemodel"
    with tempfile.TemporaryDirectory() as folder:
        result = compress(
            definition,
            weights,
            Path(folder) / "whole.dsz",
            max_loss=MAX_LOSS,
            original=shipped / "dense.caffemodel",
            layers="all",
            search="divergence",
            biases="corrected",
            profile="small",
            features=folder,
        )
    size, right = result.summary["file_bytes"], result.after.top1_correct
    print(f"{entry.title}: {size:,} bytes, {right:,} of {result.after.total:,} right", flush=True)
    qp, theirs, theirs_right = nnc(definition, weights, shipped / "dense.caffemodel", MAX_LOSS)
    print(f"NNC at the same loss, qp {qp}: {theirs:,} bytes, {theirs_right:,} right", flush=True)
    shared, shared_right = deep_compression(definition, weights)
    print(f"Deep Compression: {shared:,} bytes, {shared_right:,} right", flush=True)
    return [
        Row("LeNet-5: caffemodel / file", result.summary["file_ratio"], 75),
        Row("LeNet-5: bytes / NNC's", size / NNC_BYTES, 1, most=True),
        Row("LeNet-5: right answers, less NNC's", right - NNC_RIGHT, 0, unit=""),
        Row("LeNet-5: bytes / NNC's as chosen here", size / theirs, 1, most=True),
        Row("LeNet-5: bytes / Deep Compression's, not retrained", size / shared, 1, most=True),
    ]


def deep_compression(definition: Path, weights: Path) -> tuple[int, int]:
    """Give bytes and right answers of Deep Compression at its published bits, not retrained."""
    entry, model = network("lenet-5"), read_caffemodel(weights)
    conv, fc = ({name: model[name].matrix for name in names} for names in (entry.conv, entry.keep))
    layers = whole_deep_compression(conv, fc)
    decoded = {name: layer.decode() for name, layer in layers.items()}
    biases = sum(blob.data.nbytes for layer in model.layers for blob in layer.blobs[1:])
    size = sum(len(layer.to_bytes()) for layer in layers.values()) + biases
    return size, evaluate(definition, weights, replace=decoded).top1_correct


def resnet_50() -> list[Row]:
    folder = WORK / "narrow_resnet"
    with CaffePool(1) as pool:
        definition, weights = pool.submit(narrow_resnet.make, folder, SEED).result()
    how = Preprocessing(shape=(3, SIDE, SIDE), mean=(127.5,))
    sources = []
    for number, name in enumerate(("chosen", "judged")):
        data = narrow_resnet.pictures(PICTURES, SEED + 4 + number)
        np.savez(folder / f"{name}.npz", data=data)
        sources.append(open_pictures(folder / f"{name}.npz", how))
    rows = []
    for change, ratio in CHANGES.items():
        out = folder / f"{change}.dsz"
        start = time.perf_counter()
        result = compress(
            definition,
            weights,
            out,
            max_change=change,
            outputs=("pool5",),
            profile="small",
            biases="corrected",
            data=sources[0],
        )
        minutes = (time.perf_counter() - start) / 60
        found = compare(definition, weights, out, data=sources[1], outputs=("pool5",))
        what = f"narrow ResNet-50, change {change:g}"
        rows += [
            Row(f"{what}: caffemodel / file", result.summary["file_ratio"], ratio),
            Row(f"{what}: on others", found.outputs[0].relative_change, change, True, ""),
            Row(f"{what}: minutes", minutes, 10, True, ""),
        ]
    return rows


def squeezenet() -> list[Row]:
    place, pictures = os.environ.get("DEEPSZ_SQUEEZENET"), os.environ.get("DEEPSZ_PICTURES")
    if not place or not pictures:
        print("SqueezeNet: left out, DEEPSZ_SQUEEZENET and DEEPSZ_PICTURES are not set")
        return []
    deploy, weights = Path(place) / "deploy.prototxt", Path(place) / "squeezenet.caffemodel"
    how = preprocessing_of(deploy, mean=(104, 117, 123), crop="center")
    lines = (Path(pictures) / "labels.txt").read_text().splitlines()
    order = np.random.default_rng(SEED).permutation(len(lines))
    with tempfile.TemporaryDirectory() as folder:
        halves = []
        for number, part in enumerate(np.array_split(order, 2)):
            path = Path(folder) / f"{number}.txt"
            path.write_text("".join(f"{Path(pictures).resolve() / lines[n]}\n" for n in part))
            halves.append(open_pictures(path, how, labelled=True))
        out, start = Path(folder) / "net.dsz", time.perf_counter()
        result = compress(
            deploy,
            weights,
            out,
            max_loss=SQUEEZENET_LOSS,
            confidence=0.5,
            biases="corrected",
            profile="small",
            data=halves[0],
        )
        minutes = (time.perf_counter() - start) / 60
        before, after = (evaluate(deploy, each, data=halves[1]) for each in (weights, out))
    lost = before.top1_correct - after.top1_correct
    print(
        f"SqueezeNet: {result.summary['file_bytes']:,} bytes in {minutes:.1f} minutes; top-1 "
        f"{result.before.top1_correct} → {result.after.top1_correct} of {result.after.total} that "
        f"chose, {before.top1_correct} → {after.top1_correct} of {after.total} others",
        flush=True,
    )
    most = SQUEEZENET_LOSS * after.total
    return [
        Row("SqueezeNet: bytes", result.summary["file_bytes"], SQUEEZENET_BYTES, True, ""),
        Row("SqueezeNet: lost of the others", lost, most, True, ""),
    ]


def alexnet_cifar10() -> list[Row]:
    entry = network("alexnet-cifar10")
    if not (ROOT / "data" / "cifar10" / "validation_lmdb").exists():
        print("AlexNet/CIFAR-10: left out, data/cifar10 is not there")
        return []
    WORK.mkdir(parents=True, exist_ok=True)
    weights, out = WORK / "alexnet_cifar10.caffemodel", WORK / "alexnet_cifar10.dsz"
    expand(ROOT / "models" / entry.folder / "paper.dsz", weights)
    result = compress(
        entry.path("train_val.prototxt"),
        weights,
        out,
        max_loss=ALEXNET_LOSS,
        profile="small",
        biases="corrected",
    )
    with DszFile(out) as file:
        fc = sum(layer.bytes for layer in file.layers if layer.name in entry.keep)
    score = result.after
    print(f"{entry.title}: {out.stat().st_size:,} bytes, {score.top1_correct:,} right", flush=True)
    return [
        Row(f"{entry.title}: caffemodel / file", result.summary["file_ratio"], 45),
        Row(
            f"{entry.title}: loss",
            (ALEXNET_RIGHT - score.top1_correct) / score.total,
            ALEXNET_LOSS,
            most=True,
            unit="",
        ),
        Row(f"{entry.title}: fc layers / those of paper", fc / ALEXNET_FC, 1, most=True),
    ]


if __name__ == "__main__":
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    known = {
        "lenet-5": lenet_5,
        "resnet-50": resnet_50,
        "squeezenet": squeezenet,
        "alexnet-cifar10": alexnet_cifar10,
    }
    rows = [row for name in sys.argv[1:] or known for row in known[name]()]
    sys.exit(show("Whole networks", rows))
