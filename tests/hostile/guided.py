"""Let libFuzzer look for what breaks a reader: `python -m tests.hostile.guided --seconds 120`.

atheris drives it by what it has covered of our Python code. A target for the header of a `.dsz`
file, for caffemodels, for JSON documents and for each codec: input may be refused by an error of
our family, or read; anything else, a crash, 10 seconds or 2 GB end the run. Each target starts from
good input, so that what it changes is past the first check. Needs ``pip install atheris``.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from deepsz_caffe import DeepSZError, codecs
from deepsz_caffe.dsz.grids import pack_grids, unpack_grids
from deepsz_caffe.dsz.header import read_header
from deepsz_caffe.dsz.layout import MAGIC
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.assess.result import Assessment
from tests.assessments import assessment
from tests.hostile.samples import lenet_caffemodel, pruned

_PREAMBLE = struct.Struct("<I")
#: what comes before a codec's stream: rows and columns of what it decodes to
_SHAPE = struct.Struct("<BB")
_BOUND = 0.01

#: a target's process: what atheris shall watch must be imported under its eyes
_CODE = """
import atheris
with atheris.instrument_imports(include=["deepsz_caffe"]):
    from tests.hostile import guided
guided.fuzz({name!r}, {seconds})
"""

Target = Callable[[bytes], object]


def targets(folder: Path) -> dict[str, tuple[Target, list[bytes]]]:
    """Give each target's name, what reads its input, and good input."""
    from tests.hostile.fuzz import samples

    headers = []
    for sample in samples(folder):
        (length,) = _PREAMBLE.unpack_from(sample.file, 12)
        headers.append(sample.file[8:9] + sample.file[20 : 20 + length])
    assessment().save(folder / "A.json")
    found: dict[str, tuple[Target, list[bytes]]] = {
        "header": (_header, headers),
        "caffemodel": (partial(_by_path, folder, read_caffemodel), [lenet_caffemodel()]),
        "json": (partial(_by_path, folder, Assessment.load), [(folder / "A.json").read_bytes()]),
    }
    matrix = pruned((12, 20), 0.3, 1)
    steps = np.arange(12 * 20, dtype=np.uint8) % 5
    bounded = {**codecs.MATRIX, **codecs.DATA}
    for name, codec in bounded.items():
        whole = name in codecs.MATRIX
        stream = codec(_BOUND).encode(matrix if whole else matrix.ravel())
        out = partial(np.empty, dtype=np.float32)
        found[name] = (partial(_decode, codec(_BOUND), out, whole), [_SHAPE.pack(12, 20) + stream])
    blob = np.arange(40, dtype="<f4").tobytes()
    packed = pack_grids(blob + b"more", [blob], 9)
    assert packed is not None
    found["grids"] = _grids, [_SHAPE.pack(len(blob) // 4 + 1, 4) + packed]
    for name, codec in codecs.INDEX.items():
        out = partial(np.empty, dtype=np.uint8)
        stream = codec().encode(steps)
        found[name] = (partial(_decode, codec(), out, False), [_SHAPE.pack(12, 20) + stream])
    return found


def _header(content: bytes) -> None:
    version, header = content[:1] or b"\1", content[1:]
    sizes = struct.pack("<II", version[0], len(header))
    checksum = zlib.crc32(header, zlib.crc32(sizes))
    read_header(MAGIC + sizes + _PREAMBLE.pack(checksum), header)


def _grids(content: bytes) -> None:
    if len(content) >= _SHAPE.size:
        rows, columns = _SHAPE.unpack_from(content)
        unpack_grids(content[_SHAPE.size :], rows * columns)


def _by_path(folder: Path, read: Callable[[Path], object], content: bytes) -> None:
    path = folder / "input"
    path.write_bytes(content)
    read(path)


def _decode(
    codec: codecs.ArrayCodec, out: Callable[..., np.ndarray], whole: bool, content: bytes
) -> None:
    if len(content) >= _SHAPE.size:
        rows, columns = _SHAPE.unpack_from(content)
        shape = (rows, columns) if whole else rows * columns
        codec.decode(content[_SHAPE.size :], out(shape))


def fuzz(name: str, seconds: int) -> None:
    """Run one target in this process, which libFuzzer ends."""
    import atheris

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    target, good = targets(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(good):
        (corpus / str(number)).write_bytes(content)

    def one(content: bytes) -> None:
        with suppress(DeepSZError):
            target(content)

    limits = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
    command = ["guided", str(corpus), f"-max_total_time={seconds}", *limits]
    atheris.Setup([*command, f"-artifact_prefix={Path.cwd()}/"], one)
    atheris.Fuzz()


def _run(name: str, seconds: int) -> tuple[bool, str]:
    code = _CODE.format(name=name, seconds=seconds)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counted = re.search(r"Done (\d+) (?:runs )?in", done.stderr)
    if done.returncode == 0 and counted:
        return True, f"{int(counted[1]):>11,} runs  {name}"
    return False, f"FAILED {name}, exit {done.returncode}:\n{done.stderr[-3000:]}"


def main() -> None:
    """Run all targets, or one; exit code 1 when one has found something."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=120, help="of each target")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [arguments.target] if arguments.target else list(targets(Path(folder)))
    with ThreadPoolExecutor(arguments.workers) as threads:
        results = list(threads.map(lambda name: _run(name, arguments.seconds), names))
    for _, said in results:
        print(said)
    sys.exit(not all(passed for passed, _ in results))


if __name__ == "__main__":
    main()
