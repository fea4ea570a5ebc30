"""Brotli, through the optional package of the same name (extra ``brotli``)."""

from __future__ import annotations

import importlib
from types import ModuleType

from deepsz_caffe.codecs.base import UInt8, as_bytes
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.errors import CodecError

#: bytes of the largest window
_WINDOW = 1 << 24


class Brotli(Raw):
    """Brotli at its highest level."""

    codec_id = "deepsz-brotli"

    def encode(self, buf: object) -> bytes:
        """Compress a uint8 array of shape (m,), m >= 1."""
        # Above a million steps level 11 takes seconds.
        array = self.source(buf)
        quality = 11 if array.size <= 1 << 20 else 9
        return bytes(_library().compress(array.tobytes(), quality=quality))

    def decode(self, buf: object, out: object = None) -> UInt8:
        """Decompress into `out`, uint8 of shape (m,), reading no more than fits."""
        target = self.target(out)
        library = _library()
        decompressor = library.Decompressor()
        content = b""
        try:
            content = decompressor.process(bytes(as_bytes(buf)), output_buffer_limit=target.size)
            while len(content) <= target.size and not decompressor.can_accept_more_data():
                content += decompressor.process(b"", output_buffer_limit=target.size)
        except library.error as error:
            raise CodecError(f"brotli: {error}") from error
        if len(content) <= target.size and not decompressor.is_finished():
            raise CodecError("brotli: the stream is truncated")
        return self.fill(target, content)

    def working_bytes(self, shape: tuple[int, ...], stream: int) -> int:
        """See `ArrayCodec`; the window may be larger than the output."""
        return super().working_bytes(shape, stream) + _WINDOW


def _library() -> ModuleType:
    try:
        return importlib.import_module("brotli")
    except ImportError as error:
        raise CodecError(
            "Brotli is not installed", hint="pip install 'deepsz-caffe[brotli]'"
        ) from error
