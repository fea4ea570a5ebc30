"""Running from the compressed form against Caffe's InnerProduct, one thread.

python bench/bench_running.py [NETWORK …]

The fc layers of AlexNet and VGG-16 with generated weights, one after another with their ReLUs, as
`load_net` gives them: dense, and with ``compressed=True``. To the first output the dense one takes
all that `load_net` does by default, a trial in a child process among it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from frame import WORK, Row, show

from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.experiments.full_size.generated import write_caffemodel
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.linear import CompressedLinear
from deepsz_caffe.steps.encode import encode

#: with the bounds of `bench_codecs`, and those that give VGG-16's fc6 as many bits a non-zero
BOUNDS = {
    "alexnet": {"fc6": 7e-3, "fc7": 7e-3, "fc8": 5e-3},
    "vgg-16": {"fc6": 5e-3, "fc7": 5e-3, "fc8": 5e-3},
}
#: network -> (batch -> least ratio of times), least ratio of memory
TARGETS = {
    "alexnet": ({1: 15, 8: 8, 64: 2.5}, 14),
    "vgg-16": ({1: 25, 8: 20, 64: 6}, 35),
}
#: outputs, inputs and positions of SqueezeNet's
CONVOLUTIONS = ((16, 96, 3025), (64, 16, 3025), (32, 256, 729), (64, 512, 169), (1000, 512, 169))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HERE = Path(__file__).resolve().parent


def prepare(name):
    """Write the fc layers as a prototxt and a `.dsz` file; give both."""
    fc_only = replace(network(name), conv={})
    folder = WORK / "running" / name
    folder.mkdir(parents=True, exist_ok=True)
    prototxt, weights, path = (folder / f"fc{end}" for end in (".prototxt", ".caffemodel", ".dsz"))
    inputs = fc_only.fc[0].shape[1]
    lines = [
        'layer { name: "data" type: "Input" top: "data"',
        f"  input_param {{ shape {{ dim: 1 dim: {inputs} }} }} }}",
    ]
    bottom = "data"
    for layer in fc_only.fc:
        lines += [
            f'layer {{ name: "{layer.name}" type: "InnerProduct" bottom: "{bottom}"',
            f'  top: "{layer.name}" inner_product_param {{ num_output: {layer.shape[0]} }} }}',
        ]
        bottom = layer.name
        if layer is not fc_only.fc[-1]:
            lines.append(
                f'layer {{ name: "relu_{bottom}" type: "ReLU" bottom: "{bottom}" top: "{bottom}" }}'
            )
    prototxt.write_text("\n".join(lines) + "\n")
    if not weights.exists():
        write_caffemodel(fc_only, weights)
    write_dsz(path, encode(prototxt, weights, BOUNDS[name], "fast"))
    return str(prototxt), str(path)


def task(name, *arguments, **environment):
    command = [sys.executable, HERE / "one_process.py", name, *arguments]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return json.loads(run.stdout.splitlines()[-1])


def forward_rows(name, prototxt, path):
    batches = TARGETS[name][0]
    found = task("forward", prototxt, path, json.dumps(list(batches)), OPENBLAS_NUM_THREADS="1")
    rows = []
    for batch, target in batches.items():
        dense, ours, differ = found[str(batch)]
        what = f"batch {batch}: InnerProduct {1e3 * dense:.2f} ms, compressed {1e3 * ours:.2f} ms"
        rows.append(Row(what, dense / ours, target))
        rows.append(Row(f"batch {batch}: largest difference / largest output", differ, 1e-5, True))
    return rows


def layer_rows(path):
    """Each layer at every batch beside numpy's BLAS with the dense matrix: it should never lose."""
    rows = []
    for layer, ratios in task(
        "layers", path, json.dumps(BATCHES), OPENBLAS_NUM_THREADS="1"
    ).items():
        ratio, batch = min((ratio, batch) for batch, ratio in ratios.items())
        what = f"{layer} beside numpy's BLAS, batches to {BATCHES[-1]}; least at {batch}"
        rows.append(Row(what, ratio, 1))
    return rows


def elsewhere_rows(path):
    """What the products would bring where they are not used."""
    batch, batches = 500, 20
    found = task("tails", path, str(batch), str(batches), OPENBLAS_NUM_THREADS="1")
    what = f"decoding and {batches} products of batch {batch}, as in assessments, beside BLAS"
    rows = [Row(f"{layer}: {what}", ratio) for layer, ratio in found.items()]
    found = task("ones", "0.3", json.dumps(CONVOLUTIONS), OPENBLAS_NUM_THREADS="1")
    return rows + [
        Row(f"convolution of 1 × 1, {shape}, 30 % kept, beside BLAS", ratio)
        for shape, ratio in found.items()
    ]


def memory_rows(name, prototxt, path):
    with DszFile(path) as file:
        dense = sum(entry.dense_bytes for entry in file.layers)
        names = [entry.name for entry in file.layers]
    ours = sum(CompressedLinear.from_dsz(path, n, bias=False).nbytes for n in names)
    what = f"fc weights: dense {dense:,} bytes, compressed {ours:,}"
    return [Row(what, dense / ours, TARGETS[name][1])]


def process_rows(prototxt, path):
    cache = str(Path(path).with_suffix(".cache"))
    forms = {"dense": (), "compressed": (), "compressed and mapped": (cache,)}
    best = {}
    for _ in range(4):  # in turns
        for form, more in forms.items():
            run = task("first_output", prototxt, path, form.split()[0], *more)
            kept = best.setdefault(form, run)
            best[form] = {key: min(kept[key], run[key]) for key in run}
    rows = []
    for form in list(forms)[1:]:
        dense, ours = best["dense"], best[form]
        what = "greatest memory of the process"
        what += f", MB: {dense['peak'] / 1e6:,.0f}, {form} {ours['peak'] / 1e6:,.0f}"
        rows.append(Row(what, dense["peak"] / ours["peak"], 6))
        added = [(run["resident"] - run["before"]) / 1e6 for run in (dense, ours)]
        what = f"resident for the network, MB: {added[0]:,.0f}, {form} {added[1]:,.0f}"
        rows.append(Row(what, added[0] / added[1]))
        times = [1e3 * run["seconds"] for run in (dense, ours)]
        what = f"file to first output, ms: {times[0]:,.0f}, {form} {times[1]:,.1f}"
        rows.append(Row(what, times[0] / times[1], 40))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(TARGETS), metavar="NETWORK")
    names = parser.parse_args().networks
    print(
        f"instructions: {('portable', 'AVX2', 'AVX-512')[kernels.instruction_set()]}; "
        f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '')!r}, one thread"
    )
    missed = 0
    for name in names:
        prototxt, path = prepare(name)
        rows = forward_rows(name, prototxt, path)
        rows += memory_rows(name, prototxt, path)
        rows += process_rows(prototxt, path)
        missed |= show(f"{network(name).title}: fc layers in Caffe", rows)
        missed |= show(f"{network(name).title}: each layer with numpy", layer_rows(path))
        if name == "alexnet":
            show("Where such products are not used", elsewhere_rows(path))
    return missed


if __name__ == "__main__":
    sys.exit(main())
