"""What a file that should hold weights is, by its contents, whatever its name.

Names mislead: HDF5 weights are called ``.caffemodel``, downloads end as a page of HTML or as Git's
pointer to a large file. What is none of the three kinds that can be read is named for what it is.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, Literal

from deepsz_caffe.errors import ModelError
from deepsz_caffe.files import open_input, reason
from deepsz_caffe.network import wire

Path_ = str | os.PathLike[str]
Kind = Literal["caffemodel", "hdf5", "dsz"]

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_DSZ: Final = b"\x89DSZ"
_HEAD: Final = 1 << 16
_TEXT: Final = "a text"
#: what a ``.npy`` file is
NUMPY_ARRAY: Final = "a numpy array"

#: byte, what stands there -> what such a file is
_SIGNATURES: Final = (
    (0, b"PK\x03\x04", "a ZIP archive, such as PyTorch's or numpy's files"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"\x04\x22\x4d\x18", "an LZ4 archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", NUMPY_ARRAY),
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x7fELF", "a program"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (16, b"\xde\xc0\xef\xbe", "an LMDB"),
)
#: beginnings, lower case, of text -> what such a file is, and what to do
_TEXTS: Final = (
    (
        "version https://git-lfs.github.com/spec/",
        "a Git LFS pointer",
        "git lfs pull fetches it",
    ),
    ("<!doctype html", "an HTML page", "download the file itself, not the page about it"),
    ("<html", "an HTML page", "download the file itself, not the page about it"),
    ("<?xml", "an XML document", "download the file itself"),
)
#: fields of a caffemodel in which its layers are, of today and of old
_LAYERS: Final = {(100, wire.LEN), (2, wire.LEN)}
_SIZES: Final = {(number, wire.VARINT) for number in (1, 2, 3, 4)}
#: fields and wire types that a message has, and all that it may have -> what such a file is
_MESSAGES: Final = (
    (
        {(1, wire.VARINT)},
        {(1, wire.VARINT), (2, wire.LEN), (3, wire.LEN), (4, wire.VARINT)},
        "a solverstate: the state of a training, which has no weights in it",
    ),
    (
        {(5, wire.LEN)},
        _SIZES | {(number, wire.LEN) for number in range(5, 10)},
        "a single blob, such as a mean image",
    ),
    ({(1, wire.VARINT), (7, wire.LEN)}, None, "an ONNX model"),
)


def weights_kind(path: Path_) -> Kind:
    """Say what kind of weights a file holds, by its contents alone.

    Returns
    -------
    {"caffemodel", "hdf5", "dsz"}
        Whether it is sound is not looked at; what can't be told for anything else counts as a
        caffemodel.

    Raises
    ------
    ModelError
        The file can't be read, is empty, is not a file, or is known to be something else, which is
        named.
    """
    return kind_of(open_weights(path), path)


def open_weights(path: Path_) -> memoryview:
    """Map a file that should hold weights into memory.

    Raises
    ------
    ModelError
        It can't be read, is empty or is no regular file.
    """
    with open_input(path, ModelError) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelError("an empty file, which holds no weights", where=path)
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise ModelError(f"can't read: {reason(error)}", where=path) from error


def kind_of(source: memoryview, path: Path_) -> Kind:
    """Say what kind of weights the bytes of a file are; see `weights_kind`."""
    if bytes(source[:4]) == _DSZ:
        return "dsz"
    if _is_hdf5(source):
        return "hdf5"
    if found := _something_else(bytes(source[:_HEAD]), source):
        what, hint = found
        place = f"{path}, byte 0" if what == _TEXT else path
        wanted = ".dsz file" if Path(path).suffix == ".dsz" else "caffemodel"
        raise ModelError(f"not a {wanted}: it is {what}", where=place, hint=hint or None)
    return "caffemodel"


def other_kind(path: Path_) -> tuple[str, str]:
    """Say what a file is that is not what it should be, as far as that is certain, and what to do.

    Raises
    ------
    ModelError
        As `open_weights`.
    """
    source = open_weights(path)
    if bytes(source[:4]) == _DSZ:
        return "a .dsz file", ""
    if _is_hdf5(source):
        return "HDF5, such as weights are kept in", ""
    found = _something_else(bytes(source[:_HEAD]), source)
    if found is None and _fields(source) & _LAYERS:
        return "a caffemodel", "deepsz encode or compress makes a .dsz file of it"
    return found or ("", "")


def _is_hdf5(source: memoryview) -> bool:
    # HDF5 may begin behind a block of the user's own.
    places = [0, *(512 << shift for shift in range(16))]
    return any(bytes(source[place : place + len(_HDF5)]) == _HDF5 for place in places)


def _something_else(head: bytes, source: memoryview) -> tuple[str, str] | None:
    """Name what is certainly no caffemodel, and what to do."""
    if not head.strip(b"\x00"):
        return "nothing but zero bytes", "a download that was not finished?"
    for offset, magic, what in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return what, "unpack it" if "archive" in what else ""
    if head[4:9] == b"\x00\x00\x00\x00{":
        return "a safetensors file", ""
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a Python pickle, such as PyTorch's files", ""
    text = _text(head)
    if text is not None:
        return _named_text(text)
    present = _fields(source)
    for wanted, possible, what in _MESSAGES:
        if wanted <= present and (possible is None or present <= possible):
            return what, ""
    return None


def _text(head: bytes) -> str | None:
    """Decode what looks like text in any of the usual encodings, else give None."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return head.decode("utf-16", "replace")
    text = head.decode("utf-8-sig", "replace")
    return None if any(letter < " " and letter not in "\t\n\r\f" for letter in text) else text


def _named_text(text: str) -> tuple[str, str]:
    start = text.lstrip().lower()
    for beginning, what, hint in _TEXTS:
        if start.startswith(beginning):
            return what, hint
    if "blobs {" in text or "blobs{" in text:
        return (
            "a network with its weights as text",
            "Caffe reads the binary form: parse the text with google.protobuf.text_format into a "
            "caffe_pb2.NetParameter and write its SerializeToString()",
        )
    if "layer {" in text or "layers {" in text or "layer{" in text or "layers{" in text:
        return "a network's definition (prototxt)", "the weights are wanted, a caffemodel"
    if "base_lr" in text or "max_iter" in text:
        return "a solver's definition (prototxt)", "the weights are wanted, a caffemodel"
    return ("a JSON document" if start[:1] in ("{", "[") else _TEXT), ""


def _fields(source: memoryview) -> set[tuple[int, int]]:
    """Give number and wire type of a message's first fields, as far as it is one."""
    found = set()
    try:
        for field in wire.Walk(source, limit=64).fields(0, len(source)):
            found.add((field.number, field.wire))
    except wire.WireError:
        pass
    return found
