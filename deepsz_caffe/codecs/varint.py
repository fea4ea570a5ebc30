"""Unsigned integers in as few bytes as they need: seven bits a byte, lowest first."""

from __future__ import annotations

from collections.abc import Iterable

from deepsz_caffe.errors import CodecError


def pack_varints(numbers: Iterable[int]) -> bytes:
    """Encode integers of at least 0, one after the other."""
    packed = bytearray()
    for number in numbers:
        while number > 127:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return bytes(packed)


def unpack_varints(view: memoryview, count: int) -> tuple[list[int], memoryview]:
    """Decode `count` integers of at most 63 bits and return them with the bytes that follow.

    Raises
    ------
    CodecError
        The bytes end before, or an integer is too long.
    """
    numbers, position = [], 0
    for _ in range(count):
        number = shift = 0
        while True:
            if position == len(view) or shift > 56:
                raise CodecError("the header is damaged")
            byte = view[position]
            number |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                break
        numbers.append(number)
    return numbers, view[position:]
