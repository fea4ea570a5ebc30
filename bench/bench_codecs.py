"""Codecs against their limits: entropy, the ISO neural-network coder, and copying memory.

python bench/bench_codecs.py [--quick] [PRUNED.caffemodel …]

Trained networks are those under models/, and any given here; where there are only dense ones, their
smallest weights are cut off without retraining, which is enough to compare two coders on the same
integers. AlexNet and VGG-16 have generated weights. The ISO coder is built once, in an environment
of its own. `--quick` leaves out both, and half of the bounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from frame import WORK, Row, best_times, show
from iso_coder import iso_sizes

from deepsz_caffe import codecs
from deepsz_caffe.codecs.mixing import Walk, encode_levels
from deepsz_caffe.codecs.quantize import entropy, quantize
from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.experiments.full_size.generated import generate, write_caffemodel
from deepsz_caffe.experiments.networks import NETWORKS, ROOT, network
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import stored_layers
from deepsz_caffe.steps.encode import encode, encode_layer
from deepsz_caffe.steps.prune import magnitude_mask

BOUNDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
#: AlexNet's, as the issue of decoding time has them
ALEXNET_BOUNDS = {"fc6": 7e-3, "fc7": 7e-3, "fc8": 5e-3}
LENET_BOUNDS = (0.01, 0.02, 0.03)
#: densities of the sparse LeNets
SPARSE = {
    "lenet-300-100": {"ip1": 0.02, "ip2": 0.04, "ip3": 0.2},
    "lenet-5": {"ip1": 0.005, "ip2": 0.08},
}


def fc_layers(path):
    """Give the fc matrices of a caffemodel by name."""
    model = read_caffemodel(path)
    return {name: np.array(model[name].matrix) for name in stored_layers(model)}


def lenets(given):
    """Yield (name, fc matrices) of pruned LeNets: those given, those under models/, or cut ones."""
    files = [*given, *sorted((ROOT / "models").glob("lenet_*/*.caffemodel"))]
    pruned = {f"{f.parent.name}/{f.stem}": f for f in files if f.stem != "dense"}
    for name, file in pruned.items():
        yield name, fc_layers(file)
    if pruned:
        return
    for name, sparse in SPARSE.items():
        dense = fc_layers(ROOT / "models" / NETWORKS[name].folder / "dense.caffemodel")
        for kind, keep in (("paper's densities", NETWORKS[name].keep), ("sparse", sparse)):
            cut = {k: np.where(magnitude_mask(w, keep[k]), w, 0) for k, w in dense.items()}
            yield f"{name} cut to {kind}", cut


def entropy_rows(names, bounds):
    """Data arrays of at least 10,000 values beside the entropy of their levels."""
    rows = []
    for name in names:
        worst = (0.0, "")
        for layer in NETWORKS[name].fc:
            weights = generate(layer)
            values = weights[weights != 0]
            if values.size < 10_000:
                continue
            for bound in bounds:
                size = len(codecs.DATA["levels"](bound).encode(values)) - 64
                uniform = np.rint(values.astype(np.float64) / (2 * bound)).astype(np.int64)
                least = min(entropy(uniform), entropy(quantize(values, bound)[1]))
                worst = max(worst, (size / max(values.size * least / 8, 1), layer.name))
        rows.append(
            Row(f"{name}: (bytes - 64) / entropy, worst ({worst[1]})", worst[0], 1.03, True)
        )
    return rows


def iso_rows(networks):
    """Profile `small`, headers included, beside DeepCABAC on the same networks."""
    integers = {
        f"{name}|{layer}|{bound}": np.rint(w.astype(np.float64) / (2 * bound)).astype(np.int32)
        for name, layers in networks.items()
        for layer, w in layers.items()
        for bound in LENET_BOUNDS
    }
    sizes = iso_sizes(integers)
    rows, ratios = [], []
    for name, layers in networks.items():
        for bound in LENET_BOUNDS:
            ours = sum(encode_layer(n, w, bound, "small").bytes for n, w in layers.items())
            theirs = sum(sizes[f"{name}|{layer}|{bound}"] for layer in layers)
            ratios.append(ours / theirs)
            what = f"{name}, {bound:g}: small {ours:,} / DeepCABAC {theirs:,}"
            rows.append(Row(what, ours / theirs, 1, most=True))
    rows.append(Row("on average", float(np.mean(ratios)), 0.95, most=True))
    return rows


def sizes_rows(networks):
    """Ratios of the fc part at one bound for all layers; losses are measured by `reproduce`."""
    rows = []
    for name, layers in networks.items():
        dense = sum(w.nbytes for w in layers.values())
        for profile in ("small", "fast", "paper"):
            for bound in LENET_BOUNDS:
                ours = sum(encode_layer(n, w, bound, profile).bytes for n, w in layers.items())
                rows.append(Row(f"{name}, {profile} at {bound:g}: {ours:,} bytes", dense / ours))
    return rows


def decoding_rows(weights):
    """Decoding into arrays already allocated, every check included, beside np.copyto."""
    out = {name: np.ones_like(w) for name, w in weights.items()}
    rows = []

    def copy():
        for name, w in weights.items():
            np.copyto(out[name], w)

    for profile, target in (("fast", 1.5), ("paper", 5)):
        layers = [encode_layer(n, w, ALEXNET_BOUNDS[n], profile) for n, w in weights.items()]

        def one(layers=layers):
            for layer in layers:
                decode_layer(layer, out[layer.name])

        def two(layers=layers):
            for layer in layers:
                decode_layer(layer, out[layer.name], threads=2)

        copying, alone, together = best_times(25, copy, one, two)
        size = sum(layer.bytes for layer in layers)
        what = f"{profile} ({size / 1e6:.3f} MB, {1e3 * alone:.1f} ms) / np.copyto"
        rows += [
            Row(f"{what}, one thread", alone / copying, target, most=True),
            Row(f"{profile}: two threads / one", together / alone, 1, most=True),
        ]
        if profile == "fast":
            quick = size
    # The least bytes known, by one walk: all four take a minute and give no more on such weights.
    least = 0
    for name, w in weights.items():
        _, levels = quantize(w, ALEXNET_BOUNDS[name])
        logit = np.log(np.mean(levels != 0) / np.mean(levels == 0))
        least += len(encode_levels(levels, Walk(False, 0, round(256 * logit / 22) + 128, 0)))
    rows.append(Row("fast / one walk of context mixing, bytes", quick / least, 1.05, most=True))
    return rows


def command_rows():
    """Encoding at given bounds, and the command `deepsz expand`, file to file."""
    weights, packed = WORK / "alexnet.caffemodel", WORK / "alexnet_fast.dsz"
    copied, expanded = WORK / "copied.caffemodel", WORK / "expanded.caffemodel"
    if not weights.exists():
        write_caffemodel(network("alexnet"), weights)
    model = fc_layers(weights)

    def encode_all():
        with ThreadPoolExecutor(2) as pool:
            names = list(ALEXNET_BOUNDS)
            list(pool.map(lambda n: encode_layer(n, model[n], ALEXNET_BOUNDS[n]), names))

    (encoding,) = best_times(3, encode_all)
    # Made anew: a file of an earlier day may be of an earlier encoder.
    write_dsz(packed, encode(None, weights, ALEXNET_BOUNDS, "fast"))
    scripts = Path(sys.executable).parent

    def run(*command):
        for file in (copied, expanded):
            file.unlink(missing_ok=True)
        subprocess.run(command, check=True)

    python = sys.executable
    libraries = "import click, zstandard"
    copying, starting, importing, expanding = best_times(
        7,
        lambda: run("cp", weights, copied),
        lambda: run(python, "-c", "pass"),
        lambda: run(python, "-c", libraries),
        lambda: run(scripts / "deepsz", "expand", packed, expanded),
    )
    expanded.unlink()
    what = f"deepsz expand {1e3 * expanding:.0f} ms, cp {1e3 * copying:.0f} ms"
    return [
        Row("balanced, encoding at given bounds on two threads", encoding, 3, True, " s"),
        Row(f"{what}: (expand - python -c pass) / cp", (expanding - starting) / copying, 2.5, True),
        Row(
            f"the same less the import of click and zstandard ({1e3 * importing:.0f} ms)",
            (expanding - importing) / copying,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("given", nargs="*", type=Path)
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    alexnet = {layer.name: generate(layer) for layer in network("alexnet").fc}
    trained = dict(lenets(options.given))
    missed = show("AlexNet's fc layers, 234.5 MB: decoding", decoding_rows(alexnet))
    del alexnet
    missed |= show("AlexNet: encoding, and the command expand", command_rows())
    missed |= show("LeNets: fc part dense / encoded", sizes_rows(trained))
    names = [name for name in NETWORKS if not options.quick or "lenet" in name]
    bounds = BOUNDS[:: 3 if options.quick else 1]
    missed |= show(
        f"Data arrays beside zero-order entropy, {len(bounds)} bounds", entropy_rows(names, bounds)
    )
    if not options.quick:
        missed |= show("LeNets beside the ISO neural-network coder", iso_rows(trained))
    return missed


if __name__ == "__main__":
    sys.exit(main())
