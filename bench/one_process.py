"""What `bench_running` runs in processes of its own: python one_process.py TASK ARGUMENT…

Prints one JSON document. `forward` is to be run with OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from frame import best_times

from deepsz_caffe.dsz.decode import decode_layer, read_layer
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.running.build import from_dense, from_layer
from deepsz_caffe.running.linear import CompressedLinear
from deepsz_caffe.runtime.load import load_net
from deepsz_caffe.runtime.worker import import_caffe


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def forward(network, path, batches):
    """Time of each batch through the whole network, dense and compressed, in turns, in seconds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import_caffe()
    nets = [load_net(network, path, compressed=form, trial=False) for form in (False, True)]
    found = {}
    for batch in json.loads(batches):
        inputs = np.random.default_rng(batch).random((batch, *nets[0].blobs["data"].shape[1:]))
        for net in nets:
            net.blobs["data"].reshape(*inputs.shape)
            net.blobs["data"].data[...] = inputs
            net.reshape()
        outputs = [dict(net.forward()) for net in nets]
        differ = [np.abs(a - b).max() for a, b in zip(*map(dict.values, outputs), strict=True)]
        scale = max(np.abs(a).max() for a in outputs[0].values())
        rounds = 24 if batch <= 8 else 8
        dense, ours = best_times(rounds, *(net.forward for net in nets))
        found[batch] = [dense, ours, float(max(differ) / scale)]
    return found


def layers(path, batches):
    """Time of numpy's dense product over that of the compressed one, by layer and batch."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    with DszFile(path) as file:
        for entry in file.layers:
            ours = CompressedLinear.from_dsz(path, entry.name, bias=False)
            found[entry.name] = ratios(read_layer(file, entry.name).T, ours, json.loads(batches))
    return found


def tails(path, batch, batches):
    """Of each layer, BLAS's time over the products' in a test of an assessment, decoding included.

    Assessments don't use these products: `deepsz_caffe.runtime.tail` says why.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    with DszFile(path) as file:
        for entry in file.layers:
            layer = file.layer(entry.name)
            dense, ours = decode_layer(layer), CompressedLinear(from_layer(layer), dense=False)
            x = np.random.default_rng(0).random((int(batch), entry.columns), np.float32)
            decoding = best_times(2, partial(decode_layer, layer), partial(from_layer, layer))
            products = best_times(2, partial(np.matmul, x, dense.T), partial(ours, x))
            times = [a + int(batches) * b for a, b in zip(decoding, products, strict=True)]
            found[entry.name] = times[0] / times[1]
    return found


def ones(density, shapes):
    """Of convolutions of 1 x 1, BLAS's time over that of a product with a vector a position.

    What it would take to have positions in such rows, and their outputs back, does not count.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    for outputs, inputs, positions in json.loads(shapes):
        random = np.random.default_rng(outputs)
        matrix = np.rint(random.laplace(0, 4, (outputs, inputs))).astype(np.float32)
        matrix[random.random(matrix.shape) > float(density)] = 0
        ours = CompressedLinear(from_dense(matrix), dense=False)
        x = random.random((inputs, positions), np.float32)
        rows = np.ascontiguousarray(x.T)
        times = best_times(12, partial(np.matmul, matrix, x), partial(ours, rows))
        found[f"{outputs} × {inputs} at {positions} positions"] = times[0] / times[1]
    return found


def ratios(dense, ours, batches):
    found = {}
    for batch in batches:
        x = np.random.default_rng(batch).random((batch, len(dense)), np.float32)
        times = best_times(max(6, 48 // batch), lambda x=x: x @ dense, lambda x=x: ours(x))
        found[batch] = times[0] / times[1]
    return found


def first_output(network, path, form, cache=None):
    """Seconds from the file to the first output, and the memory of the process in bytes."""
    import_caffe()
    before = status("VmRSS")
    Path(path).read_bytes()
    start = time.perf_counter()
    # Dense, it is tried in a child process first.
    net = load_net(network, path, compressed=form == "compressed", cache=cache)
    net.forward()
    taken = time.perf_counter() - start
    return {
        "seconds": taken,
        "peak": status("VmHWM"),
        "resident": status("VmRSS"),
        "before": before,
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
