"""Anybody's labelled images: a folder a class, a list, IDX files or arrays, read one at a time.

Image files are read as the ImageData layer reads them, by OpenCV: three channels in BGR order, or
one where they are gray. So a network scores the same on a list and on the LMDB made of it.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments.datasets.databases import Record, Report, write_splits
from deepsz_caffe.experiments.datasets.idx import parse_idx
from deepsz_caffe.files import read_input
from deepsz_caffe.runtime.images import (
    ENDINGS,
    decode_image,
    image_list,
    listed_file,
    needed,
    read_image,
)

#: name of the images that no named part takes
REST = "train"


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes
    ----------
    labels
        int64[n]
    read
        Gives an image by its number, uint8 or floating point [channels, height, width].
    classes
        Names by label, where labels come from folders.
    sorted
        Images of a class follow each other, as folders have them.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], NDArray[np.generic]]
    classes: tuple[str, ...] = ()
    sorted: bool = False

    def records(self, order: Sequence[int] | NDArray[np.int64]) -> Iterator[Record]:
        """Give the images of these numbers, in this order."""
        for number in order:
            yield self.read(int(number)), int(self.labels[number])


def open_images(
    source: Path,
    *,
    labels: Path | None = None,
    size: tuple[int, int] | None = None,
    gray: bool | None = None,
) -> LabelledImages:
    """Find labelled images.

    Parameters
    ----------
    source
        A folder with a folder for each class, whose names in alphabetical order are labels 0, 1, …;
        a list of lines ``FILE LABEL``, as convert_imageset takes it, files named relative to the
        working folder or to the list's; an IDX file of images, packed by gzip or not; or a ``.npz``
        with arrays ``data`` [n, channels, height, width] or [n, height, width], and ``label`` [n].
    labels
        The IDX file of labels; without it the one that is named as MNIST names them.
    size
        Width and height to scale every image to.
    gray
        Whether image files are read as gray or as BGR images; by default as the first is.

    Raises
    ------
    DataError
        There are no images, or something is not what it should be.
    InputError
        There is no such source, or an option does not go with it.
    """
    if source.is_dir():
        if labels is not None:
            raise InputError("a folder has its labels in the folders' names", where=labels)
        return _of_folder(source, size, gray)
    if not source.exists():
        raise InputError("no such list, folder or file", where=source)
    if zipfile.is_zipfile(source):
        return _of_arrays(*_npz(source), size, source)
    start = read_input(source, DataError)[:4]
    if start[:2] == b"\x1f\x8b" or start[:3] == b"\0\0\x08":
        return _of_idx(source, labels, size)
    if labels is not None:
        raise InputError("only IDX files have their labels in a file of their own", where=labels)
    files = [(listed_file(name, source), label) for name, label in image_list(str(source))]
    return _of_files(files, size, gray)


def prepare_lmdbs(
    out: Path,
    images: LabelledImages,
    parts: Mapping[str, float],
    *,
    shuffle: bool | None = None,
    report: Report,
) -> dict[str, int]:
    """Write images as LMDBs, each complete or not at all.

    Parameters
    ----------
    out
        The LMDB; or, with parts, a folder that gets ``NAME_lmdb`` for each, and ``train_lmdb`` with
        all other images.
    parts
        Name -> fraction of each class's images, chosen at random, always the same.
    shuffle
        Whether to shuffle each LMDB, because Caffe reads in order; by default where the images of
        a class follow each other.

    Raises
    ------
    InputError
        A part is empty or nothing is left, or a fraction is not in (0, 1); something is there.
    DataError
        As `write_splits`; an image can't be read, or has another size than the first.
    """
    chosen = choose(images.labels, parts, shuffle=images.sorted if shuffle is None else shuffle)
    if not parts:
        chosen = {out.name: chosen[REST]}
        out = out.parent
    else:
        chosen = {f"{name}_lmdb": order for name, order in chosen.items()}

    for name in chosen:
        # It may hold other images, or these at another size.
        if (out / name).exists():
            raise InputError("is there already", where=out / name, hint="remove it first")

    def read(scratch: Path) -> dict[str, Iterator[Record]]:
        return {name: images.records(order) for name, order in chosen.items()}

    sizes = {name: len(order) for name, order in chosen.items()}
    return write_splits(out, sizes, read, report)


def choose(
    labels: NDArray[np.int64], parts: Mapping[str, float], *, shuffle: bool
) -> dict[str, NDArray[np.int64]]:
    """Cut the numbers of images into parts that hold the same fraction of each class.

    Returns
    -------
    dict
        Name of the part -> int64 numbers of its images; what no part takes is named `REST`.

    Raises
    ------
    InputError
        A part is empty or nothing is left, a fraction is not in (0, 1), or a name is a path.
    """
    for name, part in parts.items():
        if not name or Path(name).name != name:
            raise InputError(
                f"{name!r} does not name a part: it becomes the folder NAME_lmdb",
                hint="e.g. validation=0.1",
            )
        if not 0 < part < 1 or name == REST:
            raise InputError(
                f"{part} is not a part of the images", where=name, hint="e.g. validation=0.1"
            )
    random = np.random.default_rng(0)
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in (REST, *parts)}
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        for name, part in parts.items():
            taken = round(part * np.count_nonzero(labels == label))
            found[name].append(members[:taken])
            members = members[taken:]
        found[REST].append(members)
    chosen = {name: np.sort(np.concatenate(pieces)) for name, pieces in found.items()}
    for name, order in chosen.items():
        if not order.size:
            raise InputError(f"no image is left for it of {labels.size}", where=name)
    return {name: random.permutation(order) if shuffle else order for name, order in chosen.items()}


def _of_folder(folder: Path, size: tuple[int, int] | None, gray: bool | None) -> LabelledImages:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in ENDINGS and path.is_file()
    ]
    if not files:
        raise DataError(
            "no image files", where=folder, hint="it should have a folder for each class"
        )
    return _of_files(files, size, gray, tuple(classes))


def _of_files(
    files: Sequence[tuple[Path, int]],
    size: tuple[int, int] | None,
    gray: bool | None,
    classes: tuple[str, ...] = (),
) -> LabelledImages:
    if gray is None:
        gray = _is_gray(files[0][0])

    def read(number: int) -> NDArray[np.generic]:
        image = read_image(str(files[number][0]), color=not gray, size=size)
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    labels = np.array([label for _, label in files], np.int64)
    return LabelledImages(labels, read, classes, sorted=bool(classes))


def _is_gray(path: Path) -> bool:
    flag = needed("cv2", path).IMREAD_UNCHANGED
    image = decode_image(read_input(path, DataError), flag, path)
    return image is not None and image.ndim == 2


def _of_idx(source: Path, labels: Path | None, size: tuple[int, int] | None) -> LabelledImages:
    images = _idx(source)
    beside = source.name.replace("images", "labels").replace("idx3", "idx1")
    found = source.with_name(beside) if labels is None else labels
    if found == source or not found.exists():
        raise InputError("an IDX file of images needs its labels", where=source, hint="--labels")
    return _of_arrays(images, _idx(found), size, source)


def _idx(path: Path) -> NDArray[np.uint8]:
    raw = read_input(path, DataError)
    try:
        return parse_idx(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw, str(path))
    except (OSError, EOFError) as error:
        raise DataError(f"can't unpack: {error}", where=path) from error


def _npz(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    try:
        with np.load(path) as archive:
            if missing := {"data", "label"} - set(archive.files):
                has = ", ".join(archive.files)
                raise DataError(f"no array {min(missing)}, only {has}", where=path)
            return archive["data"], archive["label"]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"can't read arrays: {error}", where=path) from error


def _of_arrays(
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    size: tuple[int, int] | None,
    source: Path,
) -> LabelledImages:
    if images.ndim == 3:
        images = images[:, np.newaxis]
    if images.ndim != 4 or not images.size or images.dtype.kind not in "uif":
        raise DataError(
            f"{images.dtype}{list(images.shape)} are not images [n, channels, height, width]",
            where=source,
        )
    if images.shape[1] > 4 >= images.shape[3]:
        raise DataError(
            f"{list(images.shape)} has its channels last",
            where=source,
            hint="give them as [n, channels, height, width]: data.transpose(0, 3, 1, 2)",
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "uifb":
        raise DataError(
            f"{len(images)} images, and labels {labels.dtype}{list(labels.shape)}", where=source
        )
    with np.errstate(invalid="ignore"):
        wrong = labels != labels.astype(np.int32)
    if wrong.any():
        raise DataError(
            f"the label {labels[wrong][0]} is no class, a whole number",
            where=f"{source}, image {np.argmax(wrong)}",
        )
    read = images.__getitem__ if size is None else partial(_scaled, images, size)
    return LabelledImages(labels.astype(np.int64), read)


def _scaled(images: NDArray[np.generic], size: tuple[int, int], number: int) -> NDArray[np.generic]:
    cv2 = needed("cv2", "--resize")
    image = images[number].transpose(1, 2, 0)
    scaled: NDArray[np.generic] = np.atleast_3d(cv2.resize(image, size))
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
