"""Zstandard frames: each states the size of its content, which is what it must give.

Compressing is left to numcodecs, so that what was encoded stays the same; it takes 0.1 s to import.
Decoding a file should not wait for that: it goes through `zstandard`, the same library bound again.
"""

from __future__ import annotations

import threading

import zstandard

from deepsz_caffe.errors import CodecError

_local = threading.local()
_MAGIC = b"\x28\xb5\x2f\xfd"


def compress(content: object, level: int) -> bytes:
    """Return one Zstandard frame that states the size of its content, any buffer of bytes.

    Raises
    ------
    CodecError
        The library can't, as where memory is short.
    """
    from numcodecs import zstd

    try:
        return bytes(zstd.compress(content, level))
    except RuntimeError as error:
        raise CodecError(str(error)) from error


def decompress(frame: bytes | memoryview, size: int) -> bytes:
    """Decompress one frame.

    Raises
    ------
    CodecError
        The frame is damaged, does not state exactly `size` bytes as its content, or something
        follows it.
    """
    # Known before anything is allocated.
    if _content_size(frame) != size:
        raise CodecError(f"zstd: the frame does not state {size} bytes of content")
    try:
        content = _decompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd: {error}") from error
    if len(content) != size:
        raise CodecError(f"zstd: the frame holds {len(content)} bytes, not {size}")
    return content


def _decompressor() -> zstandard.ZstdDecompressor:
    # One a thread, which is all that it can take; made anew for each frame, it costs a tenth more.
    try:
        decompressor: zstandard.ZstdDecompressor = _local.decompressor
    except AttributeError:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor


def _content_size(frame: bytes | memoryview) -> int:
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
