"""No compression: for arrays so small or so random that every compressor makes them longer."""

from __future__ import annotations

import numpy as np

from deepsz_caffe.codecs.base import ArrayCodec, UInt8, as_bytes
from deepsz_caffe.errors import CodecError


class Raw(ArrayCodec):
    """The bytes as they are."""

    codec_id = "deepsz-raw"

    def encode(self, buf: object) -> bytes:
        """Return the bytes of a uint8 array of shape (m,), m >= 1."""
        return bytes(self.source(buf).tobytes())

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Copy the stream into `out`, uint8 of shape (m,).

        Raises
        ------
        CodecError
            The stream holds another number of bytes.
        """
        return self.fill(out, as_bytes(buf))

    def fill(self, out: object, content: bytes | memoryview) -> UInt8:
        """Copy what a decompressor gave into `out`, which it must fill exactly."""
        target = self.target(out)
        if len(content) != target.size:
            raise CodecError(
                f"{self.codec_id}: the stream holds {len(content)} bytes, not {target.size}"
            )
        target[...] = np.frombuffer(content, np.uint8)
        return target
