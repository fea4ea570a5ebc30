"""The teacher inside a network: its loss in numpy, its weights untouched, nothing of it written."""

import numpy as np
import pytest

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.runtime.distillation import TEACHER, copy_to_teacher, with_teacher
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.solver import train
from deepsz_caffe.runtime.worker import import_caffe


def losses_and_gradient(serialized, dense):
    """Run once, with other weights than the teacher's; gives blobs and a gradient."""
    caffe = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter.FromString(serialized)
    caffe_net = build_net(caffe, net)
    load_weights(caffe_net, net, dense, complete=False)
    copy_to_teacher(caffe_net)
    caffe_net.params["ip3"][0].data[...] *= 0.5
    total = caffe_net.forward()
    caffe_net.backward()
    names = ("ip3", TEACHER + "ip3", "label", "loss")
    found = {name: np.array(caffe_net.blobs[name].data) for name in names}
    assert not caffe_net.params[TEACHER + "ip1"][0].diff.any()
    return found, np.array(caffe_net.params["ip3"][1].diff), {k: float(v) for k, v in total.items()}


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_loss_is_hintons(lenet):
    net = with_teacher(phase(read_prototxt(lenet.network), "TRAIN"))
    net = graph.subnet(net, range(len(net.layer)), ())
    blobs, gradient, outputs = run_in_caffe(
        losses_and_gradient, net.SerializeToString(), str(lenet.dense)
    )
    own, teacher = (np.float64(blobs[name]) for name in ("ip3", TEACHER + "ip3"))
    labels = blobs["label"].astype(int).reshape(-1)
    images = np.arange(len(labels))
    entropy = -np.log(softmax(own)[images, labels]).mean()
    assert blobs["loss"] == pytest.approx(entropy, rel=1e-4)
    soft, target = softmax(own / 3), softmax(teacher / 3)
    cross = -9 * (target * np.log(soft)).sum(axis=1).mean()
    (reported,) = (value for name, value in outputs.items() if name != "loss")
    assert reported == pytest.approx(cross, rel=1e-3)
    hot = np.eye(10)[labels]
    expected = 0.3 * (softmax(own) - hot) + 0.7 * 9 / 3 * (soft - target)
    np.testing.assert_allclose(gradient, expected.mean(axis=0), atol=1e-4)


def test_the_teacher_does_not_drop_nor_learn_and_is_not_written(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "s.prototxt", 'train_state { stage: "dropout" }')
    out = tmp_path / "a.caffemodel"
    trained = train(solver, out, lenet.dense, teacher=lenet.dense, iterations=20)
    assert trained.test_correct > 450
    names = [layer.name for layer in read_caffemodel(out).layers]
    assert names == [
        layer.name for layer in phase(read_prototxt(lenet.network), "TRAIN", ("dropout",)).layer
    ]
    teacher = with_teacher(phase(read_prototxt(lenet.network), "TRAIN", ("dropout",)))
    copied = [layer for layer in teacher.layer if layer.name.startswith(TEACHER)]
    assert {layer.type for layer in copied} == {"InnerProduct", "ReLU"}


def test_from_nothing_one_learns_from_a_teacher(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "s.prototxt")
    with_one, without = tmp_path / "a.caffemodel", tmp_path / "b.caffemodel"
    one = train(solver, with_one, teacher=lenet.dense, iterations=60)
    other = train(solver, without, iterations=60)
    assert one.test_correct > other.test_correct


def test_without_class_scores_there_is_no_teacher(lenet, tmp_path):
    network = tmp_path / "n.prototxt"
    network.write_text(lenet.network.read_text().replace("SoftmaxWithLoss", "HingeLoss"))
    solver = lenet.solver(tmp_path / "s.prototxt", net=network)
    with pytest.raises(ModelError, match="no SoftmaxWithLoss layer"):
        train(solver, tmp_path / "a.caffemodel", lenet.dense, teacher=lenet.dense)
