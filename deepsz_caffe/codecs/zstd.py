"""Zstandard, the paper's second candidate for index arrays and the quickest to decode."""

from __future__ import annotations

from numcodecs import zstd

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

#: Index steps hardly repeat: low levels, which leave all to the entropy coder, often win.
_LEVELS = (1, 3, 19)
_MAGIC = b"\x28\xb5\x2f\xfd"


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
        decompress(as_bytes(buf), target)
        return target


def compress(array: UInt8, level: int) -> bytes:
    """Return one Zstandard frame that states the size of its content."""
    return bytes(zstd.compress(array, level))


def decompress(frame: memoryview, out: UInt8) -> None:
    """Decompress one frame straight into `out`, uint8 of shape (m,).

    Raises
    ------
    CodecError
        The frame is damaged, or does not state exactly `out.size` bytes as its content.
    """
    if _content_size(frame) != out.size:
        raise CodecError(f"zstd: the frame does not state {out.size} bytes of content")
    try:
        zstd.decompress(frame, out)
    except (RuntimeError, ValueError) as error:
        raise CodecError(f"zstd: {error}") from error


def _content_size(frame: memoryview) -> int:
    """Read the content size in a frame's header (RFC 8878, section 3.1.1.1), −1 without one."""
    if len(frame) < 5 or frame[:4] != _MAGIC:
        return -1
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = frame[start : start + width]
    if width == 0 or len(field) < width:
        return -1
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
