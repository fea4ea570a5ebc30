"""Unsigned integers in as few bytes as they need: seven bits a byte, lowest first.

The one implementation of it: for streams of codecs, headers of `.dsz` files and protobuf messages.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepsz_caffe.errors import CodecError

Content = bytes | memoryview

_LONGEST = 10


def pack_varints(numbers: Iterable[int]) -> bytes:
    """Encode integers of at least 0, one after the other.

    Examples
    --------
    >>> pack_varints([1, 300]).hex(" ")
    '01 ac 02'
    """
    packed = bytearray()
    for number in numbers:
        while number > 127:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return bytes(packed)


def read_varint(content: Content, position: int, end: int | None = None) -> tuple[int, int]:
    """Decode the integer at `position`, of at most 64 bits; return it and where it ends.

    Parameters
    ----------
    end
        Where the bytes end that may belong to it; by default with `content`.

    Raises
    ------
    ValueError
        The bytes end before, or the integer has more than 64 bits.
    """
    stop = len(content) if end is None else end
    number = shift = 0
    for place in range(position, min(stop, position + _LONGEST)):
        byte = content[place]
        number |= (byte & 127) << shift
        if byte < 128:
            if number >> 64:
                raise ValueError("a number of more than 64 bits")
            return number, place + 1
        shift += 7
    if stop - position >= _LONGEST:
        raise ValueError("a number of more than 10 bytes")
    raise ValueError("the data end inside a number")


def unpack_varints(view: memoryview, count: int) -> tuple[list[int], memoryview]:
    """Decode `count` integers of at most 64 bits and return them with the bytes that follow.

    Raises
    ------
    CodecError
        The bytes end before, or an integer is too long.
    """
    numbers, position = [], 0
    try:
        for _ in range(count):
            number, position = read_varint(view, position)
            numbers.append(number)
    except ValueError as error:
        raise CodecError(f"the header is damaged: {error}") from error
    return numbers, view[position:]
