"""Steps 2 to 4 in one: the loss holds for the whole, or nothing is written."""

from collections import Counter

import plain
import pytest
import toy as toys
from plain import IMAGES

from deepsz_caffe.api import compress
from deepsz_caffe.dsz.decode import decode
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DeepSZError, InputError, TargetError
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.steps import choose
from deepsz_caffe.steps import compress as steps_compress
from deepsz_caffe.steps.assess.tester import Tester
from deepsz_caffe.steps.compress import Target
from deepsz_caffe.steps.evaluator import Outcome, Score


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


def run(toy, pool, out, **options):
    return compress(toy.network, toy.weights, out, profile="paper", executor=pool, **options)


@pytest.mark.parametrize("max_loss", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("protocol", ["validation", "paper"])
def test_the_loss_asked_for_holds(toy, pool, tmp_path, max_loss, protocol):
    out = tmp_path / "x.dsz"
    result = run(toy, pool, out, max_loss=max_loss, protocol=protocol)
    stages = ["validation"] if protocol == "validation" else []
    before = evaluate(toy.network, toy.weights, stages=stages, executor=pool)
    after = evaluate(toy.network, out, stages=stages, executor=pool)
    assert (result.chosen_before, result.chosen_after) == (before, after)
    assert before.top1_correct - after.top1_correct <= max_loss * before.total
    assert result.after == evaluate(toy.network, out, executor=pool)
    document = result.to_json()
    with DszFile(out) as file:
        assert file.summary().items() <= document.items()
        assert [layer.name for layer in file.layers] == list(toys.FC_LAYERS)
        assert file.origin.measured.top1_after == after.top1_correct
    assert document["top1_after"] == result.after.top1_correct


def test_without_the_test_data_the_file_is_the_same(toy, pool, tmp_path):
    first, second = tmp_path / "x.dsz", tmp_path / "y.dsz"
    result = run(toy, pool, first, max_loss=0.01, on_test=False)
    assert run(toy, pool, second, max_loss=0.01).measured_on == "test"
    assert first.read_bytes() == second.read_bytes()
    assert result.measured_on == "validation"
    assert (result.before, result.after) == (result.chosen_before, result.chosen_after)


def test_a_ratio_asked_for_is_reached(toy, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "_LOSSES_FOR_RATIO", (0.001, 0.05))  # the others take their time
    result = run(toy, pool, tmp_path / "x.dsz", target_ratio=9)
    assert result.summary["ratio"] >= 9
    with pytest.raises(TargetError, match="a ratio of"):
        run(toy, pool, tmp_path / "y.dsz", target_ratio=10_000)
    assert not (tmp_path / "y.dsz").exists()


def test_a_larger_loss_buys_a_smaller_file(toy, pool, tmp_path):
    sizes = [
        run(toy, pool, tmp_path / "x.dsz", max_loss=loss).summary["fc_bytes"]
        for loss in (0.005, 0.05)
    ]
    assert sizes[1] < sizes[0]


def test_the_loss_can_count_against_the_unpruned_network(toy, pool, tmp_path):
    import numpy as np

    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.network.writer import write_caffemodel

    # Here the "pruned" network has lost its last layer's smaller weights.
    model = read_caffemodel(toy.weights)
    worse = np.array(model["ip"].matrix)
    worse[np.abs(worse) < 0.15] = 0
    pruned = tmp_path / "p.caffemodel"
    write_caffemodel(pruned, model, {"ip": worse})
    scores = [
        evaluate(toy.network, w, stages=["validation"], executor=pool)
        for w in (toy.weights, pruned)
    ]
    lost = scores[0].top1_correct - scores[1].top1_correct
    assert lost > 10
    options = {"profile": "paper", "executor": pool, "original": toy.weights}
    limit = (lost + 20) / 1510
    out = tmp_path / "x.dsz"
    result = compress(toy.network, pruned, out, max_loss=limit, confidence=0.5, **options)
    assert result.chosen_before == scores[0]
    assert scores[0].top1_correct - result.chosen_after.top1_correct <= lost + 20
    out.unlink()
    with pytest.raises(TargetError, match=f"the pruned network alone loses {lost} of 1,510"):
        compress(toy.network, pruned, out, max_loss=(lost - 1) / 1510, **options)
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_loss": -0.1},
        {"max_loss": 1.5},
        {},
        {"max_loss": 0.1, "target_ratio": 3},
        {"max_loss": 0.1, "confidence": 1.0},
        {"max_loss": 0.1, "protocol": "other"},
        {"target_ratio": -1.0},
    ],
)
def test_wrong_use_is_refused(toy, pool, tmp_path, wrong):
    with pytest.raises(InputError):
        run(toy, pool, tmp_path / "x.dsz", **wrong)
    assert not (tmp_path / "x.dsz").exists()


