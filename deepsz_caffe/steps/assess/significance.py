"""What a measured loss of accuracy says about the true one: paired decisions on the same images.

The compressed and the original network judge the same images, so only the images on which they
differ carry information: `lost` (right before, wrong after) and `gained`. Their difference over
their number behaves like a sum of independent ±1, whatever the accuracy is.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, exp, lgamma, log, log1p, sqrt
from statistics import NormalDist

from deepsz_caffe.steps.evaluator import Outcome, Score

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


def most_changed(changed: int, images: int, confidence: float) -> float:
    """Return the upper limit of a share of which `changed` of `images` were seen (Clopper-Pearson).

    The share for which so few would be seen with probability 1 - `confidence`. It needs no normal
    approximation, and of no changed images among few it does not say that there are none.
    """
    if changed >= images:
        return 1.0
    low, high = changed / images, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _at_most(changed, images, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def images_to_show(share: float, confidence: float) -> int:
    """Return the fewest images, none of them changed, that show that at most a `share` does."""
    return ceil(log(1 - confidence) / log1p(-share) - 1e-9)


def _at_most(count: int, images: int, share: float) -> float:
    """Return the probability that at most `count` of `images` change, each with that share."""
    yes, no = log(share) if share else -1e300, log1p(-share)
    return sum(
        exp(ways + k * yes + (images - k) * no) for k, ways in enumerate(_ways(count, images))
    )


@lru_cache(maxsize=64)
def _ways(count: int, images: int) -> tuple[float, ...]:
    """Return the logarithms of the binomial coefficients up to `count`."""
    whole = lgamma(images + 1)
    return tuple(whole - lgamma(k + 1) - lgamma(images - k + 1) for k in range(count + 1))


def hopeless(seen: Outcome, before: Score, limit: int) -> bool:
    """Say whether a test will end with a loss over `limit` images, as far as it has come.

    Parameters
    ----------
    seen
        Counts over a random part of the images.
    before
        Counts of the network as it is over all of them.
    limit
        In images, against the network as it is.
    """
    right = seen.top1_correct + seen.lost - seen.gained
    # Only what the network as it is gets wrong can still be gained; without labels that is nothing.
    gain = (before.total - before.top1_correct) - (seen.images - right)
    return seen.lost - seen.gained - gain > limit or certainly_over(
        seen.lost, seen.gained, seen.images, before.total, limit
    )


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
