"""The wall between the method and Caffe: what a network gets right with other weights in it.

The steps are given an `Evaluator` and never ask how it counts. `deepsz_caffe.runtime.evaluator`
has the one that runs Caffe; any object with these members will do, such as a few lines of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from operator import add
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.steps.divergence import Divergence


@dataclass(frozen=True)
class Score:
    """How many images a network classifies correctly; all counts over the whole data set once.

    A score of the true class that is not a number counts as wrong (Caffe's Accuracy layer counts it
    as right). Ties count as Caffe counts them: for the network. Where no labels are known, right
    means what the original network says.
    """

    total: int
    top1_correct: int
    top5_correct: int


@dataclass(frozen=True)
class Outcome:
    """One test: counts over the images seen, which are all unless the test was stopped early.

    Attributes
    ----------
    images
        Images seen.
    top1_correct, top5_correct
        Of these.
    lost, gained
        Images that only the network as it is, or only the changed one, gets right (top-1).
    original_lost, original_gained
        The same against the original network, that losses count against; where none was given
        it is the network as it is.
    """

    images: int
    top1_correct: int
    top5_correct: int
    lost: int
    gained: int
    original_lost: int
    original_gained: int

    @property
    def score(self) -> Score:
        return Score(self.images, self.top1_correct, self.top5_correct)

    def __add__(self, other: Outcome) -> Outcome:
        """Give the counts over the images of both."""
        return Outcome(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Reference:
    """What the margins of tests are compared with, of all images of the data in the same order.

    The margin of an image is how far the score of its class is ahead of the best other: over 0
    where top-1 is right.

    Attributes
    ----------
    margins
        float32[images]: of the network as it is.
    original
        bool[images]: the original network, that losses count against, gets top-1 right.
    counted
        bool[images]: which images count.
    """

    margins: NDArray[np.float32]
    original: NDArray[np.bool_]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Moments:
    """Second moments of what enters a layer.

    Attributes
    ----------
    matrices
        float32[g, c, c]: the mean of x xᵀ over its inputs x, for each group of a convolution.
    means
        float32[g, c]: the mean of x.
    count
        Inputs that were seen: of a convolution many of an image.
    """

    matrices: NDArray[np.float32]
    means: NDArray[np.float32]
    count: int

    @cached_property
    def centered(self) -> NDArray[np.float32]:
        """Covariances, float32[g, c, c]: what an error does where a bias makes good its mean."""
        exact = self.means.astype(np.float64)
        found = self.matrices - exact[:, :, None] * exact[:, None, :]
        every = np.arange(found.shape[1])
        found[:, every, every] = np.maximum(found[:, every, every], 0)  # but for rounding
        return found.astype(np.float32)


class Evaluator(Protocol):
    """A network on its evaluation data, ready for tests.

    Attributes
    ----------
    score
        Counts of the network as it is.
    original
        Counts of the original (unpruned) network; where none was given, of the network as it is.
    workers
        Tests that run at a time.
    digests
        What the counts are a property of: of ``network``, ``weights`` and ``data``; where an
        original network was given, of its weights as ``original``.
    chance
        Images that always answering the most frequent label would get right.
    """

    @property
    def total(self) -> int:
        """Images that count."""

    @property
    def score(self) -> Score: ...

    @property
    def original(self) -> Score: ...

    @property
    def chance(self) -> int: ...

    @property
    def workers(self) -> int: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    def measure(self, layers: Mapping[str, EncodedLayer], limit: int | None = None) -> Outcome:
        """Count with these layers' weights in place of their own; several threads may ask.

        Parameters
        ----------
        layers
            Layer name -> its weights, encoded; none: the network as it is.
        limit
            Stop as soon as the loss will certainly be more than so many images; None: never.
        """

    def moments(self, layer: str, layers: Mapping[str, EncodedLayer]) -> Moments | None:
        """Measure what enters a layer on few images; labels play no part.

        Parameters
        ----------
        layer
            The layer.
        layers
            Layer name -> weights in place of their own, of layers before it.

        Returns
        -------
        Moments or None
            None where there is no such thing for a layer of this kind: it is rounded plainly.
        """

    def diverge(self, layers: Mapping[str, EncodedLayer]) -> Divergence:
        """Measure how far the outputs for few images are from those of the network as it is.

        Parameters
        ----------
        layers
            Layer name -> weights in place of their own; at least one.
        """

    def changes(self, layers: Mapping[str, EncodedLayer]) -> Mapping[str, Divergence]:
        """Measure each output's relative squared change on all images, where that is asked for.

        Parameters
        ----------
        layers
            Layer name -> weights in place of their own; at least one.

        Returns
        -------
        dict
            Blob name -> change; outputs that these layers don't change are left out.
        """

    def close(self) -> None:
        """Stop what runs, and free what is held; more than once does no harm."""


@runtime_checkable
class MarginEvaluator(Protocol):
    """An `Evaluator` that can say what becomes of each image: fewer wholes need to be measured.

    Attributes
    ----------
    reference
        What the margins of tests are compared with; None where they are not known.
    """

    @property
    def reference(self) -> Reference | None: ...

    def measure_margins(
        self, layers: Mapping[str, EncodedLayer], limit: int | None = None
    ) -> tuple[Outcome, NDArray[np.float32] | None]:
        """Do as `Evaluator.measure`; also give margins, float32[images], if it was not stopped."""
