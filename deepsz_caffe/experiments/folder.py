"""A run's folder: each step leaves a file there, and is read from it instead of repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from deepsz_caffe.documents import convert_document, read_document
from deepsz_caffe.errors import DataError
from deepsz_caffe.files import atomic_write, make_folder

Result = TypeVar("Result")

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
        make_folder(path)

    def step(self, name: str, key: str, kind: type[Result], make: Callable[[], Result]) -> Result:
        """Give the result of a step, from its file where that was made with the same key.

        Parameters
        ----------
        name
            Of the file, without ``.json``.
        key
            Digest of everything that the result depends on, see `key_of`.
        kind
            Type of the result: dataclasses, numbers, text, and lists and dicts of them. A file that
            holds something else is made anew.
        make
            Does the step.
        """
        file = self.path / f"{name}.json"
        try:
            kept = read_document(file, dict[str, object])
            if kept.get("key") == key:
                return convert_document(kept.get("result"), kind)
        except DataError:
            pass
        result = make()
        make_folder(file.parent)
        text = json.dumps({"key": key, "result": result}, indent=1, default=asdict)
        with atomic_write(file) as opened:
            opened.write(text.encode())
        return result

    def made(
        self, name: str, key: str, path: Path, kind: type[Result], make: Callable[[], Result]
    ) -> Result:
        """Do a step that writes the file `path`; where that is missing, it runs again."""
        if not path.exists():
            (self.path / f"{name}.json").unlink(missing_ok=True)
        return self.step(name, key, kind, make)


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
