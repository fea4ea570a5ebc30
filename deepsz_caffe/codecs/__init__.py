"""Arrays to bytes and back: one codec a file, each on the interface of numcodecs.

Three registries map the short ids that a `.dsz` file records to classes:

- `DATA`: the non-zero weights of a layer, float32 (n,), within an absolute error bound;
- `INDEX`: the steps between them, uint8 (m,), lossless;
- `MATRIX`: zeros and weights together, float32 (rows, cols), within a bound. What lies within the
  bound of 0 may become 0.

A new codec is one file and one line here. The classes are registered with numcodecs too, under
``deepsz-`` and their id, so that Zarr arrays can use them.
"""

from __future__ import annotations

from typing import TypeVar

from numcodecs.registry import register_codec

from deepsz_caffe.codecs.base import ArrayCodec, BoundedCodec
from deepsz_caffe.codecs.blosc import Blosc
from deepsz_caffe.codecs.brotli import Brotli
from deepsz_caffe.codecs.bz2 import BZ2
from deepsz_caffe.codecs.digest import scatter, weights_digest
from deepsz_caffe.codecs.gzip import GZip
from deepsz_caffe.codecs.levels import MixedLevels
from deepsz_caffe.codecs.lzma import LZMA
from deepsz_caffe.codecs.mixing import Mixing
from deepsz_caffe.codecs.packed import Packed
from deepsz_caffe.codecs.profiles import PROFILES, Profile, profile
from deepsz_caffe.codecs.raw import Raw
from deepsz_caffe.codecs.sz import SZ, SZLorenzo, SZNoPrediction
from deepsz_caffe.codecs.zfp import ZFP
from deepsz_caffe.codecs.zstd import Zstd

_Codec = TypeVar("_Codec", bound=ArrayCodec)


def _registry(*codecs: type[_Codec]) -> dict[str, type[_Codec]]:
    for codec in codecs:
        register_codec(codec)
    return {str(codec.codec_id).removeprefix("deepsz-"): codec for codec in codecs}


DATA: dict[str, type[BoundedCodec]] = _registry(SZ, SZLorenzo, SZNoPrediction, MixedLevels, ZFP)
INDEX: dict[str, type[ArrayCodec]] = _registry(GZip, Zstd, Blosc, Brotli, LZMA, BZ2, Raw)
MATRIX: dict[str, type[BoundedCodec]] = _registry(Mixing, Packed)

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
