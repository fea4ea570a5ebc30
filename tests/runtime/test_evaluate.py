"""The evaluator against Caffe's own: the `caffe` tool, pycaffe, every kind of data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import toy as toys

from deepsz_caffe.dsz.expand import expand
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.errors import (
    CaffeError,
    DataError,
    DeepSZError,
    DeepSZWarning,
    InputError,
    ModelError,
)
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.evaluate import Score, evaluate, judge
from deepsz_caffe.runtime.features import Pass, compute_features
from deepsz_caffe.runtime.load import load_net
from deepsz_caffe.runtime.pool import CaffePool, run_in_caffe
from deepsz_caffe.runtime.sampled import measure_moments
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode, encode_layer


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


def caffe_test(network, weights, iterations, stage=()):
    """Ask Caffe's own tool; it prints the mean over the iterations."""
    tool = Path(sys.executable).with_name("caffe")
    command = [tool, "test", "-model", network, "-weights", weights, "-iterations", iterations]
    run = subprocess.run(
        [*map(str, command), *stage],
        capture_output=True,
        text=True,
        check=True,
        # It reports through the log, which a quiet import of Caffe in this process turned off.
        env={**os.environ, "GLOG_minloglevel": "0"},
    )
    return {name: float(value) for name, value in re.findall(r"\] (\w+) = ([\d.]+)", run.stderr)}


def with_batch(toy, folder, batch):
    """Write the toy's prototxt with a batch that divides the number of images."""
    path = folder / "batch.prototxt"
    path.write_text(toy.network.read_text().replace("batch_size: 100", f"batch_size: {batch}"))
    return path


def score_of(arrays, weights, deploy, rows):
    caffe = import_caffe()
    net = caffe.Net(deploy, weights, caffe.TEST)
    net.blobs["data"].data[...] = arrays["data"][rows]
    net.forward()
    return net.blobs["ip"].data.copy()


def caffe_accuracy(scores, labels, top_k):
    caffe = import_caffe()
    from caffe.proto import caffe_pb2

    from deepsz_caffe.runtime.net import build_net

    net = caffe_pb2.NetParameter()
    for name, array in (("scores", scores), ("labels", labels)):
        layer = net.layer.add(name=name, type="Input", top=[name])
        layer.input_param.shape.add(dim=array.shape)
    judge_layer = net.layer.add(name="a", type="Accuracy", bottom=["scores", "labels"], top=["a"])
    judge_layer.accuracy_param.top_k = top_k
    built = build_net(caffe, net)
    built.blobs["scores"].data[...] = scores
    built.blobs["labels"].data[...] = labels
    built.forward()
    return float(built.blobs["a"].data)


def test_the_caffe_tool_says_the_same(toy, pool, tmp_path):
    network = with_batch(toy, tmp_path, 70)  # 29 × 70 = 2,030
    said = caffe_test(network, toy.weights, 29)
    score = evaluate(network, toy.weights, executor=pool)
    assert score.total == 2030
    assert round(said["accuracy"] * 2030, 1) == pytest.approx(score.top1_correct, abs=0.1)
    assert round(said["top5"] * 2030, 1) == pytest.approx(score.top5_correct, abs=0.1)


def test_a_dsz_counts_as_its_expansion_does_in_the_caffe_tool(toy, pool, tmp_path):
    network = with_batch(toy, tmp_path, 70)
    bounds = dict.fromkeys(toys.FC_LAYERS, 0.1)
    write_dsz(tmp_path / "x.dsz", encode(network, toy.weights, bounds, "paper"))
    expand(tmp_path / "x.dsz", tmp_path / "x.caffemodel")
    score = evaluate(network, tmp_path / "x.dsz", executor=pool)
    said = caffe_test(network, tmp_path / "x.caffemodel", 29)
    assert score.top1_correct < evaluate(network, toy.weights, executor=pool).top1_correct
    assert round(said["accuracy"] * 2030, 1) == pytest.approx(score.top1_correct, abs=0.1)


