"""What reading a file may use, and what decoding its layers takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

from deepsz_caffe import codecs
from deepsz_caffe.errors import FormatError, LimitError

if TYPE_CHECKING:
    from deepsz_caffe.dsz.layout import LayerEntry

Item = TypeVar("Item")
Codec = TypeVar("Codec", bound=codecs.ArrayCodec)

#: what any file may take, whatever it declares
_LEAST_SECONDS = 60.0
#: of writing a weight and taking its digest
_WEIGHT_SECONDS = 1e-7
#: of what turns steps into positions, a block at a time
_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class Limits:
    """What reading a file may use. All of it is checked before work begins.

    Parameters
    ----------
    memory
        Bytes that decoding may allocate, the result included.
    output
        Bytes that decoding may give: the weights, or the caffemodel.
    seconds
        How long decoding may take. It is refused where the weights that a file declares would take
        longer, and ended where they do. By default a minute, and for each weight what its codec
        takes at most on a slow machine: no network meets that, whatever its size.

    Examples
    --------
    >>> Limits(memory=100 << 20)
    Limits(memory=104857600, output=17179869184, seconds=None)
    """

    memory: int = 8 << 30
    output: int = 16 << 30
    seconds: float | None = None

    def allow_memory(self, needed: int, where: object) -> None:
        """Raise LimitError when `needed` bytes are more than the limit."""
        if needed > self.memory:
            raise LimitError(
                f"decoding takes {needed:,} bytes, the limit is {self.memory:,}", where=where
            )

    def check(
        self, layers: Iterable[LayerEntry], *, memory: int, output: int, where: object
    ) -> None:
        """Compare what a header declares with the limits.

        Parameters
        ----------
        memory, output
            Bytes that decoding will allocate and give.

        Raises
        ------
        LimitError
            One of them is too low.
        """
        self.allow_memory(memory, where)
        if output > self.output:
            raise LimitError(
                f"decoding gives {output:,} bytes, the limit is {self.output:,}", where=where
            )
        if self.seconds is not None and (needed := seconds(layers)) > self.seconds:
            raise LimitError(
                f"decoding may take {needed:,.0f} s, the limit is {self.seconds:g}", where=where
            )

    def allowed_seconds(self, layers: Iterable[LayerEntry]) -> float:
        """Return how long decoding these layers may take."""
        return _LEAST_SECONDS + seconds(layers) if self.seconds is None else self.seconds

    def timed(self, items: Iterable[Item], layers: Iterable[LayerEntry]) -> Iterator[Item]:
        """Yield the items until the time is over that the layers may take.

        Raises
        ------
        LimitError
            It is over.
        """
        allowed = self.allowed_seconds(layers)
        end = time.monotonic() + allowed
        for item in items:
            if time.monotonic() > end:
                raise LimitError(f"decoding took more than {allowed:g} s")
            yield item


def find_codec(registry: Mapping[str, type[Codec]], name: str) -> type[Codec]:
    """Return a codec's class.

    Raises
    ------
    FormatError
        It is unknown.
    """
    if name not in registry:
        raise FormatError(
            f"codec {name!r} is unknown",
            hint="a newer version of deepsz-caffe, or the package that it comes from, knows it; "
            "this one has " + ", ".join(registry),
        )
    return registry[name]


def working_bytes(layer: LayerEntry) -> int:
    """Return what decoding a layer allocates at most besides its matrix.

    Its streams, the two arrays, a transpose, and what its codecs say; nothing for those that are
    unknown, which will not decode anything.
    """
    # One codec after the other.
    needs = [codec.working_bytes(shape, size) for codec, shape, size in _codecs(layer)]
    codec_bytes = max(needs, default=0)
    if not layer.index_codec:
        transpose = layer.dense_bytes if layer.column_major else 0
        return layer.data_bytes + transpose + codec_bytes
    # The section is read as a whole, then cut in two.
    arrays = 5 * layer.index_count + _BLOCK_BYTES
    return 2 * (layer.data_bytes + layer.index_bytes) + arrays + codec_bytes


def seconds(layers: Iterable[LayerEntry]) -> float:
    """Return what decoding the layers takes at most on a slow machine."""
    return sum(
        _WEIGHT_SECONDS * layer.rows * layer.columns
        + sum(codec.value_seconds * prod(shape) for codec, shape, _ in _codecs(layer))
        for layer in layers
    )


def _codecs(layer: LayerEntry) -> Iterator[tuple[codecs.ArrayCodec, tuple[int, ...], int]]:
    """Yield the codecs of a layer that are known, each with the shape and bytes that it decodes."""
    if layer.index_codec:
        shape = (layer.index_count,)
        if layer.index_codec in codecs.INDEX:
            yield codecs.INDEX[layer.index_codec](), shape, layer.index_bytes
        if layer.data_codec in codecs.DATA:
            yield codecs.DATA[layer.data_codec](layer.error_bound), shape, layer.data_bytes
    elif layer.data_codec in codecs.MATRIX:
        codec = codecs.MATRIX[layer.data_codec](layer.error_bound)
        yield codec, layer.shape[::-1] if layer.column_major else layer.shape, layer.data_bytes
