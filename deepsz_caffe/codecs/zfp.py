"""ZFP, the compressor that the paper compares SZ with, through zfpy (extra ``zfp``)."""

from __future__ import annotations

import importlib
from types import ModuleType

from deepsz_caffe.codecs.base import BoundedCodec, Float32, as_bytes
from deepsz_caffe.codecs.varint import pack_varints, unpack_varints
from deepsz_caffe.errors import CodecError

_FLOAT32 = 3
#: A block of four float32 takes at most 1 + 8 bits and twice the bits of the values.
_BYTES_A_BLOCK = 36


class ZFP(BoundedCodec):
    """ZFP in its fixed-accuracy mode, on the array as one dimension."""

    codec_id = "deepsz-zfp"

    def encode(self, buf: object) -> bytes:
        """Encode non-zero weights, float32 of shape (n,), n >= 1.

        Raises
        ------
        CodecError
            NaN or infinity, zfpy is not installed, or ZFP broke its bound.
        """
        values = self.source(buf)
        payload = bytes(_library().compress_numpy(values, tolerance=self.bound, write_header=False))
        stream = pack_varints([len(payload)]) + payload
        self.verify(values, self.decode(stream, values.copy()))
        return stream

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (n,)."""
        target: Float32 = self.target(out)
        (size,), payload = unpack_varints(as_bytes(buf), 1)
        if size != len(payload):
            raise CodecError("zfp: the stream is truncated, or something follows it")
        # ZFP reads on until it has all values: give it as much as values can take.
        longest = _BYTES_A_BLOCK * (target.size // 4 + 2)
        padded = bytes(payload[:longest]) + bytes(max(longest - len(payload), 0))
        try:
            values = _library()._decompress(padded, _FLOAT32, target.shape, tolerance=self.bound)
        except (TypeError, ValueError) as error:
            raise CodecError(f"zfp: {error}") from error
        target[...] = values
        return target

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`; the stream padded to what values can take, and the values."""
        return stream + _BYTES_A_BLOCK * (shape[0] // 4 + 2) + 5 * shape[0]


def _library() -> ModuleType:
    try:
        return importlib.import_module("zfpy")
    except ImportError as error:
        raise CodecError("ZFP is not installed", hint="pip install 'deepsz-caffe[zfp]'") from error
