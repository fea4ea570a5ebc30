"""Networks on pictures without labels: agreement against plain pycaffe, picture by picture."""

import dataclasses

import caffe
import cv2
import numpy as np
import pytest
import toy as toys

from deepsz_caffe.api import assess, compress
from deepsz_caffe.dsz.decode import decode, decode_layer
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZWarning, InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime import tail
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.runtime.features import Pass, compute_features
from deepsz_caffe.runtime.pictures import open_pictures
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.preprocess import Preprocessing, parse_preprocessing
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.encode import encode_layer
from deepsz_caffe.steps.expand import expand

HOW = Preprocessing((1, 11, 11), scale=1 / 256)
LAYERS = ("conv", *toys.FC_LAYERS)


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Write 330 gray pictures of 14 × 13 as a ``.npz``, with labels that nobody asks for."""
    path = tmp_path_factory.mktemp("pictures") / "some.npz"
    data = np.random.default_rng(1).integers(0, 256, (330, 14, 13), np.uint8)
    np.savez(path, data=data, label=np.arange(330) % 10)
    return path


def answers(toy, weights, pictures):
    """Give the class of each picture by the mean scores of its crops, with pycaffe alone."""
    net = caffe.Net(str(toy.deploy), caffe.TEST, weights=str(weights))
    found = []
    for array in pictures.arrays():
        net.blobs["data"].data[: len(array)] = array
        found.append(net.forward()["ip"][: len(array)].mean(axis=0).argmax())
    return np.array(found)


def test_crops_of_a_picture_stay_in_one_batch(toy, pool, source, tmp_path):
    pictures = open_pictures(source, dataclasses.replace(HOW, crop="10"))
    job = Pass(str(toy.deploy), str(toy.weights), LAYERS, str(tmp_path), data=pictures)
    assert pool.submit(compute_features, job).result().total == 330
    assert pool.submit(_smallest_batch, str(tmp_path)).result() == 10


def _smallest_batch(folder):
    usual, tail._BATCH_BYTES = tail._BATCH_BYTES, 0
    try:
        return tail.Tail(folder, frozenset(LAYERS), None, None).batch
    finally:
        tail._BATCH_BYTES = usual


@pytest.mark.parametrize("crop", ["center", "10"])
@pytest.mark.parametrize("network", ["deploy", "network"])
def test_changed_answers_are_counted_as_pycaffe_gives_them(
    toy, pool, source, tmp_path, crop, network
):
    pictures = open_pictures(source, dataclasses.replace(HOW, crop=crop))
    model = read_caffemodel(toy.weights)
    encoded = {name: encode_layer(name, model[name].matrix, 0.05) for name in LAYERS}
    net = caffe.Net(str(toy.deploy), caffe.TEST, weights=str(toy.weights))
    for name, layer in encoded.items():
        net.params[name][0].data[...] = decode_layer(layer).reshape(net.params[name][0].shape)
    net.save(str(tmp_path / "changed.caffemodel"))
    before = answers(toy, toy.weights, pictures)
    same = int((answers(toy, tmp_path / "changed.caffemodel", pictures) == before).sum())
    setup = read_setup(getattr(toy, network), toy.weights, layers="all", own_data=False)
    with CaffeEvaluator(setup, data=pictures, executor=pool) as evaluator:
        assert evaluator.total == evaluator.score.top1_correct == 330
        assert evaluator.chance == np.bincount(before).max()
        outcome = evaluator.measure(encoded)
    assert same < 325
    assert (outcome.images, outcome.top1_correct) == (330, same)
    assert (outcome.lost, outcome.gained) == (330 - same, 0)


def test_with_labels_they_count_as_arrays_do(toy, pool, source):
    pictures = open_pictures(source, HOW, labelled=True)
    arrays = {"data": np.concatenate(list(pictures.arrays())), "label": pictures.labels}
    expected = evaluate(toy.deploy, toy.weights, data=arrays, executor=pool)
    for network in (toy.deploy, toy.network):
        assert evaluate(network, toy.weights, data=pictures, executor=pool) == expected


def test_the_agreement_asked_for_is_there_and_said_in_the_file(toy, pool, source, tmp_path):
    pictures = open_pictures(source, HOW)
    out = tmp_path / "x.dsz"
    result = compress(
        toy.deploy, toy.weights, out, agreement=0.97, data=pictures, profile="small", executor=pool
    )
    assert result.layers == LAYERS
    expand(out, tmp_path / "x.caffemodel")
    before = answers(toy, toy.weights, pictures)
    same = int((answers(toy, tmp_path / "x.caffemodel", pictures) == before).sum())
    assert result.after.top1_correct == same < 330
    said = result.to_json()["agreement"]
    assert said["same_top1"] == same
    assert said["at_least"] >= 0.97
    with DszFile(out) as file:
        data, how = file.origin.measured.data.split(": ")
        assert (data, parse_preprocessing(how)) == ("pictures", HOW)
        assert file.origin.measured.top1_after == same


def test_with_an_original_network_its_answers_are_kept(toy, pool, source, tmp_path):
    pictures = open_pictures(source, HOW)
    net = caffe.Net(str(toy.deploy), caffe.TEST, weights=str(toy.weights))
    random = np.random.default_rng(0)
    net.params["ip"][0].data[...] *= random.normal(1, 0.01, net.params["ip"][0].shape)
    net.save(str(tmp_path / "original.caffemodel"))
    first = answers(toy, tmp_path / "original.caffemodel", pictures)
    assert (first != answers(toy, toy.weights, pictures)).any()
    result = compress(
        toy.deploy,
        toy.weights,
        tmp_path / "x.dsz",
        original=tmp_path / "original.caffemodel",
        agreement=0.9,
        data=pictures,
        layers="fc",
        executor=pool,
    )
    assert set(decode(tmp_path / "x.dsz")) == set(toys.FC_LAYERS)
    expand(tmp_path / "x.dsz", tmp_path / "x.caffemodel")
    same = int((answers(toy, tmp_path / "x.caffemodel", pictures) == first).sum())
    assert result.after.top1_correct == same


def test_what_can_not_be_is_refused_before_any_work(toy, source, tmp_path):
    def run(network=toy.deploy, **options):
        compress(network, toy.weights, tmp_path / "x.dsz", **options)

    pictures = open_pictures(source, HOW)
    with pytest.raises(InputError, match="at least 2,302 pictures"):
        run(agreement=0.999, data=pictures)
    with pytest.raises(InputError, match="measured on pictures"):
        run(network=toy.network, agreement=0.9)
    with pytest.raises(InputError, match="need labels"):
        run(max_loss=0.01, data=pictures)
    with pytest.raises(InputError, match="need labels"):
        evaluate(toy.deploy, toy.weights, data=pictures)
    with pytest.raises(InputError, match="need labels"):
        assess(toy.deploy, toy.weights, data=pictures)
    with pytest.raises(InputError, match="one target"):
        run(max_loss=0.01, agreement=0.9, data=pictures)
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((11, 11), np.uint8))
    (tmp_path / "link.png").symlink_to("one.png")
    (tmp_path / "list.txt").write_text("one.png\n" * 20 + "link.png\n")
    for same in ("list.txt", "*.png"):
        with (
            pytest.warns(DeepSZWarning, match=r"one\.png.*, 1 of "),
            pytest.raises(InputError, match="1 pictures, all of them the same"),
        ):
            run(agreement=0.5, data=open_pictures(tmp_path / same, HOW))
    two = tmp_path / "two.prototxt"
    two.write_text(
        toy.deploy.read_text() + 'layer { name: "s" type: "Sigmoid" bottom: "left" top: "s" }'
    )
    with pytest.raises(ModelError, match=r"which output holds the class scores.*--max-change"):
        run(network=two, agreement=0.9, data=pictures)


SUM = 'layer { name: "s" type: "Reduction" bottom: "ip" top: "s" reduction_param { axis: 1 } }'
ONE = (
    SUM
    + """
