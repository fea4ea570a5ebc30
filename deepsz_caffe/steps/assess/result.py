"""The result of step 2: for each fc layer, the size and the loss at the error bounds tried."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

from deepsz_caffe.documents import convert_document, read_document
from deepsz_caffe.errors import DataError
from deepsz_caffe.files import atomic_write

_VERSION = 1
_WHAT = "an assessment"
#: bytes or images; sums of many such counts still are 64-bit integers
_MOST = 1 << 48
_HINT = "`deepsz assess` writes them"


@dataclass(frozen=True, order=True)
class Point:
    """One test: a layer alone, encoded at one error bound.

    Attributes
    ----------
    bound
        Absolute error bound.
    bytes
        Size of the encoded layer (with the layers that share its weights).
    images
        Images judged; fewer than all where the test was stopped early.
    top1_correct, top5_correct
        Of these images.
    lost, gained
        Images that only the network as it is, or only the changed one, gets right (top-1).
    stopped
        The test was stopped because the loss is certainly too large: the counts are of a part.
    """

    bound: float
    bytes: int
    images: int
    top1_correct: int
    top5_correct: int
    lost: int
    gained: int
    stopped: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"error bound {self.bound} is not positive")
        counts = (self.bytes, self.images, self.top1_correct, self.top5_correct, self.lost)
        if min(*counts, self.gained) < 0:
            raise ValueError("a count is negative")
        if max(counts) > _MOST:
            raise ValueError("a count is too large to be true")

    def loss(self, *, negative: bool) -> int:
        """Return the loss of top-1 in images; a gain is a negative loss or counts as 0."""
        return self.lost - self.gained if negative else max(0, self.lost - self.gained)


@dataclass(frozen=True)
class LayerAssessment:
    """The points of one layer, by ascending bound.

    Attributes
    ----------
    name
        The layer.
    shape
        Rows and columns of its weights.
    nonzeros
        Weights that are not 0.
    points
        What was measured.
    sharers
        Other layers that use the same weights, and change with it.
    """

    name: str
    shape: tuple[int, int]
    nonzeros: int
    points: tuple[Point, ...]
    sharers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows, columns = self.shape
        if rows < 1 or columns < 1 or not 0 <= self.nonzeros <= rows * columns:
            raise ValueError(f"layer {self.name} of shape {self.shape} has {self.nonzeros} weights")

    @property
    def dense_bytes(self) -> int:
        """Size as float32; layers that share the weights are stored each."""
        return 4 * self.shape[0] * self.shape[1] * (1 + len(self.sharers))


@dataclass(frozen=True)
class Assessment:
    """Everything that step 3 needs, as JSON where it is kept.

    Attributes
    ----------
    network, weights
        Paths as they were given.
    protocol
        "validation": choices are made on a validation split; "paper": on the test data.
    stages
        Caffe stages of the network that was measured.
    profile
        Codecs, see `deepsz_caffe.codecs.profile`.
    search
        How the bounds were found.
    max_loss
        Loss of the whole network (a fraction) that bounds were sought for.
    total, top1_correct, top5_correct
        Images, and those that the network as it is gets right.
    digests
        Of network, weights and data.
    layers
        In the network's order.
    """

    network: str
    weights: str
    protocol: str
    stages: tuple[str, ...]
    profile: str
    search: str
    max_loss: float
    total: int
    top1_correct: int
    top5_correct: int
    digests: dict[str, str]
    layers: tuple[LayerAssessment, ...]

    def __post_init__(self) -> None:
        if not 0 <= max(self.top1_correct, self.top5_correct) <= self.total:
            raise ValueError(f"{self.top1_correct} and {self.top5_correct} of {self.total} right")

    @property
    def tests(self) -> int:
        return sum(len(layer.points) for layer in self.layers)

    def to_json(self) -> dict[str, object]:
        return {"version": _VERSION, **asdict(self)}

    @staticmethod
    def from_json(document: Mapping[str, object], where: object = None) -> Assessment:
        """Rebuild from `to_json`.

        Parameters
        ----------
        document
            Plain lists and dicts, as read from JSON.
        where
            The file to name in errors.

        Raises
        ------
        DataError
            The document is not an assessment of this version, or something in it is wrong.
        """
        if document.get("version") != _VERSION:
            raise DataError(f"not {_WHAT} of version {_VERSION}", where=where, hint=_HINT)
        return convert_document(document, Assessment, what=_WHAT, where=where, hint=_HINT)

    def save(self, path: str | os.PathLike[str]) -> None:
        with atomic_write(path) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Assessment:
        """Read a file of `save`.

        Raises
        ------
        DataError
            It can't be read or is not an assessment.
        """
        document = read_document(path, dict[str, object], what=_WHAT, hint=_HINT)
        return Assessment.from_json(document, path)
