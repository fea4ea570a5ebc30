"""The ISO neural-network coder (NNC) as a judge: its DeepCABAC on matrices of integers.

It is built once, in an environment of its own, of which the coder alone is used: the package around
it would need deep-learning frameworks.
"""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from frame import WORK
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent


def iso_sizes(levels: Mapping[str, NDArray[np.integer]]) -> dict[str, int]:
    """Give the bytes of each matrix of levels, by the best of the coder's settings."""
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / "levels.npz"
    np.savez(file, **{name: each.astype(np.int32) for name, each in levels.items()})
    command = [_python(), HERE / "nncodec_sizes.py", file]
    found: dict[str, int] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found


def _python() -> Path:
    """Give the interpreter of the environment with the coder, made when it is not there."""
    folder = WORK / "nncodec"
    python = folder / "bin" / "python"
    if not python.exists():
        print("building the ISO coder, some minutes", flush=True)
        venv.create(folder, with_pip=True)
        requirements = HERE / "requirements-nncodec.txt"
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements]
        subprocess.run(install, check=True)
    return python
