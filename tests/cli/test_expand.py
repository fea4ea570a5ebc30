"""``deepsz expand`` and ``inspect``: the prototxt in a file, standard output, limits, JSON."""

import dataclasses
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from deepsz_caffe import expand, write_dsz
from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.dsz.layout import Measured
from deepsz_caffe.errors import InputError, LimitError
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import BOUNDS, lenet_caffemodel

DEPLOY = 'name: "net"\n'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expand")
    (folder / "net.caffemodel").write_bytes(lenet_caffemodel())
    (folder / "deploy.prototxt").write_text(DEPLOY)
    for name, deploy in (("with.dsz", folder / "deploy.prototxt"), ("without.dsz", None)):
        contents = encode(None, folder / "net.caffemodel", BOUNDS, with_prototxt=deploy)
        write_dsz(folder / name, contents)
    expand(folder / "with.dsz", folder / "expected")
    return folder / "with.dsz"


def run(*arguments):
    result = CliRunner().invoke(deepsz, [str(a) for a in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def test_the_prototxt_comes_out_again(file, tmp_path):
    assert f"a deploy prototxt of {len(DEPLOY)} bytes" in run("inspect", file)
    assert json.loads(run("inspect", file, "--json"))["deploy_bytes"] == len(DEPLOY)
    run("expand", file, tmp_path / "out", "--prototxt", tmp_path / "deploy")
    assert (tmp_path / "deploy").read_text() == DEPLOY
    assert (tmp_path / "out").read_bytes() == file.with_name("expected").read_bytes()


def test_inspect_says_on_what_and_how_it_was_measured(file, tmp_path):
    contents = encode(None, file.with_name("net.caffemodel"), BOUNDS)
    how = "pictures: 1x28x28; crop center; scale 0.00390625"
    for before, after, said in ((260, 257, ": top-1 260 → 257"), (0, 0, "")):
        measured = Measured(how, 260, before, after, 0, 0)
        origin = dataclasses.replace(contents.origin, measured=measured)
        write_dsz(tmp_path / "x.dsz", dataclasses.replace(contents, origin=origin))
        lines = run("inspect", tmp_path / "x.dsz").splitlines()
        assert f"measured on 260 images ({how}){said}" in lines
    assert "measured" not in run("inspect", file)


def test_a_file_without_one_says_so_before_any_work(file, tmp_path):
    without = file.with_name("without.dsz")
    assert "prototxt" not in run("inspect", without)
    assert json.loads(run("inspect", without, "--json"))["deploy_bytes"] is None
    with pytest.raises(InputError, match="holds no prototxt"):
        run("expand", without, tmp_path / "out", "--prototxt", tmp_path / "deploy")
    with pytest.raises(InputError, match="read and written at once"):
        run("expand", file, tmp_path / "out", "--prototxt", file)
    with pytest.raises(InputError, match="out: is to be written twice"):
        run("expand", file, tmp_path / "out", "--prototxt", tmp_path / "." / "out")
    assert not list(tmp_path.iterdir())


def test_json_says_what_was_written(file, tmp_path):
    told = json.loads(run("expand", file, tmp_path / "out", "--json"))
    assert told["output"] == str(tmp_path / "out")
    assert told["bytes"] == (tmp_path / "out").stat().st_size
    assert told["prototxt"] is None
    assert [layer["name"] for layer in told["layers"]] == list(BOUNDS)


def test_to_standard_output(file):
    command = [sys.executable, "-m", "deepsz_caffe", "expand", str(file), "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == file.with_name("expected").read_bytes()
    with pytest.raises(InputError, match="both"):
        run("expand", file, "-", "--json")


@pytest.mark.parametrize(
    ("option", "value"), [("--max-memory", 1000), ("--max-output", 1000), ("--max-seconds", 1e-9)]
)
def test_limits_of_every_command_that_decodes(option, value, file, tmp_path):
    for command in (("expand", file, tmp_path / "out"), ("inspect", file), ("eval", "no", file)):
        with pytest.raises(LimitError, match="limit is"):
            run(*command, option, value)
    assert not list(tmp_path.iterdir())
