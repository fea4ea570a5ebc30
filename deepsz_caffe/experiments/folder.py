"""A run's folder: each step leaves a file there, and is read from it instead of repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from deepsz_caffe.files import atomic_write

#: told what is being done, and how far it is (0 to 1, None where that is not known)
Progress = Callable[[str, float | None], None]


class Folder:
    """Where a run's files lie.

    Parameters
    ----------
    path
        Is made if it isn't there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Give the result of a step, from its file where that was made with the same key."""
        file = self.path / f"{name}.json"
        try:
            kept = json.loads(file.read_bytes())
            if kept["key"] == key:
                return dict(kept["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # Through JSON in any case, so that the first run sees what a second one would.
        text = json.dumps({"key": key, "result": make()}, indent=1)
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as opened:
            opened.write(text.encode())
        return dict(json.loads(text)["result"])

    def made(
        self, name: str, key: str, path: Path, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a step that writes a file; a missing file makes it run again."""
        if not path.exists():
            (self.path / f"{name}.json").unlink(missing_ok=True)
        return self.step(name, key, make)


def key_of(*parts: object) -> str:
    """Digest what a step depends on."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def digest(path: Path) -> str:
    """Digest a file's content."""
    with path.open("rb") as file:
        found = blake2b(digest_size=16)
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
