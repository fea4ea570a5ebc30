"""The images of a network's TEST phase: how many there are, and who brings them.

Caffe's Data and HDF5Data layers read for themselves and start again at the end; the number of
entries says where to stop, so that every image counts exactly once. Where arrays are given, they
take the place of what the layers put out, whatever these would read. Such layers, and those whose
files this Caffe can't read (`sources`), are replaced by Input layers, and `Images.batches` gives
what goes into them.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.files import open_input
from deepsz_caffe.runtime.images import listed_files
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.runtime.preprocess import picture_input
from deepsz_caffe.runtime.sources import (
    PARAMETERS,
    Reader,
    batch_size,
    count_images,
    countable,
    open_source,
)

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

Array = NDArray[np.generic]
#: A source that takes the place of the prototxt's (an LMDB, a list, a ``.npz``), arrays by blob,
#: or pictures, whose labels may be unknown.
Data = str | os.PathLike[str] | Mapping[str, Array] | Pictures | None

# Bytes read of a large data file for its digest: this many pieces of 1 MiB, evenly spread.
_PIECES, _PIECE = 256, 1 << 20

#: The name under which arrays hold the labels, whatever blob takes them.
LABEL = "label"


@dataclass(frozen=True)
class Images:
    """The images of one network.

    Attributes
    ----------
    total
        Their number.
    batch
        Images in a forward pass.
    fed
        Blob name -> array of all images, in the blob's shape, for blobs that are fed by us.
    labels
        The array ``label``, where arrays were given; for networks without a blob of labels.
    reader, read_into
        Reads images that this Caffe can't, and the blobs that take images and labels.
    crops
        Images that follow each other and are judged as one, by their mean scores.
    unlabelled
        Nobody knows the labels: the network's own answers take their place.
    """

    total: int
    batch: int
    fed: Mapping[str, Array] = field(default_factory=dict)
    labels: Array | None = None
    reader: Reader | None = None
    read_into: tuple[str, ...] = ()
    crops: int = 1
    unlabelled: bool = False

    def part(self, part: int, parts: int) -> tuple[int, int]:
        """Give the first batch of one of `parts` equal parts, and the one after its last."""
        batches = -(-self.total // self.batch)
        return part * batches // parts, (part + 1) * batches // parts

    def batches(
        self, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """Give, for each forward pass, its number of new images and the arrays to put in.

        Only for passes `first` to `last`, the last one excluded; by default for all.
        """
        end = self.total if last is None else min(last * self.batch, self.total)
        read = None if self.reader is None else self.reader(first * self.batch)
        for start in range(first * self.batch, end, self.batch):
            stop = min(start + self.batch, self.total)
            given = {name: array[start:stop] for name, array in self.fed.items()}
            if read is not None:
                given |= self._stacked(list(islice(read, stop - start)))
            yield stop - start, given

    def _stacked(self, pairs: Sequence[tuple[Array, int]]) -> dict[str, Array]:
        images, labels = zip(*pairs, strict=True)
        if len({image.shape for image in images}) != 1:
            raise DataError(
                "images differ in size",
                where=f"blob {self.read_into[0]}",
                hint="set crop_size, or new_height and new_width for ImageData",
            )
        columns = (np.stack(images), np.array(labels, np.float32))
        return dict(zip(self.read_into, columns, strict=False))


def prepare_images(
    net: NetParameter,
    data: Data,
    layer_types: frozenset[str],
    labels: str | None = None,
) -> Images:
    """Find the images of a network and make it ready for them.

    Parameters
    ----------
    net
        NetParameter of the phase; changed in place: sources are overridden, layers that Caffe
        can't fill are replaced by Input layers.
    data
        What takes the place of the network's own source: the path of an LMDB, HDF5 list or image
        list; or arrays by blob name (a mapping or the path of a ``.npz``), of which ``label``
        holds the labels. Arrays are what the data layers put out, so cropped, scaled and so on.
        Or pictures, for the network's one input of pictures.
    layer_types
        What this Caffe knows.
    labels
        The blob of the labels, to which the array ``label`` goes, too.

    Raises
    ------
    DataError
        A source is missing, empty, or of a kind that can't be counted; or arrays are missing, or
        of another shape than the network wants.
    """
    if isinstance(data, Pictures):
        return _with_pictures(net, data)
    arrays = _arrays(data)
    if arrays is None and isinstance(data, str | os.PathLike):
        _override_source(net, os.fspath(data))
    counts: dict[str, tuple[int, int]] = {}
    fed: dict[str, Array] = {}
    reader: Reader | None = None
    read_into: tuple[str, ...] = ()
    for layer in net.layer:
        if layer.bottom or not layer.top or layer.type in ("DummyData", "Parameter"):
            continue
        where, tops = f"layer {layer.name}", tuple(layer.top)
        _check_type(layer)
        if arrays is not None or layer.type not in PARAMETERS:
            given = _given(arrays, tops, labels, where)
            batch, shapes = _wanted(layer, given, layer_types)
            for top, array, shape in zip(tops, given, shapes, strict=True):
                fed[top] = fitted(array, shape, f"{where}, blob {top}")
            counts[where] = len(given[0]), batch
        else:
            source = open_source(layer, layer_types)
            batch, shapes = batch_size(layer), source.shapes
            counts[where] = source.images, batch
            if source.reader is None:
                continue
            if reader is not None:
                raise DataError(
                    "a second layer whose images Caffe does not read",
                    where=where,
                    hint="give arrays for all of them, e.g. --data images.npz",
                )
            reader, read_into = source.reader, tops
        _replace(layer, [(batch, *shape) for shape in shapes])
    if not counts:
        raise DataError(
            "the network has no data in its TEST phase",
            hint="take the train_val prototxt, or one with an Input layer and give arrays",
        )
    if len(set(counts.values())) > 1:
        said = "; ".join(f"{where}: {n} in batches of {b}" for where, (n, b) in counts.items())
        raise DataError(f"the data layers disagree: {said}")
    total, batch = next(iter(counts.values()))
    given_labels = None if arrays is None else arrays.get(LABEL)
    if given_labels is not None and len(given_labels) != total:
        raise DataError(f"{len(given_labels)} labels for {total} images", where=f"array {LABEL}")
    return Images(total, batch, fed, given_labels, reader, read_into)


def _with_pictures(net: NetParameter, pictures: Pictures) -> Images:
    entry, how = picture_input(net), pictures.how
    layer = net.layer[entry.layer]
    if entry.how.shape != how.shape:
        raise DataError(
            f"pictures are made {list(how.shape)}, it takes {list(entry.how.shape)}",
            where=f"layer {layer.name}",
        )
    tops = tuple(layer.top)
    if len(tops) > 2:
        raise DataError(f"pictures don't fill {', '.join(tops[1:])}", where=f"layer {layer.name}")
    # All crops of a picture in one batch.
    batch = -(-entry.batch // how.crops) * how.crops
    _replace(layer, [(batch, *how.shape), (batch,)][: len(tops)])
    labels = None if pictures.labels is None else np.repeat(pictures.labels, how.crops)
    return Images(
        total=pictures.total * how.crops,
        batch=batch,
        labels=labels,
        reader=pictures.inputs,
        read_into=tops,
        crops=how.crops,
        unlabelled=labels is None,
    )


def fitted(array: Array, shape: tuple[int, ...], where: str) -> Array:
    """Give an array of n images the shape of its blob.

    Parameters
    ----------
    array
        [n, …], exactly of the blob's shape or with all of an image in one row.
    shape
        Of one image.

    Raises
    ------
    DataError
        It has another shape; both are named. To reshape it all the same would mix up axes.
    """
    size = math.prod(shape)
    if array.shape[1:] == shape or array.shape[1:] == (size,) or (size == 1 == array[0].size):
        return array.reshape(len(array), *shape)
    raise DataError(
        f"arrays of {list(array.shape[1:])} an image do not fit {list(shape)}",
        where=where,
        hint="images are channels × height × width, or flat" if len(shape) == 3 else None,
    )


def periods(net: NetParameter) -> dict[str, int]:
    """Say after how many batches each data layer is at its first image again.

    Layers that read at random, or from what can't be counted, are left out.

    Raises
    ------
    DataError
        A source is missing or empty; Caffe's own message would not name it.
    """
    found = {}
    for layer in net.layer:
        if layer.bottom or layer.type not in PARAMETERS or not countable(layer):
            continue
        if not getattr(getattr(layer, PARAMETERS[layer.type]), "shuffle", False):
            images, batch = count_images(layer), batch_size(layer)
            found[layer.name] = images // math.gcd(images, batch)
    return found


def data_digest(net: NetParameter, data: Data) -> str:
    """Digest the images of a network, or what takes their place; of large files only parts.

    A source that is missing counts as empty: it is reported where it is read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(data, Mapping):
        for name, array in sorted(data.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
    if isinstance(data, Pictures):
        data.add_to(digest)
        return digest.hexdigest()
    for path in _source_files(net) if data is None else _files_of(Path(data)):
        if path.is_file():
            digest.update(os.fsencode(f"{path.name} {path.stat().st_size}"))
            add_file(digest, path, sampled=True)
    return digest.hexdigest()


def add_file(digest: hashlib.blake2b, path: Path, *, sampled: bool = False) -> None:
    """Add a file's contents; of a large one with `sampled` only pieces, evenly spread."""
    with open_input(path, DataError) as file:
        size = os.fstat(file.fileno()).st_size
        step = max(_PIECE, size // _PIECES) if sampled else _PIECE
        for offset in range(0, size, step):
            file.seek(offset)
            digest.update(file.read(_PIECE))


def _source_files(net: NetParameter) -> list[Path]:
    found = []
    for layer in net.layer:
        for name in PARAMETERS.values():
            if layer.HasField(name) and (source := getattr(layer, name).source):
                found += _files_of(Path(source))
                if name == "hdf5_data_param":
                    found += listed_files(source)
    return found


def _files_of(source: Path) -> list[Path]:
    return [source / "data.mdb"] if source.is_dir() else [source]


def _arrays(
    data: str | os.PathLike[str] | Mapping[str, Array] | None,
) -> Mapping[str, Array] | None:
    if data is None or isinstance(data, Mapping):
        return data
    path = Path(data)
    if not (path.suffix == ".npz" or (path.is_file() and zipfile.is_zipfile(path))):
        return None
    try:
        with open_input(path, DataError) as file, np.load(file) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"can't read arrays: {error}", where=data) from error


def _override_source(net: NetParameter, source: str) -> None:
    readers = [layer for layer in net.layer if not layer.bottom and layer.type in PARAMETERS]
    if len(readers) != 1:
        raise InputError(
            f"a data source was given, but the TEST phase has {len(readers)} layers that read one",
            where=source,
        )
    try:
        getattr(readers[0], PARAMETERS[readers[0].type]).source = source
    except UnicodeEncodeError as error:
        raise InputError(
            "its name is no UTF-8, as a prototxt must have it", where=source, hint="rename it"
        ) from error


def _check_type(layer: LayerParameter) -> None:
    if layer.type not in (*PARAMETERS, "MemoryData", "Input"):
        raise DataError(
            f"can't count the images of a layer of type {layer.type}",
            where=f"layer {layer.name}",
            hint="Data, HDF5Data, ImageData, MemoryData and Input are understood",
        )


def _given(
    arrays: Mapping[str, Array] | None, tops: tuple[str, ...], labels: str | None, where: str
) -> list[Array]:
    """Find the array for each top."""
    if arrays is None:
        raise DataError(
            "this layer holds no data of its own",
            where=where,
            hint=f"give arrays for {' and '.join(tops)}, e.g. --data images.npz",
        )
    names = [LABEL if top == labels and top not in arrays else top for top in tops]
    wanted = [*names] if labels is not None else [*names, LABEL]
    for name in wanted:
        if name not in arrays:
            has = ", ".join(arrays) or "none"
            raise DataError(f"no array for {name}; given: {has}", where=where)
        if arrays[name].ndim == 0 or arrays[name].dtype.kind not in "fiub":
            raise DataError("not an array of numbers, a row for each image", where=f"array {name}")
    rows = {len(arrays[name]) for name in wanted}
    if len(rows) != 1 or 0 in rows:
        raise DataError("the arrays are empty or differ in length", where=where)
    return [arrays[name] for name in names]


def _wanted(
    layer: LayerParameter, given: Sequence[Array], layer_types: frozenset[str]
) -> tuple[int, Sequence[tuple[int, ...]]]:
    """Give the batch size of a layer that is fed by us, and the shape of an image for each top."""
    if layer.type == "MemoryData":
        p = layer.memory_data_param
        return p.batch_size, [(p.channels, p.height, p.width), ()]
    if layer.type == "Input":
        shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
        if not shapes or not all(shapes):
            raise DataError("an Input layer without a shape", where=f"layer {layer.name}")
        shapes *= len(layer.top) if len(shapes) == 1 else 1
        return shapes[0][0], [shape[1:] for shape in shapes]
    try:
        return batch_size(layer), open_source(layer, layer_types).shapes
    except DataError:
        # Arrays may be given just because the source is elsewhere; then they say what fits.
        return batch_size(layer), [array.shape[1:] for array in given]


def _replace(layer: LayerParameter, shapes: Sequence[tuple[int, ...]]) -> None:
    name, tops = layer.name, list(layer.top)
    layer.Clear()
    layer.name, layer.type = name, "Input"
    layer.top.extend(tops)
    for _, shape in zip(tops, shapes, strict=True):
        layer.input_param.shape.add(dim=shape)
