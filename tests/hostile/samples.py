"""Small networks that the tests of the container are made of; the same bytes on every machine."""

from __future__ import annotations

import numpy as np

from deepsz_caffe.network import schema_pb2

#: layer -> error bound
BOUNDS = {"ip1": 0.02, "ip2": 0.03, "ip3": 0.01}
_LAYERS = {"ip1": ((60, 196), 0.08), "ip2": ((40, 60), 0.09), "ip3": ((10, 40), 0.26)}


def pruned(shape, density, seed):
    """A matrix of weights with a gap around 0, as magnitude pruning leaves it."""
    # A generator whose stream numpy promises to keep.
    random = np.random.RandomState(seed)
    dense = random.randn(*shape).astype(np.float32) * np.float32(0.1)
    threshold = np.quantile(np.abs(dense), 1 - density)
    return np.where(np.abs(dense) > threshold, dense, np.float32(0))


def blob(array):
    message = schema_pb2.BlobProto()
    message.shape.dim.extend(array.shape)
    message.data = array.tobytes()
    return message


def lenet_caffemodel():
    """A small LeNet-300-100: three pruned fc layers with biases, a convolution before them."""
    net = schema_pb2.NetParameter()
    random = np.random.RandomState(7)
    conv = net.layer.add(name=b"conv1", type=b"Convolution")
    conv.blobs.add().CopyFrom(blob(random.randn(4, 1, 5, 5).astype(np.float32)))
    for seed, (name, (shape, density)) in enumerate(_LAYERS.items()):
        layer = net.layer.add(name=name.encode(), type=b"InnerProduct")
        layer.blobs.add().CopyFrom(blob(pruned(shape, density, seed)))
        layer.blobs.add().CopyFrom(blob(random.randn(shape[0]).astype(np.float32)))
    return net.SerializeToString()
