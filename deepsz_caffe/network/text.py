"""Protobuf's text format, read leniently: what a message type lacks is taken out and named.

Forks of Caffe add fields, layer types and values of enums, and Caffe's parser refuses a whole
definition for one of them. Here a definition is walked beside the message type that it shall be;
what that lacks is blanked out, so that protobuf and Caffe's tools can read the rest, with every
line in its place. Text in any encoding is read; Caffe looks at bytes, too.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf import text_encoding

from deepsz_caffe.errors import ModelError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<word>[\w.+-]+)
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_CLOSING: Final = {"{": "}", "<": ">", "[": "]"}
_BINARY: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_DEEPEST: Final = 64
_LARGEST: Final = 1 << 22  # bytes; the largest networks have a few hundred thousand
#: messages that are a layer
_LAYERS: Final = ("layer", "layers")


@dataclass(frozen=True)
class Unknown:
    """Something in a definition that the message type lacks.

    Attributes
    ----------
    layer
        Name of the layer that it stands in; "" outside of layers.
    what
        The field, or the field and its value.
    line
        Counted from 1.
    """

    layer: str
    what: str
    line: int

    def __str__(self) -> str:
        return (f"layer {self.layer}: " if self.layer else "") + f"{self.what} (line {self.line})"


@dataclass(frozen=True)
class Definition:
    """A definition without what is unknown.

    Attributes
    ----------
    text
        For protobuf's own parser.
    unknown
        What was taken out, in its order.
    types
        Layer's name -> its type as it is written, where that was taken out.
    layers
        Where each layer begins and ends in the definition as it is written.
    """

    text: str
    unknown: tuple[Unknown, ...]
    types: dict[str, str] = field(default_factory=dict)
    layers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def known_part(content: bytes, message: Descriptor, where: object = None) -> Definition:
    """Take out of a definition what a message type lacks.

    Parameters
    ----------
    content
        The file.
    message
        The type that it shall be.
    where
        For errors: the file.

    Raises
    ------
    ModelError
        It is no text, or no text in protobuf's format.
    """
    if len(content) > _LARGEST:
        raise ModelError(f"{len(content):,} bytes are no prototxt", where=where)
    if found := _BINARY.search(content):
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "UTF-16" if utf16 else f"byte {found.start()} is not text"
        hint = "save it as UTF-8" if utf16 else "weights go where a caffemodel is wanted"
        raise ModelError(f"not a prototxt: {what}", where=where, hint=hint)
    # What is no UTF-8 becomes escapes, as text format has them: the same bytes.
    return _Reader(content.decode("utf-8", "backslashreplace"), where).read(message)


class _Reader:
    def __init__(self, text: str, where: object) -> None:
        self._text, self._where = text, where
        self._tokens = list(_tokens(text))
        self._next = 0
        self._pieces = list(text)
        self._lines = [match.start() for match in re.finditer("\n", text)]
        self._unknown: list[Unknown] = []
        self._types: dict[str, str] = {}

    def read(self, message: Descriptor) -> Definition:
        layers = []
        while self._next < len(self._tokens):
            first = self._tokens[self._next]
            self._field(message, "", 0)
            if first.text in _LAYERS:
                layers.append((first.start, self._tokens[self._next - 1].end))
        text = "".join(self._pieces)
        return Definition(text, tuple(self._unknown), self._types, tuple(layers))

    def _field(self, message: Descriptor | None, layer: str, depth: int) -> None:
        """Pass one field; without a message type it is in something unknown."""
        first = self._take()
        if first.text == "[":
            name = self._until("]")
        elif first.kind == "word":
            name = first.text
        else:
            raise self._error(f"{first.text!r} where a field is expected", first)
        known = message.fields_by_name.get(name) if message is not None else None
        if self._peek() == ":":
            self._take()
        value = self._value(known, name, layer, depth)
        if self._peek() in (";", ","):
            self._take()
        if message is None:
            return
        if known is None:
            self._drop(first, layer, name)
        elif value is not None:
            self._drop(first, layer, f"{name} {value}")

    def _value(
        self, known: FieldDescriptor | None, name: str, layer: str, depth: int
    ) -> str | None:
        """Pass a field's value; give it where it is one of an enum that lacks it."""
        first = self._take()
        if first.text in ("{", "<"):
            inner = known.message_type if known is not None else None
            if known is not None and depth == 0 and name in _LAYERS:
                layer = self._name_ahead()
            if depth >= _DEEPEST:
                raise self._error("messages in messages, too deep", first)
            while self._peek() != _CLOSING[first.text]:
                self._field(inner, layer, depth + 1)
            self._take()
        elif first.text == "[":
            strange = None
            while self._peek() != "]":
                found = self._value(known, name, layer, depth)
                strange = strange or found
                if self._peek() == ",":
                    self._take()
            self._take()
            return strange
        elif first.kind == "string":
            self._string(first)
            while self._next < len(self._tokens) and self._tokens[self._next].kind == "string":
                self._string(self._take())
        elif first.kind != "word":
            raise self._error(f"{first.text!r} where a value is expected", first)
        elif known is not None and (enum := known.enum_type) is not None:
            number = int(first.text) if re.fullmatch(r"-?\d+", first.text) else None
            if first.text not in enum.values_by_name and number not in enum.values_by_number:
                if depth == 1 and name == "type":
                    self._types[layer] = first.text
                return first.text
        return None

    def _name_ahead(self) -> str:
        """Give the `name` of the layer that begins here."""
        depth = 0
        for place in range(self._next, len(self._tokens) - 2):
            token = self._tokens[place]
            if token.text in _CLOSING:
                depth += 1
            elif token.kind == "sign" and token.text in _CLOSING.values():
                depth -= 1
            if depth < 0:
                break
            if depth == 0 and token.text == "name" and self._tokens[place + 2].kind == "string":
                with suppress(ValueError):
                    return _unescaped(self._tokens[place + 2].text)
        return "without a name"

    def _string(self, token: _Token) -> None:
        """Write bytes that are no UTF-8 as the weights' reader writes them."""
        if "\\" in token.text:
            self._blank(token.start, token.end)
            try:
                escaped = text_encoding.CEscape(_unescaped(token.text), as_utf8=False)
            except ValueError as error:
                raise self._error(
                    f"{token.text} has an escape that means nothing", token
                ) from error
            self._pieces[token.start] = f'"{escaped}"'

    def _drop(self, first: _Token, layer: str, what: str) -> None:
        self._blank(first.start, self._tokens[self._next - 1].end)
        self._unknown.append(Unknown(layer, what, self._line(first)))

    def _blank(self, start: int, end: int) -> None:
        for place in range(start, end):
            if self._pieces[place] != "\n":
                self._pieces[place] = " "

    def _peek(self) -> str:
        if self._next >= len(self._tokens):
            return ""
        token = self._tokens[self._next]
        return "" if token.kind == "string" else token.text

    def _take(self) -> _Token:
        if self._next >= len(self._tokens):
            raise ModelError("not a prototxt: it ends in the middle", where=self._where)
        self._next += 1
        return self._tokens[self._next - 1]

    def _until(self, end: str) -> str:
        words = ["["]
        while words[-1] != end:
            words.append(self._take().text)
        return "".join(words)

    def _line(self, token: _Token) -> int:
        return bisect(self._lines, token.start) + 1

    def _error(self, what: str, token: _Token) -> ModelError:
        return ModelError(
            f"not a prototxt: {what}", where=f"{self._where}, line {self._line(token)}"
        )


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "space":
            yield _Token(kind, match.group(), match.start(), match.end())


def _unescaped(token: str) -> str:
    content: bytes = text_encoding.CUnescape(token[1:-1])
    return content.decode("utf-8", "backslashreplace")
