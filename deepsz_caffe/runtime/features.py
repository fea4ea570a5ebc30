"""What tests of single layers need of the whole network, computed once and kept in a folder.

`compute_features` runs the whole network over the evaluation set. It keeps what enters the tail of
each layer to be tested (`graph.cut`) as memory-mapped arrays, with the labels and the decisions of
the network as it is. `compute_in_parallel` does so by several processes, each for its part of the
images. `tail` runs what is above, from the nearest blobs that are kept.

Images are stored in a random order (the same every time), so that the first part of them is a
random sample: LMDBs are often sorted by difficulty or class, and a test may stop early.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap, read_array
from numpy.typing import NDArray

from deepsz_caffe.documents import convert_document, read_document
from deepsz_caffe.errors import DataError
from deepsz_caffe.files import atomic_write, make_folder, open_input, os_errors
from deepsz_caffe.network import graph
from deepsz_caffe.runtime.body import Body, pass_pool, reserve
from deepsz_caffe.runtime.data import Data
from deepsz_caffe.runtime.evaluate import averaged, judge, labels_of, prepare
from deepsz_caffe.runtime.kept import LIMIT, images_kept, images_to_sample
from deepsz_caffe.runtime.process import Progress
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.evaluator import Reference, Score

META, NET = "features.json", "net.prototxt"
#: Part of the name of a folder that is kept: what is in it has changed since the first.
LAYOUT = "layout 4"
# Bytes that enter the layers of all images.
_DEEP = 1 << 30
_MARGINS = "margins.npy"
_DAMAGED = "remove that folder"


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
    each, crops
        Bytes that enter the layers of an image, and images that are judged as one.
    layers
        The layers that can be tested.
    top1_correct, top5_correct
        Counts of the network as it is.
    """

    folder: str
    key: str
    images: int
    total: int
    each: int
    crops: int
    layers: tuple[str, ...]
    top1_correct: int
    top5_correct: int

    @property
    def score(self) -> Score:
        return Score(self.total, self.top1_correct, self.top5_correct)

    @property
    def deep(self) -> bool:
        """Say whether much is computed from what enters the layers: over 1 GiB of it."""
        return self.each * self.images > _DEEP

    @property
    def sampled(self) -> int:
        """Say how many images moments and divergences are worth measuring on: 32 to 256."""
        return images_to_sample(self.each)

    def parts(self, size: int) -> list[slice]:
        """Divide the images into parts of about `size` bytes each."""
        rows = max(size // max(self.each * self.crops, 1), 1) * self.crops
        return [
            slice(start, min(start + rows, self.images)) for start in range(0, self.images, rows)
        ]

    @staticmethod
    def load(folder: str | os.PathLike[str], key: str) -> Features | None:
        """Return the features in a folder if they are complete and of this key."""
        try:
            meta = read_document(Path(folder) / META, dict[str, object])
            if meta.get("key") != key:
                return None
            return convert_document(meta | {"folder": str(Path(folder).resolve())}, Features)
        except DataError:
            return None


@dataclass(frozen=True)
class Stored:
    """What `META` says of the features beside the counts: what a tail must know of them.

    Attributes
    ----------
    key, layers
        As of `Features`.
    weights
        Absolute path of the network's weights.
    images, batch
        Images stored, and how many the prototxt has in a batch.
    each
        Bytes that enter the layers of an image.
    kept
        Producers and blobs of what is kept, and of how many images.
    scores
        Producer and blob of the scores, see `graph.Version`.
    ignore_label
        The label of images that don't count.
    crops
        Images that follow each other and are judged as one.
    outputs
        Producers and blobs of outputs whose change is measured, in place of scores.
    """

    key: str
    weights: str
    layers: tuple[str, ...]
    images: int
    batch: int
    each: int
    kept: tuple[tuple[int, str, int], ...]
    scores: tuple[int, str]
    ignore_label: int | None
    crops: int = 1
    outputs: tuple[tuple[int, str], ...] = ()

    def versions(self, images: int) -> set[graph.Version]:
        """Return the blobs that are kept of the first `images` images at least."""
        least = min(images, self.images)
        return {graph.Version(place, blob) for place, blob, rows in self.kept if rows >= least}

    @staticmethod
    def load(folder: Path) -> Stored:
        """Read it.

        Raises
        ------
        DataError
            It is not there, or damaged.
        """
        return read_document(folder / META, Stored, what="features", hint=_DAMAGED)


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
    outputs
        Blobs to keep, too, where their change will be measured and no top-1.
    whole
        Only all layers together will be measured on all images, single ones on few.
    limit
        Bytes that may be kept.
    """

    network: str
    weights: str
    layers: tuple[str, ...]
    folder: str
    key: str = ""
    stages: tuple[str, ...] = ()
    data: Data = None
    outputs: tuple[graph.Version, ...] = ()
    whole: bool = False
    limit: int = LIMIT


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
        The disk has no room for what enters the lowest layer, or it is over the limit.
    """
    stored = _create(job, gpu)
    return _finish(job, stored, [_run_part(job, stored.kept, 0, 1, gpu)])


def compute_in_parallel(
    job: Pass, parts: int, gpus: Sequence[int] = (), progress: Progress | None = None
) -> Features:
    """Do as `compute_features`, by `parts` Caffe processes on this machine.

    The cores are divided among them; of `gpus` they take one each, in turn. The features are the
    same as those of one process with as many BLAS threads as each of these.
    """
    with pass_pool(parts, gpus, progress) as pool:
        created = pool.submit(_create, job, None)
        for _ in range(parts - 1):  # the others start meanwhile
            pool.submit(import_caffe)
        stored = created.result()
        kept = stored.kept
        pieces = [pool.submit(_run_part, job, kept, part, parts, None) for part in range(parts)]
        return _finish(job, stored, [piece.result() for piece in pieces])


def _body(job: Pass, gpu: int | None, kept: Iterable[graph.Version] | None = None) -> Body:
    """Build the network as far as scores and tails need it, without its weights."""
    caffe = import_caffe(gpu)
    prepared = prepare(job.network, job.stages, job.data, caffe, job.outputs)
    if kept is None:
        wanted = job.outputs or (prepared.judged.scores,)
        cuts = [graph.cut(prepared.net, [layer], *wanted) for layer in job.layers]
        kept = {version for each in cuts for version in each.inputs} | {*job.outputs}
    return Body(caffe, prepared, sorted(kept), prepared.wanted)


def _create(job: Pass, gpu: int | None) -> Stored:
    """Make room for the features of all images; gives what is known of them by now."""
    body = _body(job, gpu)
    images, judged = body.prepared.images, body.prepared.judged
    place = make_folder(Path(job.folder).resolve())
    with os_errors("can't write", place):
        kept = images_kept(body, job.layers, job.outputs, job.whole, job.limit, place)
        (place / META).unlink(missing_ok=True)
        size = sum(4 * math.prod(body.shapes[version]) * rows for version, rows in kept.items())
        reserve(place, size, "--features")
        for version, rows in kept.items():
            shape = rows, *body.shapes[version]
            open_memmap(place / file_of(version), mode="w+", dtype=np.float32, shape=shape)
        open_memmap(place / _MARGINS, mode="w+", dtype=np.float32, shape=(images.total,))
        (place / NET).write_text(str(body.prepared.net), encoding="utf-8")
    return Stored(
        key=job.key,
        weights=str(Path(job.weights).resolve()),
        layers=job.layers,
        images=images.total,
        batch=images.batch,
        each=body.bytes_each,
        kept=tuple((version.producer, version.blob, rows) for version, rows in kept.items()),
        scores=(judged.scores.producer, judged.scores.blob),
        ignore_label=judged.ignore_label,
        crops=images.crops,
        outputs=tuple((version.producer, version.blob) for version in job.outputs),
    )


def _run_part(
    job: Pass, kept: Sequence[tuple[int, str, int]], part: int, parts: int, gpu: int | None
) -> _Found:
    """Run one of `parts` equal parts of the batches; `kept` is that of `Stored`."""
    body = _body(job, gpu, [graph.Version(producer, blob) for producer, blob, _ in kept])
    images, judged = body.prepared.images, body.prepared.judged
    first, last = images.part(part, parts)
    whole = slice(first * images.batch, min(last * images.batch, images.total))
    with os_errors("can't write", job.folder):
        maps = {v: np.load(Path(job.folder) / file_of(v), mmap_mode="r+") for v in body.inputs}
        margins = np.load(Path(job.folder) / _MARGINS, mmap_mode="r+")
    order = _order(images.total, images.crops)
    labels = np.empty(whole.stop - whole.start, np.int64)
    decisions = np.empty((3, labels.size), bool)
    for rows, taken in body.run(job.weights, part, parts):
        places = order[rows]
        for version, array in maps.items():
            few = places < len(array)
            array[places[few]] = taken[version][few]
        here = slice(rows.start - whole.start, rows.stop - whole.start)
        if job.outputs:
            labels[here], decisions[:, here] = 0, True
            continue
        labels[here] = labels_of(body.prepared, rows, taken)
        decisions[:, here] = judge(
            taken[judged.scores], labels[here], judged.ignore_label, images.crops
        )
        margins[places] = margins_of(taken[judged.scores], labels[here], images.crops)
    with os_errors("can't write", job.folder):
        for array in (*maps.values(), margins):
            array.flush()
    return whole, labels, decisions


def _finish(job: Pass, stored: Stored, pieces: Sequence[_Found]) -> Features:
    """Write down labels and decisions, in the stored order, and that the features are complete."""
    place = Path(job.folder).resolve()
    order = _order(stored.images, stored.crops)
    labels = np.empty(stored.images, np.int64)
    decisions = np.empty((3, stored.images), bool)
    for rows, own_labels, own_decisions in pieces:
        labels[order[rows]] = own_labels
        decisions[:, order[rows]] = own_decisions
    with os_errors("can't write", place):
        np.save(place / "labels.npy", labels)
        np.save(place / "decisions.npy", decisions)
    names = ("total", "top1_correct", "top5_correct")
    counts = dict(zip(names, (int(count) for count in decisions.sum(axis=1)), strict=True))
    with atomic_write(place / META) as file:  # last: it says that the others are complete
        file.write(json.dumps(asdict(stored) | counts).encode())
    return Features(
        str(place),
        job.key,
        stored.images,
        each=stored.each,
        crops=stored.crops,
        layers=stored.layers,
        **counts,
    )


def _order(images: int, crops: int) -> NDArray[np.int64]:
    """Give the place of each image in the stored order; crops of a picture stay together."""
    order = np.random.default_rng(0).permutation(images // crops)
    return (order[:, None] * crops + np.arange(crops)).reshape(-1)


def store_original(folder: str, key: str, decisions: NDArray[np.bool_]) -> None:
    """Keep the decisions of the original network (`evaluate.decide`) beside the features."""
    stored = np.empty_like(decisions)
    crops = Stored.load(Path(folder)).crops
    stored[:, _order(decisions.shape[1], crops)] = decisions
    with atomic_write(_original_file(folder, key)) as file:
        np.save(file, stored)


def load_original(folder: str, key: str | None) -> NDArray[np.bool_]:
    """Return what `store_original` kept; without a key the decisions of the network as it is.

    Returns
    -------
    numpy.ndarray
        bool[3, images] in the stored order: counted, top-1 right, top-5 right.

    Raises
    ------
    DataError
        They are not there, or damaged.
    """
    path = Path(folder) / "decisions.npy" if key is None else _original_file(folder, key)
    found = load_array(path, "bool")
    if found.ndim != 2 or len(found) != 3:
        raise DataError("no decisions about images", where=path, hint=_DAMAGED)
    return found


def margins_of(
    scores: NDArray[np.float32], labels: NDArray[np.int64], crops: int = 1
) -> NDArray[np.float32]:
    """Say how far the class of each image is ahead of the best other, float32[n].

    Over 0 where `judge` finds top-1 right. Of labels that are no classes it says nothing.
    """
    scores = averaged(scores.reshape(len(scores), -1), crops)
    rows, own = np.arange(len(labels)), np.clip(labels, 0, scores.shape[1] - 1)
    others = scores.copy()
    others[rows, own] = -np.inf
    margins: NDArray[np.float32] = scores[rows, own] - others.max(axis=1)
    return margins


def load_reference(folder: str, key: str | None) -> Reference | None:
    """Return what margins are compared with; None where an older version made the features."""
    path = Path(folder) / _MARGINS
    if not path.exists():
        return None
    counted, original, _ = load_original(folder, key)
    return Reference(load_array(path, "float32"), original, counted)


def has_original(folder: str, key: str) -> bool:
    """Say whether `store_original` has kept something that can be read."""
    try:
        load_original(folder, key)
    except DataError:
        return False
    return True


def load_array(path: Path, dtype: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read an array of the folder, or map it.

    Raises
    ------
    DataError
        It is not there, can't be read, or is none of this type.
    """
    try:
        with open_input(path, DataError, hint=_DAMAGED) as file:
            if mapped:
                with os_errors("can't read", path, DataError, hint=_DAMAGED):
                    found = np.load(path, mmap_mode="r")
            else:
                found = read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError("no array, or damaged", where=path, hint=_DAMAGED) from error
    if not isinstance(found, np.ndarray) or found.dtype != dtype:
        raise DataError(f"no array of {dtype}", where=path, hint=_DAMAGED)
    return found


def most_frequent(folder: str) -> int:
    """Count the images, of those that count, that have the most frequent label."""
    labels: NDArray[np.int64] = load_array(Path(folder) / "labels.npy", "int64")
    decisions = load_original(folder, None)
    return int(np.bincount(labels[decisions[0]]).max(initial=0))


def _original_file(folder: str, key: str) -> Path:
    return Path(folder) / f"original-{key}.npy"


def file_of(version: graph.Version) -> str:
    """Name the file of a blob, whose own name may be too long for one, or like another's."""
    digest = hashlib.blake2b(version.blob.encode(), digest_size=8).hexdigest()
    return f"{version.producer + 1:04d}-{digest}.npy"
