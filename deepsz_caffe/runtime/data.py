"""The images of a network's TEST phase: how many there are, and who brings them.

Caffe's Data and HDF5Data layers read for themselves and start again at the end; the number of
entries says where to stop, so that every image counts exactly once. MemoryData and Input layers
get arrays from us, and so does ImageData where Caffe was built without OpenCV: these layers are
replaced by Input layers, and `Images.batches` gives what goes into them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, InputError

Array = NDArray[Any]
#: A source that takes the place of the prototxt's (an LMDB, a list, a ``.npz``), or arrays by blob.
Data = str | os.PathLike[str] | Mapping[str, Array] | None

_LMDB = 1  # DataParameter.DB


@dataclass(frozen=True)
class Images:
    """The images of one network.

    Attributes
    ----------
    total
        Their number.
    batch
        Images in a forward pass.
    arrays
        Blob name -> array of all images, for blobs that are fed by us. Values that no blob of the
        network takes (labels for a deploy prototxt) are there too.
    files, fed_by
        For ImageData without OpenCV in Caffe: the lines of the list, and the layer to imitate.
    """

    total: int
    batch: int
    arrays: Mapping[str, Array]
    files: tuple[tuple[str, int], ...] = ()
    fed_by: Any = None

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
        for start in range(first * self.batch, end, self.batch):
            stop = min(start + self.batch, self.total)
            given = {name: array[start:stop] for name, array in self.arrays.items()}
            if self.files:
                given |= _read_images(self.fed_by, self.files[start:stop])
            yield stop - start, given


def prepare_images(net: Any, data: Data, layer_types: frozenset[str]) -> Images:  # noqa: ANN401
    """Find the images of a network and make it ready for them.

    Parameters
    ----------
    net
        NetParameter of the phase; changed in place: sources are overridden, layers that Caffe
        can't fill are replaced by Input layers.
    data
        What overrides the network's own source: the path of an LMDB, HDF5 list or image list; or,
        for MemoryData and Input layers, arrays by blob name (a mapping or the path of a ``.npz``),
        of which ``label`` holds the labels.
    layer_types
        What this Caffe knows.

    Raises
    ------
    DataError
        A source is missing, empty, or of a kind that can't be counted.
    """
    arrays = _arrays(data)
    if arrays is None and isinstance(data, str | os.PathLike):
        _override_source(net, os.fspath(data))
    sources = [i for i, layer in enumerate(net.layer) if not layer.bottom and layer.top]
    counts: dict[str, tuple[int, int]] = {}
    files: tuple[tuple[str, int], ...] = ()
    fed_by = None
    for i in sources:
        layer = net.layer[i]
        where = f"layer {layer.name}"
        if layer.type == "Data":
            counts[where] = _lmdb_entries(layer.data_param), layer.data_param.batch_size
        elif layer.type == "HDF5Data":
            parameters = layer.hdf5_data_param
            counts[where] = _hdf5_rows(parameters.source, layer.top[0]), parameters.batch_size
        elif layer.type == "ImageData":
            listed = _image_list(layer.image_data_param.source)
            counts[where] = len(listed), layer.image_data_param.batch_size
            if layer.type not in layer_types:
                files, fed_by = listed, type(layer)()
                fed_by.CopyFrom(layer)
                _replace(
                    layer, [_image_shape(layer, listed[0]), (layer.image_data_param.batch_size,)]
                )
        elif layer.type in ("MemoryData", "Input"):
            shapes = _fed_shapes(layer)
            counts[where] = _given_rows(arrays, tuple(layer.top), where), shapes[0][0]
            _replace(layer, shapes)
        elif layer.type not in ("DummyData", "Parameter"):
            raise DataError(
                f"can't count the images of a layer of type {layer.type}",
                where=where,
                hint="Data, HDF5Data, ImageData, MemoryData and Input are understood",
            )
    if not counts:
        raise DataError(
            "the network has no data in its TEST phase",
            hint="take the train_val prototxt, or one with an Input layer and give arrays",
        )
    if len(set(counts.values())) > 1:
        said = "; ".join(f"{where}: {n} in batches of {b}" for where, (n, b) in counts.items())
        raise DataError(f"the data layers disagree: {said}")
    total, batch = next(iter(counts.values()))
    return Images(total, batch, arrays or {}, files, fed_by)


def source_files(net: Any, data: Data) -> list[Path]:  # noqa: ANN401
    """List the files that hold the images, for a digest; none where arrays are given."""
    if data is not None:
        return [] if isinstance(data, Mapping) else _files_of(Path(data))
    found = []
    for layer in net.layer:
        for field in ("data_param", "hdf5_data_param", "image_data_param"):
            if layer.HasField(field) and (source := getattr(layer, field).source):
                found += _files_of(Path(source))
    return found


def _files_of(source: Path) -> list[Path]:
    return [source / "data.mdb"] if source.is_dir() else [source]


def _arrays(data: Data) -> Mapping[str, Array] | None:
    if isinstance(data, Mapping):
        return data
    if data is None or Path(data).suffix != ".npz":
        return None
    try:
        with np.load(data) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f"can't read arrays: {error}", where=data) from error


def _override_source(net: Any, source: str) -> None:  # noqa: ANN401
    changed = 0
    for layer in net.layer:
        for kind in ("data", "hdf5_data", "image_data"):
            if not layer.bottom and layer.HasField(f"{kind}_param"):
                getattr(layer, f"{kind}_param").source = source
                changed += 1
    if changed != 1:
        raise InputError(
            f"a data source was given, but the TEST phase has {changed} layers that read one",
            where=source,
        )


def _lmdb_entries(parameters: Any) -> int:  # noqa: ANN401
    source = Path(parameters.source)
    if not source.exists():
        hint = "sources are relative to the working folder; `deepsz mnist DIR` makes MNIST's"
        raise DataError("no such LMDB", where=source, hint=hint)
    if parameters.backend != _LMDB:
        raise DataError("a LevelDB: its entries can't be counted", where=source, hint="use LMDB")
    import lmdb

    try:
        with lmdb.open(
            os.fspath(source), readonly=True, lock=False, subdir=source.is_dir()
        ) as environment:
            entries = int(environment.stat()["entries"])
    except lmdb.Error as error:
        raise DataError(f"not an LMDB: {error}", where=source) from error
    if entries == 0:
        raise DataError("the LMDB is empty", where=source)
    return entries


def _lines(source: str) -> list[str]:
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the list of files: {error}", where=source) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError("the list of files is empty", where=source)
    return lines


def _hdf5_rows(source: str, blob: str) -> int:
    import h5py

    rows = 0
    for name in _lines(source):
        try:
            with h5py.File(name, "r") as file:
                rows += len(file[blob])
        except (OSError, KeyError) as error:
            raise DataError(f"can't read dataset {blob}: {error}", where=name) from error
    if rows == 0:
        raise DataError("the HDF5 files hold no images", where=source)
    return rows


def _image_list(source: str) -> tuple[tuple[str, int], ...]:
    pairs = []
    for line in _lines(source):
        name, _, label = line.rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
            raise DataError(f"a line is not `FILE LABEL`: {line!r}", where=source)
        pairs.append((name, int(label)))
    return tuple(pairs)


def _fed_shapes(layer: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    if layer.type == "MemoryData":
        p = layer.memory_data_param
        return [(p.batch_size, p.channels, p.height, p.width), (p.batch_size,)]
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
    if not shapes or not all(shapes):
        raise DataError("an Input layer without a shape", where=f"layer {layer.name}")
    return shapes * len(layer.top) if len(shapes) == 1 else shapes


def _given_rows(arrays: Mapping[str, Array] | None, tops: tuple[str, ...], where: str) -> int:
    if arrays is None:
        raise DataError(
            "this layer holds no data of its own",
            where=where,
            hint=f"give arrays for {' and '.join(tops)}, e.g. --data images.npz",
        )
    for name in (*tops, "label"):
        if name not in arrays:
            has = ", ".join(arrays)
            raise DataError(f"no array for {name}; given: {has}", where=where)
    rows = {len(arrays[name]) for name in (*tops, "label")}
    if len(rows) != 1 or 0 in rows:
        raise DataError("the arrays are empty or differ in length", where=where)
    return rows.pop()


def _replace(layer: Any, shapes: list[tuple[int, ...]]) -> None:  # noqa: ANN401
    name, tops = layer.name, list(layer.top)
    layer.Clear()
    layer.name, layer.type = name, "Input"
    layer.top.extend(tops)
    for _, shape in zip(tops, shapes, strict=True):
        layer.input_param.shape.add(dim=shape)


def _image_shape(layer: Any, first: tuple[str, int]) -> tuple[int, ...]:  # noqa: ANN401
    image = _read_images(layer, (first,))[layer.top[0]]
    return (layer.image_data_param.batch_size, *image.shape[1:])


def _read_images(layer: Any, files: tuple[tuple[str, int], ...]) -> dict[str, Array]:  # noqa: ANN401
    """Do what Caffe's ImageData layer does in the TEST phase."""
    try:
        import cv2
    except ImportError as error:
        raise DataError(
            "ImageData needs OpenCV, which neither Caffe nor Python has here",
            where=f"layer {layer.name}",
            hint="pip install opencv-python-headless",
        ) from error
    parameters, transform = layer.image_data_param, layer.transform_param
    if transform.mirror or transform.mean_file:
        raise DataError("mirror and mean_file are not supported here", where=f"layer {layer.name}")
    images = []
    for name, _ in files:
        flag = cv2.IMREAD_COLOR if parameters.is_color else cv2.IMREAD_GRAYSCALE
        image = cv2.imread(parameters.root_folder + name, flag)
        if image is None:
            raise DataError("not an image that OpenCV reads", where=parameters.root_folder + name)
        if parameters.new_height and parameters.new_width:
            image = cv2.resize(image, (parameters.new_width, parameters.new_height))
        image = np.atleast_3d(image)
        if crop := transform.crop_size:
            top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
            image = image[top : top + crop, left : left + crop]
        values = image.astype(np.float32)
        if transform.mean_value:
            values -= np.asarray(transform.mean_value, np.float32)
        images.append(values.transpose(2, 0, 1) * np.float32(transform.scale))
    if len({image.shape for image in images}) != 1:
        raise DataError("images differ in size; set new_height and new_width", where=files[0][0])
    labels = np.array([label for _, label in files], np.float32)
    return dict(zip(layer.top, (np.stack(images), labels), strict=False))
