"""Layers out of `.dsz` files, without Caffe: against decoding, mapped by several processes."""

import doctest
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe import CompressedLinear, DszFile, decode, read_caffemodel, write_dsz
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.errors import FormatError, InputError, LimitError
from deepsz_caffe.running import linear
from deepsz_caffe.running.build import from_dense
from deepsz_caffe.running.mapped import read_mapped, write_mapped
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import BOUNDS, lenet_caffemodel

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("linear") / "net.caffemodel"
    path.write_bytes(lenet_caffemodel())
    return path


@pytest.fixture(scope="module", params=["paper", "small", "fast"])
def file(weights, request):
    path = weights.with_name(f"{request.param}.dsz")
    write_dsz(path, encode(None, weights, BOUNDS, request.param))
    return path


def expected(file, weights, name, x):
    bias = read_caffemodel(weights)[name].blobs[1].data
    return x.astype(np.float64) @ decode(file)[name].T.astype(np.float64) + bias


@pytest.mark.parametrize("batch", [1, 8, 50])
def test_outputs_are_those_of_the_decoded_weights_and_the_bias(file, weights, batch):
    random = np.random.default_rng(batch)
    for name in BOUNDS:
        layer = CompressedLinear.from_dsz(file, name)
        x = random.standard_normal((batch, layer.shape[1])).astype(np.float32)
        y = layer(x)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, expected(file, weights, name, x), rtol=1e-5, atol=1e-5)
        plain = CompressedLinear.from_dsz(file, name, bias=False)
        assert plain.bias is None
        np.testing.assert_allclose(plain(x) + layer.bias, y, rtol=1e-5, atol=1e-5)


def test_axes_are_taken_together_and_a_vector_gives_a_vector(file):
    layer = CompressedLinear.from_dsz(file, "ip1")
    x = np.random.default_rng(0).random((5, 4, 7, 7), np.float32)
    y = layer(x)
    assert y.shape == (5, 60)
    assert np.array_equal(layer(x[3].reshape(-1)), y[3])
    out = np.empty((5, 60), np.float32)
    assert layer(x, out=out) is out
    assert np.array_equal(out, y)
    for wrong in (x[:, :3], x[0, 0], np.float32(1), np.zeros((2, 0), np.float32)):
        with pytest.raises(InputError, match="196 values a row"):
            layer(wrong)


def test_dense_where_most_weights_are_kept():
    random = np.random.default_rng(1)
    matrix = random.standard_normal((30, 40)).astype(np.float32)
    x = random.random((3, 40), np.float32)
    bias = np.arange(30)
    full = CompressedLinear(from_dense(matrix), bias)
    assert full.is_dense
    assert "dense" in repr(full)
    assert full.nbytes == matrix.nbytes + 120
    small = CompressedLinear(from_dense(matrix), bias, dense=False)
    assert not small.is_dense
    np.testing.assert_allclose(full(x), small(x), rtol=1e-5, atol=1e-5)
    assert not CompressedLinear(from_dense(matrix * (matrix > 1))).is_dense


def test_memory_is_a_small_part_of_the_dense():
    layer = CompressedLinear.from_dsz(MODELS / "lenet_300_100" / "paper.dsz", "ip1")
    assert layer.nbytes < layer.shape[0] * layer.shape[1] * 4 / 7


def test_another_process_maps_what_the_first_wrote(file, tmp_path, monkeypatch):
    folder = tmp_path / "made" / "when-needed"
    x = np.random.default_rng(2).random((3, 196), np.float32)
    direct = CompressedLinear.from_dsz(file, "ip1")(x)
    first = CompressedLinear.from_dsz(file, "ip1", cache=folder)
    (made,) = folder.iterdir()
    assert np.array_equal(first(x), direct)

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr("deepsz_caffe.running.linear.from_layer", refuse)
    second = CompressedLinear.from_dsz(file, "ip1", cache=folder)
    assert np.array_equal(second(x), direct)
    assert not second.weights.panels[0].columns.flags.owndata
    assert any(str(made) in line for line in Path("/proc/self/maps").read_text().splitlines())


