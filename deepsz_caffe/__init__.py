"""DeepSZ for Caffe: error-bounded compression of fully connected layers (Jin et al., HPDC 2019).

The four steps are `prune`, `assess`, `optimize` and `encode`; `decode` is the way back, and
`compress` does steps two to four. Names are imported when first used, so that decoding never
loads Caffe and ``import deepsz_caffe`` stays quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

#: public name -> module that defines it
_PUBLIC: dict[str, str] = {
    **{
        name: f"deepsz_caffe.{name}"
        for name in ("assess", "compress", "decode", "encode", "optimize", "prune")
    },
    "Assessment": "deepsz_caffe.assessment",
    "CompressResult": "deepsz_caffe.compress",
    "Plan": "deepsz_caffe.optimize",
    **dict.fromkeys(("Score", "evaluate", "load_net"), "deepsz_caffe.runtime.forward"),
    "expand": "deepsz_caffe.expand",
    "encode_layer": "deepsz_caffe.encode",
    "decode_layer": "deepsz_caffe.decode",
    **dict.fromkeys(("DszFile", "Limits", "write_dsz"), "deepsz_caffe.container"),
    **dict.fromkeys(("read_caffemodel", "write_caffemodel"), "deepsz_caffe.network.caffemodel"),
} | dict.fromkeys(
    (
        "CaffeError",
        "CodecError",
        "DataError",
        "DeepSZError",
        "FormatError",
        "InputError",
        "LimitError",
        "ModelError",
        "TargetError",
    ),
    "deepsz_caffe.errors",
)

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Importing a submodule binds its name here; a function of that name goes first."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _PUBLIC.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return __all__
