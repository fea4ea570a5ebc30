"""From a `.dsz` file back to weights (section 3.5 of the paper, reversed)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe import codecs
from deepsz_caffe.codecs.sparse import Sparse, to_dense
from deepsz_caffe.dsz.layout import EncodedLayer, LayerEntry, seal
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import CodecError, FormatError, InputError, LimitError

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Streams:
    """The streams of a layer and what is needed to decode them; see `LayerEntry`."""

    shape: tuple[int, int]
    error_bound: float
    order: str
    data_codec: str
    data: bytes
    index_codec: str = ""
    index: bytes = b""
    index_count: int = 0


def decode_streams(streams: Streams, out: Matrix, executor: Executor | None = None) -> int:
    """Decode without any check of checksum or digest, and return the digest of the weights.

    Parameters
    ----------
    out : float32[r, c]
        C-contiguous; every weight is written.
    executor
        Threads for the parts of one layer, where its codec has parts.

    Raises
    ------
    CodecError
        A stream is damaged.
    FormatError
        A codec is unknown, or the index does not fit the matrix.
    """
    if not streams.data_codec:
        out.fill(0)
        return codecs.weights_digest(out)
    if streams.index_codec:
        return _decode_two_arrays(streams, out)
    codec = _codec(codecs.MATRIX, streams.data_codec)(streams.error_bound)
    if streams.order == "F":
        out[...] = codec.decode(streams.data, np.empty(out.shape[::-1], np.float32)).T
    elif isinstance(codec, codecs.Packed):
        return codec.decode_with_digest(streams.data, out, executor)
    else:
        codec.decode(streams.data, out)
    return codecs.weights_digest(out)


def two_arrays(streams: Streams) -> Sparse:
    """Decode the data and the index array of a layer that has them.

    Of a column-major layer they describe the transposed matrix. They are not checked yet against
    each other or the matrix.

    Raises
    ------
    CodecError, FormatError
        As `decode_streams`.
    """
    index = np.empty(streams.index_count, np.uint8)
    _codec(codecs.INDEX, streams.index_codec)().decode(streams.index, index)
    data = np.empty(np.count_nonzero(index), np.float32)
    # Also an index without a single value goes to the codec, which refuses it.
    _codec(codecs.DATA, streams.data_codec)(streams.error_bound).decode(streams.data, data)
    shape = streams.shape if streams.order == "C" else streams.shape[::-1]
    return Sparse(shape, data, index)


def _decode_two_arrays(streams: Streams, out: Matrix) -> int:
    sparse = two_arrays(streams)
    if streams.order == "C":
        return codecs.scatter(sparse.data, sparse.index, out)
    to_dense(sparse, out.T)
    return codecs.weights_digest(out)


def _codec(registry: Mapping[str, type], name: str) -> type:
    if name not in registry:
        raise FormatError(
            f"codec {name!r} is unknown",
            hint="a newer version of deepsz-caffe may know it; this one has " + ", ".join(registry),
        )
    return registry[name]


def decode_layer(
    layer: EncodedLayer, out: Matrix | None = None, executor: Executor | None = None
) -> Matrix:
    """Decode one layer, verified against its checksum and its digest.

    Parameters
    ----------
    layer
        From `encode_layer`, or `DszFile.layer`.
    out : float32[r, c]
        Where to, C-contiguous; a new matrix by default. Its contents are undefined after an error.
    executor
        Threads for the parts of the layer, where its codec has parts.

    Raises
    ------
    FormatError
        The streams are damaged, or don't decode to the weights that were encoded.
    InputError
        `out` has another shape or type.
    """
    where = f"layer {layer.name}"
    if out is None:
        out = np.empty(layer.shape, np.float32)
    elif out.shape != layer.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise InputError(
            f"the output must be float32{list(layer.shape)}, C-contiguous", where=where
        )
    streams = checked_streams(layer)
    try:
        digest = decode_streams(streams, out, executor)
    except (CodecError, FormatError) as error:
        raise FormatError(error.what, where=where, hint=error.hint) from error
    except MemoryError as error:
        raise LimitError("there is not enough memory to decode it", where=where) from error
    check_digest(layer, digest)
    return out


def checked_streams(layer: EncodedLayer) -> Streams:
    """Give the streams of a layer, verified against its checksum.

    Raises
    ------
    FormatError
        They are damaged.
    """
    if crc32(layer.index, crc32(layer.data)) != layer.checksum:
        hint = "the file is damaged"
        raise FormatError("the checksum is wrong", where=f"layer {layer.name}", hint=hint)
    return Streams(
        layer.shape,
        layer.error_bound,
        layer.order,
        layer.data_codec,
        layer.data,
        layer.index_codec,
        layer.index,
        layer.index_count,
    )


def check_digest(layer: LayerEntry, digest: int) -> None:
    """Compare the `deepsz_caffe.codecs.weights_digest` of what was decoded with what it should be.

    Raises
    ------
    FormatError
        The weights are not those that were encoded.
    """
    if seal(layer.name, layer.shape, layer.error_bound, layer.nonzeros, digest) != layer.digest:
        raise FormatError(
            "the decoded weights are not those that were encoded", where=f"layer {layer.name}"
        )


def read_layer(
    file: DszFile, name: str, out: Matrix | None = None, executor: Executor | None = None
) -> Matrix:
    """Read and decode one layer of an open file; see `DszFile.layer` and `decode_layer`."""
    layer = file.layer(name)
    try:
        return decode_layer(layer, out, executor)
    except FormatError as error:
        raise type(error)(
            error.what, where=f"{file.path}, {error.where}", hint=error.hint
        ) from error


def decode(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    out: Mapping[str, Matrix] | None = None,
    threads: int | None = None,
) -> dict[str, Matrix]:
    """Decode every layer of a `.dsz` file.

    Parameters
    ----------
    limits
        What decoding may use.
    out
        Layer name -> float32[r, c] to decode into; other layers get new matrices.
    threads
        Layers, and parts of layers, decoded at a time; by default as many as there are processors.

    Returns
    -------
    dict
        Layer name -> float32[r, c], as Caffe stores the weights.

    Raises
    ------
    InputError
        The file can't be opened, or an output does not fit.
    FormatError
        The file is damaged, hostile or of an unknown version; `LimitError` where it asks for more
        memory than the limits allow.
    """
    into = out or {}
    with DszFile(path, limits) as file:
        # Every layer's working memory counts: with threads they may be in use together.
        needed = sum(layer.working_bytes for layer in file.layers)
        needed += sum(layer.dense_bytes for layer in file.layers if layer.name not in into)
        file.limits.allow_memory(needed, path)
        names = [layer.name for layer in file.layers]
        workers = threads or os.cpu_count() or 1
        if workers == 1:
            return {name: read_layer(file, name, into.get(name)) for name in names}
        # Two pools: layers wait for their parts, which must not stand behind them in a queue.
        with ThreadPoolExecutor(workers) as parts, ThreadPoolExecutor(workers) as layers:
            weights = layers.map(lambda name: read_layer(file, name, into.get(name), parts), names)
            return dict(zip(names, weights, strict=True))
