"""Frozen dataclasses as protobuf messages, in their canonical form and no other.

A message is a dataclass. Its wire fields are those annotated with one of the scalar types below,
with such a dataclass, or with a tuple of either; their numbers are 1, 2, … in the order in which
they stand. Other fields are no part of the message.

Canonical is what protobuf itself writes: fields in order, none that is unknown or has its default
value, numbers in as few bytes as they need, repeated numbers packed. So a header has one form, and
that is easily read without protobuf, whose import takes longer than decoding most networks.
"""

from __future__ import annotations

import struct
import types
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from deepsz_caffe.codecs.varint import pack_varints, read_varint
from deepsz_caffe.errors import FormatError

String = Annotated[str, "string"]
Bytes = Annotated[bytes, "bytes"]
Bool = Annotated[bool, "bool"]
Enum = Annotated[int, "enum"]
UInt32 = Annotated[int, "uint32"]
UInt64 = Annotated[int, "uint64"]
Fixed32 = Annotated[int, "fixed32"]
Fixed64 = Annotated[int, "fixed64"]
Double = Annotated[float, "double"]

_Message = TypeVar("_Message")

_UNKNOWN = "the header is not a message that this version knows"
_NOT_CANONICAL = "the header has unknown fields or is not in its canonical form"

# Wire types of protobuf.
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_SIZES = {_I64: 8, _I32: 4}
_LIMITS = {"uint32": 1 << 32, "uint64": 1 << 64, "bool": 2, "enum": 1 << 31}
_FIXED = {"double": ("<d", _I64), "fixed64": ("<Q", _I64), "fixed32": ("<I", _I32)}
_DEFAULTS = {"string": "", "bytes": b"", "double": 0.0, "bool": False}


class WireField(NamedTuple):
    """A field of a message.

    Attributes
    ----------
    number, name
        As on the wire, and in the dataclass.
    kind
        The name of protobuf's scalar type, or the dataclass of the message that it holds.
    repeated, optional
        A tuple; a message that is None where it is absent, not an empty one.
    """

    number: int
    name: str
    kind: str | type
    repeated: bool
    optional: bool

    @property
    def in_pieces(self) -> bool:
        """Whether each value is a field of its own; repeated numbers are packed into one."""
        return self.repeated and isinstance(self.kind, type)


@cache
def wire_fields(message: type) -> tuple[WireField, ...]:
    """Return the fields of a message, in the order of their numbers."""
    hints = get_type_hints(message, include_extras=True)
    found: list[WireField] = []
    for field in fields(message):
        hint, repeated, optional = hints[field.name], False, False
        if get_origin(hint) is tuple:
            hint, repeated = get_args(hint)[0], True
        elif get_origin(hint) is types.UnionType:
            hint, optional = get_args(hint)[0], True
        if get_origin(hint) is Annotated:
            kind = hint.__metadata__[0]
        elif hasattr(hint, "__dataclass_fields__"):
            kind = hint
        else:
            continue
        found.append(WireField(len(found) + 1, field.name, kind, repeated, optional))
    return tuple(found)


def serialize(value: object, message: type | None = None) -> bytes:
    """Return the canonical bytes of a message.

    Parameters
    ----------
    message
        The dataclass whose fields are written, where `value` is of one derived from it.
    """
    pieces = []
    for field in wire_fields(message or type(value)):
        held = getattr(value, field.name)
        values = held if field.in_pieces else () if held is None else (held,)
        for each in values:
            wire, content = _content(field, each)
            if content or isinstance(field.kind, type):
                size = pack_varints([len(content)]) if wire == _LEN else b""
                pieces += [pack_varints([field.number << 3 | wire]), size, content]
    return b"".join(pieces)


def _content(field: WireField, value: Any) -> tuple[int, bytes]:  # noqa: ANN401
    """Wire type and payload of a field; no bytes where it has its default value."""
    if isinstance(field.kind, type):
        return _LEN, serialize(value, field.kind)
    if field.repeated:
        return _LEN, pack_varints(value)
    if field.kind in _FIXED:
        form, wire = _FIXED[field.kind]
        content = struct.pack(form, value)
        return wire, content if any(content) else b""
    if field.kind in _LIMITS:
        return _VARINT, pack_varints([int(value)]) if value else b""
    return _LEN, value.encode() if field.kind == "string" else value


def parse(message: type[_Message], content: bytes | memoryview) -> _Message:
    """Read a message.

    Raises
    ------
    FormatError
        It is damaged, or not in its canonical form.
    """
    schema = wire_fields(message)  # type: ignore[arg-type]  # a class is hashable
    found: dict[str, Any] = {field.name: _default(field) for field in schema}
    view = memoryview(content)
    position = last = 0
    while position < len(view):
        tag, position = _number(view, position)
        number, wire = tag >> 3, tag & 7
        field = schema[number - 1] if 0 < number <= len(schema) else None
        if field is None or number < last or (number == last and not field.in_pieces):
            raise FormatError(_NOT_CANONICAL)
        value, position = _value(field, wire, view, position)
        if field.in_pieces:
            found[field.name].append(value)
        else:
            found[field.name] = value
        last = number
    for field in schema:
        if field.repeated:
            found[field.name] = tuple(found[field.name])
    return message(**found)


def _default(field: WireField) -> Any:  # noqa: ANN401
    if field.repeated:
        return []
    if isinstance(field.kind, type):
        return None if field.optional else parse(field.kind, b"")
    return _DEFAULTS.get(field.kind, 0)


def _value(field: WireField, wire: int, view: memoryview, position: int) -> tuple[Any, int]:
    if wire == _LEN:
        size, position = _number(view, position)
    else:
        size = _SIZES.get(wire, 0)
    end = position + size
    if end > len(view):
        raise FormatError(_UNKNOWN)
    part = view[position:end]
    if isinstance(field.kind, type):
        if wire == _LEN:
            return parse(field.kind, part), end
    elif field.repeated:
        if wire == _LEN and part:
            return _numbers(part, _LIMITS[field.kind]), end
    elif field.kind in _LIMITS:
        if wire == _VARINT:
            value, end = _number(view, position, _LIMITS[field.kind])
            if value:
                return (value == 1 if field.kind == "bool" else value), end
    elif field.kind in _FIXED:
        form, expected = _FIXED[field.kind]
        if wire == expected and any(part):
            return struct.unpack(form, part)[0], end
    elif wire == _LEN and part:
        return (_text(part) if field.kind == "string" else bytes(part)), end
    raise FormatError(_NOT_CANONICAL)


def _numbers(part: memoryview, limit: int) -> list[int]:
    numbers, position = [], 0
    while position < len(part):
        number, position = _number(part, position, limit)
        numbers.append(number)
    return numbers


def _number(view: memoryview, position: int, limit: int = 1 << 64) -> tuple[int, int]:
    try:
        number, end = read_varint(view, position)
    except ValueError as error:
        raise FormatError(_UNKNOWN) from error
    # A last byte of 0 adds nothing: the number has a shorter form.
    if number >= limit or (view[end - 1] == 0 and end - position > 1):
        raise FormatError(_NOT_CANONICAL)
    return number, end


def _text(part: memoryview) -> str:
    try:
        return str(part, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(_UNKNOWN) from error
