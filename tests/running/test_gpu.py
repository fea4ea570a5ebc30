"""The products for GPUs: `gpu.cu` as it stands, compiled for the processor (`gpu_twin.h`)."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe import CompressedLinear, load_net, write_dsz
from deepsz_caffe.errors import CaffeError, DeepSZError, InputError
from deepsz_caffe.running import gpu
from deepsz_caffe.running.build import from_dense
from deepsz_caffe.running.product import multiply
from deepsz_caffe.running.quantized import MOST_COLUMNS
from deepsz_caffe.running.source import open_source
from deepsz_caffe.runtime.compressed import build_compressed
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import BOUNDS, lenet_caffemodel
from tests.running.test_product import KINDS, random_matrix

HERE = Path(__file__).parent
SOURCE = Path(gpu.__file__).parent / "native" / "gpu.cu"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "twin.so"
    options = ("-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    subprocess.run(["g++", *options, "-x", "c++", f"-I{HERE}", SOURCE, "-o", path], check=True)
    return path


@pytest.fixture
def twin(compiled, monkeypatch):
    monkeypatch.setattr(gpu, "LIBRARY", compiled)
    return compiled


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    weights = tmp_path_factory.mktemp("file") / "net.caffemodel"
    weights.write_bytes(lenet_caffemodel())
    path = weights.with_name("net.dsz")
    write_dsz(path, encode(None, weights, BOUNDS, "fast"))
    return path


def bound(matrix, quantized, x):
    """The closed form of the docstring of `GpuMatrix.multiply`, float64[batch, rows]."""
    steps = np.zeros(matrix.shape[0])
    for panel in quantized.panels:
        steps += np.diff(panel.starts.astype(np.int64)) / 32 + panel.width + 8
    gamma = steps * 2.0**-24 / (1 - steps * 2.0**-24)
    return gamma * (np.abs(x.astype(np.float64)) @ np.abs(matrix.T.astype(np.float64)))


@pytest.mark.parametrize(("levels", "density"), KINDS)
@pytest.mark.parametrize("batch", [1, 8, 21])
def test_products_are_within_the_bound(twin, levels, density, batch):
    random = np.random.default_rng(levels + batch)
    matrix = random_matrix(random, 33, 257, levels, density)
    x = random.standard_normal((batch, 257)).astype(np.float32)
    quantized = from_dense(matrix)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    there = gpu.GpuMatrix(quantized, 0)
    y = there.multiply(x)
    assert (np.abs(y - exact) <= bound(matrix, quantized, x)).all()
    for row, vector in zip(y, x, strict=True):
        assert np.array_equal(there.multiply(vector[None]), row[None])


def test_panels_side_by_side_and_rows_without_weights(twin):
    matrix = np.zeros((3, MOST_COLUMNS + 5), np.float32)
    matrix[0, ::1000] = matrix[2, -2:] = 0.5
    x = np.random.default_rng(0).random((9, matrix.shape[1]), np.float32)
    x[:, 1] = np.inf  # where no row has a weight
    quantized = from_dense(matrix)
    assert len(quantized.panels) == 2
    out = np.full((9, 3), np.nan, np.float32)
    assert gpu.GpuMatrix(quantized, 0).multiply(x, out) is out
    np.testing.assert_allclose(out, multiply(quantized, x), rtol=1e-6)
    assert not out[:, 1].any()
    assert gpu.GpuMatrix(quantized, 0).multiply(x[:0]).shape == (0, 3)


def test_a_layer_keeps_its_matrix_there(twin, file):
    x = np.random.default_rng(1).random((5, 196), np.float32)
    ours, theirs = (CompressedLinear.from_dsz(file, "ip1", gpu=number) for number in (None, 0))
    np.testing.assert_allclose(theirs(x), ours(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(theirs(x[0]), ours(x[0]), rtol=1e-5, atol=1e-5)
    assert "on GPU 0" in repr(theirs)
    assert not theirs.is_dense
    with pytest.raises(InputError, match="196"):
        theirs(x[:, 1:])
    with pytest.raises(InputError, match="dense"):
        CompressedLinear.from_dsz(file, "ip1", gpu=0, dense=True)


def test_wrong_arrays_are_refused(twin):
    there = gpu.GpuMatrix(from_dense(np.eye(4, dtype=np.float32)), 0)
    x = np.ones((2, 4), np.float32)
    for given in ((x[:, :3],), (x.astype(np.float64),), (x, np.empty((2, 3), np.float32))):
        with pytest.raises(InputError, match="wanted"):
            there.multiply(*given)
    with pytest.raises(InputError, match="contiguous"):
        there.multiply(x, np.empty((4, 2), np.float32).T)


def test_what_is_missing_is_said_before_work_begins(twin, file, monkeypatch, tmp_path):
    nothing = tmp_path / "nothing.dsz"
    with pytest.raises(DeepSZError, match="no CUDA-capable device"), monkeypatch.context() as patch:
        patch.setenv("DEVICES", "0")
        CompressedLinear.from_dsz(nothing, "ip1", gpu=0)
    with pytest.raises(DeepSZError, match=r"GPU 3 .* finds 1"):
        load_net(nothing, nothing, compressed=True, gpu=3)
    for wrong in (-1, True, "0", 1 << 40):
        with pytest.raises(InputError, match="number"):
            load_net(nothing, nothing, compressed=True, gpu=wrong)
    with pytest.raises(CaffeError, match="without CUDA"):  # it is built for the processor here
        load_net(nothing, nothing, compressed=True, gpu=0)
    monkeypatch.setattr(gpu, "LIBRARY", tmp_path / "not-built.so")
    for call in (
        lambda: CompressedLinear.from_dsz(nothing, "ip1", gpu=0),
        lambda: load_net(nothing, nothing, compressed=True, gpu=0),
    ):
        with pytest.raises(DeepSZError, match="not built"):
            call()


def test_the_device_before_is_chosen_again(twin, monkeypatch):
    monkeypatch.setenv("DEVICES", "3")
    x = np.ones((2, 4), np.float32)
    there = gpu.GpuMatrix(from_dense(np.eye(4, dtype=np.float32)), 2)
    assert np.array_equal(there.multiply(x), x)
    assert gpu.check_gpu(2).chosen_device() == 0


def test_memory_that_is_not_there_is_an_error_and_the_next_product_goes_on(twin, monkeypatch):
    matrix = from_dense(np.eye(40, dtype=np.float32))
    x = np.ones((8, 40), np.float32)
    there = gpu.GpuMatrix(matrix, 0)
    with pytest.raises(DeepSZError, match="out of memory"), monkeypatch.context() as patch:
        patch.setenv("MEMORY", "1000")
        there.multiply(x)
    assert np.array_equal(there.multiply(x), x)
    monkeypatch.setenv("MEMORY", "100")
    with pytest.raises(DeepSZError, match="out of memory"):
        gpu.GpuMatrix(matrix, 0)


def outputs(path, library, network, images):
    """Run a network with its layers on the processor and on the twin; their types, too."""
    gpu.LIBRARY = library
    caffe = import_caffe()
    from deepsz_caffe.network.prototxt import phase, read_prototxt

    found = []
    for number in (None, 0):
        with open_source(path, gpu=number) as source:
            net = build_compressed(caffe, phase(read_prototxt(network), "TEST"), source)
        net.blobs["data"].reshape(*images.shape)
        net.blobs["data"].data[...] = images
        found.append({name: array.copy() for name, array in net.forward().items()})
    return found


def test_a_network_in_caffe_gives_the_same(compiled, toy, tmp_path):
    path = tmp_path / "x.dsz"
    write_dsz(path, encode(toy.network, toy.weights, {"ip": 0.02}, "fast"))
    images = toy.arrays()["data"][:6]
    ours, theirs = run_in_caffe(outputs, str(path), compiled, str(toy.deploy), images)
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-5, atol=1e-5)