def test_a_missing_folder_is_said_before_the_work(toy, pool, tmp_path):
    with pytest.raises(DeepSZError, match="folder does not exist"):
        run(toy, pool, tmp_path / "no" / "x.dsz", max_loss=0.1)


# Without Caffe.


@pytest.fixture(scope="module")
def setup():
    return plain.setup()


@pytest.mark.parametrize("profile", ["paper", "small"])
def test_each_pair_is_encoded_once_from_the_first_test_to_the_file(tmp_path, monkeypatch, profile):
    from deepsz_caffe.steps import encode
    from deepsz_caffe.steps.assess import tester as module

    counted = Counter()

    def counting(name, matrix, bound, profile):
        counted[name, bound, profile] += 1
        return encode.encode_layer(name, matrix, bound, profile)

    monkeypatch.setattr(module, "encode_layer", counting)
    setup = plain.setup(layers=["ip2", "ip3"])  # the large one takes its time
    tester = Tester(setup, plain.NumpyEvaluator(setup), profile=profile)
    told = []
    result = steps_compress.compress(
        tester,
        tmp_path / "x.dsz",
        Target(max_loss=0.01),
        on_test=lambda encoded: told.append(encoded) or (Score(9, 8, 9), Score(9, 7, 9)),
    )
    assert set(counted.values()) == {1}
    assert len(counted) >= result.assessment.tests
    with DszFile(tmp_path / "x.dsz") as file:
        assert [file.layer(name) for name in told[0]] == list(told[0].values())
    assert result.to_json()["tests"] == result.tests == tester.tests > result.assessment.tests
    assert result.to_json()["ratio_covers"] == ["ip2", "ip3"]
    assert (result.measured_on, result.before) == ("test", Score(9, 8, 9))
    assert result.chosen_after.total == plain.IMAGES


def test_the_loss_holds_for_the_file_by_another_evaluation(setup, tmp_path):
    evaluator = plain.NumpyEvaluator(setup)
    out = tmp_path / "x.dsz"
    result = steps_compress.compress(
        Tester(setup, evaluator, profile="paper"), out, Target(max_loss=0.02, confidence=0.5)
    )
    with DszFile(out) as file:
        layers = {layer.name: file.layer(layer.name) for layer in file.layers}
    again = plain.NumpyEvaluator(setup).measure(layers)
    assert again.top1_correct == result.chosen_after.top1_correct
    assert again.lost - again.gained <= 0.02 * plain.IMAGES
    # What is promised is the decoded file.
    assert decode(out).keys() == {"ip1", "ip2", "ip3"}


def test_an_evaluator_whose_layers_harm_each_other_is_repaired(setup, tmp_path):
    class Harmful(plain.NumpyEvaluator):
        """Layers alone lose nothing; all together they lose as their largest bound says."""

        def measure(self, layers, limit=None):
            super().measure(layers, limit)
            bounds = [layer.error_bound for layer in layers.values()]
            lost = 0 if len(layers) == 1 else round(1000 * max(bounds))
            return Outcome(IMAGES, self.score.top1_correct - lost, IMAGES, lost, 0, lost, 0)

    evaluator = Harmful(setup)
    tester = Tester(setup, evaluator, profile="paper")
    result = steps_compress.compress(
        tester, tmp_path / "x.dsz", Target(max_loss=0.01, confidence=0.5)
    )
    assert result.chosen_before.top1_correct - result.chosen_after.top1_correct <= 15
    assert sum(len(call) == 3 for call in evaluator.calls) > 1
