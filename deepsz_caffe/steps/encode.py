"""Step 4: encode layers of a pruned network at given error bounds (section 3.5).

`encode_layer` is the one way to encode: the assessment measures what it gives, the file holds what
it gives. It tries the codecs of a profile on the matrix and on its transpose. Before anything is
written `assemble` decodes every layer again and verifies every weight.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe import codecs
from deepsz_caffe.codecs.mixing_step import MixingStep
from deepsz_caffe.codecs.quantize import Levels, Quantizer, TightBoundError
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.dsz import chunks
from deepsz_caffe.dsz.decode import decode_layer, decode_unchecked
from deepsz_caffe.dsz.layout import (
    BlobBound,
    ChangedBlob,
    Contents,
    EncodedLayer,
    Measured,
    Origin,
    Rest,
    rest_checksum,
)
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.errors import CodecError, DeepSZError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.files import open_input, read_input, reason
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import (
    ExtraBlobs,
    check_weights,
    compressible_layers,
    require,
    settle_extra_blobs,
    stored_layers,
)
from deepsz_caffe.network.shapes import bottom_shapes
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.network.writer import split_weights

Matrix = NDArray[np.float32]
Result = TypeVar("Result")

# Weights compared at a time when a decoded layer is verified: stays in the cache.
_BLOCK = 1 << 18


def encode_layer(
    name: str, weights: NDArray[np.floating], error_bound: float, profile: str = "balanced"
) -> EncodedLayer:
    """Encode one layer with the codecs of a profile that suit it best.

    Parameters
    ----------
    name
        The layer's name, for the header and for errors.
    weights : float32[r, c]
        As Caffe stores them. Negative zero counts as zero.
    error_bound
        Absolute; a weight that is 0 stays exactly 0.
    profile
        See `deepsz_caffe.codecs.profile`.

    Raises
    ------
    InputError
        The bound is not a number over 0, or the weights are no matrix.
    ModelError
        A weight is NaN or infinite: those come from training that diverged, and no error bound
        holds for them. The error names the layer and the first such weight.
    CodecError
        A codec broke the bound; nothing is written in that case.

    Notes
    -----
    A codec that says what its stream decodes to is believed, and those weights are verified:
    whoever decodes it, `assemble` before all, finds out by the digest if it is not so.
    """
    matrix = _checked(name, weights, error_bound)
    choice = codecs.profile(profile).for_layer(matrix.size)
    candidates = list(_candidates(name, matrix, error_bound, choice))
    kept, known = candidates[choice.choose([_stored_bytes(layer) for layer, _ in candidates])]
    return _verified(matrix, kept, known)


def _check(model: CaffeModel, layer: EncodedLayer) -> None:
    """Decode a layer, compare its digests and verify every weight."""
    _verify(np.asarray(model[layer.name].matrix, np.float32), decode_layer(layer), layer)


def encode_rounded(
    name: str,
    weights: NDArray[np.floating],
    error_bound: float,
    parts: int,
    quantizer: Quantizer,
    levels: Levels,
    changes: tuple[ChangedBlob, ...] = (),
) -> EncodedLayer:
    """Encode one layer as levels that were chosen by its inputs (`round_weights`).

    Parameters
    ----------
    name, weights, error_bound
        As for `encode_layer`.
    parts
        The quantizer's step in 64ths of the bound: ``step_of(error_bound, parts)``.
    quantizer, levels
        What `round_weights` gave; int32 levels of the weights' shape.
    changes
        Other blobs that change with it.

    Raises
    ------
    InputError, ModelError
        As for `encode_layer`.
    CodecError
        A level breaks the bound or gives a weight that is 0 a value, or the step is another.
    """
    matrix = _checked(name, weights, error_bound)
    stream = MixingStep(error_bound).encode_rounded(matrix, parts, quantizer, levels)
    layer = EncodedLayer.unsealed(
        name, _shape(matrix), error_bound, data_codec="mixing-step", data=stream
    )
    return replace(_verified(matrix, layer, quantizer.values(levels)), changes=changes)


def check_bound(bound: float, where: str | None = None) -> None:
    """Check an error bound.

    Raises
    ------
    InputError
        It is not a number over 0.
    """
    if not (isfinite(bound) and bound > 0):
        raise InputError(f"an error bound must be a number over 0, not {bound}", where=where)


def _checked(name: str, weights: NDArray[np.floating], error_bound: float) -> Matrix:
    where = f"layer {name}"
    check_bound(error_bound, where)
    if weights.ndim != 2 or weights.size == 0:
        raise InputError(f"weights must be a matrix, not {list(weights.shape)}", where=where)
    # Views into a caffemodel lie at any address.
    matrix = np.require(weights, np.float32, ["C", "A"])
    # A sum is not finite when a weight is not, and rarely otherwise; only then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not isfinite(matrix.sum())
    if suspicious and not (finite := np.isfinite(matrix)).all():
        row, column = np.argwhere(~finite)[0]
        raise ModelError(
            f"weight [{row}, {column}] is {matrix[row, column]}",
            where=where,
            hint="the network's training diverged",
        )
    return matrix


def _candidates(
    name: str, matrix: Matrix, error_bound: float, profile: codecs.Profile
) -> Iterator[tuple[EncodedLayer, Matrix | None]]:
    """Give a layer as each codec encodes it, and what it decodes to where the codec says so."""
    shape = _shape(matrix)
    if not matrix.any():
        yield EncodedLayer.unsealed(name, shape, error_bound), None
        return
    tight = False
    for codec in profile.matrix:
        try:
            stream, known = codecs.MATRIX[codec](error_bound).encode_known(matrix)
        except TightBoundError:
            tight = True
            continue
        layer = EncodedLayer.unsealed(name, shape, error_bound, data_codec=codec, data=stream)
        yield layer, known
    # The paper has row-major order only; codecs of whole matrices see to the order themselves.
    for order in "C" if profile.name == "paper" else "CF":
        if profile.data:
            try:
                yield _two_arrays(name, matrix, error_bound, profile, order), None
            except TightBoundError:
                tight = True
    if tight:
        yield _two_arrays(name, matrix, error_bound, codecs.profile("paper"), "C"), None


def _two_arrays(
    name: str, matrix: Matrix, error_bound: float, profile: codecs.Profile, order: str
) -> EncodedLayer:
    sparse = to_sparse(matrix if order == "C" else matrix.T)
    data = {name: codecs.DATA[name](error_bound).encode(sparse.data) for name in profile.data}
    index = {name: codecs.INDEX[name]().encode(sparse.index) for name in profile.index}
    # The two are independent: the best of each is the best pair.
    values = min(data, key=lambda name: len(data[name]) + len(name))
    steps = min(index, key=lambda name: len(index[name]) + len(name))
    return EncodedLayer.unsealed(
        name,
        _shape(matrix),
        error_bound,
        column_major=order == "F",
        data_codec=values,
        data=data[values],
        index_codec=steps,
        index=index[steps],
        index_count=sparse.index.size,
    )


def _shape(matrix: Matrix) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def _stored_bytes(layer: EncodedLayer) -> int:
    # Ids and the order are stored too, and count on layers of a few hundred weights.
    ids = len(layer.data_codec) + len(layer.index_codec) + 2 * layer.column_major
    return layer.data_bytes + layer.index_bytes + ids


def _verified(matrix: Matrix, layer: EncodedLayer, decoded: Matrix | None) -> EncodedLayer:
    if decoded is None:
        decoded = np.empty_like(matrix)
        found = decode_unchecked(layer, decoded)
    else:
        found = codecs.tally(decoded)
    _verify(matrix, decoded, layer)
    return layer.sealed(*found)


def _verify(original: Matrix, decoded: Matrix, layer: EncodedLayer) -> None:
    flat, back = original.reshape(-1), decoded.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        before, after = flat[start : start + _BLOCK], back[start : start + _BLOCK]
        changed = np.flatnonzero(before != after)
        exact = before[changed].astype(np.float64)
        # float64 holds the difference of two float32 of one magnitude exactly.
        beyond = ~(np.abs(exact - after[changed]) <= layer.error_bound)
        beyond |= exact == 0
        if beyond.any():
            place = changed[np.argmax(beyond)]
            row, column = divmod(start + int(place), original.shape[1])
            raise CodecError(
                f"{layer.data_codec} decoded weight [{row}, {column}] = {before[place]!r} "
                f"to {after[place]!r}, beyond the bound {layer.error_bound}",
                where=f"layer {layer.name}",
            )


def encode(
    network: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | CaffeModel,
    bounds: Mapping[str, float],
    profile: str = "balanced",
    *,
    with_prototxt: str | os.PathLike[str] | None = None,
    measured: Measured | None = None,
    extra_blobs: ExtraBlobs = "keep",
    executor: Executor | None = None,
) -> Contents:
    """Encode the layers named in `bounds`; everything else is stored as it is.

    Parameters
    ----------
    network
        The prototxt that the weights must fit; None skips that check, and needs no Caffe.
    weights
        A caffemodel.
    bounds
        Layer name -> absolute error bound.
    profile
        "paper", "small", "fast" or "balanced".
    with_prototxt
        A deploy prototxt to store in the file.
    measured
        Losses to record.
    extra_blobs
        What becomes of blobs that layers of the network don't have, such as a fork's masks: BVLC
        Caffe refuses a file with them.
    executor
        Where layers are encoded; threads of this process by default.

    Returns
    -------
    Contents
        For `write_dsz`.

    Raises
    ------
    InputError
        No bounds, a bound that is not over 0, or an unknown profile.
    ModelError
        The weights can't be read or don't fit the network, a name is no layer of it that can be
        compressed, or a weight is NaN or infinite.
    """
    if not bounds:
        raise InputError("no layer has an error bound", hint="for example --bounds ip1=0.01")
    for name, bound in bounds.items():
        check_bound(bound, f"layer {name}")
    codecs.profile(profile)
    # Without a network no Caffe is needed, whose definition of prototxts it would be judged by.
    deploy = None
    if with_prototxt is not None:
        deploy = read_deploy(with_prototxt, parse=network is not None)
    model = weights if isinstance(weights, CaffeModel) else read_caffemodel(weights)
    if network is None:
        stored_layers(model, tuple(bounds))
    else:
        model = _fitting(network, model, bounds, extra_blobs)
    matrices = {name: model[name].matrix for name in bounds}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        workers = executor or threads
        coming = [
            workers.submit(encode_layer, name, matrix, bounds[name], profile)
            for name, matrix in matrices.items()
        ]
        layers = _results(coming)
        return assemble(model, list(matrices), layers, profile, deploy=deploy, measured=measured)


def assemble(
    model: CaffeModel,
    names: Sequence[str],
    layers: Iterable[EncodedLayer],
    profile: str,
    *,
    deploy: bytes | None = None,
    measured: Measured | None = None,
    changes: Collection[ChangedBlob] = (),
) -> Contents:
    """Put encoded layers and everything else of a caffemodel together to a file's contents.

    Every layer is decoded, and every weight verified.

    Parameters
    ----------
    model
        The caffemodel that the layers come from.
    names
        The layers' names.
    layers
        The layers, in any order; they may still be in the making, the rest is packed meanwhile.
    profile
        What the layers were encoded with, to record it.
    deploy
        A deploy prototxt to store in the file.
    measured
        Losses to record.
    changes
        Other blobs that are not as the caffemodel has them; the file declares their bounds.

    Raises
    ------
    CodecError, FormatError
        A weight or a change is beyond its bound, or a layer does not decode to what was encoded.
    """
    changed = _with_changes(model, changes)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        source = threads.submit(_sha256, Path(model.path))
        pieces, slots = split_weights(changed, names)
        on_grids = _in_order(model, changes)
        packed = [threads.submit(chunks.pack, block, on_grids) for block in chunks.split(pieces)]
        named, checked = {}, []
        for layer in layers:
            named[layer.name] = layer
            checked.append(threads.submit(_check, model, layer))
            if layer.nonzeros == 0:
                warnings.warn(
                    f"layer {layer.name}: every weight is 0 at the error bound "
                    f"{layer.error_bound:g}, so its outputs no longer depend on its inputs",
                    DeepSZWarning,
                    stacklevel=3,
                )
        placed = tuple(named[slot.layer] for slot in slots)
        offsets = tuple(slot.offset for slot in slots)
        rest = Rest(
            chunks=tuple(_results(packed)),
            bytes=sum(len(piece) for piece in pieces),
            slots=offsets,
            checksum=rest_checksum(offsets, [layer.digest for layer in placed], pieces),
            bounds=tuple(BlobBound(c.layer, c.blob, c.error_bound) for c in changes),
        )
        origin = Origin(profile, _software(), source.result(), measured)
        for each in checked:
            each.result()
    return Contents(placed, rest, deploy, origin)


def _with_changes(model: CaffeModel, changes: Iterable[ChangedBlob]) -> CaffeModel:
    """Put changed blobs in place, each within its bound."""
    values = {}
    for change in changes:
        before = model[change.layer].blobs[change.blob].data.reshape(-1).astype(np.float64)
        after = np.frombuffer(change.values, "<f4")
        if after.size != before.size or not (abs(before - after) <= change.error_bound).all():
            raise CodecError(
                f"blob {change.blob} is beyond its bound {change.error_bound}",
                where=f"layer {change.layer}",
            )
        values[change.layer, change.blob] = after
    return model.with_blobs(values) if values else model


def _in_order(model: CaffeModel, changes: Iterable[ChangedBlob]) -> list[bytes]:
    """Give the values of changed blobs in the order in which the caffemodel has them."""
    at = {layer.name: number for number, layer in enumerate(model.layers)}
    return [c.values for c in sorted(changes, key=lambda c: (at[c.layer], c.blob))]


def _results(futures: list[Future[Result]]) -> Iterator[Result]:
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _fitting(
    network: str | os.PathLike[str],
    model: CaffeModel,
    bounds: Mapping[str, float],
    extra_blobs: ExtraBlobs,
) -> CaffeModel:
    """Check that weights fit a network, as Caffe would; drop blobs that it does not have."""
    # Definitions are read with pycaffe's own messages, which decoding must not need.
    from deepsz_caffe.network.prototxt import phase, read_any_prototxt

    net, doubtful = read_any_prototxt(network)
    test_net = phase(net, "TEST")
    testing = compressible_layers(test_net, "all", shapes=bottom_shapes(test_net, doubtful))
    layers = {layer.name: layer for layer in (*compressible_layers(net, "all"), *testing)}
    require(bounds, layers, network, "all")
    # What only training has may be missing, or differ, where nobody asks for it.
    needed = {layer.name for layer in testing} | set(bounds)
    check_weights([x for x in layers.values() if x.name in needed], model, extra_blobs=True)
    return settle_extra_blobs(net, model, extra_blobs)


def _sha256(path: Path) -> bytes:
    with open_input(path, ModelError) as file:
        try:
            return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise ModelError(f"can't read: {reason(error)}", where=path) from error


def read_deploy(path: str | os.PathLike[str], *, parse: bool = True) -> bytes:
    """Read a deploy prototxt that is to be stored in the file; `parse`: see that it is one.

    Raises
    ------
    InputError
        It can't be read.
    ModelError
        It is no network definition.
    CaffeError
        pycaffe, whose definition of prototxts is used, is not installed.
    """
    content = read_input(path, InputError)
    if parse:
        # Definitions are read with pycaffe's own messages, which decoding must not need.
        from deepsz_caffe.network.prototxt import read_any_prototxt

        read_any_prototxt(path)
    return content


def _software() -> str:
    """Versions of what determines the bytes of a file."""
    found = []
    for name in ("deepsz-caffe", "pysz", "numcodecs"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
        except OSError as error:
            raise DeepSZError(f"can't read its version: {reason(error)}", where=name) from error
    return ", ".join(found)


__all__ = ["EncodedLayer", "assemble", "encode", "encode_layer", "write_dsz"]
