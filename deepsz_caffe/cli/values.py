"""Values of options that name layers: ``ip1=0.02,ip2=0.03``, quoted names, or a JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deepsz_caffe.errors import DataError, InputError

#: a name: in quotes, where a backslash stands before a quote or a backslash, or plain
_QUOTED: Final = r"""\s*(?P<quote>["'])(?P<quoted>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)\s*"""
_PLAIN: Final = r"""(?P<plain>(?!\s*["'])[^,]+)"""
_PAIR: Final = re.compile(rf"(?:{_QUOTED}|{_PLAIN})=(?P<value>[^,=]*)(?:,|$)", re.DOTALL)
_NAME: Final = re.compile(rf"(?:{_QUOTED}|{_PLAIN})(?:,|$)", re.DOTALL)


def parse_numbers(text: str, form: str) -> dict[str, float]:
    """Read a number for each of some layers.

    Parameters
    ----------
    text
        ``NAME=NUMBER,NAME=NUMBER``, names with a comma in quotes (``"a,b"=0.1``); or a JSON file
        with an object of names and numbers, as ``@FILE`` or a path that ends in ``.json``.
    form
        What would be right, for errors.

    Raises
    ------
    InputError
        It has another form, or names a layer twice.
    """
    if text.startswith("@") or (text.endswith(".json") and "=" not in text):
        return _read_numbers(Path(text.removeprefix("@")))
    numbers: dict[str, float] = {}
    position = 0
    while position < len(text) or not numbers:
        match = _PAIR.match(text, position)
        name = "" if match is None else _name(match)
        try:
            number = float(match["value"]) if match is not None else None
        except ValueError:
            number = None
        if match is None or number is None or not name:
            raise InputError(
                f"can't be read: {text[position:]!r}",
                hint=f"write {form}; a name with a comma in quotes; or a JSON file",
            )
        if name in numbers:
            raise InputError("is given twice", where=name)
        numbers[name] = number
        position = match.end()
    return numbers


def parse_names(text: str) -> tuple[str, ...]:
    """Read names, with commas between them; those that have a comma are in quotes.

    Raises
    ------
    InputError
        A name is empty.
    """
    names: list[str] = []
    position = 0
    while position < len(text) or not names:
        match = _NAME.match(text, position)
        if match is None or not _name(match):
            raise InputError(
                f"can't be read: {text[position:]!r}",
                hint="write names with commas between them, a name with a comma in quotes",
            )
        names.append(_name(match))
        position = match.end()
    return tuple(names)


def format_numbers(numbers: Mapping[str, float]) -> str:
    """Write numbers as `parse_numbers` reads them."""
    return ",".join(f"{_quoted(name)}={number:g}" for name, number in numbers.items())


def _name(match: re.Match[str]) -> str:
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL)
    return match["plain"].strip()


def _quoted(name: str) -> str:
    if name == name.strip() and not re.search(r"""[,"']|^@""", name):
        return name
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'


def _read_numbers(path: Path) -> dict[str, float]:
    from deepsz_caffe.documents import read_document

    try:
        return read_document(path, dict[str, float], what="an object of names and numbers")
    except DataError as error:
        raise InputError(error.what, where=path, hint=error.hint) from error
