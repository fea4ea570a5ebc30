"""SZ 3 through pysz: the error-bounded compressor that DeepSZ is built on (paper section 3.4).

Three ids, one per predictor: neighbouring weights are unrelated, so no prediction at all is often
smallest, and on small dense layers a predictor sometimes wins.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import numpy as np

from deepsz_caffe.codecs.base import BoundedCodec, Float32, as_bytes
from deepsz_caffe.errors import CodecError

#: magic number, version, bytes of the payload
_HEADER = struct.Struct("<4s4sQ")
#: the payload begins with the size that it decompresses to
_SIZE = struct.Struct("<Q")
#: the end of SZ's own configuration record: error mode, absolute bound, 11 more bytes
_CONFIG_END = struct.Struct("<Bd11s")
#: Huffman trees of 2^16 symbols
_TREES = 1 << 23
_MAGIC = bytes.fromhex("10f342f3")


class SZ(BoundedCodec):
    """SZ 3 with interpolation and Lorenzo prediction, pysz's default."""

    codec_id = "deepsz-sz"
    algorithm: ClassVar[int] = 1

    def encode(self, buf: object) -> bytes:
        """Encode non-zero weights, float32 of shape (n,), n >= 1.

        Raises
        ------
        CodecError
            An empty array, NaN or infinity, or SZ broke its bound.
        """
        from pysz import sz, szConfig

        values = self.source(buf)
        config = szConfig(values.shape)
        config.errorBoundMode = 0  # absolute
        config.absErrorBound = self.bound
        config.cmprAlgo = self.algorithm
        compressed, _ = sz.compress(values, config)
        stream = bytes(compressed)
        self.verify(values, self.decode(stream, np.empty_like(values)))
        return stream

    def decode(self, buf: object, out: object = None) -> Float32:
        """Decode into `out`, float32 of shape (n,).

        SZ is C++ that trusts its input, and turns a flipped bit into wrong weights: verify a
        checksum first. The sizes that the stream declares are checked here before SZ sees them.
        """
        from pysz import sz

        target = self.target(out)
        view = as_bytes(buf)
        self._check_sizes(view, target.size)
        try:
            values, _ = sz.decompress(np.frombuffer(view, np.uint8), np.float32, target.shape)
        # Which of Python's exceptions is the binding's choice for each of C++'s.
        except (ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError) as error:
            raise CodecError(f"SZ: {error}") from error
        target[...] = values
        return target

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`; the content, codes as integers, what is stored as it is, the values."""
        return stream + 24 * shape[0] + _TREES

    def _check_sizes(self, view: memoryview, count: int) -> None:
        if len(view) < _HEADER.size + _SIZE.size + _CONFIG_END.size:
            raise CodecError("SZ: the stream is truncated")
        magic, _, payload = _HEADER.unpack_from(view)
        end = _HEADER.size + payload
        if magic != _MAGIC or not _SIZE.size < payload <= len(view) - _HEADER.size:
            raise CodecError("SZ: not a stream of SZ 3, or truncated")
        (inflated,) = _SIZE.unpack_from(view, _HEADER.size)
        # Worst case a value: 4 bytes stored as it is, 4 of Huffman code; and for each symbol, of
        # which there are 2^16, 2 tree nodes of 13 bytes.
        if inflated > 9 * count + 26 * min(count, 1 << 16) + 4096:
            raise CodecError(f"SZ: the stream claims {inflated} bytes for {count} values")
        config = view[end:]
        if len(config) < _CONFIG_END.size or config[0] != len(config):
            raise CodecError("SZ: the configuration record is damaged")
        # Not the algorithm: SZ turns to another where it finds the one asked for of no use.
        mode, bound, _ = _CONFIG_END.unpack(config[-_CONFIG_END.size :])
        if (mode, bound) != (0, self.bound):
            raise CodecError("SZ: the stream was made with another bound")


class SZLorenzo(SZ):
    """SZ 3 with Lorenzo and regression prediction, the predictors of SZ 2 in the paper."""

    codec_id = "deepsz-sz-lorenzo"
    algorithm: ClassVar[int] = 0


class SZNoPrediction(SZ):
    """SZ 3 without prediction: error-bounded quantization, Huffman coding, Zstandard."""

    codec_id = "deepsz-sz-nopred"
    algorithm: ClassVar[int] = 3
