"""The `.dsz` file, version 1: reading, writing and, in this docstring, its specification.

Everything is little-endian. A file is a preamble, a header and sections, without gaps::

    offset  bytes  what
    0       8      magic: 89 44 53 5A 0D 0A 1A 0A  ("\\x89DSZ\\r\\n\\x1a\\n")
    8       4      version: 1
    12      4      H, bytes of the header, at most 262,144
    16      4      CRC-32 of bytes 8 to 15 and of the header
    20      H      header: the protobuf message `Header` of container.proto
    20 + H  ...    sections

The magic has a byte over 127, CR LF, ^Z and LF, as PNG's has: a transfer in text mode damages it,
and a terminal stops there.

**Sections** lie in this order: one for each layer in the order of the header, one for the deploy
prototxt if there is one, one for each chunk of the rest. The header gives their lengths and their
CRC-32s, no offsets: each begins where the one before it ends, the last one ends with the file. So
overlaps and holes can't be expressed. A reader verifies a section's checksum before anything else
sees its bytes, and needs no other section to decode a layer.

**A layer** is the matrix of weights of one fully connected layer (blob 0 of an `InnerProduct`,
`rows` × `columns` as Caffe stores it, float32). Its section is a data stream, and behind it an
index stream.

- `error_bound`: absolute; every decoded weight is within it, and a weight that was 0 is 0.
  Finite, over 0. Negative zero counts as zero and is decoded as positive zero.
- `nonzeros`: of the decoded matrix. If 0, the section is empty, both codecs are "" and nothing
  else is decoded; otherwise `data_codec` is not empty.
- `data_codec` and `index_codec` are ids of `deepsz_caffe.codecs`. With an index codec, the data
  stream holds the float32 values and the index stream `index_count` steps in the form that
  `codecs.sparse` describes. Without one ("", `index_bytes` and `index_count` are 0) the data
  codec is one for matrices, whose stream holds values and positions together.
- `column_major`: the streams describe the transposed matrix.
- `checksum`: CRC-32 of the section.
- `digest`: of what was decoded; see `seal`. It is verified after decoding, so that a fault of a
  codec, or a header that was altered with its checksum made right, is found.

**The rest** is the caffemodel with the layers' weights cut out: every other byte of it, in chunks
of 4,194,304 bytes (see `chunks`), each stored as it is, or as one Zstandard frame, or
as one Zstandard frame of its bytes in four planes. `slots` holds one offset for each layer,
increasing: how many bytes of the rest come before the layer's `4 × rows × columns` bytes.
`checksum` is the CRC-32 of the slots, each as 8 bytes with the digest of its layer behind it, and
the unpacked rest: it holds together what belongs where.

**The deploy prototxt** is one chunk. **The origin** says what was done: the profile, versions of
the software, the SHA-256 of the source caffemodel, losses measured as counts.

**Not allowed**, and refused by readers: a version other than 1; a header over the limit; unknown
fields, fields out of order, or any other header that serialises to other bytes than it has;
layers without a name or of the same name; rows or columns of 0; more non-zeros than weights; an
index longer than the matrix can need; a chunk longer than what it unpacks to; a number of slots
other than that of the layers, or slots that don't increase or lie outside the rest; a file that is
shorter or longer than its sections.

**Promise.** Files of version 1 stay readable. The same input, options and software versions give
the same bytes; there are no times or names of machines in a file. Codec ids may be added; what an
id means never changes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from deepsz_caffe.dsz.chunks import CHUNK, Chunk, Packing, sizes, unpack
from deepsz_caffe.dsz.header import read_header
from deepsz_caffe.errors import DeepSZError, FormatError, InputError, LimitError
from deepsz_caffe.files import atomic_write

MAGIC = b"\x89DSZ\r\n\x1a\n"
VERSION = 1
MAX_HEADER = 1 << 18

_PREAMBLE = struct.Struct("<8sIII")
_WEIGHT = 4
# `deepsz_caffe.codecs.sparse.LONGEST_STEP`, without the import of numpy.
_LONGEST_STEP = 255


@dataclass(frozen=True)
class Limits:
    """What reading a file may use.

    Parameters
    ----------
    memory
        Bytes that decoding may allocate, the result included. What a file declares is compared
        with it before anything is allocated.
    """

    memory: int = 8 << 30


@dataclass(frozen=True)
class LayerEntry:
    """What the header says of a layer; the fields are those of the specification.

    Parameters
    ----------
    shape
        Rows and columns, as Caffe stores the weights.
    error_bound
        Absolute.
    order
        "C" or "F": whether the streams describe the matrix or its transpose.
    data_bytes, index_bytes
        Sizes of the streams.
    """

    _: KW_ONLY
    name: str
    shape: tuple[int, int]
    error_bound: float
    nonzeros: int
    order: str
    data_codec: str
    data_bytes: int
    index_codec: str
    index_bytes: int
    index_count: int
    checksum: int
    digest: int

    @property
    def bytes(self) -> int:
        """What the layer takes in a file: its streams and its header entry, checksums included."""
        from deepsz_caffe.dsz import container_pb2 as pb

        entry = pb.Header(layers=[self._message()]).ByteSize()
        return self.data_bytes + self.index_bytes + int(entry)

    @property
    def dense_bytes(self) -> int:
        return _WEIGHT * self.shape[0] * self.shape[1]

    @property
    def working_bytes(self) -> int:
        """What decoding allocates besides the matrix: streams, the two arrays, a transpose."""
        values = self.index_count or self.nonzeros
        transpose = self.dense_bytes if self.order == "F" and not self.index_codec else 0
        streams = self.data_bytes + self.index_bytes
        return streams + self.index_count + _WEIGHT * values + transpose

    def _message(self) -> Any:  # noqa: ANN401
        from deepsz_caffe.dsz import container_pb2 as pb

        return pb.Layer(
            name=self.name,
            rows=self.shape[0],
            columns=self.shape[1],
            error_bound=self.error_bound,
            nonzeros=self.nonzeros,
            column_major=self.order == "F",
            data_codec=self.data_codec,
            data_bytes=self.data_bytes,
            index_codec=self.index_codec,
            index_bytes=self.index_bytes,
            index_count=self.index_count,
            checksum=self.checksum,
            digest=self.digest,
        )


@dataclass(frozen=True)
class EncodedLayer(LayerEntry):
    """A layer with its two streams; small, and picklable."""

    data: bytes = field(repr=False)
    index: bytes = field(repr=False)


@dataclass(frozen=True)
class Rest:
    """The caffemodel without the layers' weights: packed chunks, unpacked bytes, slots.

    `checksum` is what `rest_checksum` gives.
    """

    chunks: tuple[Chunk, ...] = ()
    bytes: int = 0
    slots: tuple[int, ...] = ()
    checksum: int = 0


@dataclass(frozen=True)
class Measured:
    """Losses measured on `data`, as counts of images."""

    data: str
    total: int
    top1_before: int
    top1_after: int
    top5_before: int
    top5_after: int


@dataclass(frozen=True)
class Origin:
    """What was done: nothing that decoding needs."""

    profile: str = ""
    software: str = ""
    source_sha256: str = ""
    measured: Measured | None = None


@dataclass(frozen=True)
class Contents:
    """All that a file holds."""

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


def longest_index(shape: tuple[int, int], nonzeros: int) -> int:
    """Upper limit of the entries that an index of so many values can need."""
    return nonzeros + shape[0] * shape[1] // _LONGEST_STEP


def rest_checksum(
    slots: Sequence[int],
    digests: Sequence[int],
    pieces: Iterable[bytes | bytearray | memoryview],
) -> int:
    """CRC-32 of the slots and their layers' digests (pairs of uint64), and the unpacked rest."""
    pairs = [number for pair in zip(slots, digests, strict=True) for number in pair]
    checksum = crc32(struct.pack(f"<{len(pairs)}Q", *pairs))
    for piece in pieces:
        checksum = crc32(piece, checksum)
    return checksum


