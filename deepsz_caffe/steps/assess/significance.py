"""What a measured loss of accuracy says about the true one: paired decisions on the same images.

The compressed and the original network judge the same images, so only the images on which they
differ carry information: `lost` (right before, wrong after) and `gained`. Their difference over
their number behaves like a sum of independent ±1, whatever the accuracy is.
"""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist

from deepsz_caffe.steps.evaluator import Outcome

#: How many standard errors away a test must be from the limit to be stopped early: one wrong
#: verdict in 30,000 looks at the same place.
CERTAIN = 4.0

# A test is not judged on fewer images than this: the normal approximation needs some differences.
_FEWEST = 100


def standard_error(lost: int, gained: int, images: int) -> float:
    """Return the standard error of a loss (a fraction) measured on `images` images."""
    differing = (lost + gained) / images
    mean = (lost - gained) / images
    return sqrt(max(differing - mean * mean, 0.0) / images)


def margin(lost: int, gained: int, images: int, confidence: float) -> float:
    """Return what to add to a measured loss so that the true one is below it with `confidence`.

    0.5 gives 0: the measured loss is as likely too low as too high.
    """
    return NormalDist().inv_cdf(confidence) * standard_error(lost, gained, images)


def images_needed(outcome: Outcome, confidence: float) -> int:
    """Return the loss against the original network with its margin, in images, rounded up.

    Both count original and compressed network on the same images: the margin is that of what is
    promised, and covers what pruning changed as well as what the error bounds did.
    """
    lost, gained = outcome.original_lost, outcome.original_gained
    error = margin(lost, gained, outcome.images, confidence) * outcome.images
    return ceil(lost - gained + error - 1e-9)


def certainly_over(lost: int, gained: int, seen: int, total: int, limit: int) -> bool:
    """Say whether a test on `total` images will certainly end with a loss over `limit` images.

    A sequential test on the paired decisions of the images `seen` so far, which must be a random
    part of all: the loss projected to all of them, less `CERTAIN` standard errors (for a sample
    without replacement), is over the limit.
    """
    if seen >= total:
        return lost - gained > limit
    if seen < _FEWEST:
        return False
    left = sqrt((total - seen) / (total - 1))
    # One more differing image than was seen: none in a small sample must not look like certainty.
    error = standard_error(lost, gained + 1, seen) * left
    return (lost - gained) / seen - CERTAIN * error > limit / total