layer { name: "one" type: "Reshape" bottom: "s" top: "one"
  reshape_param { shape { dim: 0 dim: 1 } } }"""
)
MAP = """layer { name: "map" type: "Reshape" bottom: "ip" top: "map"
  reshape_param { shape { dim: 0 dim: 2 dim: 5 } } }"""


@pytest.mark.parametrize("output", [ONE, SUM, MAP])
def test_outputs_that_choose_no_class_have_no_agreement(toy, pool, source, tmp_path, output):
    network = tmp_path / "net.prototxt"
    network.write_text(toy.deploy.read_text() + output)
    out = tmp_path / "x.dsz"
    with pytest.raises(ModelError, match=r"no choice between classes.*--max-change"):
        compress(
            network,
            toy.weights,
            out,
            agreement=0.9,
            data=open_pictures(source, HOW),
            executor=pool,
        )
    assert not out.exists()


def changes(toy, weights, pictures, network, blob):
    """Give each picture's squared change of a blob and its square, with pycaffe alone."""
    nets = [caffe.Net(str(network), caffe.TEST, weights=str(w)) for w in (toy.weights, weights)]
    found = []
    for array in pictures.arrays():
        for net in nets:
            net.blobs["data"].data[: len(array)] = array
            net.forward()
        old, new = (net.blobs[blob].data[0].astype(np.float64) for net in nets)
        found.append((((new - old) ** 2).sum(), (old**2).sum()))
    return np.array(found)


