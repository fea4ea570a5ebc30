"""Whole networks in `reproduce`: LeNet-5 as shipped, and the toy network."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from deepsz_caffe.experiments import whole
from deepsz_caffe.experiments.baselines import deep_compression
from deepsz_caffe.experiments.folder import Folder
from deepsz_caffe.experiments.measure import Bench
from deepsz_caffe.experiments.networks import network
from deepsz_caffe.experiments.plan import plan
from deepsz_caffe.experiments.reproduce import retraining_solver
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.tester import Tester
from deepsz_caffe.steps.encode import encode, write_dsz


@pytest.mark.slow
def test_whole_networks_are_measured_as_written(checkout, tmp_path):
    (first,) = plan(network("lenet-5"), tmp_path, from_models=True, retrain=True, whole=True)
    assert first.command == "deepsz reproduce lenet-5 --from-models --retrain --whole"
    pruned = first.dense.with_name("pruned.caffemodel")
    task = replace(first, pruned=pruned, iterations=40)
    net = task.network.path("train_val.prototxt")
    file = tmp_path / "whole.dsz"
    bounds = dict.fromkeys(("conv1", "conv2", "ip1", "ip2"), 0.02)
    write_dsz(file, encode(net, pruned, bounds, "small"))
    with ExitStack() as stack:
        bench = Bench(task, pruned, Folder(tmp_path), stack, lambda text, fraction: None)
        found = whole.points(bench, file, 3.0, retraining_solver(task.network))
        ours, plain, retrained = found
    score = evaluate(net, file)
    assert (ours.bytes, ours.test.top1) == (file.stat().st_size, score.top1_correct)
    assert (plain.retrained, retrained.retrained) == (False, True)
    model = read_caffemodel(pruned)
    bits = dict.fromkeys(("conv1", "conv2"), (8, 8)) | dict.fromkeys(("ip1", "ip2"), (5, 5))
    layers = {name: deep_compression.quantize(model[name].matrix, *bits[name]) for name in bits}
    biases = 4 * (20 + 50 + 500 + 10)
    size = sum(len(layer.to_bytes()) for layer in layers.values()) + biases
    assert plain.bytes == retrained.bytes == size > ours.bytes
    replaced = {name: layer.decode() for name, layer in layers.items()}
    assert plain.test.top1 == evaluate(net, pruned, replace=replaced).top1_correct
    assert min(plain.test.top1, retrained.test.top1) > 9800


def test_divergences_are_those_of_layers_alone_and_together(toy, tmp_path):
    setup = read_setup(toy.network, toy.weights, layers="all")
    with CaffeEvaluator(setup) as evaluator:
        tester = Tester(setup, evaluator, profile="small")
        found = whole.joint_divergences(tester, (0.1, 0.5), 6)
        assert len(found) == 6
        for one in found:
            assert 2 <= len(one.bounds) <= len(setup.layers)
            for name, bound in one.bounds.items():
                typical = tester.layer(name).typical
                assert min(abs(bound / typical - part) for part in (0.1, 0.5)) < 1e-9
            alone = [
                evaluator.diverge(tester.encode_all({n: b})).mean for n, b in one.bounds.items()
            ]
            assert one.sum_of_single == pytest.approx(sum(alone))
            assert one.together == evaluator.diverge(tester.encode_all(one.bounds)).mean > 0
