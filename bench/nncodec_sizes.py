"""Bytes that the ISO coder's DeepCABAC encoder takes for matrices of integers.

Runs in the environment of requirements-nncodec.txt: python nncodec_sizes.py LEVELS.npz
Prints JSON: name -> the least bytes over the settings of the encoder that suit a matrix.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np


def extension():
    """Load the coder alone: the package around it imports deep-learning frameworks."""
    (package,) = importlib.util.find_spec("nncodec").submodule_search_locations
    (file,) = Path(package, "extensions").glob("deepCABAC*.so")
    spec = importlib.util.spec_from_file_location("deepCABAC", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(coder, levels, optimise: int, row_skipping: int, skip_empty: int) -> int:
    """Encode int32 levels (rows, cols) and count the bytes of the finished stream."""
    encoder = coder.Encoder()
    encoder.initCtxModels(11, optimise)  # unary length as the package has it by default
    empty = np.array([row_skipping and not row.any() for row in levels], np.int32)
    off = coder.HdspMode.AlwaysOff
    none = np.zeros(1, np.int8)
    encoder.encodeLayer(levels, 0, 0, row_skipping, 0, skip_empty, empty, off, none, 0, 0)
    return len(encoder.finish())


def main() -> None:
    coder = extension()
    settings = list(itertools.product((0, 1), ((0, 0), (1, 0), (1, 1))))
    sizes = {}
    for name, levels in np.load(sys.argv[1]).items():
        matrix = np.ascontiguousarray(levels, np.int32)
        sizes[name] = min(size(coder, matrix, first, *rest) for first, rest in settings)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