def damaged(content):
    """The bytes of a mapped layer with one fault each."""
    yield content[:5]
    yield content[:-1]
    yield content + b"\0"
    yield b"\0" + content[1:]
    yield content[:8] + b"\xff\xff\xff\xff" + content[12:]
    yield content.replace(b'"shape"', b'"shake"', 1)
    yield content.replace(b'"shape": [60', b'"shape": [61', 1)
    random = np.random.default_rng(3)
    for _ in range(60):
        changed = bytearray(content)
        changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
        yield bytes(changed)


def test_a_damaged_map_is_never_used(file, tmp_path):
    x = np.random.default_rng(2).random((3, 196), np.float32)
    direct = CompressedLinear.from_dsz(file, "ip1", cache=tmp_path)(x)
    (made,) = tmp_path.iterdir()
    content = made.read_bytes()
    for bad in damaged(content):
        made.unlink()  # writing into a mapped file is not what we promise anything for
        made.write_bytes(bad)
        assert np.array_equal(CompressedLinear.from_dsz(file, "ip1", cache=tmp_path)(x), direct)
    made.unlink()
    made.write_bytes(content[:-1])
    CompressedLinear.from_dsz(file, "ip1", cache=tmp_path)
    assert made.read_bytes() == content


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "layer.running"
    write_mapped(path, from_dense(np.eye(5, dtype=np.float32)))
    content = path.read_bytes()
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + length])
    for key, value in (
        ("shape", [10**12, 5]), ("shape", [-1, 5]), ("shape", [5]), ("shape", ["5", 5]),
        ("shape", None), ("panels", [[5, 1, -5, 1, "u1"]]), ("panels", [[5, 1, 5, 1, "i8"]]),
        ("panels", [[5, 1, 2**62, 1, "u1"]]), ("panels", 3), ("shape", {"5": 5, "6": 5}),
        ("shape", [5.0, float("inf")]),
    ):  # fmt: skip
        bad = json.dumps(header | {key: value}).encode()
        path.unlink()
        path.write_bytes(
            content[:8] + len(bad).to_bytes(4, "little") + bad + content[12 + length :]
        )
        with pytest.raises(FormatError):
            read_mapped(path)


def test_an_unknown_layer_and_a_damaged_file_are_named(file, tmp_path):
    with pytest.raises(InputError, match="ip9"):
        CompressedLinear.from_dsz(file, "ip9")
    content = bytearray(file.read_bytes())
    with DszFile(file) as opened:
        content[opened.section_offset("ip2") + 3] ^= 1
    bad = tmp_path / "bad.dsz"
    bad.write_bytes(content)
    with pytest.raises(FormatError, match="layer ip2"):
        CompressedLinear.from_dsz(bad, "ip2")
    CompressedLinear.from_dsz(bad, "ip1")
    with pytest.raises(LimitError):
        CompressedLinear.from_dsz(file, "ip1", limits=Limits(memory=5000))


def run(file, name, x, results):
    results.put(CompressedLinear.from_dsz(file, name)(x))


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(linear).attempted > 0
    assert doctest.testmod(linear).failed == 0


def test_processes_that_are_forked_after_use_go_on(file):
    layer = CompressedLinear.from_dsz(file, "ip1")
    x = np.random.default_rng(2).random((3, 196), np.float32)
    y = layer(x)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=run, args=(file, "ip1", x, results))
    child.start()
    assert np.array_equal(results.get(timeout=20), y)
    child.join()


def test_no_caffe_is_needed():
    file = MODELS / "lenet_300_100" / "paper.dsz"
    code = (
        "import sys, numpy as np; sys.modules['caffe'] = None; import deepsz_caffe;"
        f"layer = deepsz_caffe.CompressedLinear.from_dsz({str(file)!r}, 'ip1');"
        "print(layer(np.ones((2, 784))).shape, 'matplotlib' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split("\n")[0] == "(2, 300) False"
