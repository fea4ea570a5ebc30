"""Weights removed on pictures: what is said of it is what pycaffe finds."""

import json

import caffe
import numpy as np
import pytest
import toy as toys

from deepsz_caffe.network.caffemodel import read_caffemodel


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, data=np.random.default_rng(1).integers(0, 256, (200, 11, 11), np.uint8))
    return path


def test_what_is_said_is_what_pycaffe_finds(toy, deepsz, source, tmp_path):
    out = tmp_path / "removed.caffemodel"
    done = deepsz(
        *("remove", toy.deploy, toy.weights, out, "--images", source, "--scale", 1 / 256),
        *("--keep", "left=0.1,right=0.2,conv=0.8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    before, after = read_caffemodel(toy.weights), read_caffemodel(out)
    assert set(said["layers"]) == {"left", "right", "conv"}
    for name in ("conv", *toys.FC_LAYERS):
        old, new = before[name].matrix, after[name].matrix
        assert not new[old == 0].any()
        if name in said["layers"]:
            assert np.count_nonzero(old) == said["layers"][name]["nonzeros_before"]
            assert np.count_nonzero(new) == said["layers"][name]["nonzeros_after"]
            assert np.count_nonzero(new) < 0.85 * np.count_nonzero(old)
        else:
            np.testing.assert_array_equal(new, old)
    with np.load(source) as archive:
        pictures = archive["data"][:, None] / np.float32(256)
    classes = []
    for weights in (toy.weights, out):
        net = caffe.Net(str(toy.deploy), caffe.TEST, weights=str(weights))
        found = []
        for start in (0, 100):
            net.blobs["data"].data[...] = pictures[start : start + 100]
            found.append(net.forward()["ip"].argmax(axis=1))
        classes.append(np.concatenate(found))
    assert said["same_top1"] == (classes[0] == classes[1]).sum()
    assert said["images"] == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "0"], "(0, 1]"),
        (["--keep", "ip=2"], "(0, 1]"),
        (["--keep", "none=0.5"], "none"),
        (["--keep", "x"], "can't be read"),
        (["--keep", "0.5", "--layers", "none"], "none"),
    ],
)
def test_what_is_wrong_is_said(toy, deepsz, source, tmp_path, options, said):
    out = tmp_path / "x.caffemodel"
    done = deepsz("remove", toy.deploy, toy.weights, out, "--images", source, *options)
    assert done.returncode
    assert said in done.stderr
    done = deepsz("remove", toy.deploy, toy.weights, out, "--keep", "0.5")
    assert "--images" in done.stderr
    assert not out.exists()