@pytest.fixture
def two_outputs(toy, tmp_path):
    """Give a network with two outputs, of which only one depends on `right` and `ip`."""
    path = tmp_path / "two.prototxt"
    more = 'layer { name: "s" type: "Sigmoid" bottom: "left" top: "s" }'
    path.write_text(toy.deploy.read_text() + more)
    return path


def test_outputs_change_by_no_more_than_asked(toy, pool, source, tmp_path, two_outputs):
    pictures = open_pictures(source, HOW)
    out = tmp_path / "x.dsz"
    result = compress(
        two_outputs, toy.weights, out, max_change=0.05, data=pictures, profile="fast", executor=pool
    )
    assert result.layers == LAYERS
    expand(out, tmp_path / "x.caffemodel")
    assert set(result.changes) == {"s", "ip"}
    said = result.to_json()["max_change"]["outputs"]
    for blob, change in result.changes.items():
        each = changes(toy, tmp_path / "x.caffemodel", pictures, two_outputs, blob)
        parts = each[:, 0] / each[:, 1].mean()
        assert change.mean == pytest.approx(parts.mean(), rel=1e-4)
        assert change.images == 330
        limit = parts.mean() + 1.2816 * parts.std(ddof=1) / np.sqrt(330)
        assert said[blob]["at_most"] == pytest.approx(np.sqrt(limit), rel=1e-4)
        assert said[blob]["at_most"] <= 0.05
    assert max(each["at_most"] for each in said.values()) > 0.03


def test_only_the_outputs_that_are_named_count(toy, pool, source, tmp_path, two_outputs):
    pictures = open_pictures(source, HOW)
    options = {"max_change": 0.05, "data": pictures, "profile": "fast", "executor": pool}
    result = compress(two_outputs, toy.weights, tmp_path / "x.dsz", outputs=["s"], **options)
    assert result.layers == ("conv", "left")
    assert list(result.changes) == ["s"]
    for name, said in (("nothing", "no such blob"), ("data", "depend on no")):
        with pytest.raises(ModelError, match=said):
            compress(two_outputs, toy.weights, tmp_path / "y.dsz", outputs=[name], **options)
