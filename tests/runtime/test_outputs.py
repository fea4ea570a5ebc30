"""Two versions of a network on the same images: Caffe's and OpenCV's runs against pycaffe's own."""

import re
from dataclasses import replace

import cv2
import h5py
import numpy as np
import pytest
import toy as toys

from deepsz_caffe import compare, expand, write_dsz
from deepsz_caffe.errors import (
    CaffeError,
    DataError,
    DeepSZError,
    FormatError,
    InputError,
    ModelError,
)
from deepsz_caffe.runtime.outputs import Job, compare_networks
from deepsz_caffe.runtime.pictures import open_pictures
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.preprocess import Preprocessing
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode

IMAGES = 230  # the batch is 100


def scores_of(deploy, files, images):
    """Run pycaffe itself with each weights file, as its documentation has it."""
    caffe = import_caffe()
    found = []
    for weights in files:
        net = caffe.Net(str(deploy), str(weights), caffe.TEST)
        net.blobs["data"].reshape(*images.shape)
        net.blobs["data"].data[...] = images
        found.append(net.forward()["ip"].copy())
    return found


@pytest.fixture(scope="module")
def pair(toy, tmp_path_factory):
    """The toy's network, a coarse version of it, and the outputs of both for all test images."""
    folder = tmp_path_factory.mktemp("compare")
    bounds = dict.fromkeys(("conv", *toys.FC_LAYERS), 0.03)
    write_dsz(folder / "coarse.dsz", encode(toy.network, toy.weights, bounds))
    expand(folder / "coarse.dsz", folder / "coarse.caffemodel")
    images = toy.arrays()["data"]
    np.savez(folder / "inputs.npz", data=images[:IMAGES])  # no labels
    files = toy.weights, folder / "coarse.caffemodel"
    truth = run_in_caffe(scores_of, toy.deploy, files, images)
    return folder, toy.weights, folder / "coarse.dsz", truth


def check(found, before, after):
    """Compare a comparison's one output with what plain numpy makes of both networks' scores."""
    (output,) = found.outputs
    change = np.abs(after.astype(np.float64) - before)
    assert (output.blob, output.shape) == ("ip", before.shape[1:])
    assert (found.images, output.images, output.not_compared) == (len(before), len(before), 0)
    assert output.rms_change == pytest.approx(np.sqrt((change**2).mean()), rel=1e-4)
    assert output.largest_change == pytest.approx(change.max(), rel=1e-4)
    assert output.mean_change == pytest.approx(change.mean(), rel=1e-4)
    differ = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
    assert [one.image for one in output.classes.changed] == list(differ)
    assert output.classes.same == len(before) - len(differ)
    assert 0 < len(differ) < len(before)
    assert {change.layer for change in found.layers if change.changed} == {"conv", *toys.FC_LAYERS}


def test_its_own_data_every_image_once(toy, pair):
    _, a, b, truth = pair
    seen = []
    found = compare(toy.network, a, b, progress=lambda *told: seen.append(told))
    check(found, *truth)
    assert seen[-1] == (toys.IMAGES["test"],) * 2
    assert (found.guessed, found.preprocessing, found.pictures) == ("", "", {})


def test_its_own_data_without_caffe(toy, pair):
    _, a, b, truth = pair
    check(compare(toy.network, a, b, opencv=True), *truth)


@pytest.mark.parametrize("opencv", [False, True], ids=["caffe", "opencv"])
def test_arrays_without_labels(toy, pair, opencv):
    folder, a, b, truth = pair
    found = compare(toy.deploy, a, b, data=folder / "inputs.npz", opencv=opencv, pictures=3)
    check(found, *(scores[:IMAGES] for scores in truth))
    assert found.guessed == "ip"  # no layer of a deploy prototxt says so
    changed = [one.image for one in found.outputs[0].classes.changed]
    assert list(found.pictures) == changed[:3]
    image = toy.arrays()["data"][changed[0], 0]
    drawn = cv2.imdecode(np.frombuffer(found.pictures[changed[0]], np.uint8), cv2.IMREAD_GRAYSCALE)
    small = cv2.resize(drawn, image.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.ravel(), image.ravel())[0, 1] > 0.99


def test_the_test_phase_runs_in_opencv_too(toy, pair):
    folder, a, b, truth = pair
    found = compare(toy.network, a, b, data=folder / "inputs.npz", opencv=True)
    check(found, *(scores[:IMAGES] for scores in truth))


@pytest.fixture
def pictures(toy, tmp_path):
    """The first test images as PNG files."""
    pixels = (toy.arrays()["data"][:IMAGES, 0] * 256).astype(np.uint8)
    for number, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{number:04}.png"), image)
    return tmp_path


@pytest.mark.parametrize("opencv", [False, True], ids=["caffe", "opencv"])
def test_pictures(toy, pair, pictures, opencv):
    _, a, b, truth = pair
    how = Preprocessing((1, 11, 11), scale=1 / 256)
    found = compare(toy.deploy, a, b, data=open_pictures(pictures, how), opencv=opencv)
    check(found, *(scores[:IMAGES] for scores in truth))
    assert found.preprocessing == str(how)


