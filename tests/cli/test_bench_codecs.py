"""`deepsz bench codecs`: every codec, its real size, beside limits computed here."""

import json
from math import log2

import numpy as np
import pytest

from deepsz_caffe import codecs
from deepsz_caffe.codecs.compare import compare
from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.networks import ROOT

DENSE = ROOT / "models" / "lenet_300_100" / "dense.caffemodel"


def test_every_codec_is_measured_at_its_size():
    rng = np.random.default_rng(0)
    weights = (rng.normal(0, 0.1, (40, 60)) * (rng.random((40, 60)) < 0.2)).astype(np.float32)
    figures = list(compare(weights, 0.02))
    names = {(f.array, f.codec) for f in figures}
    assert names >= {("data", n) for n in codecs.DATA} | {("index", n) for n in codecs.INDEX}
    assert names >= {("matrix", n) for n in codecs.MATRIX}
    by = {(f.array, f.codec): f for f in figures}
    for name, codec in codecs.MATRIX.items():
        assert by["matrix", name].bytes == len(codec(0.02).encode(weights))
        assert by["matrix", name].decode_mb_s > 0
    share = np.count_nonzero(weights) / weights.size
    bits = -(share * log2(share) + (1 - share) * log2(1 - share)) * weights.size
    assert by["index", "entropy"].bytes == pytest.approx(bits / 8, abs=1)


def test_nothing_but_zeros_is_wrong_use():
    with pytest.raises(InputError, match="every weight is 0"):
        next(compare(np.zeros((3, 4), np.float32), 0.1))


def test_the_command_measures_the_layers_that_have_bounds(deepsz):
    done = deepsz("bench", "codecs", DENSE, "--bounds", "ip3=0.02", "--json")
    assert done.returncode == 0, done.stderr
    (layer,) = json.loads(done.stdout)["layers"]
    assert (layer["name"], layer["shape"], layer["error_bound"]) == ("ip3", [10, 100], 0.02)
    assert "entropy" in {figure["codec"] for figure in layer["figures"]}


def test_a_layer_that_is_not_there_is_one_line(deepsz):
    done = deepsz("bench", "codecs", DENSE, "--bounds", "ip9=0.02")
    assert done.returncode == 1
    assert "ip9" in done.stderr
    assert "Traceback" not in done.stderr
