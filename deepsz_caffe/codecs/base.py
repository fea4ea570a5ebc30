"""What every codec here shares: numcodecs' interface, a known output size, checked arguments.

A codec stores no count, shape or configuration beside its stream: the reader knows the shape (from
the `.dsz` layer table, or the codec's own `shape` in a Zarr array) and passes an output array.
`decode` never allocates more than `working_bytes` says, whatever the stream claims, and raises
`CodecError` when the stream is damaged or yields another number of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numcodecs.abc import Codec
from numpy.typing import NDArray

from deepsz_caffe.codecs.digest import Tally, tally
from deepsz_caffe.errors import CodecError

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview | UInt8


class ArrayCodec(Codec):  # type: ignore[misc]  # numcodecs ships no types
    """A codec of native, C-contiguous arrays of one type and rank.

    Parameters
    ----------
    shape
        Shape of the arrays, for callers that decode without an output array (Zarr).
    """

    dtype: ClassVar[type[np.generic]] = np.uint8
    rank: ClassVar[int] = 1
    #: seconds that decoding a value takes at most, on a slow machine
    value_seconds: ClassVar[float] = 1e-6

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.shape = None if shape is None else tuple(shape)

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """Return what `decode` allocates at most, besides the stream and the output.

        Parameters
        ----------
        shape
            Of the output.
        stream
            Bytes of the stream.
        """
        return stream + 2 * math.prod(shape) * np.dtype(self.dtype).itemsize

    def source(self, buf: object) -> NDArray[Any]:
        """Return `buf` as an array that can be encoded.

        Raises
        ------
        CodecError
            Wrong type, byte order or rank, or no values at all.
        """
        array: NDArray[Any] = np.asarray(buf)
        if array.dtype != self.dtype or not array.dtype.isnative or array.ndim != self.rank:
            wanted = f"a native {np.dtype(self.dtype).name} array of rank {self.rank}"
            raise CodecError(f"can't encode {array.dtype.str}{list(array.shape)}, only {wanted}")
        if array.size == 0:
            raise CodecError("can't encode an empty array")
        if array.dtype == np.float32 and not _finite(array):
            raise CodecError("can't encode NaN or infinity")
        return np.ascontiguousarray(array)

    def target(self, out: object) -> NDArray[Any]:
        """Return `out`, or a new array of the configured shape, ready to be decoded into."""
        if out is None:
            if self.shape is None:
                raise CodecError("decode needs an output array, or the codec a shape")
            return np.empty(self.shape, dtype=self.dtype)
        array = np.asarray(out)
        if (
            array.dtype != self.dtype
            or not array.dtype.isnative
            or array.ndim != self.rank
            or not array.flags.c_contiguous
            or not array.flags.writeable
        ):
            raise CodecError(
                f"can't decode into {array.dtype.str}{list(array.shape)}, only into a contiguous "
                f"writable {np.dtype(self.dtype).name} array of rank {self.rank}"
            )
        if array.size == 0:
            raise CodecError("can't decode into an empty array")
        return array


class BoundedCodec(ArrayCodec):
    """A codec of float32 weights whose decoded values lie within an absolute bound.

    Parameters
    ----------
    bound
        Largest absolute difference between a weight and its decoded value, float32 rounding
        included; above 0.
    shape
        See `ArrayCodec`.
    """

    dtype = np.float32

    def __init__(self, bound: float, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(shape)
        self.bound = float(bound)
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise CodecError(f"an error bound must be above 0 and finite, not {bound}")

    def verify(self, values: Float32, decoded: Float32) -> None:
        """Raise `CodecError` unless every decoded value is within the bound, exactly."""
        changed = values != decoded
        # The difference of two float32 is exact in float64 wherever it is near the bound.
        error = np.abs(values[changed].astype(np.float64) - decoded[changed]).max(initial=0)
        if not error <= self.bound:
            raise CodecError(f"{self.codec_id}: an error of {error:.9g} exceeds {self.bound:.9g}")


@dataclass(frozen=True)
class Part:
    """Some weights of a matrix, which can be decoded apart from the others.

    Attributes
    ----------
    start, cells
        Position of the first one in row-major order, and how many they are.
    decode
        Decodes them into a C-contiguous float32 array of this size, and returns their tally.
    """

    start: int
    cells: int
    decode: Callable[[Float32], Tally]


class MatrixCodec(BoundedCodec):
    """A codec of whole matrices, zeros included; what lies within the bound of 0 may become 0.

    Parameters
    ----------
    bound, shape
        See `BoundedCodec`.
    """

    rank = 2

    def encode_known(self, buf: object) -> tuple[bytes, Float32 | None]:
        """Encode, and give what that decodes to where it is known without decoding.

        The values are float32 of the weights' shape.
        """
        return self.encode(buf), None

    def parts(self, buf: object, shape: tuple[int, int]) -> Iterable[Part]:
        """Return the parts of a matrix that can be decoded one by one, in any order or together.

        Raises
        ------
        CodecError
            The stream is damaged; also what `Part.decode` raises.
        """

        def decode(out: Float32) -> Tally:
            self.decode(buf, out.reshape(shape))
            return tally(out)

        return (Part(0, shape[0] * shape[1], decode),)


def _finite(array: Float32) -> bool:
    # A sum is not finite when a value is not, and rarely otherwise; only then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(array.sum()) or bool(np.isfinite(array).all())


def as_bytes(buf: object) -> memoryview:
    """Return a flat read-only view of the bytes of an encoded stream."""
    try:
        return memoryview(buf).cast("B").toreadonly()  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise CodecError("an encoded stream must be a contiguous buffer") from error
