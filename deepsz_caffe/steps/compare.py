"""Two versions of a network: how far weights and outputs differ. Pure functions on arrays.

Weights are compared blob by blob. Outputs are compared batch by batch, and what a batch gave is a
`Tally`; tallies add up to a `BlobChange`. All figures of changes are in float64. Where an output
holds scores of classes, it is also said for how many images both networks choose the same class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.steps.assess.significance import most_changed

Floats = NDArray[np.floating]

#: values compared at a time: as float64 they stay in the cache
_BLOCK = 1 << 18
_BEST = 5
#: of what is said of other images
_CONFIDENCE = 0.9


@dataclass(frozen=True)
class LayerChange:
    """How far one blob of a layer's weights is from the same blob of the other network.

    Attributes
    ----------
    layer, type, blob
        The layer's name and type, and the blob's number in it: 0 are the weights.
    shape
        The blob's shape in the first network; in the second where the first lacks it.
    only_in
        "a" or "b" where only one of the two has the blob, "both" where their shapes differ; ""
        where they can be compared. The figures are 0 then.
    changed
        Values that differ.
    rms
        Root mean square of the first network's values.
    rms_change, largest_change
        Of the differences.
    """

    layer: str
    type: str
    blob: int
    shape: tuple[int, ...]
    only_in: str = ""
    changed: int = 0
    rms: float = 0.0
    rms_change: float = 0.0
    largest_change: float = 0.0

    @property
    def relative_change(self) -> float:
        """`rms_change` as a fraction of `rms`."""
        return _ratio(self.rms_change, self.rms)


@dataclass(frozen=True)
class ChangedClass:
    """An image that the two networks put into different classes.

    Attributes
    ----------
    image
        Its place among all images, from 0.
    before, after
        The class that the first and the second network choose.
    before_scores, after_scores
        What the first, and what the second network gives these two classes.
    """

    image: int
    before: int
    after: int
    before_scores: tuple[float, float]
    after_scores: tuple[float, float]


@dataclass(frozen=True)
class ClassChange:
    """How far two networks agree on classes.

    Attributes
    ----------
    classes
        Their number.
    places
        Decisions that were compared: images, or places of images where each has classes of its own.
    same
        Decisions for the same class (top-1) by both.
    top5_overlap
        How many of the five best classes both have in common, on average, as a fraction; None for
        five classes and fewer.
    changed
        Images whose class changes; empty where images have several decisions.
    """

    classes: int
    places: int
    same: int
    top5_overlap: float | None
    changed: tuple[ChangedClass, ...]

    @property
    def agreement(self) -> float:
        """Decisions for the same class, as a fraction."""
        return self.same / self.places


@dataclass(frozen=True)
class BlobChange:
    """How far an output of one network is from that of another, over all images.

    Attributes
    ----------
    blob
        Its name.
    shape
        Of an image; of the whole blob where it has no row for each image.
    images
        Images (or batches, where there are no rows) that could be compared.
    not_compared
        Those that could not: the shapes differ, or a value is not finite.
    rms
        Root mean square of the first network's values.
    rms_change, mean_change, largest_change
        Root mean square, mean and largest absolute value of the differences.
    largest_image
        Where the largest one is, from 0; None where nothing changes.
    classes
        Where the blob holds scores of classes.
    """

    blob: str
    shape: tuple[int, ...]
    images: int
    not_compared: int
    rms: float
    rms_change: float
    mean_change: float
    largest_change: float
    largest_image: int | None
    classes: ClassChange | None

    @property
    def agreement_at_least(self) -> float | None:
        """Share of other such images for which the class is the same, with confidence 0.9.

        None where images have no class, or several.
        """
        if self.classes is None or self.classes.places != self.images:
            return None
        return 1 - most_changed(self.images - self.classes.same, self.images, _CONFIDENCE)

    @property
    def relative_change(self) -> float:
        """`rms_change` as a fraction of `rms`."""
        return _ratio(self.rms_change, self.rms)


@dataclass(frozen=True)
class Comparison:
    """What `deepsz_caffe.compare` found.

    Attributes
    ----------
    images
        How many the networks were run on; 0: only weights were compared.
    layers
        Every blob of weights, in the order of the first file.
    outputs
        Every output of the network.
    guessed
        The output that was taken for scores of classes without a layer that says so, or "".
    preprocessing
        What was done with pictures, or "".
    pictures
        Small pictures (PNG) of images whose class changes, by their places, as many as were
        asked for.
    """

    images: int
    layers: tuple[LayerChange, ...]
    outputs: tuple[BlobChange, ...] = ()
    guessed: str = ""
    preprocessing: str = ""
    pictures: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, object]:
        """Return the document that ``--json`` prints, without the small pictures."""
        return {
            "images": self.images,
            "layers": [
                asdict(each) | {"relative_change": _for_json(each.relative_change)}
                for each in self.layers
            ],
            "outputs": [_output_json(each) for each in self.outputs],
            "guessed": self.guessed,
            "preprocessing": self.preprocessing,
        }


def _output_json(change: BlobChange) -> dict[str, object]:
    document: dict[str, object] = asdict(change)
    document["relative_change"] = _for_json(change.relative_change)
    document["agreement_at_least"] = change.agreement_at_least
    if change.classes is not None:
        document["classes"] = asdict(change.classes) | {"agreement": change.classes.agreement}
    return document


@dataclass(frozen=True)
class Tally:
    """What one batch gave of one output; tallies of batches in a row add up.

    Attributes
    ----------
    shape
        Of an image, or of the blob.
    images, not_compared, values
        Counts.
    squares, squared_change, absolute_change
        Sums over values.
    largest_change, largest_image
        As in `BlobChange`.
    classes, places, same, common
        Of class scores: how many classes, decisions, same ones, and classes among the best five of
        both.
    changed
        As in `ClassChange`.
    """

    shape: tuple[int, ...]
    images: int = 0
    not_compared: int = 0
    values: int = 0
    squares: float = 0.0
    squared_change: float = 0.0
    absolute_change: float = 0.0
    largest_change: float = 0.0
    largest_image: int | None = None
    classes: int = 0
    places: int = 0
    same: int = 0
    common: int = 0
    changed: tuple[ChangedClass, ...] = field(default=())

    def __add__(self, other: Tally) -> Tally:
        """Add what the images after these gave."""
        larger = other if other.largest_change > self.largest_change else self
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "images", "not_compared", "values", "squares", "squared_change", "absolute_change",
                "places", "same", "common", "changed",
            )
        }  # fmt: skip
        return Tally(
            self.shape,
            largest_change=larger.largest_change,
            largest_image=larger.largest_image,
            classes=self.classes or other.classes,
            **sums,
        )

    def change(self, blob: str) -> BlobChange:
        """Sum up."""
        count = max(self.values, 1)
        classes = None
        if self.places:
            best = self.common / (_BEST * self.places) if self.classes > _BEST else None
            classes = ClassChange(self.classes, self.places, self.same, best, self.changed)
        return BlobChange(
            blob,
            self.shape,
            self.images,
            self.not_compared,
            math.sqrt(self.squares / count),
            math.sqrt(self.squared_change / count),
            self.absolute_change / count,
            self.largest_change,
            self.largest_image,
            classes,
        )


def compare_weights(a: CaffeModel, b: CaffeModel) -> tuple[LayerChange, ...]:
    """Compare every blob of two networks' weights.

    Raises
    ------
    ModelError
        A blob can't be read.
    """
    names = [layer.name for layer in (*a.layers, *b.layers) if layer.blobs]
    return tuple(change for name in dict.fromkeys(names) for change in _compare_layer(a, b, name))


def _compare_layer(a: CaffeModel, b: CaffeModel, name: str) -> Iterator[LayerChange]:
    here, there = (each[name] if name in each else None for each in (a, b))  # noqa: SIM401
    kind = next(layer.type for layer in (here, there) if layer is not None)
    blobs = [layer.blobs if layer is not None else () for layer in (here, there)]
    for number in range(max(map(len, blobs))):
        before, after = (each[number] if number < len(each) else None for each in blobs)
        if before is None or after is None:
            only = before or after
            assert only is not None
            where = "a" if after is None else "b"
            yield LayerChange(name, kind, number, only.shape, where)
        elif _without_ones(before.shape) != _without_ones(after.shape):
            yield LayerChange(name, kind, number, before.shape, "both")
        else:
            yield compare_values(name, kind, number, before.data, after.data)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    # Files of other ages have other numbers of axes for the same weights.
    return tuple(size for size in shape if size != 1)


def compare_values(layer: str, kind: str, blob: int, before: Floats, after: Floats) -> LayerChange:
    """Compare two arrays of one size, taken as flat."""
    old, new = before.reshape(-1), after.reshape(-1)
    changed, squares, squared_change, largest = 0, 0.0, 0.0, 0.0
    for start in range(0, old.size, _BLOCK):
        block = old[start : start + _BLOCK].astype(np.float64)
        change = new[start : start + _BLOCK].astype(np.float64) - block
        changed += int(np.count_nonzero(change))
        squares += float(block @ block)
        squared_change += float(change @ change)
        largest = max(largest, float(np.abs(change).max()))
    count = max(old.size, 1)
    return LayerChange(
        layer,
        kind,
        blob,
        before.shape,
        changed=changed,
        rms=math.sqrt(squares / count),
        rms_change=math.sqrt(squared_change / count),
        largest_change=largest,
    )


def tally_outputs(
    before: Floats, after: Floats, rows: int, first: int, *, scores: bool = False
) -> Tally:
    """Compare an output of two networks for one batch.

    Parameters
    ----------
    before, after : float[batch, ...]
        What the two gave for the same images. An output whose first axis is not the batch counts
        as a whole, as one image.
    rows
        So many of the batch are images; the rest is left out. At most the batch.
    first
        The place of the first of them among all images.
    scores
        It holds scores of classes along its second axis.
    """
    by_row = before.shape[:1] == after.shape[:1] and len(before) >= rows and before.ndim > 0
    whole = not by_row or (len(before) == 1 and rows == 1 and before.shape != after.shape)
    if before.shape != after.shape:
        return Tally(before.shape if whole else before.shape[1:], not_compared=1 if whole else rows)
    if whole:
        before, after, rows = before[None], after[None], 1
    old, new = (array[:rows].astype(np.float64) for array in (before, after))
    finite = np.isfinite(old) & np.isfinite(new)
    sound = finite.reshape(rows, -1).all(axis=1)
    places = first + np.flatnonzero(sound)
    old, new = old[sound], new[sound]
    change = np.abs(new - old)
    largest = change.max(axis=tuple(range(1, change.ndim)), initial=0.0)
    most = float(largest.max(initial=0.0))
    found = Tally(
        before.shape[1:],
        images=len(old),
        not_compared=rows - len(old),
        values=old.size,
        squares=float((old**2).sum()),
        squared_change=float((change**2).sum()),
        absolute_change=float(change.sum()),
        largest_change=most,
        largest_image=int(places[largest.argmax()]) if most > 0 else None,
    )
    return found + _tally_classes(old, new, places) if scores and old.ndim > 1 else found


def _tally_classes(old: Floats, new: Floats, images: NDArray[np.intp]) -> Tally:
    """Compare class scores, finite, [n, classes, ...], of images at these places."""
    shape = old.shape[1:]
    classes = old.shape[1]
    a, b = (np.moveaxis(array, 1, -1).reshape(-1, classes) for array in (old, new))
    if classes < 2 or not len(a):
        return Tally(shape)
    before, after = a.argmax(axis=1), b.argmax(axis=1)
    common = 0
    if classes > _BEST:
        best = [np.argpartition(array, -_BEST, axis=1)[:, -_BEST:] for array in (a, b)]
        common = int((best[0][:, :, None] == best[1][:, None, :]).sum())
    changed: list[ChangedClass] = []
    if len(a) == len(images):
        for place in np.flatnonzero(before != after):
            one, other = int(before[place]), int(after[place])
            scores = [(float(x[place, one]), float(x[place, other])) for x in (a, b)]
            changed.append(ChangedClass(int(images[place]), one, other, *scores))
    same = int((before == after).sum())
    return Tally(
        shape, classes=classes, places=len(a), same=same, common=common, changed=tuple(changed)
    )


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return math.inf if part else 0.0


def _for_json(number: float) -> float | None:
    return number if math.isfinite(number) else None
