"""What `bench_assess` runs in a Caffe process: the whole network, batch by batch."""

from __future__ import annotations

import time
from pathlib import Path

from deepsz_caffe.runtime.evaluate import forward_batches, prepare
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.worker import import_caffe


def whole_batches(network, weights, data, batches):
    """Give the batch's size, and (time, processor time) of each of some batches, in seconds."""
    caffe = import_caffe()
    prepared = prepare(network, (), data, caffe)
    net = build_net(caffe, prepared.net)
    load_weights(net, prepared.net, weights)
    running = forward_batches(net, prepared, [prepared.judged.scores])
    next(running)  # memory is allocated
    taken = []
    for _ in range(batches):
        before = time.perf_counter(), time.process_time()
        next(running)
        after = time.perf_counter(), time.process_time()
        taken.append(tuple(b - a for a, b in zip(before, after, strict=True)))
    return prepared.images.batch, taken


def memory(process):
    """Give the bytes of a process's greatest memory, pages of files included."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
