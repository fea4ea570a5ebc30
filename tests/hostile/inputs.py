"""Other things that are read from strangers: caffemodels, HDF5 weights and JSON documents.

Each is a good file, ways to forge it, and the reader that must refuse it or read it. What a forged
file then holds is a stranger's affair; that reading ends, in time and within memory, is ours.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from deepsz_caffe import DeepSZError
from deepsz_caffe.documents import read_document
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.assess.journal import Journal
from deepsz_caffe.steps.assess.result import Assessment, Point
from tests.assessments import assessment
from tests.hostile.mutations import damage
from tests.hostile.samples import lenet_caffemodel

#: values that a reader of JSON stumbles over
_ODD_VALUES: tuple[Any, ...] = (
    None, True, "", "1", -1, 0, 0.5, 1e308, float("nan"), float("-inf"), 1 << 70, [], {}, [[]],
    "x" * 5000, "\ud800", {"a": {"b": []}},
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A good file of a kind, how a seed forges it, and how it is read."""

    name: str
    file: bytes
    forge: Callable[[bytes, Random], bytes]
    read: Callable[[Path], object]

    def hostile(self, seed: int) -> bytes:
        """Give the hostile file of a seed."""
        return self.forge(self.file, Random(seed))

    def outcome(self, path: Path) -> str:
        """Read a file; the kind of error, or "read"."""
        try:
            self.read(path)
        except DeepSZError as error:
            return type(error).__name__
        return "read"


def inputs(folder: Path) -> list[Input]:
    """Make one good file of each kind."""
    import h5py

    weights = folder / "good.h5"
    with h5py.File(weights, "w") as file:
        for name in ("ip1", "a/b"):
            file[f"data/{name}/0"] = np.ones((20, 30), np.float32)
            file[f"data/{name}/1"] = np.arange(20, dtype=np.float32)
        file["data/ip3/0"] = h5py.SoftLink("/data/ip1/0")
    plan = {"bounds": {"ip1": 0.01, "ip2": 0.2}, "bytes": 9, "loss": 1, "total": 10}
    assessment().save(folder / "A.json")
    journal = Journal(folder / "journal", "key")
    for layer in ("ip1", "ip2"):
        journal.add(layer, Point(0.01, 10, 100, 90, 95, 2, 1), None)
    return [
        Input("caffemodel", lenet_caffemodel(), _forge_message, _read_weights),
        Input("HDF5", weights.read_bytes(), damage, _read_weights),
        Input("assessment", (folder / "A.json").read_bytes(), _forge_json, Assessment.load),
        Input("journal", (folder / "journal").read_bytes(), damage, _read_journal),
        Input("plan", json.dumps(plan).encode(), _forge_json, _read_plan),
    ]


def _read_weights(path: Path) -> None:
    for layer in read_caffemodel(path).layers:
        for blob in layer.blobs:
            np.count_nonzero(blob.data)


def _read_journal(path: Path) -> None:
    Journal(path, "key").find("ip1", 0.01, None)


def _read_plan(path: Path) -> None:
    read_document(path, dict[str, object])


def _forge_message(content: bytes, random: Random) -> bytes:
    """Damage a protobuf message, mostly where lengths and tags stand: early, or at a layer's."""
    if random.randrange(3) == 0:
        return damage(content, random)
    changed = bytearray(content)
    starts = [0, *(content.find(name) for name in (b"ip1", b"ip2", b"ip3", b"conv1"))]
    for _ in range(random.choice((1, 1, 2, 5))):
        place = max(0, random.choice(starts) + random.randrange(-12, 30)) % len(changed)
        if random.randrange(2):
            changed[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        else:
            changed[place:place] = random.choice(
                (b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\x0a\x00" * 500, b"\x0b" * 200, b"\x12\x7f")
            )
    return bytes(changed)


def _forge_json(content: bytes, random: Random) -> bytes:
    """Change a value, a key or the depth of a document; or damage its bytes."""
    if random.randrange(3) == 0:
        return damage(content, random)
    document = copy.deepcopy(json.loads(content))
    for _ in range(random.choice((1, 1, 2))):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = random.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and random.randrange(4):
                place = inner
                continue
            _change(place, key, random)
            break
    text = json.dumps(document)
    if random.randrange(20) == 0:
        text = "[" * 100_000 + text
    return text.encode("utf-8", "surrogatepass")


def _change(place: Any, key: Any, random: Random) -> None:
    match random.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[random.choice(("", "x", "__class__", "\0"))] = place.pop(key)
        case 2 if isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        case _:
            place[key] = copy.deepcopy(random.choice(_ODD_VALUES))
