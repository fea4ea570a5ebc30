"""`mixing` with a quantization step of its own, finer than the bound: for levels chosen elsewhere.

Where rounding may choose among several levels of a weight, its largest error is larger than half a
cell. The file's bound is the promise; the step, which gives the cells, is stored as a fraction of
it. The stream: the fraction in 64ths, as a varint from 1 to 64, and what `Mixing` with the step as
its bound writes.
"""

from __future__ import annotations

import numpy as np

from deepsz_caffe.codecs.base import Float32, MatrixCodec, as_bytes
from deepsz_caffe.codecs.mixing import Mixing, encode_quantized
from deepsz_caffe.codecs.quantize import Levels, Quantizer
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.errors import CodecError

#: parts of the bound that a step is a multiple of
PARTS = 64


def step_of(bound: float, parts: int) -> float:
    """Return the step that is `parts` 64ths of a bound; powers of two are exact."""
    return bound * parts / PARTS


class MixingStep(MatrixCodec):
    """Context mixing of levels on a grid of its own; alone it uses the bound as the step.

    Parameters
    ----------
    bound
        Largest absolute error.
    shape
        See `ArrayCodec`.
    """

    codec_id = "deepsz-mixing-step"
    value_seconds = Mixing.value_seconds

    def encode(self, buf: object) -> bytes:
        """Encode float32 weights of shape (rows, cols), each to the nearest level.

        Raises
        ------
        CodecError
            NaN, infinity, or a bound too small for weights of this size.
        """
        return pack_varints((PARTS,)) + Mixing(self.bound).encode(buf)

    def encode_rounded(
        self, buf: object, parts: int, quantizer: Quantizer, levels: Levels
    ) -> bytes:
        """Encode float32 weights of shape (rows, cols) as the given levels.

        Parameters
        ----------
        buf
            The weights.
        parts
            The step in 64ths of the bound, 1 to 64.
        quantizer, levels
            Made with ``step_of(bound, parts)``; int32 levels of the weights' shape.

        Raises
        ------
        CodecError
            A level decodes to a value beyond the bound, or the arguments don't fit each other.
        """
        weights = self.source(buf)
        if not 1 <= parts <= PARTS or quantizer.bound != step_of(self.bound, parts):
            raise CodecError(
                f"mixing-step: {parts} of {PARTS} parts of {self.bound:.9g} is no step of the "
                f"quantizer, which has {quantizer.bound:.9g}"
            )
        if levels.shape != weights.shape or levels.dtype != np.int32:
            raise CodecError(
                f"mixing-step: levels are {levels.dtype}{list(levels.shape)}, not "
                f"int32{list(weights.shape)}"
            )
        self.verify(weights, quantizer.values(levels))
        return pack_varints((parts,)) + encode_quantized(quantizer, levels)

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (rows, cols)."""
        target: Float32 = self.target(out)
        (parts,), stream = unpack_varints(as_bytes(buf), 1)
        if not 1 <= parts <= PARTS:
            raise CodecError("mixing-step: the header is damaged")
        return Mixing(step_of(self.bound, parts)).decode(stream, target)

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`."""
        return Mixing(self.bound).working_bytes(shape, stream)
