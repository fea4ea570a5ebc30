"""What a weights file holds: layers, each with its blobs, and where they lie in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DeepSZWarning, ModelError
from deepsz_caffe.network.layers import matrix_shape
from deepsz_caffe.network.wire import LEN, Field, Walk

# Fields of NetParameter and LayerParameter.
_LAYER: Final = 100
_PARAM: Final = 6

Floats = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.float16]


@dataclass(frozen=True)
class Blob:
    """One array of a layer; nothing of it is read before `data` is asked for.

    Attributes
    ----------
    shape
        As the file has it; four axes where it gives sizes in the old way.
    size
        Values that the file has, which need not be those of the shape.
    read
        Gives these values, flat.
    place
        For errors: file and byte.
    flaw
        What is wrong with it, if anything. Caffe minds only where a network needs the layer.
    raw
        It is stored as NVCaffe does, which BVLC Caffe can't read.
    changed
        Its values are others than the file's.
    """

    shape: tuple[int, ...]
    size: int
    read: Callable[[], Floats]
    place: str = ""
    flaw: str = ""
    raw: bool = False
    changed: bool = False

    @property
    def data(self) -> Floats:
        """The values in their shape, read-only: float32, or float64 or float16 as the file has.

        Usually a view into the memory map, whose address is any number: `numpy.require` with
        ``"A"`` makes a copy for code that needs it aligned.

        Raises
        ------
        ModelError
            The blob is flawed.
        """
        self.check()
        return self.read().reshape(self.shape)

    def check(self) -> None:
        """Raise `ModelError` where the blob is flawed, without reading it."""
        if self.flaw:
            raise ModelError(self.flaw, where=self.place)


@dataclass(frozen=True)
class LayerWeights:
    """A layer of a weights file.

    Attributes
    ----------
    name
        The layer's name.
    type
        In today's spelling, such as ``"InnerProduct"``, also in V1 files; ``""`` in HDF5 files,
        which hold no types.
    blobs
        Its arrays; of an fc layer the weights and, unless it has none, the bias.
    """

    name: str
    type: str
    blobs: tuple[Blob, ...]

    def sound_blobs(self) -> tuple[Blob, ...]:
        """Give the blobs for another file; none, with a warning, where one of them is flawed."""
        for blob in self.blobs:
            if blob.flaw:
                what = f"{blob.place}: {blob.flaw}; the layer is written without weights"
                warn(what, DeepSZWarning, stacklevel=2)
                return ()
        return self.blobs

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of blob 0 taken as a matrix; see `deepsz_caffe.network.layers`."""
        if not self.blobs:
            raise ModelError("has no weights", where=f"layer {self.name}")
        return matrix_shape(self.type, self.blobs[0].shape)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """Blob 0 as ``float32[rows, columns]``; a view where the file holds float32."""
        rows_columns = self.matrix_shape
        return self.blobs[0].data.reshape(rows_columns).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Place:
    """Where a layer lies in the map: the message, or for V0 one in another, and its blobs."""

    path: tuple[Field, ...]
    blobs: tuple[Field, ...]


class CaffeModel:
    """A weights file that `read_caffemodel` has opened.

    Attributes
    ----------
    path
        The file.
    layers
        Every layer in the file's order, those without weights included.
    places, source
        Where these lie in the map of the file; none and None for HDF5.
    """

    def __init__(
        self,
        path: Path,
        layers: Sequence[LayerWeights],
        places: Sequence[Place] = (),
        source: memoryview | None = None,
    ) -> None:
        self.path = path
        self.layers = tuple(layers)
        self.places = tuple(places)
        self.source = source
        # Of layers with one name Caffe ends with the last; one without weights changes nothing.
        self._index = {layer.name: number for number, layer in enumerate(self.layers)}
        self._index |= {layer.name: n for n, layer in enumerate(self.layers) if layer.blobs}

    def with_fewer_blobs(self, wanted: Mapping[str, int]) -> CaffeModel:
        """Give the same with at most so many blobs in layers of these names; itself if it has."""
        layers = [
            replace(layer, blobs=layer.blobs[: wanted.get(layer.name, len(layer.blobs))])
            for layer in self.layers
        ]
        if all(len(a.blobs) == len(b.blobs) for a, b in zip(layers, self.layers, strict=True)):
            return self
        return CaffeModel(self.path, layers, self.places, self.source)

    def with_blobs(self, values: Mapping[tuple[str, int], NDArray[np.float32]]) -> CaffeModel:
        """Give the same with other values in some blobs: (layer, number of the blob) -> values.

        Raises
        ------
        ModelError
            There is no such blob, or it has another number of values.
        """
        layers = list(self.layers)
        for (name, number), array in values.items():
            layer = layers[self.number(name)]
            if number >= len(layer.blobs) or layer.blobs[number].size != array.size:
                raise ModelError(
                    f"no blob {number} of {array.size} values", where=f"{self.path}, layer {name}"
                )
            blobs = list(layer.blobs)
            read = partial(np.asarray, array.reshape(-1))
            blobs[number] = replace(blobs[number], read=read, raw=False, changed=True)
            layers[self.number(name)] = replace(layer, blobs=tuple(blobs))
        return CaffeModel(self.path, layers, self.places, self.source)

    def shared_names(self, number: int) -> tuple[str, ...]:
        """Give the names by which a layer, by its position, shares its blobs; "" for none."""
        if self.source is None or self.places[number].path[0].number != _LAYER:
            return ()
        message = self.places[number].path[-1]
        walk = Walk(self.source)
        names = []
        for part in walk.fields(message.start, message.end):
            if part.number == _PARAM and part.wire == LEN:
                inner = [f for f in walk.fields(part.start, part.end) if f.number == 1]
                name = bytes(self.source[inner[-1].start : inner[-1].end]) if inner else b""
                names.append(name.decode("utf-8", "backslashreplace"))
        return tuple(names)

    def __contains__(self, name: object) -> bool:
        """Say whether a layer of that name has weights here.

        HDF5 files have an empty group for a layer that shares all of its weights.
        """
        return name in self._index and bool(self.layers[self._index[str(name)]].blobs)

    def __getitem__(self, name: str) -> LayerWeights:
        """Give the layer of that name, the last with weights where several have it."""
        return self.layers[self.number(name)]

    def number(self, name: str) -> int:
        """Give the position of that layer in `layers`."""
        if name not in self._index:
            known = ", ".join(layer.name for layer in self.layers if layer.blobs) or "none"
            raise ModelError(f"no layer {name!r}", where=self.path, hint=f"with weights: {known}")
        return self._index[name]
