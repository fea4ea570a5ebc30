"""Bounds that are a part of a layer's typical weight: held, and called unverified."""

import subprocess
import sys

import numpy as np
import pytest
import toy as toys

from deepsz_caffe.dsz.decode import decode
from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.relative import relative_bounds


def test_bounds_follow_the_root_mean_square_of_what_is_not_zero(toy):
    model = read_caffemodel(toy.weights)
    bounds = relative_bounds(model, 0.05)
    assert list(bounds) == ["conv", *toys.FC_LAYERS]
    for name, bound in bounds.items():
        weights = model[name].matrix[model[name].matrix != 0].astype(np.float64)
        assert bound == pytest.approx(0.05 * np.sqrt((weights**2).mean()), rel=1e-3)
    assert list(relative_bounds(model, 0.05, "fc")) == list(toys.FC_LAYERS)
    assert list(relative_bounds(model, 0.05, ["ip"])) == ["ip"]


def test_what_can_not_be_is_refused(toy):
    model = read_caffemodel(toy.weights)
    for part in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="a relative bound"):
            relative_bounds(model, part)
    with pytest.raises(ModelError, match="nothing"):
        relative_bounds(model, 0.1, ["nothing"])


@pytest.mark.parametrize("command", ["compress", "encode", "encode without NET"])
def test_the_commands_write_it_and_say_that_nothing_was_measured(toy, deepsz, tmp_path, command):
    out = tmp_path / "x.dsz"
    network = [] if "without" in command else [toy.deploy]
    done = deepsz(command.split()[0], *network, toy.weights, out, "--relative-bound", "0.1")
    assert done.returncode == 0, done.stderr
    assert "unverified" in done.stderr
    model = read_caffemodel(toy.weights)
    bounds = relative_bounds(model, 0.1)
    found = decode(out)
    assert set(found) == set(bounds)
    for name, weights in found.items():
        assert np.abs(weights.astype(np.float64) - model[name].matrix).max() <= bounds[name]


def test_no_caffe_is_needed(toy, tmp_path):
    code = f"""
import sys
sys.modules["caffe"] = None
from deepsz_caffe.cli import main
sys.argv = ["deepsz", "encode", {str(toy.weights)!r}, {str(tmp_path / "x.dsz")!r},
            "--relative-bound", "0.1"]
main()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "x.dsz").stat().st_size > 100
