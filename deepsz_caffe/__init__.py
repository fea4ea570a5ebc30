"""DeepSZ for Caffe: error-bounded compression of fully connected layers (Jin et al., HPDC 2019).

The four steps are `prune`, `assess`, `optimize` and `encode`; `decode` is the way back, and
`compress` does steps two to four. Names are imported when first used, so that decoding never
loads Caffe and ``import deepsz_caffe`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Any

#: public name -> module that defines it
_PUBLIC: dict[str, str] = dict.fromkeys(
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


def __dir__() -> list[str]:
    return __all__
