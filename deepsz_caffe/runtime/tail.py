"""Features once, then only the tail: what makes a test cost as little as the fc layers do.

`compute_features` runs the whole network over the evaluation set once. It keeps what enters the
tail of each layer to be tested (`graph.cut`) as memory-mapped arrays in a folder, with the labels
and the decisions of the network as it is. `compute_in_parallel` does so by several processes, each
for its part of the images: half of a convolution in Caffe runs on one core, whatever BLAS does.
`measure_weights` then runs just the tail of the layers that it is given weights for.

Images are stored in a random order (the same every time), so that the first part of them is a
random sample: LMDBs are often sorted by difficulty or class, and a test may stop early.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from deepsz_caffe.runtime.evaluate import forward_batches, judge, labels_of, prepare
from deepsz_caffe.runtime.net import (
    Replacement,
    build_net,
    check_complete,
    load_weights,
    put_weights,
)
from deepsz_caffe.runtime.pool import CaffePool, added_up
from deepsz_caffe.runtime.worker import import_caffe, report
from deepsz_caffe.steps.assess.significance import certainly_over
from deepsz_caffe.steps.evaluator import Outcome, Score

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
class Pass:
    """What the pass over the body is asked for.

    Attributes
    ----------
    network, weights
        Paths of the prototxt and the caffemodel.
    layers
        The layers that will be tested, one at a time or together.
    folder
        Where the features go; created where it is missing.
    key
        Kept beside the features, see `Features.load`.
    stages, data
        As for `forward.evaluate`.
    """

    network: str
    weights: str
    layers: tuple[str, ...]
    folder: str
    key: str = ""
    stages: tuple[str, ...] = ()
    data: Data = None


#: What one part of a pass found: rows in the order of the data, labels int64[n], and bool[3, n]:
#: counted, top-1 right, top-5 right.
_Found = tuple[slice, NDArray[np.int64], NDArray[np.bool_]]


def compute_features(job: Pass, gpu: int | None = None) -> Features:
    """Run the body once and keep what the tails need; runs in a Caffe process.

    The size of the features is reported before anything is written, as ``("bytes", n)``; then the
    progress, as ``("images", images done by now, images in total)``.

    Raises
    ------
    DataError
        The disk has no room for the features.
    """
    meta = _create(job, gpu)
    return _finish(job, meta, [_run_part(job, 0, 1, gpu)])


def compute_in_parallel(
    job: Pass, parts: int, gpus: Sequence[int] = (), progress: Callable[[Any], None] | None = None
) -> Features:
    """Do as `compute_features`, by `parts` Caffe processes on this machine.

    The cores are divided among them; of `gpus` they take one each, in turn. The features are the
    same as those of one process with as many BLAS threads as each of these.
    """
    on_message = None
    if progress is not None:
        images = added_up(lambda done, total: progress(("images", done, total)))

        def on_message(message: tuple[Any, ...]) -> None:
            if message[0] == "images":
                images(*message[1:])
            else:
                progress(message)

    with CaffePool(parts, gpus=gpus, progress=on_message) as pool:
        created = pool.submit(_create, job, None)
        for _ in range(parts - 1):  # the others start meanwhile
            pool.submit(import_caffe)
        meta = created.result()
        pieces = [pool.submit(_run_part, job, part, parts, None) for part in range(parts)]
        return _finish(job, meta, [piece.result() for piece in pieces])


class _Body:
    """The network in this process as far as scores and tails need it, without its weights."""

    def __init__(self, job: Pass, gpu: int | None) -> None:
        caffe = import_caffe(gpu)
        self.prepared = prepare(job.network, job.stages, job.data, caffe)
        self.judged = judged = self.prepared.judged
        whole = self.prepared.net
        cuts = [graph.cut(whole, [layer], judged.scores) for layer in job.layers]
        self.inputs = sorted({version for cut in cuts for version in cut.inputs})
        labels = {judged.labels} if judged.labels else set()
        self.wanted = sorted({judged.scores, *self.inputs} | labels)
        self.net = graph.subnet(whole, graph.needed_layers(whole, self.wanted), ())
        self.caffe_net = build_net(caffe, self.net)


def _create(job: Pass, gpu: int | None) -> dict[str, Any]:
    """Make room for the features of all images; gives what is known of them by now."""
    body = _Body(job, gpu)
    total = body.prepared.images.total
    place = Path(job.folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    (place / _META).unlink(missing_ok=True)
    # The shape of a blob is that of its last version; in place nothing changes but values.
    blobs = body.caffe_net.blobs
    shapes = {v: (total, *blobs[v.blob].data.shape[1:]) for v in body.inputs}
    _reserve(place, sum(4 * math.prod(shape) for shape in shapes.values()))
    for version, shape in shapes.items():
        open_memmap(place / _file(version), mode="w+", dtype=np.float32, shape=shape)
    (place / _NET).write_text(str(body.prepared.net), encoding="utf-8")
    return {
        "key": job.key,
        "weights": str(Path(job.weights).resolve()),
        "layers": list(job.layers),
        "images": total,
        "batch": body.prepared.images.batch,
        "scores": [body.judged.scores.producer, body.judged.scores.blob],
        "ignore_label": body.judged.ignore_label,
    }


def _run_part(job: Pass, part: int, parts: int, gpu: int | None) -> _Found:
    """Run one of `parts` equal parts of the batches."""
    body = _Body(job, gpu)
    load_weights(body.caffe_net, body.net, job.weights)
    images, judged = body.prepared.images, body.judged
    first, last = images.part(part, parts)
    whole = slice(first * images.batch, min(last * images.batch, images.total))
    maps = {v: np.load(Path(job.folder) / _file(v), mmap_mode="r+") for v in body.inputs}
    order = _order(images.total)
    labels = np.empty(whole.stop - whole.start, np.int64)
    decisions = np.empty((3, labels.size), bool)
    for rows, taken in forward_batches(body.caffe_net, body.prepared, body.wanted, first, last):
        places = order[rows]
        for version in body.inputs:
            maps[version][places] = taken[version]
        here = slice(rows.start - whole.start, rows.stop - whole.start)
        labels[here] = labels_of(body.prepared, rows, taken)
        decisions[:, here] = judge(taken[judged.scores], labels[here], judged.ignore_label)
        report(("images", rows.stop - rows.start, images.total))
    for array in maps.values():
        array.flush()
    return whole, labels, decisions


def _finish(job: Pass, meta: dict[str, Any], pieces: Sequence[_Found]) -> Features:
    """Write down labels and decisions, in the stored order, and that the features are complete."""
    place = Path(job.folder).resolve()
    order = _order(meta["images"])
    labels = np.empty(meta["images"], np.int64)
    decisions = np.empty((3, meta["images"]), bool)
    for rows, own_labels, own_decisions in pieces:
        labels[order[rows]] = own_labels
        decisions[:, order[rows]] = own_decisions
    np.save(place / "labels.npy", labels)
    np.save(place / "decisions.npy", decisions)
    counts = zip(("total", "top1_correct", "top5_correct"), decisions.sum(axis=1), strict=True)
    meta = meta | {name: int(count) for name, count in counts}
    with atomic_write(place / _META) as file:  # last: it says that the others are complete
        file.write(json.dumps(meta).encode())
    features = Features.load(place, job.key)
    assert features is not None
    return features


def _order(images: int) -> NDArray[np.int64]:
    """Give the place of each image in the stored order."""
    return np.random.default_rng(0).permutation(images)


def store_original(folder: str, key: str, decisions: NDArray[np.bool_]) -> None:
    """Keep the decisions of the original network (`evaluate.decide`) beside the features."""
    stored = np.empty_like(decisions)
    stored[:, _order(decisions.shape[1])] = decisions
    with atomic_write(_original_file(folder, key)) as file:
        np.save(file, stored)


def load_original(folder: str, key: str | None) -> NDArray[np.bool_] | None:
    """Return what `store_original` kept; without a key the decisions of the network as it is.

    Returns
    -------
    numpy.ndarray or None
        bool[3, images] in the stored order: counted, top-1 right, top-5 right; None: not there.
    """
    path = Path(folder) / "decisions.npy" if key is None else _original_file(folder, key)
    try:
        found: NDArray[np.bool_] = np.load(path)
    except (OSError, ValueError):
        return None
    return found


def _original_file(folder: str, key: str) -> Path:
    return Path(folder) / f"original-{key}.npy"


def measure_weights(
    folder: str,
    replace: Mapping[str, Replacement],
    limit: int | None = None,
    batch: int | None = None,
    gpu: int | None = None,
    original: str | None = None,
) -> Outcome:
    """Measure the network with other weights in some layers; runs in a Caffe process.

    Parameters
    ----------
    folder
        Of `compute_features`.
    replace
        Layer name -> its new weights; none: the network as it is.
    limit
        Stop as soon as the loss will certainly be more than so many images; None: never.
    batch
        Images in a forward pass; default 500, or that of the prototxt where the tail can't run on
        another number.
    original
        Key of the decisions of the original network, see `store_original`.

    Notes
    -----
    The network of the last test stays in the process: tests of the same layers follow each other
    without loading anything but the changed weights.
    """
    first = load_original(folder, original)
    if first is None:
        raise DataError("no decisions of the original network are there", where=folder)
    if not replace:
        unchanged = load_original(folder, None)
        assert unchanged is not None
        return _compared(unchanged, unchanged, first)
    tail = _tail(folder, frozenset(replace), batch, gpu)
    for name, weights in replace.items():
        put_weights(tail.caffe_net, name, weights)
    total = int(tail.decisions[0].sum())
    found = np.empty_like(tail.decisions)
    for start in range(0, tail.images, tail.batch):
        rows = slice(start, min(start + tail.batch, tail.images))
        found[:, rows] = judge(tail.scores(rows), tail.labels[rows], tail.meta["ignore_label"])
        if limit is not None:
            seen = _compared(*(each[:, : rows.stop] for each in (found, tail.decisions, first)))
            if seen.images < total and certainly_over(
                seen.lost, seen.gained, seen.images, total, limit
            ):
                return seen
    return _compared(found, tail.decisions, first)


def _compared(
    found: NDArray[np.bool_], before: NDArray[np.bool_], first: NDArray[np.bool_]
) -> Outcome:
    """Count decisions, bool[3, images], against those before and those of the original network."""
    images, top1, top5 = (int(count) for count in found.sum(axis=1))
    changes = [
        int((one[1] & ~other[1]).sum())
        for reference in (before, first)
        for one, other in ((reference, found), (found, reference))
    ]
    return Outcome(images, top1, top5, *changes)


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
