"""The tail of some layers alone: what makes a test cost as little as the fc layers do.

`measure_weights` runs just the tail of the layers that it is given weights for, on what `features`
has kept of the rest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.network import graph
from deepsz_caffe.network.prototxt import read_prototxt
from deepsz_caffe.runtime.evaluate import judge
from deepsz_caffe.runtime.features import (
    META,
    NET,
    Stored,
    file_of,
    load_array,
    load_original,
    margins_of,
)
from deepsz_caffe.runtime.net import (
    Replacement,
    build_net,
    load_weights,
    put_changes,
    put_weights,
)
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.assess.significance import hopeless
from deepsz_caffe.steps.evaluator import Outcome, Score

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

#: Images in a batch of a tail, at most. Larger ones are hardly faster and take more memory.
#: At this batch the products of `deepsz_caffe.running` take a third of BLAS's time for layers like
#: AlexNet's (`make bench running`): a test of fc6 on 10,000 images would take 0.6 of its time with
#: that layer's product, 0.3 with those of all. They are not used: tests are no mere proposals.
#: Their counts are what `assess` shows and what a journal keeps, equal to those of the whole
#: network; other rounding may count another image. And small layers would be slower.
_TAIL_BATCH = 500
#: … and what its blobs may take together (bytes), but for a single image. Convolutions run image by
#: image; what is freed with each tail and got anew with the next took a third of the time.
_BATCH_BYTES = 1 << 27
#: What enters the layers above a changed one is kept, of so many tests as fit (bytes).
_KEPT = 1 << 28

Arrays = dict[graph.Version, NDArray[np.float32]]
#: by all that it comes from; what was used last is last
_kept: OrderedDict[object, Arrays] = OrderedDict()


def measure_weights(
    folder: str,
    replace: Mapping[str, Replacement],
    limit: int | None = None,
    batch: int | None = None,
    gpu: int | None = None,
    original: str | None = None,
    rows: slice | None = None,
    *,
    with_margins: bool = False,
) -> Outcome | tuple[Outcome, NDArray[np.float32] | None]:
    """Measure the network with other weights in some layers; runs in a Caffe process.

    Parameters
    ----------
    folder
        Of `features.compute_features`.
    replace
        Layer name -> its new weights; none: the network as it is.
    limit
        Stop as soon as the loss will certainly be more than so many images; None: never.
    batch
        Images in a forward pass; default up to 500, as memory allows, or that of the prototxt where
        the tail can't run on another number.
    original
        Key of the decisions of the original network, see `store_original`.
    rows
        Of the stored images, those to count; default: all.
    with_margins
        Give the margins of these images, too, in the stored order; None where it was stopped.

    Notes
    -----
    The network of the last test stays in the process: tests of the same layers follow each other
    without loading anything but the changed weights, and without running again what lies below the
    lowest layer with weights that were not seen lately.
    """
    first = load_original(folder, original)
    if not replace:
        unchanged = load_original(folder, None)
        return _compared(unchanged, unchanged, first)
    tail = current_tail(folder, frozenset(replace), batch, gpu)
    whole = slice(0, tail.images) if rows is None else rows
    tail = tail.ready(replace, keep=rows is None)
    total, top1, top5 = (int(count) for count in tail.decisions[:, whole].sum(axis=1))
    found = np.empty_like(tail.decisions)
    margins = np.empty(tail.images, np.float32)
    for part in tail.parts(whole.stop, whole.start):
        scores, labels, crops = tail.scores(part), tail.labels[part], tail.stored.crops
        found[:, part] = judge(scores, labels, tail.stored.ignore_label, crops)
        margins[part] = margins_of(scores, labels, crops)
        tail.keep(part)
        if limit is not None:
            done = slice(whole.start, part.stop)
            seen = _compared(*(each[:, done] for each in (found, tail.decisions, first)))
            if seen.images < total and hopeless(seen, Score(total, top1, top5), limit):
                return (seen, None) if with_margins else seen
    tail.complete()
    counted = _compared(*(each[:, whole] for each in (found, tail.decisions, first)))
    return (counted, margins[whole]) if with_margins else counted


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


class Tail:
    """The tail of some layers as a network in this process, and its inputs on disk.

    Attributes
    ----------
    caffe_net, definition
        The network, in which the changed layers have no weights yet, and its definition.
    changed
        Names of the layers whose weights come with each test.
    weights
        The file with those of the network as it is.
    scores_type
        Type of the layer that gives the scores.
    outputs
        Blobs to measure in place of scores, those of them that change.
    images, batch
        How many there are, and how many at a time.
    stamp
        Changes when other features come into the folder.

    Parameters
    ----------
    folder, changed, batch, gpu
        As `measure_weights`.
    images
        The first so many will run; None: all of them.
    given
        Inputs that are not in the folder.
    """

    def __init__(
        self,
        folder: str,
        changed: frozenset[str],
        batch: int | None,
        gpu: int | None,
        images: int | None = None,
        given: Mapping[graph.Version, NDArray[np.float32]] = MappingProxyType({}),
    ) -> None:
        caffe = import_caffe(gpu)
        place = Path(folder)
        self.stored = stored = Stored.load(place)
        self.images = stored.images
        self.labels: NDArray[np.int64] = load_array(place / "labels.npy", "int64")
        self.decisions = load_original(folder, None)
        self.changed = changed
        self.stamp = (place / META).stat().st_mtime_ns
        self.weights = stored.weights
        net = read_prototxt(place / NET)
        self._scores = graph.Version(*stored.scores)
        self.scores_type: str = net.layer[self._scores.producer].type
        outputs = [graph.Version(*each) for each in stored.outputs]
        self._wanted = outputs or [self._scores]
        cut = graph.cut(net, changed, *self._wanted)
        available = stored.versions(self.images if images is None else images)
        cut = graph.begun_at(net, cut, {*available, *given})
        self.outputs = tuple(version for version in outputs if version.producer in cut.layers)
        self._inputs: Arrays = {
            v: load_array(place / file_of(v), "float32", mapped=True)
            for v in cut.inputs
            if v not in given
        }
        self._inputs |= {v: given[v] for v in cut.inputs if v in given}
        self._fixed = not graph.is_row_wise(net, cut.layers)
        built = stored.batch if self._fixed else 1
        shapes = [(v.blob, (built, *a.shape[1:])) for v, a in self._inputs.items()]
        self.definition = graph.subnet(net, cut.layers, shapes)
        self.caffe_net = build_net(caffe, self.definition)
        self.batch = built if self._fixed else min(batch or self._suitable_batch(), self.images)
        # What stays as it is; the changed weights come with each test.
        load_weights(self.caffe_net, self.definition, self.weights, but=changed)
        self._held: dict[str, int] = {}
        self._own: dict[tuple[str, int], NDArray[np.float32]] = {}
        self._lowest = next(name for i in cut.layers if (name := net.layer[i].name) in changed)
        others = changed - {self._lowest}
        #: what enters the other layers, those of the next tests where there are none
        self._entering = self._keepable(net, cut, others or {*stored.layers} - changed)
        self._above: Tail | None = None
        self._below: tuple[object, ...] = (folder, self.stamp, self.batch)
        self._place = folder, gpu
        self._filling: tuple[object, Arrays] | None = None

    @property
    def kept(self) -> int:
        """Images whose inputs are kept."""
        return min(len(array) for array in self._inputs.values())

    def _suitable_batch(self) -> int:
        """Say how many images at a time the network, built for one, is to run on.

        Crops of a picture are judged together.
        """
        each = 4 * sum(int(blob.count) for blob in self.caffe_net.blobs.values())
        most, crops = min(_BATCH_BYTES // max(each, 1), _TAIL_BATCH), self.stored.crops
        return max(most // crops, 1) * crops

    def _keepable(
        self, net: NetParameter, cut: graph.Cut, others: Set[str]
    ) -> dict[graph.Version, tuple[int, ...]]:
        """Give the shapes of what enters other changed layers; none where it can't be kept."""
        if not others or self._fixed or {*self.changed, *others} & graph.shared_weights(net).keys():
            return {}
        entering = graph.cut(net, others, *self._wanted).inputs
        entering = tuple(v for v in entering if v.producer in cut.layers)
        # After a run a blob holds what the last layer left that writes to it.
        last = {blob: i for i in cut.layers for blob in net.layer[i].top}
        blobs = self.caffe_net.blobs
        found = {v: (self.images, *blobs[v.blob].data.shape[1:]) for v in entering}
        if any(last[v.blob] != v.producer for v in entering) or (
            4 * sum(math.prod(shape) for shape in found.values()) > _KEPT
        ):
            return {}
        return found

    def ready(self, replace: Mapping[str, Replacement], *, keep: bool = True) -> Tail:
        """Put weights in; gives the tail that is to run, which may begin further up.

        `keep`: all images are to run, and what enters the layers above is kept.
        """
        lowest = replace[self._lowest]
        self._filling = None
        plain = not any(isinstance(w, EncodedLayer) and w.changes for w in replace.values())
        if keep and self._entering and plain and isinstance(lowest, EncodedLayer):
            key = (*self._below, self._lowest, lowest.digest, *self._entering)
            if self.changed != {self._lowest} and key in _kept:
                _kept.move_to_end(key)
                return self._begun(key).ready(
                    {n: replace[n] for n in self.changed - {self._lowest}}
                )
            if key not in _kept:
                shapes = self._entering.items()
                self._filling = key, {v: np.empty(shape, np.float32) for v, shape in shapes}
        self.put(replace)
        return self

    def _begun(self, key: tuple[object, ...]) -> Tail:
        """Give the tail of the other changed layers, on what is kept."""
        inputs = self._inputs | _kept[key]
        if self._above is None:
            folder, gpu = self._place
            others = self.changed - {self._lowest}
            self._above = Tail(folder, others, self.batch, gpu, given=inputs)
        above = self._above
        above._inputs, above._below = {v: inputs[v] for v in above._inputs}, key
        return above

    def keep(self, rows: slice) -> None:
        """Keep what enters the layers above, after a batch has run."""
        if self._filling is not None:
            for version, array in self._filling[1].items():
                array[rows] = self.caffe_net.blobs[version.blob].data[: rows.stop - rows.start]

    def complete(self) -> None:
        """All batches have run: what was kept may be used, until there is too much of it."""
        if self._filling is not None:
            key, arrays = self._filling
            _kept[key] = arrays
            while sum(a.nbytes for each in _kept.values() for a in each.values()) > _KEPT:
                _kept.popitem(last=False)

    def put(self, replace: Mapping[str, Replacement]) -> None:
        """Put weights into the changed layers; what a layer holds already is not decoded again.

        Blobs that earlier weights came with are as they were again.
        """
        for (layer, blob), values in self._own.items():
            self.caffe_net.params[layer][blob].data[...] = values
        encoded = [each for each in replace.values() if isinstance(each, EncodedLayer)]
        changes = [change for each in encoded for change in each.changes]
        for change in changes:
            blobs = self.caffe_net.params.get(change.layer, ())
            if change.blob < len(blobs):
                place = change.layer, change.blob
                self._own.setdefault(place, blobs[change.blob].data.copy())
        for name, weights in replace.items():
            digest = weights.digest if isinstance(weights, EncodedLayer) else None
            if digest is None or self._held.get(name) != digest:
                self._held.pop(name, None)
                put_weights(self.caffe_net, name, weights)
                if digest is not None:
                    self._held[name] = digest
        put_changes(self.caffe_net, changes)

    def parts(self, stop: int, start: int = 0) -> Iterator[slice]:
        """Yield the rows of batches of the images up to `stop`."""
        stop = min(stop, self.images)
        starts = range(start, stop, self.batch)
        return (slice(start, min(start + self.batch, stop)) for start in starts)

    def scores(self, rows: slice) -> NDArray[np.float32]:
        """Run a batch; gives a view of its scores."""
        self.forward(rows, len(self.caffe_net.layers) - 1)
        scores: NDArray[np.float32] = self.caffe_net.blobs[self._scores.blob].data
        return scores[: rows.stop - rows.start]

    def forward(self, rows: slice, last: int) -> None:
        """Run a batch up to the layer at position `last` of the network."""
        count = rows.stop - rows.start
        blobs = self.caffe_net.blobs
        for version, array in self._inputs.items():
            blob = blobs[version.blob]
            if not self._fixed and blob.data.shape[0] != count:
                blob.reshape(count, *array.shape[1:])
            blob.data[:count] = array[rows]
        if not self._fixed:
            self.caffe_net.reshape()
        self.caffe_net._forward(0, last)


_current: tuple[tuple[object, ...], Tail] | None = None


def current_tail(
    folder: str,
    changed: frozenset[str],
    batch: int | None,
    gpu: int | None,
    images: int | None = None,
) -> Tail:
    """Give the tail of these layers: the last one, or another; parameters as of `Tail`."""
    global _current
    stamp = (Path(folder) / META).stat().st_mtime_ns
    key = (folder, stamp, changed, batch, gpu, images)
    if _current is None or _current[0] != key:
        if _current is None or _current[0][:2] != key[:2]:
            _kept.clear()
        _current = None  # let the old network go before the new one is built
        _current = key, Tail(folder, changed, batch, gpu, images)
    return _current[1]
