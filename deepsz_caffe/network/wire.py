"""The protobuf wire format, walked without parsing: where the fields of a message lie.

A caffemodel is a protobuf message of hundreds of megabytes, nearly all of it in a few fields. This
walks such a message in place and says for each field where it begins and ends, so that the large
ones can be viewed and the small ones handed to protobuf. It makes no copy and never recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from deepsz_caffe.codecs import varint as varints

VARINT: Final = 0
I64: Final = 1
LEN: Final = 2
_START_GROUP: Final = 3
_END_GROUP: Final = 4
I32: Final = 5

_MAX_NUMBER: Final = (1 << 29) - 1
#: fields that a file may have, arrays of unpacked values counted once
MAX_FIELDS: Final = 1 << 17
_SHORT: Final = 8


class WireError(ValueError):
    """These bytes are not a protobuf message.

    Attributes
    ----------
    position
        Byte of the buffer at which that shows.
    """

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.position = position


class Field(NamedTuple):
    """One field of a message, or a run of equal ones of a fixed size.

    Attributes
    ----------
    number, wire
        Field number and wire type; ``_START_GROUP`` stands for a whole group.
    begin
        Position of the tag.
    start, end
        The payload; for fixed sizes (`I32`, `I64`) a run of values with their tags between.
    values
        Values in the run; 1 for all other types.
    """

    number: int
    wire: int
    begin: int
    start: int
    end: int
    values: int = 1


def read_varint(buffer: memoryview, position: int, end: int) -> tuple[int, int]:
    """Read a varint of at most 64 bits; return it and the position after it."""
    try:
        return varints.read_varint(buffer, position, end)
    except ValueError as error:
        raise WireError(str(error), position) from error


def varint(value: int) -> bytes:
    """Write a varint."""
    return varints.pack_varints((value,))


def tag(number: int, wire: int) -> bytes:
    """Write the tag that stands before a field."""
    return varint(number << 3 | wire)


class Walk:
    """A walk through a message and messages in it, over a limited number of fields.

    Files from strangers may hold a field in every two bytes, each of which costs a Python object;
    the files that Caffe and others write have some ten fields a layer beside their arrays.

    Parameters
    ----------
    buffer
        All of the file.
    limit
        Fields that may be met, in all messages together.
    """

    def __init__(self, buffer: memoryview, limit: int = MAX_FIELDS) -> None:
        self.buffer = buffer
        self._limit = self._left = limit

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Walk the fields of the message in ``buffer[start:end]``.

        Values of a fixed size that follow each other under the same one-byte tag, as unpacked
        floats do, come as one field, found without a Python loop.

        Raises
        ------
        WireError
            A length leads out of the message, a number or a type that protobuf does not know, a
            group that is not closed, or too many fields.
        """
        buffer, position = self.buffer, start
        while position < end:
            begin = position
            self._count(begin)
            # Nearly all tags and lengths have one byte: those are read without a call.
            key = buffer[position]
            if 8 <= key < 0x80 and key & 7 <= I32:
                number, wire, position = key >> 3, key & 7, position + 1
            else:
                number, wire, position = _read_tag(buffer, position, end)
            if wire == LEN and position < end and buffer[position] < 0x80:
                start, position = position + 1, position + 1 + buffer[position]
                if position > end:
                    raise WireError(
                        f"a field of {position - start} bytes where {end - start} are left", begin
                    )
                yield Field(number, wire, begin, start, position)
            elif wire == _START_GROUP:
                position = self._skip_group(begin, end)
                yield Field(number, wire, begin, begin, position)
            elif wire == _END_GROUP:
                raise WireError("the end of a group that was not begun", begin)
            elif wire in (I32, I64):
                size = 4 if wire == I32 else 8
                if end - position < size:
                    raise WireError(f"the data end inside a value of {size} bytes", begin)
                count = _run(buffer, begin, end, size) if position - begin == 1 else 1
                finish = position + size + (count - 1) * (size + 1)
                yield Field(number, wire, begin, position, finish, count)
                position = finish
            else:
                payload, position = _payload(buffer, wire, begin, position, end)
                yield Field(number, wire, begin, payload, position)

    def _count(self, position: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise WireError(f"more than {self._limit:,} fields", position)

    def _skip_group(self, begin: int, end: int) -> int:
        """Position after the group that begins here; nesting is a list, not a recursion."""
        open_groups: list[int] = []
        position = begin
        while position < end:
            at = position
            self._count(at)
            number, wire, position = _read_tag(self.buffer, position, end)
            if wire == _START_GROUP:
                open_groups.append(number)
            elif wire == _END_GROUP:
                if open_groups.pop() != number:
                    raise WireError("the end of another group than was begun", at)
                if not open_groups:
                    return position
            else:
                position = _payload(self.buffer, wire, at, position, end)[1]
        raise WireError("a group that is not closed", begin)


def _read_tag(buffer: memoryview, position: int, end: int) -> tuple[int, int, int]:
    key, after = read_varint(buffer, position, end)
    number, wire = key >> 3, key & 7
    if not 0 < number <= _MAX_NUMBER:
        raise WireError(f"field number {number}", position)
    if wire > I32:
        raise WireError(f"wire type {wire}", position)
    return number, wire, after


def _payload(buffer: memoryview, wire: int, begin: int, position: int, end: int) -> tuple[int, int]:
    """Start and end of a payload that is no group."""
    if wire == VARINT:
        return position, read_varint(buffer, position, end)[1]
    size = {I32: 4, I64: 8}.get(wire, 0)
    if wire == LEN:
        size, position = read_varint(buffer, position, end)
    if size > end - position:
        raise WireError(f"a field of {size} bytes where {end - position} are left", begin)
    return position, position + size


def _run(buffer: memoryview, begin: int, end: int, size: int) -> int:
    """Count the values of `size` bytes from `begin` on that stand after the same tag."""
    step = size + 1
    possible = (end - begin) // step
    # One by one at first: a view of numpy's costs more than a short run.
    for done in range(1, min(possible, _SHORT)):
        if buffer[begin + done * step] != buffer[begin]:
            return done
    done, piece = min(possible, _SHORT), 4 * _SHORT
    if done == possible:
        return done
    tags = np.frombuffer(buffer, np.uint8, possible * step, begin)[::step]
    while done < possible:
        same = tags[done : done + piece] == tags[0]
        if not same.all():
            return done + int(np.argmin(same))
        done, piece = min(done + piece, possible), piece * 4
    return done


def run_values(buffer: memoryview, field: Field) -> np.ndarray:
    """Give the values of a run as an array of bytes, ``uint8[count, 4 or 8]``; a view."""
    size = 4 if field.wire == I32 else 8
    if field.values == 1:
        return np.frombuffer(buffer, np.uint8, size, field.start).reshape(1, size)
    whole = np.frombuffer(buffer, np.uint8, field.end - field.begin, field.begin)
    return whole.reshape(field.values, size + 1)[:, 1:]