def test_every_image_counts_once_whatever_the_batch(toy, pool, tmp_path):
    arrays = toy.arrays()
    scores = pool.submit(
        score_of, arrays, str(toy.weights), str(toy.deploy), slice(0, 100)
    ).result()
    first = judge(scores, arrays["label"][:100])[1].sum()
    assert 80 < first <= 100
    counts = {
        batch: evaluate(with_batch(toy, tmp_path, batch), toy.weights, executor=pool)
        for batch in (70, 100, 2030, 3000)
    }
    assert set(counts.values()) == {counts[70]}
    assert counts[70].total == 2030
    assert 0.93 < counts[70].top1_correct / 2030 < 0.99


def test_a_stage_chooses_other_data(toy, pool):
    score = evaluate(toy.network, toy.weights, stages=["validation"], executor=pool)
    assert score.total == 1510


def test_all_kinds_of_data_give_the_same_counts(toy, pool, tmp_path):
    expected = evaluate(toy.network, toy.weights, executor=pool)
    arrays = toy.arrays()
    h5 = [tmp_path / f"{i}.h5" for i in range(2)]
    for path, rows in zip(h5, (slice(0, 1111), slice(1111, None)), strict=True):
        with h5py.File(path, "w") as file:
            file["data"] = arrays["data"][rows]
            file["label"] = arrays["label"][rows].astype(np.float32)
    (tmp_path / "h5.txt").write_text("".join(f"{path}\n" for path in h5))
    head = 'layer { name: "data" top: "data" top: "label" '
    heads = {
        "hdf5": f'type: "HDF5Data" hdf5_data_param {{ source: "{tmp_path}/h5.txt" '
        "batch_size: 64 }",
        "memory": 'type: "MemoryData" memory_data_param { batch_size: 64 channels: 1 height: 11 '
        "width: 11 }",
    }
    for kind, data in heads.items():
        path = tmp_path / f"{kind}.prototxt"
        path.write_text(head + data + "}" + toys.BODY + toys.JUDGES)
    npz = toy.folder / "test.npz"
    assert evaluate(tmp_path / "hdf5.prototxt", toy.weights, executor=pool) == expected
    assert evaluate(tmp_path / "memory.prototxt", toy.weights, data=npz, executor=pool) == expected
    assert evaluate(toy.deploy, toy.weights, data=npz, executor=pool) == expected
    assert evaluate(toy.deploy, toy.weights, data=arrays, executor=pool) == expected
    lmdb = toy.folder / "validation_lmdb"
    assert evaluate(toy.network, toy.weights, data=lmdb, executor=pool).total == 1510


