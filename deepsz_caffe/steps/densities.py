"""Which density to try next, by the files of those that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log, log2, sqrt

#: Part of the weights that the first pruned network keeps, and the step from one to the next: what
#: is pruned to a half at once loses more than what goes there in two steps.
FIRST, _STEP = 1 / 16, sqrt(1 / 2)
#: Densities this close, as a factor, are one.
_CLOSE = 1.2
#: Part of the time left that the next trial takes while densities fall step by step: the later
#: ones, between which the choice is, share the rest.
_SHARE = 0.1
#: Bytes of a file that is larger than any other.
_LARGEST = 1e300


def next_keep(tried: Mapping[float, float]) -> float | None:
    """Choose the density to try next.

    Parameters
    ----------
    tried
        Density -> bytes of the file that holds the loss; infinity where none does.

    Returns
    -------
    float or None
        None where the gaps around the smallest file are closed.

    Examples
    --------
    >>> next_keep({})
    0.0625
    >>> next_keep({0.0625: 90, 0.03125: 50, 0.015625: float("inf")})
    0.02209708691207961
    """
    best, gaps = _gaps(tried)
    if not gaps:
        return min(best * _STEP, FIRST)
    widest = max(gaps, key=lambda other: (_width(best, other), best / other))
    return None if _width(best, widest) <= _CLOSE else float((best * widest) ** 0.5)


def share_of_time(tried: Mapping[float, float]) -> float:
    """Say which part of the time that is left the next trial takes."""
    best, gaps = _gaps(tried)
    if not gaps:
        return _SHARE
    halvings = [log2(log(_width(best, other)) / log(_CLOSE)) for other in gaps]
    # One more may be trained on, or a gap opens on the other side.
    return 1 / (1 + max(sum(max(ceil(each), 0) for each in halvings), 1))


def _gaps(tried: Mapping[float, float]) -> tuple[float, tuple[float, ...]]:
    """Give the density of the smallest file, and those beside it where a sparser one was tried."""
    # What is not pruned holds any loss, if only in a file that no other is as large as, …
    tried = {1.0: _LARGEST} | dict(tried)
    best = min(tried, key=lambda keep: (tried[keep], -keep))
    sparser = [keep for keep in tried if keep < best]
    # … but files get no smaller towards it.
    denser = [keep for keep in tried if best < keep < 1]
    if not sparser:
        return best, ()
    return best, (max(sparser), *([min(denser)] if denser else []))


def _width(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
