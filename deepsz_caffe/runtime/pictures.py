"""Pictures, with or without labels: a folder, a list, a pattern, arrays or an LMDB.

With Caffe and without it::

    how = Preprocessing((3, 227, 227), mean=(104, 117, 123))   # or picture_input(net).how
    pictures = open_pictures("photos/", how)
    for array in pictures.arrays():                            # float32[1, 3, 227, 227], each
        cv_net.setInput(array)

`Pictures` may be given as the data of a network, too (`deepsz_caffe.runtime.data`). Image files are
read by OpenCV, as Caffe's ImageData layer reads them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, DeepSZError, DeepSZWarning, InputError
from deepsz_caffe.files import open_input
from deepsz_caffe.runtime.images import (
    ENDINGS,
    image_list,
    listed_file,
    needed,
    read_image,
    read_lines,
    split_label,
)
from deepsz_caffe.runtime.preprocess import Preprocessing, preprocess
from deepsz_caffe.runtime.sources import lmdb_entries, read_lmdb_images, read_lmdb_labels

Path_ = str | os.PathLike[str]
Array = NDArray[np.generic]

_PATTERN = frozenset("*?[")
#: the array of pictures in a ``.npz``, and that of labels
_DATA, _LABEL = "data", "label"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in an order, read one at a time.

    Attributes
    ----------
    source
        What was given.
    how
        What is done with each.
    total
        How many.
    kind
        What the source is.
    files
        Image files, where it is some.
    labels
        int64[total], where they were asked for.
    places
        Which of the pictures of an LMDB or ``.npz`` these are; (): all.
    """

    source: str
    how: Preprocessing
    total: int
    kind: Literal["files", "npz", "lmdb"]
    files: tuple[str, ...] = field(default=(), repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    places: tuple[int, ...] = field(default=(), repr=False)

    def check_labels(self) -> None:
        """See that labels are there.

        Raises
        ------
        InputError
            They are not.
        """
        if self.labels is None:
            raise InputError(
                "right answers and losses need labels, and these pictures have none",
                where=self.source,
                hint="open_pictures(…, labelled=True), or ask for an agreement",
            )

    def distinct(self) -> Pictures:
        """Leave out, with a warning, what is the same picture as another: it shows nothing more.

        Pictures are compared as they are decoded, whatever files they are in. All are read.

        Raises
        ------
        DataError
            A picture can't be read.
        """
        first: dict[bytes, int] = {}
        repeats: list[tuple[int, int]] = []
        for number, picture in enumerate(self.raw()):
            digest = hashlib.blake2b(f"{picture.dtype}{picture.shape}".encode(), digest_size=16)
            digest.update(picture.tobytes())
            if (other := first.setdefault(digest.digest(), number)) != number:
                repeats.append((number, other))
        if not repeats:
            return self
        number, other = repeats[0]
        more = f", and {len(repeats) - 1:,} others" if len(repeats) > 1 else ""
        warnings.warn(
            DeepSZWarning(
                f"{self.name(number)}: the same picture as {self.name(other)}{more}; repeats are "
                f"left out, {len(first):,} of {self.total:,} pictures are taken"
            ),
            stacklevel=2,
        )
        kept = list(first.values())
        return replace(
            self,
            total=len(kept),
            files=tuple(self.files[number] for number in kept) if self.files else (),
            labels=None if self.labels is None else self.labels[kept],
            places=() if self.files else tuple(self._place(number) for number in kept),
        )

    def name(self, number: int) -> str:
        """Name a picture, for people."""
        if self.files:
            return self.files[number]
        return f"{self.source}, picture {self._place(number)}"

    def _place(self, number: int) -> int:
        return self.places[number] if self.places else number

    def arrays(self, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Read pictures from number `first` on: float32[crops, channels, height, width] each.

        Raises
        ------
        DataError
            A picture can't be read, doesn't fit or is not finite; it is named.
        """
        for number, picture in enumerate(self.raw(first), first):
            try:
                array = preprocess(picture, self.how)
                if not np.isfinite(array).all():
                    raise DataError("has values that are not finite")
                yield array
            except DataError as error:
                where = error.where or self.name(number)
                raise DataError(error.what, where=where, hint=error.hint) from error

    def raw(self, first: int = 0) -> Iterator[Array]:
        """Read pictures as they are, [height, width, channels], blue, green and red."""
        color = self.how.shape[0] != 1
        if first >= self.total:
            return
        if self.kind == "files":
            for name in self.files[first:]:
                yield read_image(name, color=color, size=None)
        elif self.kind == "lmdb":
            start = self._place(first)
            taken = frozenset(self.places)
            images = read_lmdb_images(self.source, start, color=color)
            for place, (picture, _) in enumerate(images, start):
                if not taken or place in taken:
                    yield picture
        else:
            arrays = _npz(self.source)[_DATA]
            for picture in (arrays[self._place(number)] for number in range(first, self.total)):
                yield np.atleast_3d(picture if picture.ndim == 2 else picture.transpose(1, 2, 0))

    def inputs(self, first: int = 0) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Read inputs of the network from number `first` on, each with its picture's label or 0."""
        number, skipped = divmod(first, self.how.crops)
        for array in self.arrays(number):
            label = 0 if self.labels is None else int(self.labels[number])
            for crop in array[skipped:]:
                yield crop, label
            number, skipped = number + 1, 0

    def add_to(self, digest: hashlib.blake2b) -> None:
        """Add what distinguishes these pictures from others: names, sizes and times of files."""
        digest.update(os.fsencode(f"{self.source} {self.kind} {self.total} {self.how}"))
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        inside = Path(self.source, "data.mdb")
        source = inside if self.kind == "lmdb" and inside.exists() else Path(self.source)
        for path in map(Path, self.files or (source,)):
            with open_input(path, DataError) as file:
                found = os.fstat(file.fileno())
            digest.update(os.fsencode(f"{path} {found.st_size} {found.st_mtime_ns}"))


def open_pictures(
    source: Path_, how: Preprocessing, *, labelled: bool = False, labels: Path_ | None = None
) -> Pictures:
    """Find pictures, and see that they are some.

    Parameters
    ----------
    source
        A folder with image files at any depth; an image file; a pattern such as
        ``"photos/*.jpg"`` (``**`` for any depth); a list with a file a line, relative to the
        working folder or to the list, followed by a label or not; a ``.npz`` with an array
        ``data`` [n, channels, height, width] or [n, height, width], blue, green and red, from 0
        to 255; or an LMDB. A file in a folder that is not named as an image is left out.
    how
        What to do with each picture.
    labelled
        Find labels, too: of a list in it, of a ``.npz`` in an array ``label``, of an LMDB in its
        entries, of a folder by its folders' names in alphabetical order: 0, 1, …
    labels
        Instead: a list of lines ``FILE LABEL``; files are named as in a list, or relative to the
        folder.

    Raises
    ------
    InputError
        There is no such source, or labels were given that do not go with it.
    DataError
        There are no pictures, something is not one, or a label is missing. Image files are looked
        at, not decoded: one that is damaged is refused when it is read.
    """
    if labels is not None:
        labelled = True
    text = os.fspath(source)
    path = Path(text)
    if _is_npz(path):
        return _of_arrays(text, how, labelled, labels)
    if _is_lmdb(path):
        if labels is not None:
            raise InputError("an LMDB has its labels in its entries", where=labels)
        total = lmdb_entries(text)
        found = np.fromiter(read_lmdb_labels(text), np.int64, total) if labelled else None
        return Pictures(text, how, total, "lmdb", labels=found)
    files, own_labels = _files(text, labelled and labels is None)
    if how.shape[0] not in (1, 3):
        raise DataError(f"image files have 1 or 3 channels, the network takes {how.shape[0]}")
    _check_files(files, text)
    if labels is not None:
        own_labels = _labels_of(files, path, Path(labels))
    found = None if own_labels is None else np.array(own_labels, np.int64)
    return Pictures(text, how, len(files), "files", tuple(files), found)


def _is_npz(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".npz" or zipfile.is_zipfile(path))


def _is_lmdb(path: Path) -> bool:
    return (path / "data.mdb").is_file() or (path.is_file() and path.suffix in (".mdb", ".lmdb"))


def _files(source: str, labelled: bool) -> tuple[list[str], list[int] | None]:
    """List image files, with labels where these are asked for."""
    path = Path(source)
    if path.is_dir():
        files = sorted(
            each for each in path.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file()
        )
        if not files:
            raise DataError("no pictures in this folder", where=source, hint=_known_endings())
        return [str(each) for each in files], _classes(files, path) if labelled else None
    if path.is_file() and path.suffix.lower() in ENDINGS:
        if labelled:
            raise DataError("a single picture has no label", where=source, hint="--labels")
        return [source], None
    if path.exists():
        if labelled:
            pairs = image_list(source)
            return [str(listed_file(name, path)) for name, _ in pairs], [
                label for _, label in pairs
            ]
        listed = [split_label(line)[0] for line in read_lines(source)]
        return [str(listed_file(name, path)) for name in listed], None
    if _PATTERN & set(source):
        top = Path(path.anchor)
        found = top.glob(str(path.relative_to(top)))
        names = sorted(str(each) for each in found if each.is_file())
        if not names:
            raise DataError("no file has such a name", where=source)
        if labelled:
            raise DataError("files of a pattern have no labels", where=source, hint="--labels")
        return names, None
    raise InputError("no such folder, list, pattern, .npz or LMDB", where=source)


def _classes(files: Sequence[Path], folder: Path) -> list[int]:
    names = [path.relative_to(folder).parts for path in files]
    if loose := next((path for path, parts in zip(files, names, strict=True) if len(parts) < 2), 0):
        raise DataError(
            "a picture in no class's folder",
            where=loose,
            hint="--labels FILE names classes, --agreement needs none",
        )
    classes = {name: label for label, name in enumerate(sorted({parts[0] for parts in names}))}
    return [classes[parts[0]] for parts in names]


def _check_files(files: Sequence[str], source: str) -> None:
    """Look at the first bytes of each file."""
    cv2 = needed("cv2", source)
    wrong = []
    for name in files:
        try:
            with open_input(name, DataError) as file:
                # Names that are no UTF-8 end OpenCV, so it gets none.
                if not cv2.haveImageReader(f"/dev/fd/{file.fileno()}"):
                    wrong.append(name)
        except DeepSZError as error:
            listed = name != source and Path(source).is_file()
            where = f"{name}, a line of {source}" if listed else name
            raise DataError(error.what, where=where, hint=error.hint) from error
    if wrong:
        more = f" (nor are {len(wrong) - 1:,} others)" if len(wrong) > 1 else ""
        raise DataError(
            f"not a picture that OpenCV reads{more}", where=wrong[0], hint="take it out"
        )


def _labels_of(files: Sequence[str], source: Path, labels: Path) -> list[int]:
    known: dict[str, int] = {}
    for name, label in image_list(str(labels)):
        for key in (name, str(source / name), str(labels.parent / name)):
            known[str(Path(key))] = label
    for name in files:
        if str(Path(name)) not in known:
            raise DataError(f"no label for {name}", where=labels)
    return [known[str(Path(name))] for name in files]


def _of_arrays(source: str, how: Preprocessing, labelled: bool, labels: Path_ | None) -> Pictures:
    if labels is not None:
        raise InputError("a .npz has its labels in an array named label", where=labels)
    arrays = _npz(source)
    data = arrays[_DATA]
    channels = 1 if data.ndim == 3 else data.shape[1] if data.ndim == 4 else 0
    if not channels or not data.size or data.dtype.kind not in "uif":
        raise DataError(
            f"{data.dtype}{list(data.shape)} are not pictures [n, channels, height, width]",
            where=source,
        )
    if channels != how.shape[0]:
        hint = "channels come second: data.transpose(0, 3, 1, 2)" if data.shape[-1] <= 4 else None
        raise DataError(
            f"pictures of {channels} channels, the network takes {how.shape[0]}",
            where=source,
            hint=hint,
        )
    found = None
    if labelled:
        own = arrays.get(_LABEL)
        if own is None or own.shape != data.shape[:1] or not np.array_equal(own, np.trunc(own)):
            raise DataError(f"no array {_LABEL} with a whole number a picture", where=source)
        found = own.astype(np.int64)
    return Pictures(source, how, len(data), "npz", labels=found)


def _npz(source: str) -> dict[str, Array]:
    try:
        with open_input(source, DataError) as file, np.load(file) as archive:
            if _DATA not in archive.files:
                names = ", ".join(archive.files) or "none"
                raise DataError(f"no array {_DATA}, only {names}", where=source)
            return {name: archive[name] for name in archive.files if name in (_DATA, _LABEL)}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"can't read arrays: {error}", where=source) from error


def _known_endings() -> str:
    return f"their names end in {', '.join(sorted(ENDINGS))}"
