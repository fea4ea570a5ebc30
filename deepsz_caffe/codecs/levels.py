"""Least bytes for a data array: levels by the context-mixing coder.

The weights become levels (`quantize`), coded as a matrix of one column: each under the contexts of
the two before it, of the run of magnitudes, and of all.
"""

from __future__ import annotations

from deepsz_caffe.codecs.base import BoundedCodec, Float32
from deepsz_caffe.codecs.mixing import Mixing


class MixedLevels(BoundedCodec):
    """Context mixing of a data array; what lies within the bound of 0 becomes 0.

    Parameters
    ----------
    bound
        Largest absolute error.
    shape
        See `ArrayCodec`.
    """

    codec_id = "deepsz-levels"
    value_seconds = Mixing.value_seconds

    def encode(self, buf: object) -> bytes:
        """Encode non-zero weights, float32 of shape (n,), n >= 1.

        Raises
        ------
        CodecError
            NaN, infinity, or a bound too small for weights of this size.
        """
        return Mixing(self.bound).encode(self.source(buf)[:, None])

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (n,)."""
        target: Float32 = self.target(out)
        Mixing(self.bound).decode(buf, target[:, None])
        return target

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`."""
        return Mixing(self.bound).working_bytes((*shape, 1), stream)
