"""Which codecs to try for a layer: least bytes, quickest decoding, or the paper's own choice."""

from __future__ import annotations

from dataclasses import dataclass

from deepsz_caffe.errors import InputError


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


_SZ = ("sz", "sz-lorenzo", "sz-nopred")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("paper", _SZ, ("gzip", "zstd", "blosc"), ()),
        Profile("small", _SZ, ("gzip", "zstd", "bz2", "lzma", "raw"), ()),
        Profile("fast", ("sz-nopred",), ("zstd",), ()),
        Profile("balanced", ("sz", "sz-nopred"), ("zstd",), ()),
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