def test_crops_of_a_picture_count_as_one(toy, pair, tmp_path):
    folder, a, b, _ = pair
    pixels = np.random.default_rng(8).integers(0, 256, (23, 1, 13, 13), np.uint8)
    np.savez(tmp_path / "larger.npz", data=pixels)
    how = Preprocessing((1, 11, 11), scale=1 / 256, crop="10")
    pictures = open_pictures(tmp_path / "larger.npz", how)
    found = compare(toy.deploy, a, b, data=pictures, opencv=True)
    rows = np.concatenate(list(pictures.arrays()))
    assert rows.shape == (230, 1, 11, 11)
    scores = run_in_caffe(scores_of, toy.deploy, (a, folder / "coarse.caffemodel"), rows)
    check(found, *(each.reshape(23, 10, 10).mean(axis=1) for each in scores))


def test_any_blob_can_be_asked_for(toy, pair):
    folder, a, b, _ = pair
    asked = {"data": folder / "inputs.npz", "outputs": ("both", "conv"), "scores": ()}
    by_caffe = compare(toy.deploy, a, b, **asked)
    by_opencv = compare(toy.deploy, a, b, **asked, opencv=True)
    assert [output.blob for output in by_caffe.outputs] == ["conv", "both"]
    for one, other in zip(by_caffe.outputs, by_opencv.outputs, strict=True):
        assert one.classes is None
        assert one.shape == other.shape
        assert one.rms_change == pytest.approx(other.rms_change, rel=1e-4)


def test_weights_alone_need_no_network(toy, pair):
    _, a, b, _ = pair
    found = compare(None, a, b)
    assert (found.images, found.outputs) == (0, ())
    assert all(0 < x.largest_change <= 0.03 for x in found.layers if x.changed)


def errors_of(jobs):
    """Collect what each raises, in one process."""
    found = []
    for job in jobs:
        try:
            compare_networks(job)
            found.append(None)
        except DeepSZError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("opencv", [False, True], ids=["caffe", "opencv"])
def test_what_does_not_fit_is_named(toy, pair, tmp_path, opencv):
    folder, a, b, _ = pair
    definition = toy.deploy.read_text()
    texts = {"wide": ("num_output: 24", "num_output: 25"), "strange": ('"TanH"', '"NoSuch"')}
    for name, change in texts.items():
        (tmp_path / f"{name}.prototxt").write_text(definition.replace(*change))
    usual = Job(str(toy.deploy), (str(a), str(b)), str(folder / "inputs.npz"), opencv=opencv)
    cases = [
        (ModelError, "blob nose: the network has no such blob", {"outputs": ("nose",)}),
        (InputError, r"scores nose: is no output.*outputs: ip", {"scores": ("nose",)}),
        (DataError, "no array for data", {"data": {"image": np.zeros((2, 1, 11, 11))}}),
        (ModelError, r"gone\.prototxt", {"network": str(tmp_path / "gone.prototxt")}),
        (
            FormatError,
            r"bad\.dsz",
            {"weights": (str(a), str(damaged(b, tmp_path / "bad.dsz")))},
        ),
        (ModelError, "left|OpenCV can't", {"network": str(tmp_path / "wide.prototxt")}),
        (
            ModelError if opencv else CaffeError,
            "NoSuch",
            {"network": str(tmp_path / "strange.prototxt")},
        ),
    ]
    errors = run_in_caffe(errors_of, [replace(usual, **change) for _, _, change in cases])
    for error, (kind, said, _) in zip(errors, cases, strict=True):
        assert isinstance(error, kind)
        assert re.search(said, str(error))


def test_data_that_only_caffe_reads_are_named(toy, pair, tmp_path):
    _, a, b, _ = pair
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = toy.arrays()["data"][:7]
    (tmp_path / "list.txt").write_text(str(tmp_path / "x.h5"))
    parameters = f'hdf5_data_param {{ source: "{tmp_path}/list.txt" batch_size: 7 }}'
    layer = f'layer {{ name: "data" type: "HDF5Data" top: "data" {parameters} }}'
    network = tmp_path / "net.prototxt"
    network.write_text(layer + toys.BODY)
    with pytest.raises(DataError, match=r"layer data: only Caffe reads data of type HDF5Data"):
        compare(network, a, b, opencv=True)
    assert compare(network, a, b).images == 7
    lmdb = f'data_param {{ source: "{toy.folder}/test_lmdb" backend: LMDB batch_size: 7 }}'
    pair = "".join(f'layer {{ name: "{x}" type: "Data" top: "{x}" {lmdb} }}' for x in ("data", "p"))
    both = 'layer { name: "s" type: "Eltwise" bottom: "data" bottom: "p" top: "s" }'
    network.write_text(pair + both + toys.BODY.replace('bottom: "data"', 'bottom: "s"'))
    with pytest.raises(DataError, match="layer p: a second layer whose images Caffe does not read"):
        compare(network, a, b, opencv=True)


def damaged(path, output):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    output.write_bytes(content)
    return output
