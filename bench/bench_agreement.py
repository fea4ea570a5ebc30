"""The promise of an agreement: what some pictures chose holds on others, in nine of ten draws.

    python bench/bench_agreement.py [lenet-5|squeezenet] [DRAWS]

A draw takes 500 pictures at random, compresses the network with them, and counts on pictures that
chose nothing, whose answers stayed the same: on 500 of them, and on all of them, which says what
the agreement truly is. LeNet-5, with ``--agreement 0.99``, is drawn from MNIST's 10,000 test
digits. SqueezeNet, with ``--agreement 0.95``, takes ``DEEPSZ_SQUEEZENET``, a folder with
deploy.prototxt and squeezenet.caffemodel, and ``DEEPSZ_PICTURES``, one with at least 1,000
pictures; it is left out where these are not set.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from frame import Row, show
from numpy.typing import NDArray

from deepsz_caffe import Pictures, compress, open_pictures, preprocessing_of
from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.networks import ROOT, network
from deepsz_caffe.runtime.evaluate import answer
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.sources import read_lmdb_images

CHOSEN, JUDGED = 500, 500
#: agreements
LENET_SHARE, SQUEEZENET_SHARE = 0.99, 0.95
#: draws, unless said
LENET_DRAWS, SQUEEZENET_DRAWS = 20, 3

#: Gives the pictures of these numbers.
Choose = Callable[[Sequence[int] | NDArray[np.intp]], Pictures]


def draws(
    title: str,
    deploy: Path,
    weights: Path,
    choose: Choose,
    total: int,
    count: int,
    share: float,
) -> list[Row]:
    """Compress with `count` draws of pictures and judge each file by the others."""
    held_500, held_all, ratios = 0, 0, []
    with tempfile.TemporaryDirectory() as folder, CaffePool(1) as pool:
        everything = choose(range(total))
        before = pool.submit(answer, str(deploy), str(weights), everything).result()
        out = Path(folder) / "net.dsz"
        for seed in range(count):
            order = np.random.default_rng(seed).permutation(total)
            result = compress(
                deploy,
                weights,
                out,
                agreement=share,
                data=choose(order[:CHOSEN]),
                profile="fast",
            )
            after = pool.submit(answer, str(deploy), str(out), everything).result()
            same = (after == before)[order[CHOSEN:]]
            held_500 += bool(same[:JUDGED].mean() >= share)
            held_all += bool(same.mean() >= share)
            ratios.append(result.summary["file_ratio"])
            print(
                f"{title}, draw {seed}: {result.after.top1_correct} of {CHOSEN} the same, of "
                f"others {same[:JUDGED].sum()} of {JUDGED} and {same.mean():.2%} of {same.size:,}; "
                f"{result.summary['file_bytes']:,} bytes, {ratios[-1]:.1f}×",
                flush=True,
            )
    what = f"{title}: part of {count} draws that agree on {share:.0%}"
    return [
        Row(f"{what} of {JUDGED} others", held_500 / count, 0.9, unit=""),
        Row(f"{what} of all others", held_all / count, 0.9, unit=""),
    ]


def lenet_5(count: int) -> list[Row]:
    entry = network("lenet-5")
    images = read_lmdb_images(str(ROOT / "data" / "mnist" / "test_lmdb"), 0, color=False)
    digits = np.stack([image[:, :, 0] for image, _ in islice(images, None)])
    deploy = entry.path("deploy.prototxt")
    how = preprocessing_of(deploy, scale=1 / 256)
    with tempfile.TemporaryDirectory() as folder:
        files = iter(range(1 << 30))

        def choose(numbers: Sequence[int] | NDArray[np.intp]) -> Pictures:
            path = Path(folder) / f"{next(files)}.npz"
            np.savez(path, data=digits[np.asarray(numbers)])
            return open_pictures(path, how)

        weights = ROOT / "models" / entry.folder / "pruned.caffemodel"
        return draws(entry.title, deploy, weights, choose, len(digits), count, LENET_SHARE)


def squeezenet(count: int) -> list[Row]:
    place, pictures = os.environ.get("DEEPSZ_SQUEEZENET"), os.environ.get("DEEPSZ_PICTURES")
    if not place or not pictures:
        print("SqueezeNet: left out, DEEPSZ_SQUEEZENET and DEEPSZ_PICTURES are not set")
        return []
    deploy = Path(place) / "deploy.prototxt"
    how = preprocessing_of(deploy, mean=(104, 117, 123), crop="center")
    files = open_pictures(pictures, how).files
    with tempfile.TemporaryDirectory() as folder:

        def choose(numbers: Sequence[int] | NDArray[np.intp]) -> Pictures:
            path = Path(folder) / "list.txt"
            path.write_text("".join(f"{Path(files[n]).resolve()}\n" for n in numbers))
            return open_pictures(path, how)

        weights = Path(place) / "squeezenet.caffemodel"
        return draws("SqueezeNet", deploy, weights, choose, len(files), count, SQUEEZENET_SHARE)


if __name__ == "__main__":
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    asked = [each for each in sys.argv[1:] if not each.isdigit()] or ["lenet-5", "squeezenet"]
    number = next((int(each) for each in sys.argv[1:] if each.isdigit()), None)
    rows = []
    if "lenet-5" in asked:
        rows += lenet_5(number or LENET_DRAWS)
    if "squeezenet" in asked:
        rows += squeezenet(number or SQUEEZENET_DRAWS)
    sys.exit(show("Agreement", rows))
