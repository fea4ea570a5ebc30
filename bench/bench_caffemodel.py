"""Reading VGG-16's weights (553 MB, generated, in V1 format as published), and `expand` of it.

python bench/bench_caffemodel.py
"""

from __future__ import annotations

import sys

import numpy as np
from frame import WORK, Row, best_times, peak_memory, show

from deepsz_caffe.dsz.expand import expand
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.experiments.full_size.generated import write_caffemodel
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.encode import encode

VGG = network("vgg-16")
NAMES = tuple(layer.name for layer in VGG.fc)


def copies(path):
    """Give every fc blob as an array in memory of its own."""
    model = read_caffemodel(path)
    return [blob.data.copy() for name in NAMES for blob in model[name].blobs]


def views(path):
    model = read_caffemodel(path)
    return [blob.data for name in NAMES for blob in model[name].blobs]


def touched_views(path):
    """Use every value: all pages of the map come into memory."""
    return [float(array.sum()) for array in views(path)]


def through_protobuf(path):
    from caffe.proto import caffe_pb2

    net = caffe_pb2.NetParameter()
    net.ParseFromString(path.read_bytes())
    blobs = (blob for layer in net.layers if layer.name in NAMES for blob in layer.blobs)
    return [np.array(blob.data, np.float32) for blob in blobs]


def main() -> int:
    WORK.mkdir(parents=True, exist_ok=True)
    weights, packed = WORK / "vgg_16.caffemodel", WORK / "vgg_16.dsz"
    if not weights.exists():
        write_caffemodel(VGG, weights)
    if not packed.exists():
        write_dsz(packed, encode(None, weights, dict.fromkeys(NAMES, 5e-3), "fast"))
    size = weights.stat().st_size
    given = [a.reshape(-1) for a in through_protobuf(weights)]
    assert all(map(np.array_equal, given, [a.reshape(-1) for a in copies(weights)]))
    del given
    reading, copying, viewing = best_times(
        7,
        weights.read_bytes,
        lambda: copies(weights),
        lambda: views(weights),
    )
    (protobuf,) = best_times(2, lambda: through_protobuf(weights))
    beyond = max(0, peak_memory(copies, weights) - size)
    touched = max(0, peak_memory(touched_views, weights) - size)
    output = WORK / "expanded.caffemodel"
    expanding = peak_memory(expand, packed, output)
    written = output.stat().st_size
    output.unlink()
    rows = [
        Row("fc blobs as arrays of their own / reading the file", copying / reading, 2, most=True),
        Row("fc blobs as views / reading the file", viewing / reading, 2, most=True),
        Row("caffe_pb2 + np.array / arrays of their own", protobuf / copying, 4),
        Row("memory beyond the mapped file, own arrays / file", beyond / size, 1.3, most=True),
        Row(
            "memory beyond the mapped file, views, all used / file", touched / size, 1.3, most=True
        ),
        Row("memory of expand / its output", expanding / written, 2, most=True),
    ]
    return show(
        f"VGG-16's caffemodel, {size / 1e6:.1f} MB; reading it {1e3 * reading:.0f} ms", rows
    )


if __name__ == "__main__":
    sys.exit(main())
