"""Lossless storage of what is not an fc layer's weights, in chunks that are packed one by one.

A chunk holds `CHUNK` bytes (the last one what is left), so neither packing nor unpacking needs more
memory than a few chunks, whatever the size of the file. Convolution weights hardly compress: what
helps is to bring bytes of equal significance together (the shuffle filter of Blosc and HDF5), so
that Zstandard sees a run of exponents and passes the mantissas through at the speed of a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from deepsz_caffe.codecs.frames import compress, decompress
from deepsz_caffe.codecs.kernels import kernels
from deepsz_caffe.dsz.grids import pack_grids, unpack_grids
from deepsz_caffe.dsz.layout import CHUNK, Chunk, Packing
from deepsz_caffe.errors import CodecError, FormatError

# A chunk is packed only when that saves one byte in 64: less is not worth the decoding time.
_WORTHWHILE = 64
_FLOAT = 4
_LEVEL = 9


def pack(data: bytes | memoryview, blobs: Sequence[bytes] = ()) -> Chunk:
    """Pack one chunk, at most `CHUNK` bytes; equal bytes give equal chunks.

    `blobs` are known to lie in the stream of chunks, and on grids: see `pack_grids`.
    """
    best, packed = Packing.STORED, bytes(data)
    threshold = len(data) - len(data) // _WORTHWHILE
    for packing, candidate in (
        (Packing.ZSTD, compress(packed, _LEVEL)),
        (Packing.SHUFFLED_ZSTD, compress(_shuffle(packed), _LEVEL)),
        (Packing.GRIDS, pack_grids(packed, blobs, _LEVEL)),
    ):
        if candidate is not None and len(candidate) < min(len(packed), threshold):
            best, packed = packing, candidate
    return Chunk(best, len(packed), crc32(packed), packed)


def unpack(chunk: Chunk, data: bytes, size: int, where: str) -> bytes:
    """Verify the checksum of a chunk's data and give back the `size` bytes that they hold.

    Raises
    ------
    FormatError
        The checksum is wrong, or the chunk does not unpack to exactly `size` bytes.
    """
    if crc32(data) != chunk.checksum:
        raise FormatError("the checksum is wrong", where=where, hint="the file is damaged")
    if chunk.packing == Packing.STORED:
        if len(data) != size:
            raise FormatError(f"{len(data)} bytes are stored, not {size}", where=where)
        return data
    try:
        if chunk.packing == Packing.GRIDS:
            return unpack_grids(data, size)
        content = decompress(data, size)
    except CodecError as error:
        raise FormatError(error.what, where=where) from error
    if chunk.packing == Packing.ZSTD:
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


def _shuffle(data: bytes) -> bytes:
    # First bytes of all groups of four, then the second ones, ...; what is left over stays behind.
    whole = len(data) - len(data) % _FLOAT
    return b"".join([*(data[byte:whole:_FLOAT] for byte in range(_FLOAT)), data[whole:]])
