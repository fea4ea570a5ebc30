"""Targets of networks whose images have no labels: what their outputs were before compression.

A classifier is to give the same class as before on a share of images; of other networks the outputs
may change by a part of what they are. Both are to hold on other images of the same kind, so the
limits are held by the upper limits of what was measured, not by the measured values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.steps.assess.significance import images_to_show, most_changed
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.evaluator import Score


@dataclass(frozen=True)
class Agreement:
    """The same top-1 on a share of images.

    Attributes
    ----------
    share
        In (0, 1).
    confidence
        Probability with which it is to hold on other images, in [0.5, 1).

    Raises
    ------
    InputError
        One of them is out of range.
    """

    share: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(
                f"an agreement is a fraction over 0 and below 1, not {self.share}",
                hint="0.99 for the same class on 99 % of images",
            )
        _check_confidence(self.confidence)

    def check_images(self, images: int) -> None:
        """See that so many images can show it at all.

        Raises
        ------
        InputError
            They can't.
        """
        needed = images_to_show(1 - self.share, self.confidence)
        if images < needed:
            most = (1 - self.confidence) ** (1 / images) if images else 0.0
            raise InputError(
                f"{images:,} pictures, all of them the same, would show an agreement of {most:.2%} "
                f"with confidence {self.confidence:g}, not of {self.share:.2%}",
                hint=f"take at least {needed:,} pictures, or ask for less",
            )

    def at_least(self, score: Score) -> float:
        """Return the share that counts of agreeing images show, as a lower limit."""
        changed = score.total - score.top1_correct
        return 1 - most_changed(changed, score.total, self.confidence)

    def most_changed(self, images: int) -> int:
        """Return how many of the images may change; -1 where even none shows nothing."""
        few, many = -1, images
        while many - few > 1:
            middle = (few + many) // 2
            if self.holds(Score(images, images - middle, 0)):
                few = middle
            else:
                many = middle
        return few

    def holds(self, score: Score) -> bool:
        """Say whether counts of agreeing images show it."""
        return self.at_least(score) >= self.share


@dataclass(frozen=True)
class MaxChange:
    """Outputs that change by at most a part of what they are.

    The change of an output is the root of its mean squared change over images, as a part of the
    root of its mean square.

    Attributes
    ----------
    part
        Over 0.
    confidence
        Probability with which it is to hold on other images, in [0.5, 1).

    Raises
    ------
    InputError
        One of them is out of range.
    """

    part: float
    confidence: float

    def __post_init__(self) -> None:
        if not (isfinite(self.part) and self.part > 0):
            raise InputError(
                f"a largest change is a number over 0, not {self.part}", hint="0.05 for 5 %"
            )
        _check_confidence(self.confidence)

    def at_most(self, change: Divergence) -> float:
        """Return the upper limit of an output's change."""
        return sqrt(change.at_most(self.confidence))

    def holds(self, changes: Mapping[str, Divergence]) -> bool:
        """Say whether every output's change shows it."""
        return all(self.at_most(change) <= self.part for change in changes.values())


def check_choice(shape: Sequence[int], blob: str) -> None:
    """See that scores choose a class of each image, which another network can agree with.

    Parameters
    ----------
    shape
        Of the scores of a batch: images, classes, and further axes of length 1.
    blob
        Their blob's name.

    Raises
    ------
    ModelError
        They have several values for a class, or less than two classes.
    """
    if len(shape) < 2 or shape[1] < 2 or prod(shape[2:]) != 1:
        raise ModelError(
            f"scores of shape {list(shape)} are no choice between classes of images",
            where=f"blob {blob}",
            hint="--max-change limits how far outputs of any kind change",
        )


def _check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise InputError(f"a confidence is from 0.5 to below 1, not {confidence}")
