"""What an experiment measured, as kept in a file: tables and figures are made from this alone.

A `Run` is one network with one seed. Accuracies are counts, sizes are bytes on disk, times are
seconds, losses derived from counts are fractions. A run with ``generated`` true has no accuracy.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field

from deepsz_caffe.documents import read_document
from deepsz_caffe.files import atomic_write


@dataclass(frozen=True)
class Accuracy:
    """Right answers among `total` images."""

    total: int
    top1: int
    top5: int

    def loss(self, after: Accuracy) -> float:
        """Loss of top-1 from here to `after`: a fraction, negative for a gain."""
        return (self.top1 - after.top1) / self.total


@dataclass(frozen=True)
class Layer:
    """A compressed layer: `bytes` counts headers and checksums."""

    name: str
    shape: tuple[int, int]
    nonzeros: int
    error_bound: float
    data_codec: str
    data_bytes: int
    index_codec: str
    index_bytes: int
    bytes: int


@dataclass(frozen=True)
class Point:
    """One setting of one technique: its size and, for real networks, what it costs in accuracy.

    Parameters
    ----------
    technique
        One of `networks.TECHNIQUES`, or ``weightless-all`` (every layer in a filter).
    setting
        The parameters, for a person to read.
    bytes
        All fc layers; in `Run.whole` the whole network.
    validation, test
        None where there is no accuracy.
    retrained
        The technique's retraining was done.
    encode_seconds
        Everything from the pruned network to bytes: tests and retraining included.
    decode_seconds
        Step -> time, e.g. lossless, values, rebuild.
    """

    technique: str
    setting: str
    bytes: int
    validation: Accuracy | None = None
    test: Accuracy | None = None
    retrained: bool = False
    encode_seconds: float = 0.0
    decode_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SingleTest:
    """One test of the assessment: this layer alone at this bound, on the set that decides."""

    layer: str
    error_bound: float
    bytes: int
    lost: int
    total: int


@dataclass(frozen=True)
class Joint:
    """Several layers compressed together: images lost, and the sum of what each loses alone."""

    bounds: dict[str, float]
    lost: int
    sum_of_lost: int
    total: int


@dataclass(frozen=True)
class JointDivergence:
    """Several layers compressed together: how far the outputs are from before, and the layers' sum.

    Nats of the class probabilities; for other outputs relative squared changes.
    """

    bounds: dict[str, float]
    together: float
    sum_of_single: float


@dataclass(frozen=True)
class IndexSize:
    """A layer's index array under one lossless codec."""

    layer: str
    codec: str
    raw_bytes: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """A command as a process of its own: time and peak memory (bytes)."""

    command: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Run:
    """All that was measured of one network with one seed.

    ``points[0]`` of technique ``deepsz`` is the configuration that the `.dsz` file holds;
    `layers` are its layers.
    """

    network: str
    command: str
    seed: int
    generated: bool
    fc_dense_bytes: int
    file_bytes: int
    layers: tuple[Layer, ...]
    points: tuple[Point, ...]
    index: tuple[IndexSize, ...] = ()
    dense: Accuracy | None = None
    pruned: Accuracy | None = None
    pruned_validation: Accuracy | None = None
    max_loss: float | None = None
    protocol: str = ""
    tested: tuple[SingleTest, ...] = ()
    joint: tuple[Joint, ...] = ()
    costs: tuple[Cost, ...] = ()
    #: one forward pass of 50 images through the whole network
    forward_seconds: float | None = None
    #: what times were measured on
    machine: str = ""
    #: read from models/: measured where that network was trained, not here
    shipped: bool = False
    #: bytes of the trained caffemodel; 0 where the whole network was not compressed
    network_bytes: int = 0
    #: the whole network by technique: bytes count every layer, biases and headers
    whole: tuple[Point, ...] = ()
    divergences: tuple[JointDivergence, ...] = ()

    def ratio(self, point: Point) -> float:
        """Compression ratio of the fc layers."""
        return self.fc_dense_bytes / point.bytes

    def of(self, technique: str) -> tuple[Point, ...]:
        """Give the points of one technique."""
        return tuple(point for point in self.points if point.technique == technique)

    def deepsz(self) -> Point:
        """Give the configuration that was chosen and written to the file."""
        return self.of("deepsz")[0]


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a run as JSON."""
    with atomic_write(path) as file:
        file.write(json.dumps(dataclasses.asdict(run), indent=1).encode())


def load(path: str | os.PathLike[str]) -> Run:
    """Read a run.

    Raises
    ------
    DataError
        The file is missing or was not written by `save`.
    """
    return read_document(
        path, Run, what="results", hint="delete it and run again: deepsz reproduce"
    )
