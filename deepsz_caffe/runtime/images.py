"""Image files and lists of them, read as Caffe reads them: from bytes, whatever their names."""

from __future__ import annotations

import codecs
import importlib
import os
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError, ModelError
from deepsz_caffe.files import read_input
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.network.kind import NUMPY_ARRAY, other_kind

#: how names of image files end
ENDINGS = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
#: what no text has in it, but UTF-16
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def listed_files(source: str) -> list[Path]:
    """Return the files that a list names, one a line; none where the list can't be read."""
    try:
        return [Path(line) for line in read_lines(source)]
    except DataError:
        return []


def image_list(source: str) -> tuple[tuple[str, int], ...]:
    """Read a list of images: lines ``FILE LABEL``, as ImageData and convert_imageset take them.

    Raises
    ------
    DataError
        It can't be read, is empty, or has another line.
    """
    pairs = []
    for line in read_lines(source):
        name, label = split_label(line)
        if label is None:
            raise DataError(f"a line is not `FILE LABEL`: {line!r}", where=source)
        pairs.append((name, label))
    return tuple(pairs)


def split_label(line: str) -> tuple[str, int | None]:
    """Split a line of a list into a file's name and its label, if it has one."""
    name, _, label = line.rpartition(" ")
    return (name, int(label)) if name and label.removeprefix("-").isdecimal() else (line, None)


def listed_file(name: str, listed_in: str | os.PathLike[str]) -> Path:
    """Find a file that a list names: relative to the working folder, else to the list's."""
    path = Path(name)
    return path if path.exists() else Path(listed_in).parent / path


def read_lines(source: str | os.PathLike[str]) -> list[str]:
    """Read the lines of a list of files, those that are not empty.

    Raises
    ------
    DataError
        It can't be read, or has none.
    """
    content = read_input(source, DataError).removeprefix(codecs.BOM_UTF8)
    if _NO_TEXT.search(content):
        what, hint = what_is(Path(source))
        raise DataError(
            f"not a list of files: {f'it is {what}' if what else 'no text'}",
            where=source,
            hint=hint or "it is kept as UTF-8, or in the encoding of the names",
        )
    # Names are bytes, whatever their encoding.
    text = content.decode("utf-8", "surrogateescape")
    lines = [line for each in text.split("\n") if (line := each.strip(" \t\r"))]
    if not lines:
        raise DataError("the list of files is empty", where=source)
    return lines


def what_is(path: Path) -> tuple[str, str]:
    """Say what a file is that is no such source, and what to do; both "" where that is unknown."""
    try:
        what, hint = other_kind(path)
    except ModelError:
        return "", ""
    if what == NUMPY_ARRAY:
        hint = "numpy.savez('arrays.npz', data=…, label=…) writes what can be given"
    return what, hint


def read_image(path: str, *, color: bool, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read an image file as Caffe does, with OpenCV.

    Parameters
    ----------
    path
        The file.
    color
        Three channels, in BGR order; else one.
    size
        Width and height to scale to.

    Returns
    -------
    numpy.ndarray
        uint8[height, width, channels]

    Raises
    ------
    DataError
        The file or OpenCV is missing, or OpenCV can't read it.
    """
    cv2 = needed("cv2", path)
    flag = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    content = read_input(path, DataError)
    image = decode_image(content, flag, path)
    if image is None:
        raise DataError("not an image that OpenCV reads", where=path)
    if size is not None:
        image = cv2.resize(image, size)
    return np.atleast_3d(np.asarray(image, np.uint8))


def decode_image(content: bytes, flag: int, where: object) -> NDArray[np.generic] | None:
    """Decode an image file; None where OpenCV can't, or won't, as of one of too many pixels.

    Parameters
    ----------
    content
        The file's bytes.
    flag
        One of OpenCV's ``IMREAD``.
    where
        What needs OpenCV.

    Raises
    ------
    DataError
        OpenCV is missing.
    """
    cv2 = needed("cv2", where)
    try:
        image: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:
        return None
    return image


@lru_cache(maxsize=4)
def read_mean(path: str) -> NDArray[np.float32]:
    """Read a mean image, a BlobProto, as float32[height, width, channels].

    Raises
    ------
    DataError
        It is not there, or no such thing.
    """
    from google.protobuf.message import DecodeError

    blob = schema_pb2.BlobProto()
    try:
        blob.ParseFromString(read_input(path, DataError))
        shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
        values = np.frombuffer(blob.data, "<f4")
        if blob.double_data:
            values = np.frombuffer(blob.double_data, "<f8")
        mean = values.astype(np.float32).reshape(shape[-3:])
        if not mean.size:
            raise ValueError("it holds no image")
    except (ValueError, DecodeError) as error:
        raise DataError(f"can't read the mean: {error}", where=path) from error
    return mean.transpose(1, 2, 0)


def needed(module: str, where: object) -> ModuleType:
    """Import what only some data needs.

    Raises
    ------
    DataError
        It can't be imported; says how to install it.
    """
    packages = {
        "lmdb": "deepsz-caffe[caffe]",
        "h5py": "deepsz-caffe[caffe]",
        "cv2": "opencv-python-headless",
    }
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"reading it needs {module}, which can't be imported: {error}",
            where=where,
            hint=f"pip install '{packages[module]}'",
        ) from error
