"""`kill -9` at any moment of `compress` and `expand` leaves the output absent or complete."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import toy as toys

from deepsz_caffe import write_dsz
from deepsz_caffe.steps.encode import encode


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "deepsz_caffe", *map(str, command)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(process):
    # The Caffe workers with it, as when a machine goes down.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def commands(toy, tmp_path_factory):
    """The two commands, and what each one's complete output is."""
    folder = tmp_path_factory.mktemp("killed")
    bounds = dict.fromkeys(toys.FC_LAYERS, 0.02)
    write_dsz(folder / "in.dsz", encode(toy.network, toy.weights, bounds, "paper"))
    return {
        "compress": (
            *("compress", toy.network, toy.weights, "out", "--max-loss", "0.05"),
            *("--profile", "fast", "--layers", "ip"),
        ),
        "expand": ("expand", folder / "in.dsz", "out"),
    }


@pytest.mark.parametrize("name", ["compress", "expand"])
def test_killed_at_random_moments(name, commands, tmp_path):
    command = commands[name]
    began = time.monotonic()
    assert start(command, tmp_path).wait() == 0
    whole = time.monotonic() - began
    complete = (tmp_path / "out").read_bytes()
    (tmp_path / "out").unlink()
    moments = random.Random(name)
    seen = []
    for _ in range(4):
        process = start(command, tmp_path)
        time.sleep(moments.uniform(0.2, 1.1) * whole)
        kill(process)
        seen.append((tmp_path / "out").exists())
        if seen[-1]:
            assert (tmp_path / "out").read_bytes() == complete
            (tmp_path / "out").unlink()
    assert not all(seen)
    assert start(command, tmp_path).wait() == 0
    assert (tmp_path / "out").read_bytes() == complete


def test_killed_while_it_writes(commands, tmp_path):
    """The temporary file is there, the output is not, and the next run does not mind."""
    (tmp_path / "slow.py").write_text(
        "import time, sys; from pathlib import Path\n"
        "Path.replace = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        "sys.argv = sys.argv[1:]; from deepsz_caffe.cli import main; main()\n"
    )
    command = [sys.executable, "slow.py", "deepsz", *map(str, commands["expand"])]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        kill(process)
    assert not (tmp_path / "out").exists()
    assert start(commands["expand"], tmp_path).wait() == 0
    assert (tmp_path / "out").exists()
