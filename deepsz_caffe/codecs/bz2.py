"""bzip2, one of the lossless compressors that the paper compares on index arrays."""

from __future__ import annotations

import bz2

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

#: of a block of 900,000 bytes while it is decoded
_BLOCK_BYTES = 1 << 22


class BZ2(Raw):
    """bzip2 at its highest level."""

    codec_id = "deepsz-bz2"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        return bz2.compress(self.source(buf).data)

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), reading no more than fits."""
        target = self.target(out)
        decompressor = bz2.BZ2Decompressor()
        try:
            content = decompressor.decompress(as_bytes(buf), target.size + 1)
        except (OSError, EOFError) as error:
            raise CodecError(f"bz2: {error}") from error
        if len(content) <= target.size and (not decompressor.eof or decompressor.unused_data):
            raise CodecError("bz2: the stream is truncated, or something follows it")
        return self.fill(target, content)

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`."""
        return super().working_bytes(shape, stream) + _BLOCK_BYTES
