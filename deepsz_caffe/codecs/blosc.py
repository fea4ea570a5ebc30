"""Blosc, the paper's third candidate for index arrays."""

from __future__ import annotations

import struct
from threading import Lock

from numcodecs import blosc

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

#: version, version of the compressor, flags, type size; content, block and stream in bytes
_HEADER = struct.Struct("<4B3I")
_one_thread = Lock()


class Blosc(Raw):
    """Blosc: Zstandard on blocks, on bytes as they are or with their bits transposed."""

    codec_id = "deepsz-blosc"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        array = self.source(buf)
        shuffles = (blosc.NOSHUFFLE, blosc.BITSHUFFLE)
        # Several threads write their blocks in whatever order they finish.
        with _one_thread:
            threads, blosc.use_threads = blosc.use_threads, False
            try:
                streams = [bytes(blosc.compress(array, b"zstd", 5, s, 0)) for s in shuffles]
            finally:
                blosc.use_threads = threads
        return min(streams, key=len)

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), which the stream must fill exactly."""
        target: UInt8 = self.target(out)
        view = as_bytes(buf)
        # Blosc reads as many bytes as its header says, whatever there are.
        if len(view) < _HEADER.size:
            raise CodecError("blosc: the stream is truncated")
        _, _, _, _, content, _, length = _HEADER.unpack_from(view)
        if (content, length) != (target.size, len(view)):
            raise CodecError("blosc: the stream has another length or content than it should")
        try:
            blosc.decompress(view, target)
        except (RuntimeError, ValueError) as error:
            raise CodecError(f"blosc: {error}") from error
        return target
