"""The kernels of this package: compiled where they were built, otherwise their Python twins.

Both give the same bytes; ``DEEPSZ_KERNELS=python`` asks for the slow ones, ``portable`` for the
compiled ones of `mixing` that any processor runs.
"""

from __future__ import annotations

import os
from types import ModuleType


def _choose() -> ModuleType:
    if os.environ.get("DEEPSZ_KERNELS") != "python":
        try:
            from deepsz_caffe.codecs import _kernels
        except ImportError:
            pass
        else:
            return _kernels
    from deepsz_caffe.codecs import fallback

    return fallback


kernels = _choose()
#: whether the compiled kernels are in use
COMPILED = kernels.__name__.endswith("._kernels")
