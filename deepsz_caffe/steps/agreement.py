"""Targets of networks whose images have no labels: what their outputs were before compression.

A classifier is to give the same class as before on a share of images; of other networks the outputs
may change by a part of what they are. Both are to hold on other images of the same kind, so the
limits are held by the upper limits of what was measured, not by the measured values.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.assess.significance import images_to_show, most_changed
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
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"a confidence is from 0.5 to below 1, not {self.confidence}")

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

    def holds(self, score: Score) -> bool:
        """Say whether counts of agreeing images show it."""
        return self.at_least(score) >= self.share