def test_image_files_give_the_same_counts(toy, pool, tmp_path):
    import cv2

    arrays = toy.arrays()
    lines = []
    for number in range(250):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.rint(arrays["data"][number, 0] * 256).astype(np.uint8))
        lines.append(f"{path} {arrays['label'][number]}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    path = tmp_path / "images.prototxt"
    path.write_text(
        f"""layer {{ name: "data" type: "ImageData" top: "data" top: "label"
          transform_param {{ scale: 0.00390625 }} image_data_param {{
            source: "{tmp_path}/list.txt" batch_size: 64 is_color: false }} }}"""
        + toys.BODY
        + toys.JUDGES
    )
    first = {name: array[:250] for name, array in arrays.items()}
    score = evaluate(path, toy.weights, executor=pool)
    assert score == evaluate(toy.deploy, toy.weights, data=first, executor=pool)
    assert score.total == 250


def test_replaced_weights_count(toy, pool):
    model = read_caffemodel(toy.weights)
    before = evaluate(toy.network, toy.weights, executor=pool)
    same = {"right": np.array(model["right"].matrix)}
    assert evaluate(toy.network, toy.weights, replace=same, executor=pool) == before
    encoded = encode_layer("left", model["left"].matrix, 0.3, "paper")
    after = evaluate(toy.network, toy.weights, replace={"left": encoded}, executor=pool)
    assert after.top1_correct < before.top1_correct


def test_ties_and_few_classes_count_as_in_caffe(pool):
    random = np.random.default_rng(0)
    for classes in (3, 10):
        scores = random.integers(0, 4, (500, classes)).astype(np.float32)
        labels = random.integers(0, classes, 500)
        _, top1, top5 = judge(scores, labels)
        for k, ours in ((1, top1), (min(5, classes), top5)):
            theirs = pool.submit(caffe_accuracy, scores, labels.astype(float), k).result()
            assert ours.mean() == pytest.approx(theirs, abs=1e-6)


def test_what_is_no_number_is_wrong_and_ignored_labels_do_not_count():
    scores = np.array([[1, np.nan], [2, 1], [0, 5]], np.float32)
    counted, top1, _ = judge(scores, np.array([1, 0, 7]), ignore_label=7)
    assert counted.tolist() == [True, True, False]
    assert top1.tolist() == [False, True, False]
    with pytest.raises(DataError, match="label 7, but the network has 2 classes"):
        judge(scores, np.array([1, 0, 7]))
    with pytest.raises(ModelError, match="not classes of whole images"):
        judge(np.zeros((3, 2, 4, 4), np.float32), np.zeros(3, np.int64))


def load_and_run(deploy, weights, arrays):
    net = load_net(deploy, weights)
    net.blobs["data"].data[...] = arrays["data"][:100]
    return net.forward()["ip"].copy()


def test_load_net_is_ready(toy, tmp_path):
    bounds = dict.fromkeys(toys.FC_LAYERS, 1e-6)
    write_dsz(tmp_path / "x.dsz", encode(toy.network, toy.weights, bounds, "paper"))
    arrays = toy.arrays()
    scores = {
        path: run_in_caffe(load_and_run, str(toy.deploy), str(path), arrays)
        for path in (toy.weights, tmp_path / "x.dsz")
    }
    right = judge(scores[toy.weights], arrays["label"][:100])[1]
    assert right.mean() > 0.85
    np.testing.assert_allclose(scores[tmp_path / "x.dsz"], scores[toy.weights], atol=1e-4)


def edited(toy, folder, old, new):
    text = toy.network.read_text()
    assert old in text
    path = folder / "edited.prototxt"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("test_lmdb", "no_lmdb", DataError, "no such LMDB"),
        ("num_output: 24", "num_output: 25", ModelError, "layer left"),
        (
            "kernel_size: 3",
            "kernel_size: 5",
            ModelError,
            "the network wants [4, 1, 5, 5]",
        ),
        ('name: "left"', 'name: "lift"', ModelError, "layer lift"),
        ('type: "TanH"', 'type: "TanhH"', CaffeError, "Unknown layer type: TanhH"),
        ('bottom: "both"', 'bottom: "bth"', DeepSZError, "bth"),
        ("num_output", "numoutput", ModelError, "numoutput"),
        ("InnerProduct", "Convolution", DeepSZError, ""),
    ],
)
def test_wrong_networks_get_a_clear_line(toy, pool, tmp_path, old, new, kind, said):
    with pytest.raises(kind) as caught:
        evaluate(edited(toy, tmp_path, old, new), toy.weights, executor=pool)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_data_gets_a_clear_line(toy, pool, tmp_path):
    import lmdb

    def ask(**options):
        return evaluate(toy.network, toy.weights, executor=pool, **options)

    lmdb.open(str(tmp_path / "empty")).close()
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="empty: the LMDB is empty"):
        ask(data=tmp_path / "empty")
    with pytest.raises(DataError, match="not an LMDB"):
        ask(data=tmp_path / "folder")
    with pytest.raises(DataError, match="holds no data of its own"):
        evaluate(toy.deploy, toy.weights, executor=pool)
    with pytest.raises(DataError, match="no array for label; given: data"):
        evaluate(toy.deploy, toy.weights, data={"data": np.zeros((3, 1))}, executor=pool)
    with pytest.raises(DataError, match="do not fit"):
        wrong = {"data": np.zeros((3, 7)), "label": np.zeros(3)}
        evaluate(toy.deploy, toy.weights, data=wrong, executor=pool)
    for label in (2.5, np.nan, np.inf, 1e30):
        arrays = toy.arrays()
        arrays["label"] = arrays["label"].astype(np.float64)
        arrays["label"][123] = label
        for network in (toy.network, toy.deploy):
            with pytest.raises(DataError, match=re.escape(f"image 123: the label {label:g}")):
                evaluate(network, toy.weights, data=arrays, executor=pool)
    with pytest.raises(InputError, match="0 layers that read one"):
        evaluate(toy.deploy, toy.weights, data=toy.folder / "test_lmdb", executor=pool)