def fc_bytes(layers: tuple[LayerEntry, ...] | tuple[EncodedLayer, ...]) -> int:
    """Bytes that fc layers take in a file, their header entries and checksums included."""
    return sum(layer.bytes for layer in layers)


def write_dsz(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a file; it appears complete or not at all.

    Raises
    ------
    InputError
        The contents break a rule of the format, e.g. two layers have the same name.
    DeepSZError
        The file can't be written.
    """
    pieces = list(_pieces(contents))
    with atomic_write(path) as file:
        for piece in pieces:
            file.write(piece)


def _pieces(contents: Contents) -> Iterator[bytes]:
    from deepsz_caffe.dsz import container_pb2 as pb

    origin, rest, measured = contents.origin, contents.rest, contents.origin.measured
    message = pb.Header(
        layers=[layer._message() for layer in contents.layers],
        rest=pb.Rest(
            bytes=rest.bytes,
            slots=rest.slots,
            chunks=[_chunk_message(c) for c in rest.chunks],
            checksum=rest.checksum,
        ),
        origin=pb.Origin(
            profile=origin.profile,
            software=origin.software,
            source_sha256=bytes.fromhex(origin.source_sha256),
            measured=measured and pb.Measured(**measured.__dict__),
        ),
    )
    sections = [layer.data + layer.index for layer in contents.layers]
    if contents.deploy is not None:
        from deepsz_caffe.dsz.chunks import pack

        if len(contents.deploy) > CHUNK:
            raise InputError(f"the deploy prototxt has more than {CHUNK} bytes")
        chunk = pack(contents.deploy)
        message.deploy.CopyFrom(pb.Deploy(bytes=len(contents.deploy), chunk=_chunk_message(chunk)))
        sections.append(chunk.data)
    sections += [chunk.data for chunk in rest.chunks]
    header = message.SerializeToString(deterministic=True)
    if len(header) > MAX_HEADER:
        raise InputError(f"the header would have {len(header)} bytes, over {MAX_HEADER}")
    try:
        _check(read_header(header))
    except FormatError as error:
        raise InputError(f"this can't be stored: {error}") from error
    sizes_ = struct.pack("<II", VERSION, len(header))
    yield MAGIC + sizes_ + struct.pack("<I", crc32(header, crc32(sizes_))) + header
    yield from sections


def _chunk_message(chunk: Chunk) -> Any:  # noqa: ANN401
    from deepsz_caffe.dsz import container_pb2 as pb

    return pb.Chunk(packing=int(chunk.packing), bytes=len(chunk.data), checksum=chunk.checksum)


class DszFile:
    """An open `.dsz` file: lists its layers, reads them one by one.

    Opening reads and checks the preamble, the header and the file's length, nothing else. Sections
    are read when asked for, with positioned reads: a memory map would turn a file that another
    process cuts short into a crash.

    Parameters
    ----------
    path
        The file.
    limits
        What decoding may use.

    Attributes
    ----------
    layers : tuple of LayerEntry
    file_bytes : int
    origin : Origin

    Raises
    ------
    FormatError
        The file is not a `.dsz` file of version 1, or breaks a rule of the format.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits | None = None) -> None:
        self.path = Path(path)
        self.limits = limits or Limits()
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DeepSZError(f"can't open: {error.strerror}", where=self.path) from error
        try:
            self._open()
        except FormatError as error:
            self.close()
            raise type(error)(error.what, where=self._at(error.where), hint=error.hint) from error
        except OSError as error:
            self.close()
            raise DeepSZError(f"can't read: {error.strerror}", where=self.path) from error

    @classmethod
    def open(cls, path: str | os.PathLike[str], limits: Limits | None = None) -> Self:
        return cls(path, limits)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def _open(self) -> None:
        self.file_bytes = os.fstat(self._descriptor).st_size
        preamble = os.pread(self._descriptor, _PREAMBLE.size, 0)
        if preamble[:8] != MAGIC:
            damaged = preamble[:4] == MAGIC[:4]
            raise FormatError(
                "not a .dsz file",
                hint="it went through a transfer in text mode" if damaged else None,
            )
        if len(preamble) < _PREAMBLE.size:
            raise FormatError("the file ends in the preamble")
        _, version, length, checksum = _PREAMBLE.unpack(preamble)
        if version != VERSION:
            raise FormatError(f"version {version} of the format is unknown; this reads {VERSION}")
        if length > MAX_HEADER:
            raise FormatError(f"the header has {length} bytes, over {MAX_HEADER}")
        header = os.pread(self._descriptor, length, _PREAMBLE.size)
        if len(header) < length:
            raise FormatError("the file ends in the header")
        if crc32(header, crc32(preamble[8:16])) != checksum:
            raise FormatError("the header's checksum is wrong", hint="the file is damaged")
        message = read_header(header)
        _check(message)
        self._read_header(message, _PREAMBLE.size + length)

    def _read_header(self, message: Any, start: int) -> None:  # noqa: ANN401
        self.layers = tuple(_entry(layer) for layer in message.layers)
        self._index = {layer.name: number for number, layer in enumerate(self.layers)}
        self._offsets = []
        for layer in self.layers:
            self._offsets.append(start)
            start += layer.data_bytes + layer.index_bytes
        self._deploy = message.deploy
        self._deploy_offset = start
        if self._deploy is not None:
            start += self._deploy.chunk.bytes
        self._rest = message.rest
        self._rest_offset = start
        start += sum(chunk.bytes for chunk in message.rest.chunks)
        if start != self.file_bytes:
            raise FormatError(
                f"the file has {self.file_bytes} bytes, its sections end at {start}",
                hint="it was cut short" if start > self.file_bytes else None,
            )
        measured = message.origin.measured
        self.origin = Origin(
            profile=message.origin.profile,
            software=message.origin.software,
            source_sha256=message.origin.source_sha256.hex(),
            measured=measured and Measured(**measured.__dict__),
        )

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __getitem__(self, name: str) -> LayerEntry:
        return self.layers[self._position(name)]

    def _position(self, name: str) -> int:
        if name not in self._index:
            raise InputError(
                f"there is no layer {name!r}",
                where=self.path,
                hint="it has " + ", ".join(self._index),
            )
        return self._index[name]

    def section_offset(self, name: str) -> int:
        """Byte of the file at which the section of a layer begins."""
        return self._offsets[self._position(name)]

    def layer(self, name: str) -> EncodedLayer:
        """Read the section of a layer, nothing else of the file.

        Raises
        ------
        InputError
            There is no such layer.
        LimitError
            Decoding it would take more memory than the limits allow.
        FormatError
            The checksum is wrong.
        """
        position = self._position(name)
        entry = self.layers[position]
        where = self._at(f"layer {name}")
        self.allow(entry.dense_bytes + entry.working_bytes, where)
        section = self._read(self._offsets[position], entry.data_bytes + entry.index_bytes, where)
        if crc32(section) != entry.checksum:
            raise FormatError("the checksum is wrong", where=where, hint="the file is damaged")
        view = memoryview(section)
        return EncodedLayer(
            **entry.__dict__,
            data=bytes(view[: entry.data_bytes]),
            index=bytes(view[entry.data_bytes :]),
        )

    @property
    def rest_bytes(self) -> int:
        """Bytes of the caffemodel without the layers' weights, unpacked."""
        return int(self._rest.bytes)

    @property
    def slots(self) -> tuple[int, ...]:
        """For each layer, how many bytes of the rest come before its weights."""
        return tuple(self._rest.slots)

    def rest(self) -> Iterator[memoryview]:
        """Unpack the caffemodel without the layers' weights, a chunk at a time.

        Raises
        ------
        FormatError
            A checksum is wrong, or a chunk does not unpack. What concerns the rest as a whole is
            known behind its last chunk only.
        LimitError
            Three chunks are over the limits.
        """
        self.allow(3 * min(CHUNK, self.rest_bytes), str(self.path))
        offset = self._rest_offset
        digests = [layer.digest for layer in self.layers]
        checksum = rest_checksum(self._rest.slots, digests, ())
        for number, (chunk, size) in enumerate(
            zip(self._rest.chunks, sizes(self._rest.bytes), strict=True)
        ):
            data = self._chunk(chunk, size, offset, f"rest, chunk {number}")
            checksum = crc32(data, checksum)
            yield data
            offset += chunk.bytes
        if checksum != self._rest.checksum:
            raise FormatError("the rest is not what was stored", where=self._at("rest"))

    def deploy(self) -> bytes | None:
        """Return the deploy prototxt, or None where the file has none."""
        if self._deploy is None:
            return None
        self.allow(3 * self._deploy.bytes, str(self.path))
        return bytes(
            self._chunk(
                self._deploy.chunk, self._deploy.bytes, self._deploy_offset, "deploy prototxt"
            )
        )

    def summary(self) -> dict[str, Any]:
        """Sizes and settings, ready for JSON.

        Returns
        -------
        dict
            `file_bytes`, `fc_bytes`, `fc_dense_bytes`, `ratio` (dense / compressed, of the fc
            layers) and `layers`, each with `name`, `shape`, `nonzeros`, `error_bound`, `order`,
            `data_codec`, `data_bytes`, `index_codec`, `index_bytes` and `bytes`; `origin`.
        """
        dense = sum(layer.dense_bytes for layer in self.layers)
        compressed = fc_bytes(self.layers)
        measured = self.origin.measured
        return {
            "file_bytes": self.file_bytes,
            "fc_bytes": compressed,
            "fc_dense_bytes": dense,
            "ratio": dense / compressed if compressed else None,
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "nonzeros": layer.nonzeros,
                    "error_bound": layer.error_bound,
                    "order": layer.order,
                    "data_codec": layer.data_codec,
                    "data_bytes": layer.data_bytes,
                    "index_codec": layer.index_codec,
                    "index_bytes": layer.index_bytes,
                    "bytes": layer.bytes,
                }
                for layer in self.layers
            ],
            "origin": {
                "profile": self.origin.profile,
                "software": self.origin.software,
                "source_sha256": self.origin.source_sha256,
                "measured": measured and dict(measured.__dict__),
            },
        }

    def allow(self, memory: int, where: str) -> None:
        """Raise LimitError when `memory` bytes are more than the limits allow."""
        if memory > self.limits.memory:
            raise LimitError(
                f"decoding takes {memory:,} bytes, the limit is {self.limits.memory:,}", where=where
            )

    def _chunk(self, chunk: Any, size: int, offset: int, what: str) -> memoryview:  # noqa: ANN401
        where = self._at(what)
        data = self._read(offset, chunk.bytes, where)
        unpacked = unpack(Chunk(Packing(chunk.packing), data, chunk.checksum), size, where)
        return memoryview(unpacked)

    def _read(self, offset: int, size: int, where: str) -> bytes:
        if self._descriptor < 0:
            raise InputError("the file is closed", where=where)
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise FormatError(f"can't read: {error.strerror}", where=where) from error
        if len(data) < size:
            raise FormatError("the file was cut short while it was open", where=where)
        return data

    def _at(self, place: str | None) -> str:
        return f"{self.path}, {place}" if place else str(self.path)


