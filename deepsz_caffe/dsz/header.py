"""Read the header of a `.dsz` file: container.proto's messages in their canonical form, no other.

A message is canonical where protobuf would write the same bytes again: fields in order, none that
is unknown or has its default value, numbers in as few bytes as they need. That is easily read
without protobuf, whose import takes longer than decoding most networks.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, NamedTuple

from deepsz_caffe.errors import FormatError

_NOT_CANONICAL = "the header has unknown fields or is not in its canonical form"

# Wire types of protobuf.
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


class Field(NamedTuple):
    """A field of a message.

    Attributes
    ----------
    name
        As in container.proto.
    kind
        The type there, or the fields of the message that it holds.
    repeated, optional
        A list; a message that is None where it is absent, not an empty one.
    """

    name: str
    kind: str | dict[int, Field]
    repeated: bool = False
    optional: bool = False


Message = dict[int, Field]


def _message(*fields: Field) -> Message:
    return dict(enumerate(fields, 1))


_LAYER = _message(
    Field("name", "string"),
    Field("rows", "uint32"),
    Field("columns", "uint32"),
    Field("error_bound", "double"),
    Field("nonzeros", "uint64"),
    Field("column_major", "bool"),
    Field("data_codec", "string"),
    Field("data_bytes", "uint64"),
    Field("index_codec", "string"),
    Field("index_bytes", "uint64"),
    Field("index_count", "uint64"),
    Field("checksum", "fixed32"),
    Field("digest", "fixed64"),
)
_CHUNK = _message(
    Field("packing", "enum"),
    Field("bytes", "uint64"),
    Field("checksum", "fixed32"),
)
_REST = _message(
    Field("bytes", "uint64"),
    Field("slots", "uint64", repeated=True),
    Field("chunks", _CHUNK, repeated=True),
    Field("checksum", "fixed32"),
)
_DEPLOY = _message(
    Field("bytes", "uint64"),
    Field("chunk", _CHUNK),
)
_MEASURED = _message(
    Field("data", "string"),
    Field("total", "uint64"),
    Field("top1_before", "uint64"),
    Field("top1_after", "uint64"),
    Field("top5_before", "uint64"),
    Field("top5_after", "uint64"),
)
_ORIGIN = _message(
    Field("profile", "string"),
    Field("software", "string"),
    Field("source_sha256", "bytes"),
    Field("measured", _MEASURED, optional=True),
)
HEADER = _message(
    Field("layers", _LAYER, repeated=True),
    Field("rest", _REST),
    Field("deploy", _DEPLOY, optional=True),
    Field("origin", _ORIGIN),
)

_LIMITS = {"uint32": 1 << 32, "uint64": 1 << 64, "bool": 2, "enum": 1 << 31}
_FIXED = {"double": ("<d", _I64), "fixed64": ("<Q", _I64), "fixed32": ("<I", _I32)}
_SIZES = {_I64: 8, _I32: 4}
_DEFAULTS: dict[str, Any] = {"string": "", "bytes": b"", "double": 0.0, "bool": False}


def read_header(content: bytes) -> Any:  # noqa: ANN401
    """Return the message `Header`, its fields as attributes.

    Raises
    ------
    FormatError
        It is damaged, or not in its canonical form.
    """
    return _read(HEADER, content)


def _read(message: Message, content: bytes) -> SimpleNamespace:
    found = SimpleNamespace(**{f.name: _default(f) for f in message.values()})
    position = last = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        field = message.get(number)
        if field is None or number < last or (number == last and not _in_pieces(field)):
            raise FormatError(_NOT_CANONICAL)
        value, position = _value(field, wire, content, position)
        if _in_pieces(field):
            getattr(found, field.name).append(value)
        else:
            setattr(found, field.name, value)
        last = number
    return found


def _default(field: Field) -> Any:  # noqa: ANN401
    if field.repeated:
        return []
    if isinstance(field.kind, dict):
        return None if field.optional else _read(field.kind, b"")
    return _DEFAULTS.get(field.kind, 0)


def _in_pieces(field: Field) -> bool:
    # Repeated numbers are packed into one field, messages are a field each.
    return field.repeated and isinstance(field.kind, dict)


def _value(field: Field, wire: int, content: bytes, position: int) -> tuple[Any, int]:
    if wire == _LEN:
        size, position = _varint(content, position)
    else:
        size = _SIZES.get(wire, 0)
    end = position + size
    if end > len(content):
        raise FormatError("the header is not a message that this version knows")
    part = content[position:end]
    if isinstance(field.kind, dict):
        if wire == _LEN:
            return _read(field.kind, part), end
    elif field.repeated:
        if wire == _LEN and part:
            return _numbers(part, _LIMITS[field.kind]), end
    elif field.kind in _LIMITS:
        if wire == _VARINT:
            value, end = _varint(content, position, _LIMITS[field.kind])
            if value:
                return (value == 1 if field.kind == "bool" else value), end
    elif field.kind in _FIXED:
        form, expected = _FIXED[field.kind]
        if wire == expected and any(part):
            return struct.unpack(form, part)[0], end
    elif wire == _LEN and part:
        return (_text(part) if field.kind == "string" else part), end
    raise FormatError(_NOT_CANONICAL)


def _numbers(part: bytes, limit: int) -> list[int]:
    numbers, position = [], 0
    while position < len(part):
        number, position = _varint(part, position, limit)
        numbers.append(number)
    return numbers


def _varint(content: bytes, position: int, limit: int = 1 << 64) -> tuple[int, int]:
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= limit or (byte == 0 and shift):
                raise FormatError(_NOT_CANONICAL)
            return value, position
        shift += 7
    raise FormatError("the header is not a message that this version knows")


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise FormatError("the header is not a message that this version knows") from error
