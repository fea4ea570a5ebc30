"""Disks that are full or broken, memory that is short, at every call in turn: outputs stay whole.

A shim makes one write, read or allocation after the other fail while `encode`, `expand` and
`assess` work. Each time the output is what it was before, or complete; nothing else is left; the
error is of our family. Before, a weights file that could not be read to its end ended `encode` in a
bare OSError.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepsz_caffe import DeepSZError, assess, evaluate
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.process import WorkerDied
from deepsz_caffe.steps.encode import encode, write_dsz
from tests.hostile.faults import Failing, armed, killed
from tests.hostile.samples import BOUNDS, lenet_caffemodel

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    subprocess.run([*compiler, *options, "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(lenet_caffemodel())
    write_dsz(tmp_path / "net.dsz", encode(None, tmp_path / "net.caffemodel", BOUNDS))
    return tmp_path


def failing(shim, work, kind, folder):
    command = [sys.executable, str(HERE / "faults.py"), work, kind, str(folder)]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    return report["failed"]


@pytest.mark.parametrize(
    ("work", "kind", "least"),
    [
        ("encode", "writes", 3),
        ("encode", "reads", 1),
        ("expand", "writes", 5),
        ("expand", "reads", 5),
        ("expand", "memory", 1),
        pytest.param("encode", "memory", 50, marks=pytest.mark.slow),
    ],
)
def test_encode_and_expand(shim, folder, work, kind, least):
    failed = failing(shim, work, kind, folder)
    assert sum(failed.values()) >= least
    assert "done" not in failed or kind == "memory"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["writes", "reads"])
def test_assess(shim, toy, tmp_path, kind):
    # What ended in an OSError or AssertionError before: each lock and rename of the folder of
    # features, each read of weights, data and features.
    (tmp_path / "toy").write_text(f"{toy.network}\n{toy.weights}\n")
    failed = failing(shim, "assess", kind, tmp_path)
    assert sum(failed.values()) >= 10
    assert "done" not in failed


def assess_in(toy, executor):
    options = {"protocol": "paper", "bounds": [0.05], "layers": ["ip"], "profile": "fast"}
    assess(toy.network, toy.weights, executor=executor, **options)


def evaluate_in(toy, executor):
    evaluate(toy.network, toy.weights, executor=executor)


@contextmanager
def pool_in(folder, monkeypatch, **environment):
    """Give one Caffe process; see that it, or one in its place, works, and nothing is left."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with CaffePool(1) as pool:
        yield pool
        assert pool.submit(abs, -1).result(60) == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("work", "kind", "step", "least"),
    [
        (assess_in, "writes", 2, 4),
        (assess_in, "reads", 2, 4),
        (evaluate_in, "memory", 29, 3),
    ],
)
def test_calls_that_fail_in_a_caffe_process(
    shim, toy, tmp_path, monkeypatch, work, kind, step, least
):
    # A full disk was a bare OSError and short memory a MemoryError of the parent.
    fired, folder = tmp_path / "fired", tmp_path / "folder"
    folder.mkdir()
    failed = 0
    with pool_in(folder, monkeypatch, LD_PRELOAD=str(shim)) as pool:
        work(toy, pool)  # what is imported at first use is imported now
        for number in range(1, 1000, step):
            try:
                work(toy, Failing(pool, armed, kind, number, str(fired)))
            except DeepSZError:
                failed += 1
            if not fired.exists():
                break
            fired.unlink()
    assert failed >= least


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_caffe_process_that_dies_in_the_middle_of_a_task(toy, tmp_path, monkeypatch, number):
    with pool_in(tmp_path, monkeypatch) as pool:
        evaluate_in(toy, pool)
        for seconds in (0, 0.02):
            with pytest.raises(WorkerDied, match=signal.Signals(number).name):
                evaluate_in(toy, Failing(pool, killed, number, seconds))
