"""Arrays to bytes and back: one codec a file, each on the interface of numcodecs.

Three registries map the short ids that a `.dsz` file records to classes:

- `DATA`: the non-zero weights of a layer, float32 (n,), within an absolute error bound;
- `INDEX`: the steps between them, uint8 (m,), lossless;
- `MATRIX`: zeros and weights together, float32 (rows, cols), within a bound. What lies within the
  bound of 0 may become 0.

A new codec is one file and one line here. Another package adds one by an entry point of the group
``deepsz_caffe.codecs``, whose name is the id and whose object is a class derived from `ArrayCodec`
(for an index), `BoundedCodec` (for data) or `MatrixCodec`. ``setup.py`` makes ours known to
numcodecs, under ``deepsz-`` and their id, so that Zarr arrays can use them.

A codec's module is imported when the codec is asked for: decoding a file should not wait for the
import of those that it does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from deepsz_caffe.codecs.registry import Registry

if TYPE_CHECKING:
    from deepsz_caffe.codecs.base import ArrayCodec, BoundedCodec, MatrixCodec, Part
    from deepsz_caffe.codecs.digest import Tally, scatter, tally, total, weights_digest
    from deepsz_caffe.codecs.packed import Packed
    from deepsz_caffe.codecs.profiles import PROFILES, Profile, profile

DATA: Registry[BoundedCodec] = Registry(
    "data",
    {
        "sz": "sz:SZ",
        "sz-lorenzo": "sz:SZLorenzo",
        "sz-nopred": "sz:SZNoPrediction",
        "levels": "levels:MixedLevels",
        "zfp": "zfp:ZFP",
    },
)
INDEX: Registry[ArrayCodec] = Registry(
    "index",
    {
        "gzip": "gzip:GZip",
        "zstd": "zstd:Zstd",
        "blosc": "blosc:Blosc",
        "brotli": "brotli:Brotli",
        "lzma": "lzma:LZMA",
        "bz2": "bz2:BZ2",
        "raw": "raw:Raw",
    },
)
MATRIX: Registry[MatrixCodec] = Registry(
    "matrix",
    {"mixing": "mixing:Mixing", "mixing-step": "mixing_step:MixingStep", "packed": "packed:Packed"},
)

#: other public name -> module of this package that defines it
_PUBLIC = {
    **dict.fromkeys(("ArrayCodec", "BoundedCodec", "MatrixCodec", "Part"), "base"),
    **dict.fromkeys(("Tally", "scatter", "tally", "total", "weights_digest"), "digest"),
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
    "MatrixCodec",
    "Packed",
    "Part",
    "Profile",
    "Registry",
    "Tally",
    "profile",
    "scatter",
    "tally",
    "total",
    "weights_digest",
]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
