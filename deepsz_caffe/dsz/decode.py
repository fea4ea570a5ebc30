"""The one decoder: from the streams of a layer to its weights, into any sink, with all checks.

A layer comes in parts, which threads decode as they are free; a sink says where the weights of a
part belong: in an array, a file (`expand`), the memory of another process (`isolated`). Nothing is
given back before every part's tally adds up to the layer's digest (paper section 3.5, reversed).

Decoding imports numpy and numcodecs. Their import takes 0.15 s of processor time, `deepsz expand`
of AlexNet 0.48 s with it. It took 0.3 s when a second decoder wrote packed layers straight into
files without either, with its own quantizer, thread pool and kernel; that was not worth it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe import codecs

# Here, not when the first codec is asked for: threads that import numcodecs together may block
# each other.
from deepsz_caffe.codecs.base import MatrixCodec, Part
from deepsz_caffe.codecs.digest import Tally, scatter, tally, total
from deepsz_caffe.codecs.sparse import Sparse, to_dense
from deepsz_caffe.dsz.layout import EncodedLayer, LayerEntry, seal
from deepsz_caffe.dsz.limits import Limits, find_codec, working_bytes
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import CodecError, FormatError, InputError, LimitError

Matrix = NDArray[np.float32]
#: a piece of work of the pool
Job = Callable[[], None]


class Sink(Protocol):
    """Where decoded weights go."""

    def place(self, layer: LayerEntry, start: int, cells: int) -> AbstractContextManager[Matrix]:
        """Give room for the weights of a layer from position `start` on, row by row.

        Returns
        -------
        context manager of float32[cells]
            C-contiguous; it is left when they have been decoded, and not otherwise.
        """
        ...


class Arrays:
    """A sink of matrices.

    Parameters
    ----------
    matrices
        Layer name -> float32[r, c], C-contiguous.

    Raises
    ------
    InputError
        A matrix has another shape or type than its layer.
    """

    def __init__(self, matrices: Mapping[str, Matrix], layers: Iterable[LayerEntry]) -> None:
        for layer in layers:
            out = matrices[layer.name]
            if out.shape != layer.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
                raise InputError(
                    f"the output must be float32{list(layer.shape)}, C-contiguous",
                    where=f"layer {layer.name}",
                )
        self._matrices = matrices

    def place(self, layer: LayerEntry, start: int, cells: int) -> AbstractContextManager[Matrix]:
        return nullcontext(self._matrices[layer.name].reshape(-1)[start : start + cells])


def parts(layer: EncodedLayer) -> Iterable[Part]:
    """Give the parts of a layer that can be decoded apart, together or in any order.

    Raises
    ------
    CodecError
        A stream is damaged; also raised by `Part.decode`.
    FormatError
        A codec is unknown.
    """
    cells = layer.rows * layer.columns
    if not layer.data_codec:
        return (Part(0, cells, _zeros),)
    if layer.index_codec:
        return (Part(0, cells, partial(_decode_two_arrays, layer)),)
    codec = find_codec(codecs.MATRIX, layer.data_codec)(layer.error_bound)
    if layer.column_major:
        return (Part(0, cells, partial(_decode_transposed, layer, codec)),)
    return codec.parts(layer.data, layer.shape)


def two_arrays(layer: EncodedLayer) -> Sparse:
    """Decode the data and the index array of a layer that has them.

    Of a column-major layer they describe the transposed matrix. They are not checked yet against
    each other or the matrix.

    Raises
    ------
    CodecError, FormatError
        As `parts`.
    """
    index = np.empty(layer.index_count, np.uint8)
    find_codec(codecs.INDEX, layer.index_codec)().decode(layer.index, index)
    data = np.empty(np.count_nonzero(index), np.float32)
    # Also an index without a single value goes to the codec, which refuses it.
    find_codec(codecs.DATA, layer.data_codec)(layer.error_bound).decode(layer.data, data)
    if not np.isfinite(data).all():
        raise CodecError(f"{layer.data_codec}: a weight is not finite")
    return Sparse(layer.shape[::-1] if layer.column_major else layer.shape, data, index)


def _zeros(out: Matrix) -> Tally:
    out.fill(0)
    return Tally(0, 0)


def _decode_two_arrays(layer: EncodedLayer, out: Matrix) -> Tally:
    sparse = two_arrays(layer)
    if not layer.column_major:
        return scatter(sparse.data, sparse.index, out)
    to_dense(sparse, out.reshape(layer.shape).T)
    return tally(out)


def _decode_transposed(layer: EncodedLayer, codec: MatrixCodec, out: Matrix) -> Tally:
    transposed = codec.decode(layer.data, np.empty(layer.shape[::-1], np.float32))
    out.reshape(layer.shape)[...] = transposed.T
    return tally(out)


def decode_unchecked(layer: EncodedLayer, out: Matrix) -> Tally:
    """Decode a layer into a matrix, whatever its checksum and digest, and return its tally.

    Raises
    ------
    CodecError, FormatError
        As `parts`.
    """
    flat = out.reshape(-1)
    return total(part.decode(flat[part.start : part.start + part.cells]) for part in parts(layer))


def check_section(layer: EncodedLayer) -> None:
    """Compare a layer's streams with their checksum.

    Raises
    ------
    FormatError
        They are damaged.
    """
    if crc32(layer.index, crc32(layer.data)) != layer.checksum:
        hint = "the file is damaged"
        raise FormatError("the checksum is wrong", where=f"layer {layer.name}", hint=hint)


def check_tally(layer: LayerEntry, digest: int, nonzeros: int) -> None:
    """Compare what was decoded with what the header says.

    Parameters
    ----------
    digest, nonzeros
        As in `deepsz_caffe.codecs.Tally`.

    Raises
    ------
    FormatError
        The weights are not those that were encoded.
    """
    where = f"layer {layer.name}"
    if seal(layer.name, layer.shape, layer.error_bound, layer.nonzeros, digest) != layer.digest:
        raise FormatError("the decoded weights are not those that were encoded", where=where)
    if nonzeros != layer.nonzeros:
        raise FormatError(
            f"it has {nonzeros} non-zeros, not {layer.nonzeros} as declared", where=where
        )


@contextmanager
def located(layer: LayerEntry) -> Iterator[None]:
    """Say of an error in decoding which layer it concerns."""
    where = f"layer {layer.name}"
    try:
        yield
    except (CodecError, FormatError) as error:
        kind = type(error) if isinstance(error, FormatError) else FormatError
        raise kind(error.what, where=error.where or where, hint=error.hint) from error
    except MemoryError as error:
        raise LimitError("there is not enough memory to decode it", where=where) from error


def _decode_part(layer: LayerEntry, part: Part, sink: Sink, found: list[Tally]) -> None:
    with located(layer), sink.place(layer, part.start, part.cells) as out:
        found.append(part.decode(out))


def _jobs(layer: EncodedLayer, sink: Sink, found: list[Tally]) -> Iterator[Job]:
    with located(layer):
        check_section(layer)
        for part in parts(layer):
            yield partial(_decode_part, layer, part, sink, found)


def decode_layer(layer: EncodedLayer, out: Matrix | None = None, threads: int = 1) -> Matrix:
    """Decode one layer, verified against its checksum and its digest.

    Parameters
    ----------
    layer
        From `encode_layer`, or `DszFile.layer`.
    out : float32[r, c]
        Where to, C-contiguous; a new matrix by default. Its contents are undefined after an error.
    threads
        Parts decoded at a time, where the layer's codec has parts.

    Raises
    ------
    FormatError
        The streams are damaged, or don't decode to the weights that were encoded.
    InputError
        `out` has another shape or type.

    Examples
    --------
    >>> from deepsz_caffe import encode_layer
    >>> decode_layer(encode_layer("ip", np.eye(2, dtype=np.float32), error_bound=0.01)).round(1)
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    if out is None:
        with located(layer):
            out = np.empty(layer.shape, np.float32)
    found: list[Tally] = []
    run(_jobs(layer, Arrays({layer.name: out}, [layer]), found), threads)
    check_tally(layer, *total(found))
    return out


