"""Assessment against running the whole network for every test, at full size; scaling; memory.

    python bench/bench_assess.py [alexnet|vgg-16|lenet-5|scaling ...]

The whole network is timed on a sample of batches, in the middle of the runs of ours, and the time
extrapolated to all images and all tests: forward passes only, nothing else is counted for it. Ours
is everything from opening the files to the finished assessment: the pass over the body, encoding,
decoding, tests. Weights and images of AlexNet and VGG-16 are generated, so losses mean nothing.
On a machine that does other work too, the ratios of processor time say more than those of time.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from pathlib import Path

from frame import WORK, Row, show
from whole_network import memory, whole_batches

from deepsz_caffe.experiments.datasets.mnist import prepare
from deepsz_caffe.experiments.full_size.generated import write_caffemodel, write_images
from deepsz_caffe.experiments.networks import ROOT, Network, network
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.tail import measure_weights
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.tester import Tester, assess

BOUNDS = [number * 1e-3 for number in range(1, 10)]


def prepared(net: Network, images: int) -> tuple[Path, Path]:
    WORK.mkdir(parents=True, exist_ok=True)
    weights, data = WORK / f"{net.folder}.caffemodel", WORK / f"imagenet_{images}_lmdb"
    if not weights.exists():
        write_caffemodel(net, weights)
    if not data.exists():
        write_images(data, images, (3, 256, 256), 1000)
    return weights, data


def processor_time() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def sample(net: Network, weights: Path, data: str | None, batches: int) -> tuple[int, list[float]]:
    with CaffePool(1) as pool:
        job = (str(net.path("train_val.prototxt")), str(weights), data, batches)
        return pool.submit(whole_batches, *job).result()


def against_whole(
    net: Network, weights: Path, data: str | None, targets: dict[str, float], batches: int
) -> list[Row]:
    """Time one full assessment, and the whole network before and after it."""
    size, before = sample(net, weights, data, batches)
    start, used = time.perf_counter(), processor_time()
    setup = read_setup(net.path("train_val.prototxt"), weights, own_data=data is None)
    with CaffeEvaluator(setup, data=data) as evaluator:
        body = time.perf_counter() - start
        found = assess(Tester(setup, evaluator), bounds=BOUNDS)
    ours, used = time.perf_counter() - start, processor_time() - used
    after = sample(net, weights, data, batches)[1]
    batch = [statistics.median(column) for column in zip(*before, *after, strict=True)]
    whole, whole_used = (one * found.total / size * found.tests for one in batch)
    print(
        f"{net.title}: a batch of {size} {1e3 * batch[0]:.0f} ms; {found.tests} tests on "
        f"{found.total} images: whole network {whole:.0f} s (extrapolated), ours {ours:.1f} s, "
        f"of which the body {body:.1f} s; processor time {whole_used:.0f} s and {used:.1f} s",
        flush=True,
    )
    rows = [Row(f"{net.title}: whole network / ours", whole / ours, targets["all"])]
    rows.append(Row(f"{net.title}: the same in processor time", whole_used / used))
    if "tests" in targets:
        what = f"{net.title}: whole network / our tests alone"
        rows.append(Row(what, whole / (ours - body), targets["tests"]))
    return rows


def alexnet() -> list[Row]:
    net = network("alexnet")
    weights, data = prepared(net, 1000)
    return against_whole(net, weights, str(data), {"all": 15}, 6)


def vgg_16() -> list[Row]:
    net = network("vgg-16")
    weights, data = prepared(net, 200)
    return against_whole(net, weights, str(data), {"all": 20, "tests": 60}, 2)


def lenet_5() -> list[Row]:
    os.chdir(ROOT)
    prepare(ROOT / "data" / "mnist")
    net = network("lenet-5")
    weights = ROOT / "models" / "lenet_5" / "dense.caffemodel"
    pruned = weights.with_name("pruned.caffemodel")
    return against_whole(net, pruned if pruned.exists() else weights, None, {"all": 6}, 50)


def scaling() -> list[Row]:
    """Two workers of one BLAS thread against one; and the memory of a worker.

    Tests alone are layers encoded before, decoded and run by the workers. In a whole assessment the
    calling process encodes meanwhile, about as long as a test takes: with one worker on the other
    core, with two beside them. So a second worker gains less there.
    """
    net = network("alexnet")
    weights, data = prepared(net, 1000)
    features = WORK / "features"
    alone = {1: float("inf"), 2: float("inf")}
    whole = dict(alone)
    grown = 0
    setup = read_setup(net.path("train_val.prototxt"), weights, own_data=False)
    for _ in range(2):
        for workers in alone:
            with (
                CaffePool(workers, 1) as pool,
                CaffeEvaluator(
                    setup, data=str(data), executor=pool, features=features
                ) as evaluator,
            ):
                tester = Tester(setup, evaluator)
                assess(tester, bounds=BOUNDS[4:5])  # processes have started, files are read
                start = time.perf_counter()
                assess(tester, bounds=BOUNDS[:4])
                whole[workers] = min(whole[workers], time.perf_counter() - start)
                layers = [tester.encode("fc6", bound) for bound in BOUNDS[:6]]
                start = time.perf_counter()
                folder = evaluator.features.folder
                waiting = [pool.submit(measure_weights, folder, {"fc6": each}) for each in layers]
                for each in waiting:
                    each.result()
                alone[workers] = min(alone[workers], time.perf_counter() - start)
                grown = max(map(memory, pool.processes()))
    # What the largest tail, from fc6 on, holds: its weights, and a batch of every blob in float32.
    tail = sum(layer.dense_bytes + 4 * layer.shape[0] for layer in net.fc)
    batch = 4 * 500 * (9216 + sum(layer.shape[0] for layer in net.fc))
    over = grown - tail - batch
    name = "AlexNet: one worker / two workers of one BLAS thread"
    return [
        Row(f"{name}, tests alone", alone[1] / alone[2], 1.7),
        Row(f"{name}, whole assessment", whole[1] / whole[2]),
        Row("AlexNet: a worker's memory over weights and batch", over / 1e6, 300, True, " MB"),
    ]


def main() -> int:
    parts = {"lenet-5": lenet_5, "alexnet": alexnet, "scaling": scaling, "vgg-16": vgg_16}
    missed = 0
    for name in sys.argv[1:] or parts:
        missed |= show(f"Assessment: {name}", parts[name]())
    return missed


if __name__ == "__main__":
    sys.exit(main())
