"""Ids of codecs and their classes: our own, and those that other packages bring."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from deepsz_caffe.errors import DeepSZWarning

if TYPE_CHECKING:
    from deepsz_caffe.codecs.base import ArrayCodec

#: what a codec encodes
Kind = Literal["data", "index", "matrix"]
#: the group of entry points by which packages bring codecs
GROUP = "deepsz_caffe.codecs"

Codec = TypeVar("Codec", bound="ArrayCodec")


class Registry(Mapping[str, type[Codec]]):
    """Ids and the classes that they stand for.

    Our own are imported when they are asked for; for others, entry points are read once. An id of
    ours means ours, whatever is installed.

    Parameters
    ----------
    kind
        What the codecs encode.
    own
        Id -> ``module:Class`` in this package.

    Examples
    --------
    >>> import numpy as np
    >>> from deepsz_caffe.codecs import INDEX
    >>> INDEX["gzip"]().decode(INDEX["gzip"]().encode(np.arange(3, dtype=np.uint8)),
    ...                        np.empty(3, np.uint8))
    array([0, 1, 2], dtype=uint8)
    """

    def __init__(self, kind: Kind, own: Mapping[str, str]) -> None:
        self._kind = kind
        self._own = own

    def __getitem__(self, name: str) -> type[Codec]:
        if name not in self._own:
            return cast("type[Codec]", _others()[self._kind][name])
        module, _, kind = self._own[name].partition(":")
        found: type[Codec] = getattr(importlib.import_module(f"{__package__}.{module}"), kind)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in _others()[self._kind] if name not in self._own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def entry_points(self) -> list[str]:
        """Return our own codecs as entry points of the group ``numcodecs.codecs``."""
        return [f"deepsz-{name} = {__package__}.{place}" for name, place in self._own.items()]


@cache
def _others() -> Mapping[Kind, dict[str, type[Any]]]:
    """Load what other packages bring; what can't be loaded is said and left out."""
    from importlib.metadata import entry_points

    from deepsz_caffe.codecs.base import ArrayCodec, BoundedCodec, MatrixCodec

    found: dict[Kind, dict[str, type[Any]]] = {"data": {}, "index": {}, "matrix": {}}
    for entry in entry_points(group=GROUP):
        try:
            codec = entry.load()
            known = issubclass(codec, ArrayCodec)
        except Exception as error:  # whatever another package's import may raise
            warnings.warn(f"codec {entry.name!r} can't be loaded: {error}", DeepSZWarning, 2)
            continue
        if not known:
            warnings.warn(f"codec {entry.name!r} is no ArrayCodec", DeepSZWarning, 2)
        elif issubclass(codec, MatrixCodec):
            found["matrix"][entry.name] = codec
        elif issubclass(codec, BoundedCodec):
            found["data"][entry.name] = codec
        else:
            found["index"][entry.name] = codec
    return found
