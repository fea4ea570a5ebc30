"""Which codecs to try for a layer, and which result to keep.

- ``paper``: SZ on the non-zeros, with each of its predictors; gzip, Zstandard or Blosc on the steps
  between them, as the paper has it. Nothing else.
- ``small``: least bytes.
- ``fast``: least decoding time among what takes at most 5 % more than least bytes. Codecs are
  ranked by how they decode, not by a stopwatch: equal weights give equal files.
- ``balanced``: least bytes for layers of up to a million weights, quickest decoding above.
- an id of `MATRIX`, or one of `DATA` and one of `INDEX` with a ``+`` between: that codec alone.

Where a bound gives more levels than a profile's codecs have, those of ``paper`` take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepsz_caffe.codecs import DATA, INDEX, MATRIX
from deepsz_caffe.errors import InputError

#: Context mixing takes 0.1 µs a cell: up to here it takes a fraction of a second.
SMALL_LAYER = 1 << 20


@dataclass(frozen=True)
class Profile:
    """The candidates of one profile.

    Attributes
    ----------
    data, index
        Ids of codecs for the two-array form; every data codec goes with every index codec.
    matrix
        Ids of codecs that take the whole matrix, without the two arrays; the quickest to decode
        comes first.
    slack
        Bytes that quicker decoding may cost, as a fraction of least bytes.
    """

    name: str
    data: tuple[str, ...]
    index: tuple[str, ...]
    matrix: tuple[str, ...]
    slack: float = 0.0

    def for_layer(self, cells: int) -> Profile:
        """Return the candidates worth trying for a layer of `cells` weights, zeros included."""
        if self.name == "balanced":
            return replace(self, matrix=("mixing",) if cells <= SMALL_LAYER else ("packed",))
        if self.name == "fast" and cells > SMALL_LAYER:
            # Mixing would take seconds to find out the 3 % that it saves on large layers.
            return replace(self, matrix=("packed",))
        return self

    def choose(self, sizes: Sequence[int]) -> int:
        """Return which candidate to keep, given the bytes of each in the order of trial."""
        allowed = (1 + self.slack) * min(sizes)
        return next(number for number, size in enumerate(sizes) if size <= allowed)


_SZ = ("sz", "sz-lorenzo", "sz-nopred")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("balanced", (), (), ("packed", "mixing")),
        Profile("small", (), (), ("mixing",)),
        Profile("fast", (), (), ("packed", "mixing"), slack=0.05),
        Profile("paper", _SZ, ("gzip", "zstd", "blosc"), ()),
    )
}


def profile(name: str) -> Profile:
    """Return a profile by name, or one of a single codec by its id.

    Raises
    ------
    InputError
        No profile and no codec of that name.

    Examples
    --------
    >>> profile("sz+zstd").index
    ('zstd',)
    """
    if name in PROFILES:
        return PROFILES[name]
    if name in MATRIX:
        return Profile(name, (), (), (name,))
    data, plus, index = name.partition("+")
    if plus and data in DATA and index in INDEX:
        return Profile(name, (data,), (index,), ())
    raise InputError(
        f"no profile {name!r}",
        hint=f"one of {', '.join(PROFILES)}, or codecs as `deepsz bench codecs` names them",
    )
