"""Features once, then only the tail: what makes a test cost as little as the fc layers do.

`compute_features` runs the whole network over the evaluation set once. It keeps what enters the
tail of each layer to be tested (`graph.cut`) as memory-mapped arrays in a folder, with the labels
and the decisions of the network as it is. `measure_weights` then runs just the tail of the layers
that it is given weights for.

Images are stored in a random order (the same every time), so that the first part of them is a
random sample: LMDBs are often sorted by difficulty or class, and a test may stop early.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.prototxt import read_prototxt
from deepsz_caffe.runtime.data import Data
from deepsz_caffe.runtime.forward import (
    Replacement,
    Score,
    build_net,
    check_complete,
    forward_batches,
    judge,
    labels_of,
    load_weights,
    prepare,
    put_weights,
)
from deepsz_caffe.runtime.worker import import_caffe, report
from deepsz_caffe.statistics import certainly_over

#: Images in a batch of a tail. Larger ones are hardly faster and take more memory.
_TAIL_BATCH = 500

_META, _NET = "features.json", "net.prototxt"


@dataclass(frozen=True)
class Features:
    """A folder of features.

    Attributes
    ----------
    folder
        Absolute path.
    key
        What the features were computed from, as digests.
    images, total
        Images stored, and those of them that count (all but a label that is ignored).
    layers
        The layers that can be tested.
    top1_correct, top5_correct
        Counts of the network as it is.
    """

    folder: str
    key: str
    images: int
    total: int
    layers: tuple[str, ...]
    top1_correct: int
    top5_correct: int

    @property
    def score(self) -> Score:
        return Score(self.total, self.top1_correct, self.top5_correct)

    @staticmethod
    def load(folder: str | os.PathLike[str], key: str) -> Features | None:
        """Return the features in a folder if they are complete and of this key."""
        try:
            meta = json.loads((Path(folder) / _META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if meta["key"] != key:
            return None
        names = ("key", "images", "total", "top1_correct", "top5_correct")
        known = {name: meta[name] for name in names}
        return Features(str(Path(folder).resolve()), layers=tuple(meta["layers"]), **known)


@dataclass(frozen=True)
class Outcome:
    """One test: counts over the images seen, which are all unless the test was stopped early.

    `lost` and `gained` compare each top-1 decision with that of the network as it is.
    """

    images: int
    top1_correct: int
    top5_correct: int
    lost: int
    gained: int


def compute_features(
    network: str,
    weights: str,
    layers: Sequence[str],
    folder: str,
    key: str = "",
    stages: Sequence[str] = (),
    data: Data = None,
    gpu: int | None = None,
) -> Features:
    """Run the body once and keep what the tails need; runs in a Caffe process.

    Parameters
    ----------
    layers
        The layers that will be tested, one at a time or together.
    folder
        Created where it is missing. Its size is reported before anything is written, as
        ``("bytes", n)``; then the progress, as (images done, images in total).
    key
        Kept beside the features, see `Features.load`.

    Raises
    ------
    DataError
        The disk has no room for the features.
    """
    caffe = import_caffe(gpu)
    prepared = prepare(network, stages, data, caffe)
    judged = prepared.judged
    net = prepared.net
    cuts = [graph.cut(net, [layer], judged.scores) for layer in layers]
    inputs = sorted({version for cut in cuts for version in cut.inputs})
    wanted = sorted({judged.scores, *inputs} | ({judged.labels} if judged.labels else set()))
    body = graph.subnet(net, graph.needed_layers(net, wanted), ())
    caffe_net = build_net(caffe, body)
    load_weights(caffe_net, body, weights)
    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    (place / _META).unlink(missing_ok=True)
    total = prepared.images.total
    # The shape of a blob is that of its last version; in place nothing changes but values.
    shapes = {v: (total, *caffe_net.blobs[v.blob].data.shape[1:]) for v in inputs}
    _reserve(place, sum(4 * math.prod(shape) for shape in shapes.values()))
    order = np.random.default_rng(0).permutation(total)
    maps = {
        v: open_memmap(place / _file(v), mode="w+", dtype=np.float32, shape=shape)
        for v, shape in shapes.items()
    }
    labels = np.empty(total, np.int64)
    decisions = np.empty((3, total), bool)
    for rows, taken in forward_batches(caffe_net, prepared, wanted):
        places = order[rows]
        for version in inputs:
            maps[version][places] = taken[version]
        labels[places] = labels_of(prepared, rows, taken)
        decisions[:, places] = judge(taken[judged.scores], labels[places], judged.ignore_label)
    for array in maps.values():
        array.flush()
    np.save(place / "labels.npy", labels)
    np.save(place / "decisions.npy", decisions)
    (place / _NET).write_text(str(net), encoding="utf-8")
    counts = decisions.sum(axis=1).tolist()
    meta = {
        "key": key,
        "weights": str(Path(weights).resolve()),
        "layers": list(layers),
        "images": total,
        "batch": prepared.images.batch,
        "total": counts[0],
        "top1_correct": counts[1],
        "top5_correct": counts[2],
        "scores": [judged.scores.producer, judged.scores.blob],
        "ignore_label": judged.ignore_label,
    }
    with atomic_write(place / _META) as file:  # last: it says that the others are complete
        file.write(json.dumps(meta).encode())
    features = Features.load(place, key)
    assert features is not None
    return features


def measure_weights(
    folder: str,
    replace: Mapping[str, Replacement],
    limit: int | None = None,
    batch: int | None = None,
    gpu: int | None = None,
) -> Outcome:
    """Measure the network with other weights in some layers; runs in a Caffe process.

    Parameters
    ----------
    folder
        Of `compute_features`.
    replace
        Layer name -> its new weights.
    limit
        Stop as soon as the loss will certainly be more than so many images; None: never.
    batch
        Images in a forward pass; default 500, or that of the prototxt where the tail can't run on
        another number.

    Notes
    -----
    The network of the last test stays in the process: tests of the same layers follow each other
    without loading anything but the changed weights.
    """
    tail = _tail(folder, frozenset(replace), batch, gpu)
    for name, weights in replace.items():
        put_weights(tail.caffe_net, name, weights)
    seen = top1 = top5 = lost = gained = 0
    counted_before, before, _ = tail.decisions
    total = int(counted_before.sum())
    for start in range(0, tail.images, tail.batch):
        rows = slice(start, min(start + tail.batch, tail.images))
        counted, right1, right5 = judge(
            tail.scores(rows), tail.labels[rows], tail.meta["ignore_label"]
        )
        seen += int(counted.sum())
        top1 += int(right1.sum())
        top5 += int(right5.sum())
        lost += int((before[rows] & ~right1).sum())
        gained += int((right1 & ~before[rows]).sum())
        if limit is not None and seen < total and certainly_over(lost, gained, seen, total, limit):
            break
    return Outcome(seen, top1, top5, lost, gained)


class _Tail:
    """The tail of some layers as a network in this process, and its inputs on disk."""

    def __init__(
        self, folder: str, changed: frozenset[str], batch: int | None, gpu: int | None
    ) -> None:
        caffe = import_caffe(gpu)
        place = Path(folder)
        self.meta: dict[str, Any] = json.loads((place / _META).read_text(encoding="utf-8"))
        self.images: int = self.meta["images"]
        self.labels: NDArray[np.int64] = np.load(place / "labels.npy")
        self.decisions: NDArray[np.bool_] = np.load(place / "decisions.npy")
        net = read_prototxt(place / _NET)
        self._scores = graph.Version(*self.meta["scores"])
        cut = graph.cut(net, changed, self._scores)
        self._inputs = {v: np.load(place / _file(v), mmap_mode="r") for v in cut.inputs}
        fixed = not graph.is_row_wise(net, cut.layers)
        self.batch = self.meta["batch"] if fixed else min(batch or _TAIL_BATCH, self.images)
        self._fixed = fixed
        shapes = [(v.blob, (self.batch, *a.shape[1:])) for v, a in self._inputs.items()]
        self._net = graph.subnet(net, cut.layers, shapes)
        self.caffe_net = build_net(caffe, self._net)
        self._load_rest(changed)

    def _load_rest(self, changed: frozenset[str]) -> None:
        """Load what stays as it is from the memory-mapped file, layer by layer."""
        model = read_caffemodel(self.meta["weights"])
        check_complete(self.caffe_net, self._net, model)
        for name, blobs in self.caffe_net.params.items():
            if name not in model:  # shares the weights of another layer
                continue
            stored = model[name].blobs
            if len(stored) != len(blobs):
                raise ModelError(
                    f"{len(stored)} blobs where the network has {len(blobs)}",
                    where=f"{model.path}, layer {name}",
                )
            for number, (ours, theirs) in enumerate(zip(blobs, stored, strict=True)):
                if number > 0 or name not in changed:
                    ours.data[...] = theirs.data.reshape(ours.data.shape)

    def scores(self, rows: slice) -> NDArray[np.float32]:
        count = rows.stop - rows.start
        blobs = self.caffe_net.blobs
        for version, array in self._inputs.items():
            blob = blobs[version.blob]
            if not self._fixed and blob.data.shape[0] != count:
                blob.reshape(count, *array.shape[1:])
            blob.data[:count] = array[rows]
        if not self._fixed:
            self.caffe_net.reshape()
        self.caffe_net._forward(0, len(self.caffe_net.layers) - 1)
        scores: NDArray[np.float32] = blobs[self._scores.blob].data[:count]
        return scores


_current: tuple[tuple[Any, ...], _Tail] | None = None


def _tail(folder: str, changed: frozenset[str], batch: int | None, gpu: int | None) -> _Tail:
    global _current
    stamp = (Path(folder) / _META).stat().st_mtime_ns
    key = (folder, stamp, changed, batch, gpu)
    if _current is None or _current[0] != key:
        _current = None  # let the old network go before the new one is built
        _current = key, _Tail(folder, changed, batch, gpu)
    return _current[1]


def _file(version: graph.Version) -> str:
    safe = "".join(c if c.isalnum() else "_" for c in version.blob)
    return f"{version.producer + 1:04d}-{safe}.npy"


def _reserve(folder: Path, size: int) -> None:
    report(("bytes", size))
    free = shutil.disk_usage(folder).free
    if size > free * 0.95:
        raise DataError(
            f"the features need {size:,} bytes, the disk has {free:,} free",
            where=folder,
            hint="name a folder on a larger disk: --features DIR",
        )
