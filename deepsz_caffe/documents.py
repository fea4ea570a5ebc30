"""JSON as input: read into the type that wrote it, with every value checked, or refused.

What the package keeps as JSON (assessments, journals, runs, the state of a training) comes back
from disks and from other people, so it is input. The schema is the dataclass itself: msgspec holds
a document to its annotations, and to what its ``__post_init__`` asks (a `ValueError` there is a
fault of the document). NaN, infinities and numbers as text are no numbers; keys that the type does
not have are passed over, so that a later version may write more.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import TypeVar

from deepsz_caffe.errors import DataError
from deepsz_caffe.files import read_input

Kind = TypeVar("Kind")


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: what a document is called that nobody but this package reads
_EXPECTED = "what was expected"


def read_document(
    path: str | os.PathLike[str],
    kind: type[Kind],
    *,
    what: str = _EXPECTED,
    hint: str | None = None,
) -> Kind:
    """Read a JSON file.

    Parameters
    ----------
    path
        The file.
    kind
        What it must hold: a dataclass, or a type such as ``dict[str, float]``.
    what
        What a user calls it, e.g. "an assessment".
    hint
        What to do about a file that is missing or something else, e.g. which command writes one.

    Raises
    ------
    DataError
        The file can't be read, is no JSON, does not hold a `kind`, or has a key twice; says where
        in the document.
    """
    raw = read_input(path, DataError, hint=hint)
    document = parse_document(raw, kind, what=what, where=path, hint=hint)
    _refuse_repeated(raw, path)
    return document


def _refuse_repeated(raw: bytes, where: object) -> None:
    """Refuse a key that an object has twice: parsers silently take the last."""

    def check(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{repeated!r} is given twice", where=where)

    try:
        # Numbers stay text: their values do not matter here.
        json.loads(raw, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise DataError(_said(error), where=where) from error


def parse_document(
    raw: bytes | str,
    kind: type[Kind],
    *,
    what: str = _EXPECTED,
    where: object = None,
    hint: str | None = None,
) -> Kind:
    """Read a JSON document; parameters and errors as of `read_document`."""
    import msgspec

    content = raw.encode() if isinstance(raw, str) else raw
    try:
        if _SURROGATE.search(content):
            # Half of a pair is how Python writes what is no UTF-8 in names of files; msgspec reads
            # whole pairs alone.
            found = json.loads(content, parse_constant=_finite, parse_float=_finite)
            # Bytes of such names, and no other halves: what can't be encoded is a ValueError.
            json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
            return msgspec.convert(found, type=kind)
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataError(f"not {what}: {_said(error)}", where=where, hint=hint) from error


def convert_document(
    found: object,
    kind: type[Kind],
    *,
    what: str = _EXPECTED,
    where: object = None,
    hint: str | None = None,
) -> Kind:
    """Rebuild a `kind` from a part of a document that was read as plain lists and dicts."""
    import msgspec

    try:
        return msgspec.convert(found, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"not {what}: {_said(error)}", where=where, hint=hint) from error


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no number")
    return value


def _said(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
