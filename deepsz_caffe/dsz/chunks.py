"""Lossless storage of what is not an fc layer's weights, in chunks that are packed one by one.

A chunk holds `CHUNK` bytes (the last one what is left), so neither packing nor unpacking needs more
memory than a few chunks, whatever the size of the file. Convolution weights hardly compress: what
helps is to bring bytes of equal significance together (the shuffle filter of Blosc and HDF5), so
that Zstandard sees a run of exponents and passes the mantissas through at the speed of a copy.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

from deepsz_caffe.codecs.frames import compress, decompress
from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.errors import CodecError, FormatError

#: Bytes that a chunk holds when it is unpacked.
CHUNK = 1 << 22

# A chunk is packed only when that saves one byte in 64: less is not worth the decoding time.
_WORTHWHILE = 64
_FLOAT = 4
_LEVEL = 9


class Packing(enum.IntEnum):
    """How a chunk is stored; the numbers are those of container.proto."""

    STORED = 0
    ZSTD = 1
    SHUFFLED_ZSTD = 2


@dataclass(frozen=True)
class Chunk:
    """A packed chunk: `data` as it lies in the file, `checksum` its CRC-32."""

    packing: Packing
    data: bytes
    checksum: int


def pack(data: bytes | memoryview) -> Chunk:
    """Pack one chunk, at most `CHUNK` bytes; equal bytes give equal chunks."""
    best, packed = Packing.STORED, bytes(data)
    threshold = len(data) - len(data) // _WORTHWHILE
    for packing, candidate in (
        (Packing.ZSTD, compress(packed, _LEVEL)),
        (Packing.SHUFFLED_ZSTD, compress(_shuffle(packed), _LEVEL)),
    ):
        if len(candidate) < min(len(packed), threshold):
            best, packed = packing, candidate
    return Chunk(best, packed, crc32(packed))


def unpack(chunk: Chunk, size: int, where: str) -> bytes:
    """Verify the checksum of a chunk and give back its `size` bytes.

    Raises
    ------
    FormatError
        The checksum is wrong, or the chunk does not unpack to exactly `size` bytes.
    """
    if crc32(chunk.data) != chunk.checksum:
        raise FormatError("the checksum is wrong", where=where, hint="the file is damaged")
    if chunk.packing is Packing.STORED:
        if len(chunk.data) != size:
            raise FormatError(f"{len(chunk.data)} bytes are stored, not {size}", where=where)
        return chunk.data
    try:
        content = decompress(chunk.data, size)
    except CodecError as error:
        raise FormatError(error.what, where=where) from error
    if chunk.packing is Packing.ZSTD:
        return content
    return bytes(kernels.join_planes(content))


def split(pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """Cut a stream, given in pieces of any size, into blocks of `CHUNK` bytes."""
    waiting = bytearray()
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while len(view):
            part = view[: CHUNK - len(waiting)]
            waiting += part
            view = view[len(part) :]
            if len(waiting) == CHUNK:
                yield bytes(waiting)
                waiting.clear()
    if waiting:
        yield bytes(waiting)


def sizes(total: int) -> list[int]:
    """Unpacked sizes of the chunks of `total` bytes."""
    return [min(CHUNK, total - start) for start in range(0, total, CHUNK)]


def _shuffle(data: bytes) -> bytes:
    # First bytes of all groups of four, then the second ones, ...; what is left over stays behind.
    whole = len(data) - len(data) % _FLOAT
    return b"".join([*(data[byte:whole:_FLOAT] for byte in range(_FLOAT)), data[whole:]])