def decode_into(file: DszFile, sink: Sink, threads: int, before: Iterable[Job] = ()) -> None:
    """Decode every layer of an open file into a sink.

    Parameters
    ----------
    threads
        Parts of layers, and layers, decoded at a time.
    before
        Other work for the same threads.

    Raises
    ------
    FormatError
        The file is damaged or hostile; what the sink holds then is undefined.
    LimitError
        It takes longer than the file's limits allow.
    """
    found: list[tuple[LayerEntry, list[Tally]]] = []

    def jobs() -> Iterator[Job]:
        yield from before
        for entry in file.layers:
            tallies: list[Tally] = []
            found.append((entry, tallies))
            yield from _jobs(file.layer(entry.name), sink, tallies)

    with file.located():
        run(file.limits.timed(jobs(), file.layers), threads)
        for entry, tallies in found:
            check_tally(entry, *total(tallies))


def run(jobs: Iterator[Job], threads: int) -> None:
    """Do the jobs, as many at a time as there are threads; the first error ends it.

    They are taken one by one: what a job holds in memory is there no longer than needed.
    """
    if threads <= 1:
        for job in jobs:
            job()
        return
    turn, failed = threading.Lock(), threading.Event()

    def work(_: int) -> None:
        try:
            while not failed.is_set():
                with turn:
                    job = next(jobs, None)
                if job is None:
                    return
                job()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def read_layer(file: DszFile, name: str, out: Matrix | None = None, threads: int = 1) -> Matrix:
    """Read and decode one layer of an open file; see `DszFile.layer` and `decode_layer`."""
    with file.located():
        return decode_layer(file.layer(name), out, threads)


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
        than the limits allow.
    """
    into = out or {}
    with DszFile(path, limits) as file:
        file.limits.check(
            file.layers,
            # Every layer's working memory counts: with threads they may be in use together.
            memory=sum(map(working_bytes, file.layers))
            + sum(layer.dense_bytes for layer in file.layers if layer.name not in into),
            output=sum(layer.dense_bytes for layer in file.layers),
            where=path,
        )
        matrices = {}
        for layer in file.layers:
            given = into.get(layer.name)
            matrices[layer.name] = np.empty(layer.shape, np.float32) if given is None else given
        decode_into(file, Arrays(matrices, file.layers), threads or os.cpu_count() or 1)
        return matrices
