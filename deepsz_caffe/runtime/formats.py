"""What is read and written, and what each takes: the facts behind ``deepsz formats``.

Codecs and kinds of layers are asked of their registries; the rest is said here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from deepsz_caffe.codecs import DATA, INDEX, MATRIX
from deepsz_caffe.dsz.layout import VERSION
from deepsz_caffe.network import HDF5_SUFFIXES
from deepsz_caffe.network.layers import KINDS
from deepsz_caffe.runtime.images import ENDINGS

#: what a part takes -> the modules that show it is here
_PARTS: Final = {"Caffe": "caffe", "h5py": "h5py", "lmdb": "lmdb", "OpenCV": "cv2"}
_PARTS_OF_CODECS: Final = {"zfp": "zfpy", "brotli": "brotli"}


@dataclass(frozen=True)
class FileFormat:
    """A kind of file.

    Attributes
    ----------
    kind
        "weights", "network", "data", "pictures" or "result".
    name
        What it is.
    read, written
        The commands that do, in short; "" for none.
    needs
        What has to be installed beside the package itself.
    missing
        What of these is not.
    """

    kind: str
    name: str
    read: str
    written: str
    needs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodecFormat:
    """A codec: its id, what it encodes, and whether what it takes is installed."""

    name: str
    encodes: str
    installed: bool


_WEIGHTS: Final = "wherever weights are taken"
_FILES: Final = (
    FileFormat("weights", f".dsz, version {VERSION}", _WEIGHTS, "encode, compress"),
    FileFormat("weights", "caffemodel of any age: float, double, half", _WEIGHTS, "expand, prune"),
    FileFormat("weights", f"HDF5 ({', '.join(HDF5_SUFFIXES)})", _WEIGHTS, "expand", ("h5py",)),
    FileFormat("network", "prototxt of BVLC Caffe, of any age", "all that run it", "", ("Caffe",)),
    FileFormat("network", "prototxt of a fork", "encode", "", ("Caffe",)),
    FileFormat("network", "prototxt of any kind", "compare --opencv", "", ("OpenCV",)),
    FileFormat("data", "LMDB", "eval, assess, compress, compare", "lmdb", ("lmdb",)),
    FileFormat(
        "data", "list of HDF5 files", "eval, assess, compress, compare", "", ("h5py", "Caffe")
    ),
    FileFormat("data", "list of lines FILE LABEL", "eval, assess, compress, lmdb", "", ("OpenCV",)),
    FileFormat("data", ".npz of inputs by blob", "eval, assess, compress, compare", ""),
    FileFormat("data", "IDX, also gzipped", "lmdb", ""),
    FileFormat(
        "pictures",
        f"{', '.join(sorted(ENDINGS))}: a folder, list or pattern",
        "compress, compare, lmdb",
        "",
        ("OpenCV",),
    ),
    FileFormat("pictures", ".npz of values from 0 to 255", "compress, compare, lmdb", ""),
    FileFormat("pictures", "mean image, .binaryproto", "compress, compare", ""),
    FileFormat(
        "result", "assessment, plan, bounds: JSON", "optimize, encode, report", "assess, optimize"
    ),
    FileFormat("result", "page: HTML", "", "report, compare, reproduce"),
)


def file_formats() -> tuple[FileFormat, ...]:
    """List kinds of files, and what they lack here."""
    return tuple(
        FileFormat(
            each.kind,
            each.name,
            each.read,
            each.written,
            each.needs,
            tuple(part for part in each.needs if not _is_here(_PARTS[part])),
        )
        for each in _FILES
    )


def codec_formats() -> tuple[CodecFormat, ...]:
    """List all codecs, those of other packages too."""
    return tuple(
        CodecFormat(name, encodes, _is_here(_PARTS_OF_CODECS.get(name, "numpy")))
        for encodes, registry in (
            ("non-zero weights", DATA),
            ("their positions", INDEX),
            ("whole matrices", MATRIX),
        )
        for name in registry
    )


def layer_formats() -> dict[str, str]:
    """Map each type of layer that can be compressed to its selection; "" where it is named."""
    return {kind: each.group for kind, each in KINDS.items()}


def _is_here(module: str) -> bool:
    return find_spec(module) is not None
