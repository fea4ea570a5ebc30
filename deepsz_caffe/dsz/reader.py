"""Read a `.dsz` file: its header at once, its sections when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict
from zlib import crc32

from deepsz_caffe.dsz.chunks import unpack
from deepsz_caffe.dsz.grids import WORKING
from deepsz_caffe.dsz.header import header_bytes, read_header
from deepsz_caffe.dsz.layout import (
    CHUNK,
    MAGIC,
    PREAMBLE,
    Chunk,
    EncodedLayer,
    LayerEntry,
    chunk_sizes,
    fc_bytes,
    rest_checksum,
)
from deepsz_caffe.dsz.limits import Limits, working_bytes
from deepsz_caffe.errors import DeepSZError, FormatError, InputError
from deepsz_caffe.files import open_input
from deepsz_caffe.network.kind import other_kind

#: bytes that are read at a time: no system reads 2 GiB in one call
_PIECE = 1 << 30


class LayerSummary(TypedDict):
    """What `DszFile.summary` says of a layer; sizes are bytes."""

    name: str
    shape: list[int]
    nonzeros: int
    error_bound: float
    order: str
    data_codec: str
    data_bytes: int
    index_codec: str
    index_bytes: int
    bytes: int


class Summary(TypedDict):
    """What `DszFile.summary` says of a file, ready for JSON.

    `caffemodel_bytes` are those of what `expand` gives, `file_ratio` that of the two sizes. The
    compressed layers, which need not be fc layers, have `fc_bytes`, `fc_dense_bytes` and `ratio`
    (dense / compressed). `rest_bounds` are of other blobs that were changed, each with `layer`,
    `blob` and `error_bound`; `deploy_bytes` is None without a deploy prototxt.
    """

    file_bytes: int
    caffemodel_bytes: int
    file_ratio: float
    fc_bytes: int
    fc_dense_bytes: int
    ratio: float | None
    layers: list[LayerSummary]
    rest_bounds: list[dict[str, object]]
    deploy_bytes: int | None
    origin: dict[str, object]


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
    slots : tuple of int
        For each layer, how many bytes of the rest come before its weights.
    rest_bytes : int
        Bytes of the caffemodel without the layers' weights, unpacked.

    Raises
    ------
    FormatError
        The file is not a `.dsz` file of version 1, or breaks a rule of the format.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits | None = None) -> None:
        self.path = Path(path)
        self.limits = limits or Limits()
        self._file = open_input(path)
        self._descriptor = self._file.fileno()
        try:
            with self.located():
                self._open()
        except OSError as error:
            self.close()
            raise DeepSZError(f"can't read: {error.strerror}", where=self.path) from error
        except FormatError:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], limits: Limits | None = None) -> Self:
        return cls(path, limits)

    def close(self) -> None:
        self._file.close()
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
        if hasattr(self, "_file"):
            self.close()

    def _open(self) -> None:
        self.file_bytes = os.fstat(self._descriptor).st_size
        preamble = os.pread(self._descriptor, PREAMBLE.size, 0)
        if not MAGIC.startswith(preamble[:4]):
            what, hint = other_kind(self.path)
            raise FormatError(
                "not a .dsz file" + (f": it is {what}" if what else ""), hint=hint or None
            )
        length = header_bytes(preamble)
        header = read_header(preamble, os.pread(self._descriptor, length, PREAMBLE.size))
        self.layers = header.layers
        self.origin = header.origin
        self.slots = header.rest.slots
        self.rest_bytes = header.rest.bytes
        self.rest_bounds = header.rest.bounds
        self._rest = header.rest
        self._deploy = header.deploy
        self._index = {layer.name: number for number, layer in enumerate(self.layers)}
        self._offsets = []
        start = PREAMBLE.size + length
        for layer in self.layers:
            self._offsets.append(start)
            start += layer.data_bytes + layer.index_bytes
        self._deploy_offset = start
        self._rest_offset = start + (self._deploy.chunk.bytes if self._deploy else 0)
        end = self._rest_offset + sum(chunk.bytes for chunk in self._rest.chunks)
        if end != self.file_bytes:
            raise FormatError(
                f"the file has {self.file_bytes} bytes, its sections end at {end}",
                hint="it was cut short" if end > self.file_bytes else None,
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
        self.limits.allow_memory(entry.dense_bytes + working_bytes(entry), where)
        section = self._read(self._offsets[position], entry.data_bytes + entry.index_bytes, where)
        if crc32(section) != entry.checksum:
            raise FormatError("the checksum is wrong", where=where, hint="the file is damaged")
        known = {each.name: getattr(entry, each.name) for each in fields(LayerEntry)}
        if not entry.index_bytes:
            return EncodedLayer(**known, data=section)
        view = memoryview(section)
        data, index = bytes(view[: entry.data_bytes]), bytes(view[entry.data_bytes :])
        return EncodedLayer(**known, data=data, index=index)

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
        self.limits.allow_memory(3 * min(CHUNK, self.rest_bytes) + WORKING, self.path)
        offset = self._rest_offset
        checksum = rest_checksum(self.slots, [layer.digest for layer in self.layers], ())
        for number, (chunk, size) in enumerate(
            zip(self._rest.chunks, chunk_sizes(self.rest_bytes), strict=True)
        ):
            data = self._chunk(chunk, size, offset, f"rest, chunk {number}")
            checksum = crc32(data, checksum)
            yield memoryview(data)
            offset += chunk.bytes
        if checksum != self._rest.checksum:
            raise FormatError("the rest is not what was stored", where=self._at("rest"))

    def deploy(self) -> bytes | None:
        """Return the deploy prototxt, or None where the file has none."""
        if self._deploy is None:
            return None
        size = self._deploy.bytes
        self.limits.allow_memory(3 * size, self.path)
        return self._chunk(self._deploy.chunk, size, self._deploy_offset, "deploy prototxt")

    def summary(self) -> Summary:
        """Sizes and settings, ready for JSON."""
        dense = sum(layer.dense_bytes for layer in self.layers)
        compressed = fc_bytes(self.layers)
        whole = self.rest_bytes + dense
        origin = asdict(self.origin)
        return {
            "file_bytes": self.file_bytes,
            "caffemodel_bytes": whole,
            "file_ratio": whole / self.file_bytes,
            "fc_bytes": compressed,
            "fc_dense_bytes": dense,
            "ratio": dense / compressed if compressed else None,
            "layers": [
                LayerSummary(
                    name=layer.name,
                    shape=list(layer.shape),
                    nonzeros=layer.nonzeros,
                    error_bound=layer.error_bound,
                    order=layer.order,
                    data_codec=layer.data_codec,
                    data_bytes=layer.data_bytes,
                    index_codec=layer.index_codec,
                    index_bytes=layer.index_bytes,
                    bytes=layer.bytes,
                )
                for layer in self.layers
            ],
            "rest_bounds": [asdict(bound) for bound in self.rest_bounds],
            "deploy_bytes": self._deploy.bytes if self._deploy else None,
            "origin": origin | {"source_sha256": self.origin.source_sha256.hex()},
        }

    @contextmanager
    def located(self) -> Iterator[None]:
        """Say of an error in what was read which file it concerns."""
        try:
            yield
        except FormatError as error:
            if error.where and error.where.startswith(str(self.path)):
                raise
            raise type(error)(error.what, where=self._at(error.where), hint=error.hint) from error

    def _chunk(self, chunk: Chunk, size: int, offset: int, what: str) -> bytes:
        where = self._at(what)
        return unpack(chunk, self._read(offset, chunk.bytes, where), size, where)

    def _read(self, offset: int, size: int, where: str) -> bytes:
        if self._descriptor < 0:
            raise InputError("the file is closed", where=where)
        pieces = []
        while size:
            try:
                piece = os.pread(self._descriptor, min(size, _PIECE), offset)
            except OSError as error:
                raise FormatError(f"can't read: {error.strerror}", where=where) from error
            if not piece:
                raise FormatError("the file was cut short while it was open", where=where)
            pieces.append(piece)
            size, offset = size - len(piece), offset + len(piece)
        return b"".join(pieces)

    def _at(self, place: str | None) -> str:
        return f"{self.path}, {place}" if place else str(self.path)
