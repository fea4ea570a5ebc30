"""The `.dsz` file: its specification, and its header as dataclasses.

Everything is little-endian. A file is a preamble, a header and sections, without gaps::

    offset  bytes  what
    0       8      magic: 89 44 53 5A 0D 0A 1A 0A  ("\\x89DSZ\\r\\n\\x1a\\n")
    8       4      version: 1, or 2 where the rest has `bounds`
    12      4      H, bytes of the header, at most 262,144
    16      4      CRC-32 of bytes 8 to 15 and of the header
    20      H      header: the protobuf message `Header`
    20 + H  ...    sections

The magic has a byte over 127, CR LF, ^Z and LF, as PNG's has: a transfer in text mode damages it,
and a terminal stops there.

**The header** is a protobuf message (proto3). The classes below are its messages: the fields are
numbered from 1 in the order in which they stand, their types are named as protobuf's, tuples are
``repeated``. It is in its canonical form, which `message` describes.

**Sections** lie in this order: one for each layer in the order of the header, one for the deploy
prototxt if there is one, one for each chunk of the rest. The header gives their lengths and their
CRC-32s, no offsets: each begins where the one before it ends, the last one ends with the file. So
overlaps and holes can't be expressed. A reader verifies a section's checksum before anything else
sees its bytes, and needs no other section to decode a layer.

**A layer** is the matrix of weights of one fully connected layer, `rows` × `columns` as Caffe
stores it, float32. Its section is a data stream, and behind it an index stream. With an index
codec, the data stream holds the float32 values and the index stream the steps between them in the
form that `codecs.sparse` describes. Without one the data codec is one for matrices, whose stream
holds values and positions together. `LayerEntry` says what else holds.

**The rest** is the caffemodel with the layers' weights cut out: every other byte of it, in chunks
of 4,194,304 bytes, each stored as it is, or as one Zstandard frame, or as one Zstandard frame of
its bytes in four planes (see `chunks`), or, in version 2, with some blobs as levels on a grid (see
`grids`). In version 2 some of its blobs, biases or means of a
BatchNorm layer, are not as they were but within bounds that `Rest.bounds` declares; version 1 has
no such field, and nothing else is different. **The deploy prototxt** is one chunk. **The origin**
says what was done: nothing that decoding needs.

**Not allowed**, and refused by readers: a version other than 1 and 2, 2 without bounds of the rest
and 1 with some, or with a chunk that has blobs on a grid; two bounds of one blob; a header over the
limit; unknown fields, fields out of order, or any other header that serialises to other bytes than
it has; layers without a name or of the same name; rows or columns of 0; more non-zeros than
weights; an index longer than the matrix can need; a chunk longer than what it unpacks to; a number
of slots other than that of the layers, or slots that don't increase or lie outside the rest; a file
that is shorter or longer than its sections; weights with another digest or other non-zeros than
declared.

**Promise.** Files of both versions stay readable. The same input, options and software versions
give the same bytes; there are no times or names of machines in a file. Codec ids may be added; what
an id means never changes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal, Self
from zlib import crc32

from deepsz_caffe.codecs.varint import pack_varints
from deepsz_caffe.dsz.message import (
    Bool,
    Bytes,
    Double,
    Enum,
    Fixed32,
    Fixed64,
    String,
    UInt32,
    UInt64,
    serialize,
)

MAGIC = b"\x89DSZ\r\n\x1a\n"
VERSION = 1
#: of files in which blobs beside the layers' weights were changed within a bound
VERSION_OF_BOUNDS = 2
MAX_HEADER = 1 << 18
#: what stands before the header: magic, version, bytes and checksum of the header
PREAMBLE = struct.Struct("<8sIII")
#: bytes that a chunk of the rest holds when it is unpacked; the last one holds what is left
CHUNK = 1 << 22

#: the bytes of a section
Stream = bytes

_WEIGHT = 4
# `deepsz_caffe.codecs.sparse.LONGEST_STEP`, without the import of numpy.
_LONGEST_STEP = 255


class Packing(enum.IntEnum):
    """How a chunk is stored."""

    STORED = 0
    ZSTD = 1
    SHUFFLED_ZSTD = 2
    GRIDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerEntry:
    """What the header says of a layer.

    Attributes
    ----------
    name
        As in the caffemodel; not empty.
    rows, columns
        Of the matrix as Caffe stores it; over 0.
    error_bound
        Absolute; every decoded weight is within it, and a weight that was 0 is 0. Finite, over 0.
        Negative zero counts as zero and is decoded as positive zero.
    nonzeros
        Of the decoded matrix. If 0, the section is empty, both codecs are "" and nothing is
        decoded; otherwise `data_codec` is not empty.
    column_major
        The streams describe the transposed matrix.
    data_codec, index_codec
        Ids of `deepsz_caffe.codecs`; without an index, `index_codec` is "", and `index_bytes` and
        `index_count` are 0.
    data_bytes, index_bytes
        Sizes of the streams.
    index_count
        Steps in the index.
    checksum
        CRC-32 of the section.
    digest
        Of what was decoded; see `seal`. It is verified after decoding, so that a fault of a codec,
        or a header that was altered with its checksum made right, is found.
    """

    name: String
    rows: UInt32
    columns: UInt32
    error_bound: Double
    nonzeros: UInt64
    column_major: Bool = False
    data_codec: String
    data_bytes: UInt64
    index_codec: String = ""
    index_bytes: UInt64 = 0
    index_count: UInt64 = 0
    checksum: Fixed32
    digest: Fixed64

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def order(self) -> Literal["C", "F"]:
        """Order in memory of the matrix that the streams describe."""
        return "F" if self.column_major else "C"

    @property
    def bytes(self) -> int:
        """What the layer takes in a file: its streams and its header entry, checksums included."""
        entry = len(serialize(self, LayerEntry))
        tag_and_length = 1 + len(pack_varints([entry]))
        return self.data_bytes + self.index_bytes + tag_and_length + entry

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrix."""
        return _WEIGHT * self.rows * self.columns


