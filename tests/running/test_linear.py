"""Layers out of `.dsz` files, without Caffe: against decoding, mapped by several processes."""

import doctest
import multiprocessing
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe import CompressedLinear, DszFile, decode, read_caffemodel, write_dsz
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.errors import DeepSZError, FormatError, InputError, LimitError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.running import linear
from deepsz_caffe.running.build import from_dense
from deepsz_caffe.running.mapped import MAGIC, read_mapped, write_mapped
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import BOUNDS, blob, lenet_caffemodel

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((0, rows) for rows in (4, 6, 10**12, 2**64 - 1)),
        *((2, panels) for panels in (0, 2, 2**40, 2**64 - 1)),
        *((4, width) for width in (0, 3, 2**63)),
        *((5, groups) for groups in (6, 2**62, 2**64 - 1)),
        *((6, levels) for levels in (10**6, 2**62)),
        *((7, code_bytes) for code_bytes in (0, 3, 8)),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path, field, value):
    path = tmp_path / "layer.running"
    write_mapped(path, from_dense(np.eye(5, dtype=np.float32)))
    header = list(struct.unpack_from("<8Q", path.read_bytes(), 8))
    header[field] = value
    rest = path.read_bytes()[8 + 64 :]
    path.unlink()
    path.write_bytes(MAGIC + struct.pack("<8Q", *header) + rest)
    with pytest.raises(FormatError):
        read_mapped(path).examine()


def tiny(folder, profile):
    """A `.dsz` file of one layer, of a few hundred bytes."""
    weights = np.array([[0, 0.5, 0, 0, -0.5, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0, 0.5, 0, 0]], "f4")
    model, path = folder / "tiny.caffemodel", folder / f"{profile}.dsz"
    net = schema_pb2.NetParameter()
    layer = net.layer.add(name=b"ip1", type=b"InnerProduct")
    layer.blobs.extend([blob(weights), blob(np.ones(2, np.float32))])
    model.write_bytes(net.SerializeToString())
    write_dsz(path, encode(None, model, {"ip1": 0.01}, profile))
    return path


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.mark.parametrize("profile", ["paper", "small", "fast"])
def test_every_byte_of_a_file_may_be_wrong_or_missing(tmp_path, profile):
    path = tiny(tmp_path, profile)
    x = np.arange(9, dtype=np.float32)
    direct = CompressedLinear.from_dsz(path, "ip1")(x)
    content = path.read_bytes()
    bad = tmp_path / "bad.dsz"
    for position in range(len(content)):
        bad.write_bytes(content[:position])
        with pytest.raises(DeepSZError):
            CompressedLinear.from_dsz(bad, "ip1")
        bad.write_bytes(flipped(content, position))
        with suppress(DeepSZError):
            assert np.array_equal(CompressedLinear.from_dsz(bad, "ip1")(x), direct)


def test_every_byte_of_a_map_may_be_wrong(tmp_path):
    path, folder = tiny(tmp_path, "fast"), tmp_path / "cache"
    x = np.arange(9, dtype=np.float32)
    direct = CompressedLinear.from_dsz(path, "ip1", cache=folder)(x)
    (made,) = folder.iterdir()
    content = made.read_bytes()
    for position in range(len(content)):
        cut = [content[:position]] if position % 16 == 0 else []
        for bad in (flipped(content, position), *cut):
            made.unlink()
            made.write_bytes(bad)
            layer = CompressedLinear.from_dsz(path, "ip1", cache=folder)
            assert layer.shape == (2, 9)
            assert np.array_equal(layer(x), direct)


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
