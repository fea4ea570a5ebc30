"""Dask: the processes that docker/compose.yaml starts, here without containers."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from deepsz_caffe.errors import DeepSZError, InputError
from deepsz_caffe.runtime.cluster import cluster_executor

COMPOSE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def scheduler(tmp_path):
    """Start a scheduler and two workers; give the scheduler's address."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"scheduler:8786": f"127.0.0.1:{port}", "8786": str(port), "/tmp": str(tmp_path)}

    def start(service, *options):
        program, *arguments = services[service]["entrypoint"]
        for place, here in places.items():
            arguments = [
                argument.replace(place, here) if place in (argument, argument[6:]) else argument
                for argument in arguments
            ]
        process = subprocess.Popen(
            [PROGRAMS / program, *arguments, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)

    with ExitStack() as stack:
        start("scheduler", "--host", "127.0.0.1")
        for _ in range(2):
            start("worker", "--host", "127.0.0.1")
        yield f"tcp://127.0.0.1:{port}"


def test_compress_on_a_cluster_writes_the_same_file(scheduler, toy, tmp_path):
    def compress(name, *options):
        out = tmp_path / name
        command = ["deepsz", "compress", toy.network, toy.weights, out, "--max-loss", "0.02"]
        options = ("--profile", "fast", "--layers", "left,ip", *options)
        done = subprocess.run(
            [PROGRAMS / command[0], *command[1:], "--json", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), out.read_bytes()

    assert compress("cluster.dsz", "--scheduler", scheduler) == compress("local.dsz")
    left = {path.name for path in tmp_path.iterdir() if "dsz" in path.name}
    assert left == {"cluster.dsz", "local.dsz"}


@pytest.mark.parametrize("scheduler", ["bogus", "", "foo://here:1", ":8786", "tcp://here"])
def test_what_is_no_address_is_refused_at_once(scheduler):
    with pytest.raises(InputError, match="no address of a scheduler"), cluster_executor(scheduler):
        pass


@pytest.mark.mpi  # needs MPI on this machine: make test-mpi
def test_mpi_gives_the_same_assessment(toy, tmp_path):
    def assess(name, program, *options):
        out = tmp_path / name
        command = ["assess", toy.network, toy.weights, "--max-loss", "0.02", "--out", out, *options]
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        done = subprocess.run(
            [*program, PROGRAMS / "deepsz", *command],
            capture_output=True,
            text=True,
            env=os.environ | allowed,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return out.read_bytes()

    program = ["mpiexec", "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    alone = assess("one.json", [])
    assert assess("mpi.json", program, "--scheduler", "mpi") == alone


@pytest.mark.slow  # it tries for 20 seconds
def test_no_scheduler_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DeepSZError, match="can't reach"), cluster_executor(address):
            pass