def _check(header: Any) -> None:  # noqa: ANN401
    """Raise FormatError where a header breaks a rule; every rule of the specification is here."""
    names = set()
    for layer in header.layers:
        where = f"layer {layer.name}"
        _check_layer(layer, where)
        if layer.name in names:
            raise FormatError("two layers have this name", where=where)
        names.add(layer.name)
    rest = header.rest
    if len(rest.slots) != len(header.layers):
        raise FormatError(f"{len(rest.slots)} slots for {len(header.layers)} layers", where="rest")
    if any(a >= b for a, b in zip(rest.slots, rest.slots[1:], strict=False)):
        raise FormatError("the slots don't increase", where="rest")
    if any(slot > rest.bytes for slot in rest.slots):
        raise FormatError("a slot lies outside", where="rest")
    if len(rest.chunks) != -(-rest.bytes // CHUNK):
        raise FormatError(f"{len(rest.chunks)} chunks for {rest.bytes} bytes", where="rest")
    for number, (chunk, size) in enumerate(zip(rest.chunks, sizes(rest.bytes), strict=True)):
        _check_chunk(chunk, size, f"rest, chunk {number}")
    if header.deploy is not None:
        if header.deploy.bytes > CHUNK:
            raise FormatError("it is larger than a chunk", where="deploy prototxt")
        _check_chunk(header.deploy.chunk, header.deploy.bytes, "deploy prototxt")
    if len(header.origin.source_sha256) not in (0, 32):
        raise FormatError("the SHA-256 of the source has not 32 bytes", where="origin")


def _check_layer(layer: Any, where: str) -> None:  # noqa: ANN401
    weights = layer.rows * layer.columns
    rules = (
        (layer.name != "", "it has no name"),
        (weights > 0, "it has no rows or no columns"),
        (isfinite(layer.error_bound) and layer.error_bound > 0, "its error bound is not over 0"),
        (layer.nonzeros <= weights, f"it has {layer.nonzeros} non-zeros in {weights} weights"),
        ((layer.nonzeros > 0) == (layer.data_codec != ""), "non-zeros and data codec disagree"),
        ((layer.data_bytes > 0) == (layer.data_codec != ""), "data codec and bytes disagree"),
        ((layer.index_bytes > 0) == (layer.index_codec != ""), "index codec and bytes disagree"),
        ((layer.index_count > 0) == (layer.index_codec != ""), "index codec and count disagree"),
        (layer.data_codec != "" or layer.index_codec == "", "it has an index without data"),
        (
            layer.index_codec == "" or layer.nonzeros <= layer.index_count,
            "its index is too short",
        ),
        (
            layer.index_count <= longest_index((layer.rows, layer.columns), weights),
            "its index is longer than the matrix can need",
        ),
    )
    for holds, broken in rules:
        if not holds:
            raise FormatError(broken, where=where)


def _check_chunk(chunk: Any, size: int, where: str) -> None:  # noqa: ANN401
    if chunk.packing not in tuple(Packing):
        raise FormatError(f"packing {chunk.packing} is unknown", where=where)
    stored = chunk.packing == Packing.STORED
    if chunk.bytes != size if stored else not 0 < chunk.bytes < size:
        raise FormatError(f"{chunk.bytes} bytes can't hold {size}", where=where)


def _entry(layer: Any) -> LayerEntry:  # noqa: ANN401
    return LayerEntry(
        name=layer.name,
        shape=(layer.rows, layer.columns),
        error_bound=layer.error_bound,
        nonzeros=layer.nonzeros,
        order="F" if layer.column_major else "C",
        data_codec=layer.data_codec,
        data_bytes=layer.data_bytes,
        index_codec=layer.index_codec,
        index_bytes=layer.index_bytes,
        index_count=layer.index_count,
        checksum=layer.checksum,
        digest=layer.digest,
    )
