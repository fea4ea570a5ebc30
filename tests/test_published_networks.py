"""Networks as others have published them: encoded, expanded, and compared by Caffe and by OpenCV.

All work, or the one layer is named that Caffe or OpenCV lacks. Where both run a network, what they
find is the same, so each is the truth for the other.
"""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from published import NETWORKS, inputs_of, published

from deepsz_caffe import expand, read_caffemodel, write_dsz
from deepsz_caffe.errors import DeepSZError
from deepsz_caffe.network.layers import KINDS
from deepsz_caffe.runtime.outputs import Job, compare_networks
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.steps.encode import encode

BOUND = 0.02
#: what this Caffe is told to lack, in networks of forks
CAFFE_LACKS = {
    "shufflenet": "shuffle_channel_param",
    "deeplab": "interp_param",
    "ssd": "conv4_3_norm: norm_param",
    "mobilenet_ssd": "permute_param",
    "fast_rcnn": "roi_pool5: roi_pooling_param",
}
#: types of layers there that only the fork knows
FORKS = {
    "shufflenet": {"ShuffleChannel"},
    "deeplab": {"Interp"},
    "ssd": {"Normalize", "Permute", "PriorBox", "DetectionOutput"},
    "mobilenet_ssd": {"Permute", "PriorBox", "DetectionOutput"},
    "fast_rcnn": {"ROIPooling"},
}
#: OpenCV's LSTM is not Caffe's
OPENCV_LACKS = {"lrcn": "LSTM", "captioner": "Embed"}
WRITTEN_IN_2014 = {"vgg_16", "lenet"}


def found_by(jobs):
    """Compare each, in one process; give what was found, or the error."""
    found = []
    for job in jobs:
        try:
            found.append(compare_networks(job))
        except DeepSZError as error:
            found.append(error)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every network: its files in a folder of its own, and the notes that encoding gave."""
    folder = tmp_path_factory.mktemp("published")
    notes = {}
    for name in NETWORKS:
        (folder / name).mkdir()
        deploy, dense, dsz = (
            folder / name / file for file in ("deploy.prototxt", "a.caffemodel", "net.dsz")
        )
        net = published(name)
        deploy.write_text(net.as_of_2014() if name in WRITTEN_IN_2014 else net.text)
        dense.write_bytes(net.model.SerializeToString())
        np.savez(folder / name / "inputs.npz", **inputs_of(net))
        bounds = {x.name: BOUND for x in read_caffemodel(dense).layers if x.type in KINDS}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            write_dsz(dsz, encode(deploy, dense, bounds, "fast"))
        notes[name] = "\n".join(str(each.message) for each in said)
        expand(dsz, folder / name / "b.caffemodel")
    return folder, notes


@pytest.fixture(scope="module")
def compared(made):
    """(name, whether by OpenCV) -> what was found, or the error."""
    folder, _ = made
    keys = [(name, opencv) for name in NETWORKS for opencv in (False, True)]
    jobs = [
        Job(
            str(folder / name / "deploy.prototxt"),
            (str(folder / name / "a.caffemodel"), str(folder / name / "net.dsz")),
            str(folder / name / "inputs.npz"),
            opencv=opencv,
        )
        for name, opencv in keys
    ]
    return dict(zip(keys, run_in_caffe(found_by, jobs), strict=True))


def test_there_are_enough():
    assert len(NETWORKS) >= 30
    assert set(FORKS) == set(CAFFE_LACKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_within_their_bounds_and_all_else_is_the_same(made, name):
    folder, notes = made
    before, after = (read_caffemodel(folder / name / f"{x}.caffemodel") for x in "ab")
    compressed = 0
    for one, other in zip(before.layers, after.layers, strict=True):
        assert (one.name, one.type) == (other.name, other.type)
        for number, (a, b) in enumerate(zip(one.blobs, other.blobs, strict=True)):
            if number == 0 and one.type in KINDS:
                assert np.abs(b.data.astype(np.float64) - a.data).max() <= BOUND
                compressed += not np.array_equal(a.data, b.data)
            else:
                assert a.data.tobytes() == b.data.tobytes()
    assert compressed > 1
    assert bool(notes[name]) == (name in FORKS)
    assert all(f"type {kind}" in notes[name] for kind in FORKS.get(name, ()))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_compared_or_a_layer_is_named(compared, name):
    by_caffe, by_opencv = compared[name, False], compared[name, True]
    for found, lacks in ((by_caffe, CAFFE_LACKS), (by_opencv, OPENCV_LACKS)):
        if name in lacks:
            assert isinstance(found, DeepSZError)
            assert lacks[name] in str(found)
            continue
        assert not isinstance(found, DeepSZError), found
        for output in found.outputs:
            assert output.not_compared == 0
            assert 0 < output.relative_change < 1
    if name in CAFFE_LACKS or name in OPENCV_LACKS:
        return
    assert by_caffe.layers == by_opencv.layers
    for one, other in zip(by_caffe.outputs, by_opencv.outputs, strict=True):
        assert (one.blob, one.shape, one.images) == (other.blob, other.shape, other.images)
        assert math.isclose(one.rms_change, other.rms_change, rel_tol=1e-3)
        assert math.isclose(one.rms, other.rms, rel_tol=1e-4)
        if one.classes is not None:
            assert abs(one.classes.same - other.classes.same) <= one.classes.places / 500


def test_the_page_on_forks_says_so():
    page = (Path(__file__).resolve().parent.parent / "prototxt" / "forks.md").read_text()
    table = page.partition("## Which network needs what")[2]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    lacking = {kind for _, layers, *_ in rows for kind in re.findall(r"`(\w+)`", layers)}
    assert lacking == set.union(*FORKS.values())
    for _, layers, caffe, _ in rows:
        assert ("`" in layers) == (caffe.strip() == "no")


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("pnet", {"softmax8": True, "conv4-2": False}),
        ("onet", {"softmax14": True, "conv6-2": False, "conv6-3": False}),
        ("siamese", {"feat": False, "feat_p": False}),
        ("landmarks", {"tanh15": False}),
        ("u_net", {"softmax28": True}),
        ("colorization", {"class8_ab": False}),
    ],
)
def test_which_outputs_are_classes(compared, name, outputs):
    found = compared[name, False].outputs
    assert {output.blob: output.classes is not None for output in found} == outputs