@dataclass(frozen=True, slots=True)
class ChangedBlob:
    """A blob that changes with a layer's weights: what holds the layer's bias.

    Attributes
    ----------
    layer, blob
        Where it stands in the caffemodel: a layer's name, and the number of its blob.
    error_bound
        Absolute; every value is within it of the caffemodel's.
    values
        The new ones, float32, little-endian.
    """

    layer: str
    blob: int
    error_bound: float
    values: Stream = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedLayer(LayerEntry):
    """A layer with its two streams, and what changes with it; small, and picklable."""

    data: Stream = field(repr=False)
    index: Stream = field(repr=False, default=b"")
    changes: tuple[ChangedBlob, ...] = ()

    @classmethod
    def unsealed(
        cls,
        name: str,
        shape: tuple[int, int],
        error_bound: float,
        *,
        column_major: bool = False,
        data_codec: str = "",
        data: Stream = b"",
        index_codec: str = "",
        index: Stream = b"",
        index_count: int = 0,
    ) -> Self:
        """Make a layer of its streams; what its checksums are is not known yet."""
        return cls(
            name=name,
            rows=shape[0],
            columns=shape[1],
            error_bound=error_bound,
            nonzeros=0,
            column_major=column_major,
            data_codec=data_codec,
            data_bytes=len(data),
            index_codec=index_codec,
            index_bytes=len(index),
            index_count=index_count,
            checksum=0,
            digest=0,
            data=data,
            index=index,
        )

    def sealed(self, digest: int, nonzeros: int) -> Self:
        """Give the layer with what is known when it was decoded; without streams where all is 0.

        Parameters
        ----------
        digest, nonzeros
            As in `deepsz_caffe.codecs.Tally`.
        """
        kept = self if nonzeros else self.unsealed(self.name, self.shape, self.error_bound)
        return replace(
            kept,
            nonzeros=nonzeros,
            checksum=crc32(kept.index, crc32(kept.data)),
            digest=seal(self.name, self.shape, self.error_bound, nonzeros, digest),
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A packed chunk.

    Attributes
    ----------
    packing
        One of `Packing`.
    bytes
        As it lies in the file.
    checksum
        CRC-32 of these.
    data
        What lies in the file; not a part of the header.
    """

    packing: Enum
    bytes: UInt64
    checksum: Fixed32
    data: Stream = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class BlobBound:
    """What holds for a blob of the rest that is not as it was in the caffemodel.

    Attributes
    ----------
    layer, blob
        Name of the layer, and the number of its blob; not the weights of a layer of the header.
    error_bound
        Absolute; every value is within it of the caffemodel's. Finite, over 0.
    """

    layer: String
    blob: UInt32
    error_bound: Double


@dataclass(frozen=True, slots=True)
class Rest:
    """The caffemodel without the layers' weights.

    Attributes
    ----------
    bytes
        Its size, unpacked.
    slots
        For each layer, how many bytes of the rest come before the layer's weights; increasing.
    chunks
        They hold the rest.
    checksum
        What `rest_checksum` gives.
    bounds
        Of the blobs that were changed; all others are bit for bit as they were. Version 2 only.
    """

    bytes: UInt64 = 0
    slots: tuple[UInt64, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    checksum: Fixed32 = 0
    bounds: tuple[BlobBound, ...] = ()


@dataclass(frozen=True, slots=True)
class Deploy:
    """A deploy prototxt: its size, and the chunk that holds it."""

    bytes: UInt64
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Measured:
    """Losses measured on `data`, as counts of images."""

    data: String
    total: UInt64
    top1_before: UInt64
    top1_after: UInt64
    top5_before: UInt64
    top5_after: UInt64


@dataclass(frozen=True, slots=True)
class Origin:
    """What was done.

    Attributes
    ----------
    profile
        Which codecs were tried.
    software
        Versions of what determines the bytes of a file.
    source_sha256
        Of the caffemodel that was compressed; 32 bytes, or none.
    measured
        What the compression lost.
    """

    profile: String = ""
    software: String = ""
    source_sha256: Bytes = b""
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """All that the header says."""

    layers: tuple[LayerEntry, ...]
    rest: Rest
    deploy: Deploy | None
    origin: Origin


@dataclass(frozen=True)
class Contents:
    """All that a file holds; the chunks of the rest with their data."""

    layers: tuple[EncodedLayer, ...]
    rest: Rest
    deploy: bytes | None = None
    origin: Origin = field(default_factory=Origin)


def seal(
    name: str, shape: tuple[int, int], error_bound: float, nonzeros: int, weights_digest: int
) -> int:
    """Return the digest of a layer: of its weights and of what the header says about them.

    The exclusive or of `deepsz_caffe.codecs.weights_digest` of the decoded matrix and the first 8
    bytes of the BLAKE2b-64 of rows, columns and non-zeros (uint64), error bound (float64) and name.
    """
    described = struct.pack("<QQQd", *shape, nonzeros, error_bound) + name.encode()
    return weights_digest ^ int.from_bytes(blake2b(described, digest_size=8).digest(), "little")


def rest_checksum(
    slots: Sequence[int],
    digests: Sequence[int],
    pieces: Iterable[bytes | bytearray | memoryview],
) -> int:
    """CRC-32 of the slots and their layers' digests (pairs of uint64), and the unpacked rest.

    It holds together what belongs where.
    """
    pairs = [number for pair in zip(slots, digests, strict=True) for number in pair]
    checksum = crc32(struct.pack(f"<{len(pairs)}Q", *pairs))
    for piece in pieces:
        checksum = crc32(piece, checksum)
    return checksum


def longest_index(shape: tuple[int, int], nonzeros: int) -> int:
    """Upper limit of the entries that an index of so many values can need."""
    return nonzeros + shape[0] * shape[1] // _LONGEST_STEP


def chunk_sizes(total: int) -> list[int]:
    """Unpacked sizes of the chunks of `total` bytes."""
    return [min(CHUNK, total - start) for start in range(0, total, CHUNK)]


def fc_bytes(layers: Sequence[LayerEntry]) -> int:
    """Bytes that compressed layers take in a file, their header entries and checksums included."""
    return sum(layer.bytes for layer in layers)
