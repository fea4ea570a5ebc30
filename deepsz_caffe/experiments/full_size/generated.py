"""Generated networks of AlexNet's and VGG-16's full size: for sizes, times and memory only.

The trained networks can't be shipped, so where only the amount of work matters we make weights that
look like pruned and retrained ones to a codec:

- Positions are independent but for rows and columns that are denser than others (log-normal
  factors, 0.28), so that a code with row and column contexts saves the 0.1 bit a non-zero on
  AlexNet's fc6 that it saves in practice.
- Magnitudes keep a gap around zero, as pruning leaves it: `threshold` + Gamma(2, `spread`), random
  signs. The parameters in `networks` give AlexNet's fc6 2.0 bits of zero-order entropy a non-zero
  at a bound of 7e-3, and VGG-16's 2.0 bits at 5e-3.
- Neighbouring weights are unrelated.

No accuracy can be had from them. Everything is a function of the seed, made in blocks of rows: the
memory in use beside the result is a few megabytes, and the values don't depend on the block that is
asked for first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from typing import BinaryIO

import numpy as np

from deepsz_caffe.errors import needs_extra
from deepsz_caffe.experiments.networks import FcShape, Network
from deepsz_caffe.files import atomic_write
from deepsz_caffe.network.wire import tag, varint

#: rows generated at a time
BLOCK = 64
#: standard deviation of the logarithm of a row's and of a column's density
UNEVEN = 0.28

# Field numbers of caffe.proto, and its V1 layer types.
_NET_NAME, _NET_V1_LAYERS, _NET_LAYER = 1, 2, 100
_LAYER_NAME, _LAYER_TYPE, _LAYER_BLOBS = 1, 2, 7
_V1_NAME, _V1_TYPE, _V1_BLOBS = 4, 5, 6
_V1_TYPES = {"Convolution": 4, "InnerProduct": 14}
_BLOB_LEGACY, _BLOB_DATA, _BLOB_SHAPE = (1, 2, 3, 4), 5, 7
_DATUM_CHANNELS, _DATUM_HEIGHT, _DATUM_WIDTH, _DATUM_DATA, _DATUM_LABEL = 1, 2, 3, 4, 5


def generate_blocks(
    layer: FcShape, seed: int = 0, *, pruned: bool = True
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a layer's weights as (rows, float32 block of `BLOCK` rows), from the first row on.

    With ``pruned=False`` the other weights are filled in with magnitudes under `layer.threshold`:
    magnitude pruning at `layer.keep` then gives the pruned layer again.
    """
    rows, columns = layer.shape
    source = np.random.SeedSequence([seed, *layer.name.encode(), rows, columns])
    density, *blocks = source.spawn(1 + -(-rows // BLOCK))
    random = np.random.default_rng(density)
    row_factor = random.lognormal(0, UNEVEN, (rows, 1)).astype(np.float32)
    column_factor = random.lognormal(0, UNEVEN, (1, columns)).astype(np.float32)
    row_factor *= layer.keep / row_factor.mean()
    column_factor /= column_factor.mean()
    for number, block in enumerate(blocks):
        random = np.random.default_rng(block)
        part = slice(number * BLOCK, min((number + 1) * BLOCK, rows))
        draw = random.random((part.stop - part.start, columns), np.float32)
        kept = draw < row_factor[part] * column_factor
        count = int(np.count_nonzero(kept))
        magnitude = random.standard_gamma(2, count, np.float32)
        magnitude *= np.float32(layer.spread)
        magnitude += np.float32(layer.threshold)
        np.copysign(magnitude, random.random(count, np.float32) - 0.5, out=magnitude)
        if pruned:
            weights = np.zeros(draw.shape, np.float32)
        else:
            weights = random.uniform(-0.99, 0.99, draw.shape).astype(np.float32)
            weights *= np.float32(layer.threshold)
        weights[kept] = magnitude
        yield part, weights


def generate(layer: FcShape, seed: int = 0, *, pruned: bool = True) -> np.ndarray:
    """Generate a whole layer: float32 array of `layer.shape`."""
    weights = np.empty(layer.shape, np.float32)
    for part, block in generate_blocks(layer, seed, pruned=pruned):
        weights[part] = block
    return weights


def write_caffemodel(
    network: Network,
    path: str | os.PathLike[str],
    seed: int = 0,
    *,
    pruned: bool = True,
    v1: bool | None = None,
) -> None:
    """Write a network of generated weights as a caffemodel, without Caffe and block by block.

    Convolutions get normally distributed weights of He's variance, so that activations neither
    explode nor vanish; biases are 0.

    Parameters
    ----------
    network
        Which network.
    path
        The file; appears complete or not at all.
    seed
        The same seed gives the same bytes.
    pruned
        False gives the network before pruning, with the same large weights.
    v1
        Write the old V1 format (`layers`, four sizes a blob); as the published file by default.
    """
    old = network.v1 if v1 is None else v1
    with atomic_write(path) as file:
        file.write(_field(_NET_NAME, network.title.encode()))
        for number, (name, shape) in enumerate(network.conv.items()):
            random = np.random.default_rng([seed, number])
            deviation = np.float32(np.sqrt(2 / prod(shape[1:])))
            weights = random.standard_normal(shape, np.float32) * deviation
            _write_layer(file, name, "Convolution", shape, iter([weights]), old)
        for layer in network.fc:
            pieces = (block for _, block in generate_blocks(layer, seed, pruned=pruned))
            _write_layer(file, layer.name, "InnerProduct", layer.shape, pieces, old)


def write_images(
    path: str | os.PathLike[str],
    count: int,
    shape: tuple[int, int, int],
    classes: int,
    seed: int = 0,
) -> None:
    """Write an LMDB of random images and labels, for timing the evaluation of generated networks.

    Parameters
    ----------
    path
        The LMDB's folder; must not exist.
    count
        Number of images.
    shape
        (channels, height, width).
    classes
        Labels are 0 to `classes` − 1.
    seed
        The same seed gives the same images.
    """
    with needs_extra("caffe"):
        import lmdb

    random = np.random.default_rng([seed, count])
    size = count * (prod(shape) + 8192) + (1 << 20)
    channels, height, width = shape
    head = b"".join(
        _number(field, value)
        for field, value in zip(
            (_DATUM_CHANNELS, _DATUM_HEIGHT, _DATUM_WIDTH), (channels, height, width), strict=True
        )
    )
    with lmdb.open(os.fspath(path), map_size=size) as base, base.begin(write=True) as transaction:
        for number in range(count):
            label = int(random.integers(classes))
            datum = head + _field(_DATUM_DATA, random.bytes(prod(shape)))
            transaction.put(b"%08d" % number, datum + _number(_DATUM_LABEL, label))


def _write_layer(
    file: BinaryIO,
    name: str,
    kind: str,
    shape: tuple[int, ...],
    pieces: Iterator[np.ndarray],
    v1: bool,
) -> None:
    """Write one layer of weights (given in `pieces`, in order) and zero biases."""
    outputs = shape[0]
    weights_head, weights_bytes = _blob_head(shape, v1)
    bias = np.zeros(outputs, "<f4").tobytes()
    bias_head, _ = _blob_head((outputs,), v1)
    blobs = _V1_BLOBS if v1 else _LAYER_BLOBS
    head = (
        _field(_V1_NAME, name.encode()) + _number(_V1_TYPE, _V1_TYPES[kind])
        if v1
        else _field(_LAYER_NAME, name.encode()) + _field(_LAYER_TYPE, kind.encode())
    )
    weights_start = _open(blobs, len(weights_head) + weights_bytes) + weights_head
    tail = _field(blobs, bias_head + bias)
    total = len(head) + len(weights_start) + weights_bytes + len(tail)
    file.write(_open(_NET_V1_LAYERS if v1 else _NET_LAYER, total) + head + weights_start)
    for piece in pieces:
        file.write(piece.astype("<f4", copy=False).data)
    file.write(tail)


def _blob_head(shape: tuple[int, ...], v1: bool) -> tuple[bytes, int]:
    """Give a blob's bytes before its data's first value, and its data's size in bytes."""
    size = 4 * prod(shape)
    if v1:
        four = (1,) * (4 - len(shape)) + shape
        sizes = b"".join(
            _number(field, value) for field, value in zip(_BLOB_LEGACY, four, strict=True)
        )
    else:
        sizes = _field(_BLOB_SHAPE, _field(1, b"".join(map(varint, shape))))
    return sizes + _open(_BLOB_DATA, size), size


def _number(field: int, value: int) -> bytes:
    return tag(field, 0) + varint(value)


def _open(field: int, size: int) -> bytes:
    return tag(field, 2) + varint(size)


def _field(field: int, content: bytes) -> bytes:
    return _open(field, len(content)) + content
