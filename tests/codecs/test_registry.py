"""Codecs of other packages: by an entry point, found by every command, without a file touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepsz_caffe.codecs import INDEX, MATRIX

#: all of a package with a codec: a module and what pip writes of its metadata
MODULE = """
import numpy as np
from deepsz_caffe.codecs.base import ArrayCodec, BoundedCodec, MatrixCodec, as_bytes

class Reversed(ArrayCodec):
    codec_id = "another-reversed"
    def encode(self, buf):
        return self.source(buf)[::-1].tobytes()
    def decode(self, buf, out=None):
        out[...] = np.frombuffer(as_bytes(buf), np.uint8)[::-1]
        return out

class Plain(MatrixCodec):
    codec_id = "another-plain"
    def encode(self, buf):
        return self.source(buf).tobytes()
    def decode(self, buf, out=None):
        out[...] = np.frombuffer(as_bytes(buf), np.float32).reshape(out.shape)
        return out
"""
ENTRIES = """[deepsz_caffe.codecs]
reversed = another:Reversed
plain = another:Plain
broken = another:Missing
gzip = another:Reversed
"""
CODE = """
import json, sys, warnings
import numpy as np
from deepsz_caffe import codecs, decode, write_dsz
from deepsz_caffe.codecs.compare import compare
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import BOUNDS, lenet_caffemodel
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    listed = [list(codecs.DATA), list(codecs.INDEX), list(codecs.MATRIX)]
open("net", "wb").write(lenet_caffemodel())
for profile in ("plain", "sz+reversed"):
    write_dsz("x.dsz", encode(None, "net", BOUNDS, profile))
    assert decode("x.dsz")["ip1"].any()
measured = {f.codec for f in compare(np.eye(9, dtype=np.float32), 0.1)}
print(json.dumps([*listed, sorted(measured), [str(w.message) for w in said],
                  codecs.INDEX["gzip"].codec_id]))
"""


def run(code, folder, *also):
    paths = [*also, *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths)))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_codec_of_another_package_is_two_files_and_nothing_here(tmp_path):
    package, work = tmp_path / "package", tmp_path / "work"
    metadata = package / "another-1.0.dist-info"
    metadata.mkdir(parents=True)
    work.mkdir()
    (package / "another.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRIES)
    done = run(CODE, work, package)
    assert done.returncode == 0, done.stderr
    data, index, matrix, measured, said, gzip = json.loads(done.stdout)
    assert (index[-1], matrix[-1]) == ("reversed", "plain")
    assert "reversed" not in data + matrix
    assert {"reversed", "plain"} <= set(measured)
    assert said == ["codec 'broken' can't be loaded: module 'another' has no attribute 'Missing'"]
    # An id of ours means ours.
    assert (index.count("gzip"), gzip) == (1, "deepsz-gzip")
    # Without the package its files say what is missing.
    failed = run("from deepsz_caffe import decode; decode('x.dsz')", work)
    assert "codec 'reversed' is unknown" in failed.stderr
    assert "the package that it comes from" in failed.stderr


def test_our_own_are_known_to_numcodecs_by_the_same_lines():
    from importlib.metadata import entry_points

    known = {e.name: e.value for e in entry_points(group="numcodecs.codecs") if "deepsz" in e.name}
    lines = [line for registry in (INDEX, MATRIX) for line in registry.entry_points()]
    for line in lines:
        name, _, place = line.partition(" = ")
        assert known[name] == place


@pytest.mark.parametrize("codec_id", ["lzma", "mixing-step"])
def test_a_codec_of_ours_is_one_file_and_one_line(codec_id):
    """Apart from the format's promise, a file of each codec, nothing else knows its id."""
    root = Path(__file__).resolve().parents[2]
    name = codec_id.replace("-", "_")
    files = [*root.glob("deepsz_caffe/**/*.py"), root / "setup.py"]
    naming = [
        str(path.relative_to(root))
        for path in files
        if f'"{codec_id}"' in path.read_text(encoding="utf-8") and path.stem != name
    ]
    used = {"deepsz_caffe/steps/encode.py"} if codec_id == "mixing-step" else set()
    assert set(naming) - used == {"deepsz_caffe/codecs/__init__.py"}
