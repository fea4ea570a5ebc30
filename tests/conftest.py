"""What tests of several rooms share: the command line, real MNIST, small networks."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepsz_caffe.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def mnist():
    """Give the folder of the checkout's MNIST LMDBs; they are made when they are not there."""
    from deepsz_caffe.experiments.datasets.mnist import prepare

    folder = REPOSITORY / "data" / "mnist"
    prepare(folder)
    return folder


@pytest.fixture
def deepsz(capfd, monkeypatch):
    """Run the command line in this process, which has Caffe loaded already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["deepsz", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def checkout(mnist, monkeypatch):
    """Work in the checkout: the sources in its prototxts are relative to it."""
    monkeypatch.chdir(REPOSITORY)
    return REPOSITORY


@pytest.fixture
def few_digits(lenet, monkeypatch):
    """Work where the sources of a checkout's prototxts are: here with a small part of MNIST."""
    monkeypatch.chdir(lenet.folder)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Give a small network with branches, its data and weights; see `toy`."""
    from toy import load, make

    from deepsz_caffe.runtime.pool import run_in_caffe

    folder = tmp_path_factory.mktemp("toy")
    run_in_caffe(make, str(folder))
    return load(folder)


@pytest.fixture(scope="session")
def lenet(mnist, tmp_path_factory):
    """Give LeNet-300-100 on a small part of MNIST; see `lenet`."""
    from lenet import make

    return make(tmp_path_factory.mktemp("lenet"), REPOSITORY)
