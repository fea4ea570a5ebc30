"""Which codecs to try for a layer: least bytes, quickest decoding, or the paper's own choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepsz_caffe.errors import InputError

#: Context mixing takes 0.2 µs a cell: up to here it takes under a second.
SMALL_LAYER = 1 << 20


@dataclass(frozen=True)
class Profile:
    """The candidates of one profile; the encoder keeps the one with least bytes.

    Attributes
    ----------
    data, index
        Ids of codecs for the two-array form; every data codec goes with every index codec.
    matrix
        Ids of codecs that take the whole matrix, without the two arrays.
    """

    name: str
    data: tuple[str, ...]
    index: tuple[str, ...]
    matrix: tuple[str, ...]

    def for_layer(self, cells: int) -> Profile:
        """Return the candidates worth trying for a layer of `cells` weights, zeros included."""
        if self.name != "balanced":
            return self
        quick = "mixing" if cells <= SMALL_LAYER else "packed"
        return replace(self, matrix=(quick,))


_SZ = ("sz", "sz-lorenzo", "sz-nopred")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("balanced", (), (), ("mixing", "packed")),
        Profile("small", (), (), ("mixing",)),
        Profile("fast", (), (), ("packed",)),
        Profile("paper", _SZ, ("gzip", "zstd", "blosc"), ()),
    )
}


def profile(name: str) -> Profile:
    """Return a profile by name.

    Raises
    ------
    InputError
        No profile of that name.
    """
    if name not in PROFILES:
        raise InputError(f"no profile {name!r}", hint=f"one of {', '.join(PROFILES)}")
    return PROFILES[name]
