"""Zstandard, the paper's second candidate for index arrays and the quickest to decode."""

from __future__ import annotations

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.frames import compress, decompress
from deepsz_caffe.codecs.raw import Raw

#: Index steps hardly repeat: low levels, which leave all to the entropy coder, often win.
_LEVELS = (1, 3, 19)


class Zstd(Raw):
    """Zstandard at whichever of a few levels gives least bytes."""

    codec_id = "deepsz-zstd"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        array = self.source(buf)
        # Level 19 takes seconds on millions of steps and gains nothing there.
        levels = _LEVELS if array.size <= 1 << 20 else _LEVELS[:2]
        return min((compress(array, level) for level in levels), key=len)

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), which the frame must fill exactly."""
        target: UInt8 = self.target(out)
        return self.fill(target, decompress(as_bytes(buf), target.size))
