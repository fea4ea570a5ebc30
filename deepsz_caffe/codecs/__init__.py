"""Arrays to bytes and back: one codec a file, each on the interface of numcodecs.

Three registries map the short ids that a `.dsz` file records to classes:

- `DATA`: the non-zero weights of a layer, float32 (n,), within an absolute error bound;
- `INDEX`: the steps between them, uint8 (m,), lossless;
- `MATRIX`: zeros and weights together, float32 (rows, cols), within a bound. What lies within the
  bound of 0 may become 0.

A new codec is one file, a line here, and one in ``setup.py``: the entry points there make the
classes known to numcodecs, under ``deepsz-`` and their id, so that Zarr arrays can use them.

A codec's module is imported when the codec is asked for: decoding a file should not wait for the
import of those that it does not need.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from deepsz_caffe.codecs.base import ArrayCodec, BoundedCodec
    from deepsz_caffe.codecs.digest import scatter, weights_digest
    from deepsz_caffe.codecs.packed import Packed
    from deepsz_caffe.codecs.profiles import PROFILES, Profile, profile

_Codec = TypeVar("_Codec", bound="ArrayCodec")


class _Registry(Mapping[str, type[_Codec]]):
    """Ids and the classes that they stand for, given as ``module.Class``."""

    def __init__(self, **places: str) -> None:
        self._places = {name.replace("_", "-"): place for name, place in places.items()}

    def __getitem__(self, name: str) -> type[_Codec]:
        module, _, kind = self._places[name].partition(".")
        found: type[_Codec] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


DATA: Mapping[str, type[BoundedCodec]] = _Registry(
    sz="sz.SZ",
    sz_lorenzo="sz.SZLorenzo",
    sz_nopred="sz.SZNoPrediction",
    levels="levels.MixedLevels",
    zfp="zfp.ZFP",
)
INDEX: Mapping[str, type[ArrayCodec]] = _Registry(
    gzip="gzip.GZip",
    zstd="zstd.Zstd",
    blosc="blosc.Blosc",
    brotli="brotli.Brotli",
    lzma="lzma.LZMA",
    bz2="bz2.BZ2",
    raw="raw.Raw",
)
MATRIX: Mapping[str, type[BoundedCodec]] = _Registry(
    mixing="mixing.Mixing", mixing_step="mixing_step.MixingStep", packed="packed.Packed"
)

#: other public name -> module of this package that defines it
_PUBLIC = {
    **dict.fromkeys(("ArrayCodec", "BoundedCodec"), "base"),
    **dict.fromkeys(("scatter", "weights_digest"), "digest"),
    "Packed": "packed",
    **dict.fromkeys(("PROFILES", "Profile", "profile"), "profiles"),
}

__all__ = [
    "DATA",
    "INDEX",
    "MATRIX",
    "PROFILES",
    "ArrayCodec",
    "BoundedCodec",
    "Packed",
    "Profile",
    "profile",
    "scatter",
    "weights_digest",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
