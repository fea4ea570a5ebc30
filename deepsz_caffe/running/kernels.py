"""The kernels of this room: compiled where they were built, otherwise their numpy twins.

``DEEPSZ_KERNELS=python`` asks for the slow ones.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _choose() -> ModuleType:
    if os.environ.get("DEEPSZ_KERNELS") != "python":
        try:
            return importlib.import_module("deepsz_caffe.running._kernels")
        except ImportError:
            pass
    from deepsz_caffe.running import fallback

    return fallback


kernels = _choose()
