"""LZMA, as raw LZMA2: no container, and a dictionary whose size the stream can't choose."""

from __future__ import annotations

import lzma

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

#: One-byte symbols without alignment: no position bits, all context from the last symbol.
_FILTERS: list[dict[str, int]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}
]


class LZMA(Raw):
    """LZMA2 at its highest level."""

    codec_id = "deepsz-lzma"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        return lzma.compress(self.source(buf).data, lzma.FORMAT_RAW, filters=_FILTERS)

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), reading no more than fits."""
        target = self.target(out)
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
        try:
            content = decompressor.decompress(as_bytes(buf), target.size + 1)
            if len(content) == target.size and not decompressor.eof:
                content += decompressor.decompress(b"", 1)
        except (lzma.LZMAError, EOFError) as error:
            raise CodecError(f"lzma: {error}") from error
        if len(content) <= target.size and (not decompressor.eof or decompressor.unused_data):
            raise CodecError("lzma: the stream is truncated, or something follows it")
        return self.fill(target, content)
