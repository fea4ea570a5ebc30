"""gzip, the paper's first candidate for index arrays."""

from __future__ import annotations

import zlib

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

_GZIP_CONTAINER = 31


class GZip(Raw):
    """gzip at its highest level, without a time stamp."""

    codec_id = "deepsz-gzip"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        compressor = zlib.compressobj(9, zlib.DEFLATED, _GZIP_CONTAINER, 9)
        return compressor.compress(self.source(buf).data) + compressor.flush()

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), reading no more than fits."""
        target = self.target(out)
        decompressor = zlib.decompressobj(_GZIP_CONTAINER)
        try:
            content = decompressor.decompress(as_bytes(buf), target.size + 1)
        except zlib.error as error:
            raise CodecError(f"gzip: {error}") from error
        if len(content) <= target.size and (not decompressor.eof or decompressor.unused_data):
            raise CodecError("gzip: the stream is truncated, or something follows it")
        return self.fill(target, content)
