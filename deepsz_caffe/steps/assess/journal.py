"""Every finished test, written down at once: JSON lines that survive ``kill -9``.

A line holds one `Point`, what it is a property of (a digest of the network, weights, data and
codecs, the layer and the bound) and a checksum; or the `Outcome` of a whole configuration, with its
bounds. So an interrupted assessment resumes, and one with other options takes what still holds. A
line that was cut short by a kill, was changed, or holds anything else, is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from deepsz_caffe.documents import convert_document, parse_document
from deepsz_caffe.errors import DataError
from deepsz_caffe.files import os_errors, read_input
from deepsz_caffe.steps.assess.result import Point
from deepsz_caffe.steps.evaluator import Outcome

#: What tests are a property of, among the digests of an evaluator.
TESTED = ("network", "weights", "data")


@dataclass(frozen=True)
class _Test:
    """What a line holds beside the fields of its `Point`."""

    key: str
    layer: str
    limit: int | None


@dataclass(frozen=True)
class _Whole:
    """A line of a whole configuration; `original`: digest of the original network's weights."""

    key: str
    bounds: dict[str, float]
    original: str
    outcome: Outcome


def journal_key(digests: Mapping[str, str], profile: str) -> str:
    """Digest all that tests depend on besides layers and bounds.

    Parameters
    ----------
    digests
        Of an `Evaluator`, or of an `Assessment`.
    profile
        Codecs.
    """
    with os_errors("can't read", "the versions of the installed packages"):
        software = [f"{name} {version(name)}" for name in ("deepsz-caffe", "pysz", "numcodecs")]
    return digest_of(digest_of(*(digests[name] for name in TESTED)), profile, *software)


def digest_of(*texts: str) -> str:
    """Digest some texts: the key of what depends on them."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


class Journal:
    """A file of finished tests; None as path keeps them in memory only.

    Parameters
    ----------
    path
        The file; created when the first test is written.
    key
        See `journal_key`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self._path = None if path is None else Path(path)
        self._key = key
        self._lock = threading.Lock()
        self._known: dict[tuple[str, float], tuple[Point, int | None]] = {}
        self._wholes: list[_Whole] = []
        self._torn = False
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def find(self, layer: str, bound: float, limit: int | None) -> Point | None:
        """Return a finished test that holds for this limit.

        A test that was stopped because its loss was over a limit says the same about every smaller
        limit, and nothing about a larger one.
        """
        point, stopped_at = self._known.get((layer, bound), (None, None))
        if point is None or not point.stopped:
            return point
        assert stopped_at is not None
        return point if limit is not None and limit <= stopped_at else None

    def add(self, layer: str, point: Point, limit: int | None) -> None:
        """Write a finished test to the disk.

        Raises
        ------
        DeepSZError
            The file can't be written.
        """
        entry = {"key": self._key, "layer": layer, "limit": limit, **asdict(point)}
        with self._lock:
            self._known[layer, point.bound] = point, limit
            self._write(entry)

    def find_whole(
        self, bounds: Mapping[str, float], original: str | None = None
    ) -> Outcome | None:
        """Return the outcome of a configuration that was measured as a whole.

        Parameters
        ----------
        bounds
            Layer name -> error bound.
        original
            Digest of the original network's weights; None: whichever, as `lost` and `gained` do
            not depend on it.
        """
        wanted = dict(bounds)
        with self._lock:
            for whole in self._wholes:
                if whole.bounds == wanted and original in (None, whole.original):
                    return whole.outcome
        return None

    def add_whole(self, bounds: Mapping[str, float], original: str, outcome: Outcome) -> None:
        """Write the outcome of a whole configuration to the disk; errors as of `add`."""
        whole = _Whole(self._key, dict(bounds), original, outcome)
        with self._lock:
            self._wholes.append(whole)
            self._write(asdict(whole))

    def _write(self, entry: dict[str, object]) -> None:
        if self._path is None:
            return
        entry["checksum"] = _checksum(entry)
        with os_errors("can't write", self._path), self._path.open("ab") as file:
            if self._torn:
                file.write(b"\n")
                self._torn = False
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        text = read_input(path)
        self._torn = not text.endswith(b"\n") and bool(text)
        for line in text.splitlines():
            try:
                entry = parse_document(line, dict[str, object])
                if entry.pop("checksum", None) != _checksum(entry):
                    continue
                if "bounds" in entry:
                    whole = convert_document(entry, _Whole)
                    if whole.key == self._key:
                        self._wholes.append(whole)
                    continue
                test, point = convert_document(entry, _Test), convert_document(entry, Point)
            except DataError:
                continue
            if test.key == self._key and not (point.stopped and test.limit is None):
                self._known[test.layer, point.bound] = point, test.limit


def _checksum(entry: Mapping[str, object]) -> str:
    text = json.dumps(entry, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
