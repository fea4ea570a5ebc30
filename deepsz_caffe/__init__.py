"""DeepSZ for Caffe: error-bounded compression of fully connected layers (Jin et al., HPDC 2019).

The four steps are `prune`, `assess`, `optimize` and `encode`; `decode` is the way back, and
`compress` does steps two to four. Names are imported when first used, so that decoding never
loads Caffe and ``import deepsz_caffe`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepsz_caffe.api import assess, compress, prune
    from deepsz_caffe.dsz.decode import decode, decode_layer
    from deepsz_caffe.dsz.expand import expand
    from deepsz_caffe.dsz.limits import Limits
    from deepsz_caffe.dsz.reader import DszFile
    from deepsz_caffe.dsz.writer import write_dsz
    from deepsz_caffe.errors import (
        CaffeError,
        CodecError,
        DataError,
        DeepSZError,
        FormatError,
        InputError,
        LimitError,
        ModelError,
        TargetError,
    )
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.network.writer import write_caffemodel
    from deepsz_caffe.running.linear import CompressedLinear
    from deepsz_caffe.runtime.evaluate import evaluate, load_net
    from deepsz_caffe.steps.assess.result import Assessment
    from deepsz_caffe.steps.compress import CompressResult
    from deepsz_caffe.steps.encode import encode, encode_layer
    from deepsz_caffe.steps.evaluator import Score
    from deepsz_caffe.steps.optimize import Plan, optimize

#: module -> what of it is public; a test holds it to the imports above
_PUBLIC = {
    "api": ("assess", "compress", "prune"),
    "dsz.decode": ("decode", "decode_layer"),
    "dsz.expand": ("expand",),
    "dsz.limits": ("Limits",),
    "dsz.reader": ("DszFile",),
    "dsz.writer": ("write_dsz",),
    "errors": (
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
    "network.caffemodel": ("read_caffemodel",),
    "network.writer": ("write_caffemodel",),
    "running.linear": ("CompressedLinear",),
    "runtime.evaluate": ("evaluate", "load_net"),
    "steps.assess.result": ("Assessment",),
    "steps.compress": ("CompressResult",),
    "steps.encode": ("encode", "encode_layer"),
    "steps.evaluator": ("Score",),
    "steps.optimize": ("Plan", "optimize"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Assessment",
    "CaffeError",
    "CodecError",
    "CompressResult",
    "CompressedLinear",
    "DataError",
    "DeepSZError",
    "DszFile",
    "FormatError",
    "InputError",
    "LimitError",
    "Limits",
    "ModelError",
    "Plan",
    "Score",
    "TargetError",
    "assess",
    "compress",
    "decode",
    "decode_layer",
    "encode",
    "encode_layer",
    "evaluate",
    "expand",
    "load_net",
    "optimize",
    "prune",
    "read_caffemodel",
    "write_caffemodel",
    "write_dsz",
]

if not TYPE_CHECKING:  # a type checker takes the imports above

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