def test_wrong_weights_get_a_clear_line(toy, pool, tmp_path):
    (tmp_path / "empty.caffemodel").touch()
    (tmp_path / "cut.caffemodel").write_bytes(toy.weights.read_bytes()[:-100])
    for name in ("missing.caffemodel", "empty.caffemodel", "cut.caffemodel", "missing.dsz"):
        with pytest.raises(DeepSZError, match=name):
            evaluate(toy.network, tmp_path / name, executor=pool)
    with pytest.raises(DeepSZError):
        load_net(toy.deploy, tmp_path / "empty.caffemodel")


def test_counts_are_plain_numbers():
    assert Score(10, 9, 10).__dict__ == {"total": 10, "top1_correct": 9, "top5_correct": 10}


def test_layers_without_weights_may_share_names(toy, pool, tmp_path):
    # Two that undo each other behind the scores' layer, and one that is called as that layer is.
    twice = """
layer { name: "minus" type: "Power" bottom: "ip" top: "ip" power_param { scale: -1 } }
layer { name: "minus" type: "Power" bottom: "ip" top: "ip" power_param { scale: -1 } }
layer { name: "loss" """
    network = tmp_path / "net.prototxt"
    text = toy.network.read_text().replace('layer { name: "loss" ', twice)
    network.write_text(text.replace('name: "relu_left"', 'name: "ip"'))
    arguments = {"replace": {"ip": np.zeros((10, 40), np.float32)}, "executor": pool}
    assert evaluate(network, toy.weights, executor=pool) == evaluate(
        toy.network, toy.weights, executor=pool
    )
    assert evaluate(network, toy.weights, **arguments).top1_correct < 600
    job = Pass(str(network), str(toy.weights), toys.FC_LAYERS, str(tmp_path / "features"), "key")
    features = pool.submit(compute_features, job).result()
    assert features.score == evaluate(toy.network, toy.weights, executor=pool)
    moments = measure_moments, features.folder, "ip", {}, 100
    assert pool.submit(*moments).result().matrices.shape == (1, 40, 40)


def test_layers_with_weights_may_not_share_a_name(toy, pool, tmp_path):
    network = tmp_path / "net.prototxt"
    network.write_text(toy.network.read_text().replace('name: "right"', 'name: "left"'))
    with pytest.raises(ModelError, match="layer left: two layers with weights have this name"):
        evaluate(network, toy.weights, executor=pool)


def test_scores_that_are_no_rows_are_an_error(toy, pool, tmp_path):
    network = tmp_path / "net.prototxt"
    halves = """
layer { name: "s" type: "Slice" bottom: "ip" top: "a" top: "b" slice_param { axis: 1 } }
layer { name: "l" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "l" }"""
    network.write_text(toy.deploy.read_text() + halves)
    with pytest.raises(ModelError, match=r"blob l: .*shape \[\] has no row for each of 100 images"):
        evaluate(network, toy.weights, data=toy.arrays(), executor=pool)


def test_scores_that_are_no_numbers_are_said(toy, pool, tmp_path):
    arrays = toy.arrays()
    arrays["data"][7, 0, 0, 0] = np.nan
    with pytest.warns(DeepSZWarning, match="some scores are NaN") as said:
        score = evaluate(toy.deploy, toy.weights, data=arrays, executor=pool)
    assert len(said) == 1
    assert score.total == 2030


def test_what_is_no_better_than_guessing_is_said(toy, pool):
    arrays = toy.arrays()
    arrays["label"] = (arrays["label"] + 1) % 10
    with pytest.warns(DeepSZWarning, match="no more than guessing among 10 classes"):
        evaluate(toy.deploy, toy.weights, data=arrays, executor=pool)
