"""Every codec on one layer, beside the entropy that no code without contexts goes below."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import log2
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe import codecs
from deepsz_caffe.codecs.base import ArrayCodec, Float32
from deepsz_caffe.codecs.profiles import SMALL_LAYER
from deepsz_caffe.codecs.quantize import entropy
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.errors import CodecError, InputError

#: shortest time that is measured, in seconds: quicker codecs run several times
_LEAST_TIME = 0.02
_MOST_RUNS = 50

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One codec, or one limit, on one array of a layer.

    Attributes
    ----------
    array
        "data", "index" or "matrix".
    codec
        The codec's id; "entropy" for a limit.
    bytes
        Of the stream; of a limit, rounded up.
    bytes_per_nonzero
        Non-zeros as the pruned network has them.
    encode_mb_s, decode_mb_s
        10⁶ bytes of the array as it is without the codec, per second; None for a limit. Of a
        matrix all weights count, zeros included.
    """

    array: str
    codec: str
    bytes: int
    bytes_per_nonzero: float
    encode_mb_s: float | None = None
    decode_mb_s: float | None = None


def compare(weights: Float32, bound: float, *, slow: bool | None = None) -> Iterator[Figure]:
    """Measure every registered codec on a layer; codecs that are not installed are left out.

    Parameters
    ----------
    weights
        float32 (rows, cols), at least one of them not 0.
    bound
        Absolute error bound.
    slow
        Measure context mixing of the matrix too, about 1 µs a weight; by default only on layers of
        up to a million weights.

    Yields
    ------
    Figure
        For each array its limit first: the zero-order entropy of ``rint(w / (2 * bound))`` for
        data, −p log2 p − (1 − p) log2 (1 − p) a weight for positions, where p is the share of
        non-zeros; for the matrix both, of the weights that are not within the bound of 0.

    Raises
    ------
    InputError
        Every weight is 0.
    CodecError
        A codec broke its bound, or can't encode these weights.
    """
    matrix = np.require(weights, np.float32, ["C", "A"])
    sparse = to_sparse(matrix)
    count = sparse.data.size
    if count == 0:
        raise InputError("every weight is 0: there is nothing to encode")
    kept = sparse.data[np.abs(sparse.data.astype(np.float64)) > bound]
    if slow is None:
        slow = matrix.size <= SMALL_LAYER
    parts: tuple[tuple[str, NDArray[np.generic], dict[str, ArrayCodec], float], ...] = (
        (
            "data",
            sparse.data,
            {n: c(bound) for n, c in codecs.DATA.items()},
            _bits(sparse.data, bound),
        ),
        (
            "index",
            sparse.index,
            {n: c() for n, c in codecs.INDEX.items()},
            _position_bits(matrix.size, count),
        ),
        (
            "matrix",
            matrix,
            {n: c(bound) for n, c in codecs.MATRIX.items() if slow or n != "mixing"},
            _bits(kept, bound) + _position_bits(matrix.size, kept.size),
        ),
    )
    for name, array, candidates, bits in parts:
        limit = -int(-bits // 8)
        yield Figure(name, "entropy", limit, limit / count)
        for codec_name, codec in candidates.items():
            try:
                encoding, stream = _timed(partial(codec.encode, array))
            except CodecError as error:
                if isinstance(error.__cause__, ImportError):
                    continue
                raise
            out = np.empty_like(array)
            decoding, _ = _timed(partial(codec.decode, stream, out))
            yield Figure(
                name,
                codec_name,
                len(stream),
                len(stream) / count,
                array.nbytes / encoding / 1e6,
                array.nbytes / decoding / 1e6,
            )


def _bits(values: Float32, bound: float) -> float:
    return values.size * entropy(np.rint(values.astype(np.float64) / (2 * bound)).astype(np.int64))


def _position_bits(cells: int, nonzeros: int) -> float:
    share = nonzeros / cells
    if share in (0, 1):
        return 0.0
    return -cells * (share * log2(share) + (1 - share) * log2(1 - share))


def _timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the shortest time of several runs in seconds, and the result."""
    best, spent = float("inf"), 0.0
    for _ in range(_MOST_RUNS):
        start = time.perf_counter()
        result = function()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent >= _LEAST_TIME:
            break
    return best, result
