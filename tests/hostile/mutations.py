"""Hostile `.dsz` files, made from good ones.

`damage` does what a bad line or disk does; no checksum is made right. `forge` is an attacker who
lies and then makes every checksum right; only the digest of the weights stays, because who changes
that too has written another file. Both are functions of a generator: a seed gives the same file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from random import Random
from zlib import crc32

from numcodecs.zstd import Zstd

from deepsz_caffe import codecs
from deepsz_caffe.dsz.layout import MAGIC
from tests.dsz.protobuf import pb

_PREAMBLE = 20
#: numbers that readers stumble over
_EDGES = (0, 1, 2, 3, 255, 256, 65_535, (1 << 22) - 1, 1 << 22, (1 << 31) - 1, (1 << 32) - 1)
_EDGES_64 = (*_EDGES, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e-30, 1e30, float("inf"), float("nan"))
_ZEROS = bytes(1 << 24)
#: streams of a few KB that unpack to 16 MB
_BOMBS = (
    bytes(Zstd(level=1).encode(_ZEROS)),
    gzip.compress(_ZEROS, 9, mtime=0),
    lzma.compress(_ZEROS),
    bz2.compress(_ZEROS),
)


def damage(file: bytes, random: Random) -> bytes:
    """Damage a file anywhere: flipped bits, lost, doubled, swapped and overwritten bytes."""
    return _damaged(file, random)


def _damaged(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    start = random.randrange(len(changed))
    end = min(len(changed), start + random.choice((1, 2, 4, 16, 100, 1000)))
    match random.randrange(7):
        case 0:
            for _ in range(random.choice((1, 1, 2, 8))):
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        case 1:
            del changed[start:]
        case 2:
            del changed[start:end]
        case 3:
            changed[start:start] = changed[start:end]
        case 4:
            changed[start:end] = random.choice((b"\0", b"\xff")) * (end - start)
        case 5:
            changed[start:end] = random.randbytes(end - start)
        case 6:
            other = random.randrange(len(changed))
            a, b = changed[start:end], changed[other : other + end - start]
            changed[start : start + len(b)], changed[other : other + len(a)] = b, a
    return bytes(changed)


class Forgery:
    """A file taken apart: the header, and the sections by name; `file` puts it together again."""

    def __init__(self, file: bytes) -> None:
        (length,) = struct.unpack_from("<I", file, 12)
        self.header = pb.Header.FromString(file[_PREAMBLE : _PREAMBLE + length])
        (self.version,) = struct.unpack_from("<I", file, len(MAGIC))
        self.tail = b""
        self.streams: list[list[bytes]] = []
        offset = _PREAMBLE + length
        for layer in self.header.layers:
            middle = offset + layer.data_bytes
            end = middle + layer.index_bytes
            self.streams.append([file[offset:middle], file[middle:end]])
            offset = end
        self.chunks = []
        for chunk in self._chunk_messages():
            self.chunks.append(file[offset : offset + chunk.bytes])
            offset += chunk.bytes

    def _chunk_messages(self) -> list[pb.Chunk]:
        deploy = [self.header.deploy.chunk] if self.header.HasField("deploy") else []
        return [*deploy, *self.header.rest.chunks]

    def measure(self) -> None:
        """Write the true lengths of the sections into the header."""
        for layer, (data, index) in zip(self.header.layers, self.streams, strict=True):
            layer.data_bytes, layer.index_bytes = len(data), len(index)
        for chunk, data in zip(self._chunk_messages(), self.chunks, strict=True):
            chunk.bytes = len(data)

    def file(self) -> bytes:
        """Make every checksum right and return the file."""
        body = b"".join([*(d + i for d, i in self.streams), *self.chunks])
        offset = 0
        sections = [(layer, layer.data_bytes + layer.index_bytes) for layer in self.header.layers]
        for message, size in sections + [(chunk, chunk.bytes) for chunk in self._chunk_messages()]:
            message.checksum = crc32(body[offset : offset + size])
            offset += size
        header = self.header.SerializeToString(deterministic=True) + self.tail
        sizes = struct.pack("<II", self.version, len(header))
        return MAGIC + sizes + struct.pack("<I", crc32(header, crc32(sizes))) + header + body


def forge(file: bytes, random: Random) -> bytes:
    """Lie in the header or the sections, and make every checksum right."""
    forgery = Forgery(file)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(_FORGERIES)(forgery, random)
    return forgery.file()


def _stream(forgery: Forgery, random: Random) -> None:
    """Damage a stream; the codec sees it with a right checksum."""
    streams = random.choice(forgery.streams)
    which = random.randrange(2)
    if streams[which]:
        streams[which] = _damaged(streams[which], random)
    forgery.measure()


def _bomb(forgery: Forgery, random: Random) -> None:
    random.choice(forgery.streams)[random.randrange(2)] = random.choice(_BOMBS)
    forgery.measure()


def _swap(forgery: Forgery, random: Random) -> None:
    a, b = (random.randrange(len(forgery.streams)) for _ in range(2))
    if random.randrange(2):
        which = random.randrange(2)
        streams = forgery.streams
        streams[a][which], streams[b][which] = streams[b][which], streams[a][which]
    else:
        forgery.streams[a].reverse()
    forgery.measure()


def _chunk(forgery: Forgery, random: Random) -> None:
    which = random.randrange(len(forgery.chunks))
    damaged = _damaged(forgery.chunks[which] or b"\0", random)
    forgery.chunks[which] = random.choice((damaged, _BOMBS[0]))
    forgery.measure()


def _layer_number(forgery: Forgery, random: Random) -> None:
    layer = random.choice(forgery.header.layers)
    name = random.choice(
        ("rows", "columns", "nonzeros", "data_bytes", "index_bytes", "index_count")
    )
    small = name in ("rows", "columns")
    near = max(0, getattr(layer, name) + random.choice((-2, -1, 1, 2, 255, 65_536)))
    top = (1 << (32 if small else 64)) - 1
    value = random.choice((*(_EDGES if small else _EDGES_64), near, near, near, near))
    setattr(layer, name, min(value, top))


def _shape(forgery: Forgery, random: Random) -> None:
    """Keep the number of weights, change the shape."""
    layer = random.choice(forgery.header.layers)
    cells = min(layer.rows * layer.columns, _EDGES[-1])
    layer.rows, layer.columns = random.choice(
        ((layer.columns, layer.rows), (cells, 1), (1, layer.rows))
    )


def _layer_setting(forgery: Forgery, random: Random) -> None:
    layer = random.choice(forgery.header.layers)
    ids = ["", "bogus", *codecs.DATA, *codecs.INDEX, *codecs.MATRIX]
    match random.randrange(5):
        case 0:
            layer.error_bound = random.choice((*_FLOATS, layer.error_bound * 1.5))
        case 1:
            layer.data_codec = random.choice(ids)
        case 2:
            layer.index_codec = random.choice(ids)
        case 3:
            layer.column_major = not layer.column_major
        case 4:
            layer.name = random.choice((forgery.header.layers[0].name, "", "../ip1", "x" * 10_000))


def _layers(forgery: Forgery, random: Random) -> None:
    """Leave a layer out, double one, or change their order."""
    which = random.randrange(len(forgery.streams))
    layers = list(forgery.header.layers)
    match random.randrange(3):
        case 0:
            del layers[which], forgery.streams[which]
        case 1:
            layers.insert(0, layers[which])
            forgery.streams.insert(0, forgery.streams[which])
        case 2:
            layers.reverse()
            forgery.streams.reverse()
    copies = [pb.LayerEntry.FromString(layer.SerializeToString()) for layer in layers]
    del forgery.header.layers[:]
    forgery.header.layers.extend(copies)


def _rest(forgery: Forgery, random: Random) -> None:
    rest = forgery.header.rest
    match random.randrange(4):
        case 0:
            rest.bytes = random.choice((*_EDGES_64, rest.bytes + 1, max(0, rest.bytes - 1)))
        case 1:
            if rest.slots:
                rest.slots[random.randrange(len(rest.slots))] = random.choice(_EDGES_64)
        case 2:
            rest.chunks[random.randrange(len(rest.chunks))].packing = random.randrange(5)
        case 3:
            rest.checksum ^= 1


def _header(forgery: Forgery, random: Random) -> None:
    match random.randrange(3):
        case 0:
            forgery.version = random.choice((0, 2, 1 << 31))
        case 1:
            forgery.tail = random.choice((b"\x78\x01", b"\x0a\x00", b"\xff", bytes(1 << 18)))
        case 2:
            forgery.header.origin.source_sha256 = random.randbytes(random.randrange(40))


_FORGERIES = (
    *(_stream,) * 8,
    _bomb,
    _swap,
    _chunk,
    *(_layer_number,) * 3,
    _shape,
    *(_layer_setting,) * 2,
    _layers,
    _rest,
    _header,
)
