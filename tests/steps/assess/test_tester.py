"""Step 2 without Caffe: what is measured, and that no pair is encoded or measured twice."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import plain
import pytest

from deepsz_caffe.errors import CaffeError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.steps.assess import tester as module
from deepsz_caffe.steps.assess.tester import Tester, assess
from deepsz_caffe.steps.encode import encode_layer
from deepsz_caffe.steps.optimize import optimize

BOUNDS = (0.02, 0.1)


@pytest.fixture(scope="module")
def setup():
    return plain.setup()


@pytest.fixture
def evaluator(setup):
    return plain.NumpyEvaluator(setup)


@pytest.fixture
def encodes(monkeypatch):
    """Count what is encoded: (layer, bound) -> how often."""
    counted = Counter()
    lock = threading.Lock()

    def counting(name, matrix, bound, profile):
        with lock:
            counted[name, bound] += 1
        return encode_layer(name, matrix, bound, profile)

    monkeypatch.setattr(module, "encode_layer", counting)
    return counted


def test_layers_are_found_with_their_statistics(setup):
    assert [(layer.name, layer.shape, layer.nonzeros) for layer in setup.layers] == [
        ("ip1", (300, 784), 18816), ("ip2", (100, 300), 2700), ("ip3", (10, 100), 260),
    ]  # fmt: skip
    for layer in setup.layers:
        matrix = setup.model[layer.name].matrix.astype(float)
        assert layer.largest == abs(matrix).max()
        assert layer.typical == pytest.approx((matrix[matrix != 0] ** 2).mean() ** 0.5)


def test_every_point_is_what_the_layer_alone_gives(setup, evaluator):
    found = assess(Tester(setup, evaluator, profile="paper"), bounds=BOUNDS)
    assert found.total == plain.IMAGES
    assert found.tests == 6
    for layer in found.layers:
        for point in layer.points:
            encoded = encode_layer(layer.name, setup.model[layer.name].matrix, point.bound, "paper")
            assert point.bytes == encoded.bytes
            alone = plain.NumpyEvaluator(setup).measure({layer.name: encoded})
            assert (point.lost, point.gained) == (alone.lost, alone.gained)


@pytest.mark.parametrize("search", ["default", "paper"])
def test_a_search_encodes_and_measures_every_pair_once(setup, evaluator, encodes, search):
    tester = Tester(setup, evaluator, profile="paper")
    found = assess(tester, 0.02, search=search)
    again = assess(tester, 0.02, search=search, budget=7)
    plan = optimize(again, budget=7)
    tester.measure(plan.bounds)
    tester.encode_all(plan.bounds)
    assert set(encodes.values()) == {1}
    singles = [next(iter(call.items())) for call in evaluator.calls if len(call) == 1]
    measured = {
        (layer.name, p.bound) for a in (found, again) for layer in a.layers for p in layer.points
    }
    assert measured <= set(encodes)
    assert set(singles) == measured
    # Twice only where a stopped test says nothing of a larger limit; here the limits fall.
    assert len(singles) == len(measured)


def test_threads_that_want_the_same_share_one_encoding(setup, evaluator, encodes):
    tester = Tester(setup, evaluator, profile="paper")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: tester.encode("ip1", 0.05), range(16)))
    assert encodes == {("ip1", 0.05): 1}
    assert all(each is found[0] for each in found)


def test_what_the_journal_knows_is_neither_encoded_nor_measured(
    setup, evaluator, encodes, tmp_path
):
    first = assess(Tester(setup, evaluator, profile="paper", journal=tmp_path / "j"), bounds=BOUNDS)
    encodes.clear()
    evaluator.calls.clear()
    tester = Tester(setup, evaluator, profile="paper", journal=tmp_path / "j")
    assert assess(tester, bounds=BOUNDS) == first
    assert not encodes
    assert not evaluator.calls


def test_a_whole_is_measured_once_and_resumed_from_the_journal(setup, evaluator, tmp_path):
    bounds = dict.fromkeys(("ip1", "ip2", "ip3"), 0.05)
    tester = Tester(setup, evaluator, profile="paper", journal=tmp_path / "j")
    first = tester.measure(bounds)
    again = Tester(setup, evaluator, profile="paper", journal=tmp_path / "j")
    assert tester.measure(bounds) == again.measure(bounds) == first
    assert len(evaluator.calls) == 1
    assert tester.tests == again.tests == 1


def test_all_tests_are_counted_once(setup, evaluator):
    tester = Tester(setup, evaluator, profile="paper")
    assess(tester, bounds=BOUNDS)
    assess(tester, bounds=BOUNDS[:1])
    assert tester.tests == len(evaluator.calls) == 6
    tester.measure({"ip1": 0.02, "ip2": 0.1})
    tester.measure({"ip2": 0.1, "ip1": 0.02})
    tester.measure({})  # the network as it is
    assert tester.tests == 7


def test_a_network_that_knows_nothing_is_said(setup, evaluator):
    evaluator.labels = (evaluator.labels + 1) % 10
    evaluator.before = evaluator.first = evaluator._right({})
    with pytest.warns(DeepSZWarning, match=r"pruned.caffemodel: gets \d+ of 1,500 images right"):
        Tester(setup, evaluator, profile="paper")


def test_a_network_that_knows_something_is_not(setup, evaluator, recwarn):
    Tester(setup, evaluator, profile="paper")
    evaluator.chance = evaluator.total  # all labels are the same: nothing can be said
    Tester(setup, evaluator, profile="paper")
    assert not recwarn


def test_every_test_is_told(setup, evaluator):
    seen = []
    tester = Tester(setup, evaluator, profile="paper", tested=lambda *each: seen.append(each))
    found = assess(tester, bounds=BOUNDS)
    told = {(name, point) for name, point in seen}
    assert told == {(layer.name, point) for layer in found.layers for point in layer.points}


def test_an_error_names_the_test_and_ends_the_others(setup, evaluator):
    def fail(layers, limit=None):
        raise CaffeError("out of order")

    evaluator.measure = fail
    with pytest.raises(CaffeError, match=r"layer ip\d at 0\.\d+: out of order"):
        assess(Tester(setup, evaluator, profile="paper"), bounds=BOUNDS)
    assert evaluator.closed


@pytest.mark.parametrize(
    "wrong",
    [{"max_loss": 1.5}, {"max_loss": -0.1}, {"search": "other"}]
    + [{"bounds": [bound]} for bound in (0, -1, float("nan"), float("inf"))],
)
def test_wrong_use_is_refused_before_any_test(setup, evaluator, wrong):
    with pytest.raises(InputError):
        assess(Tester(setup, evaluator), **wrong)
    assert not evaluator.calls


def test_layers_can_be_chosen():
    assert [layer.name for layer in plain.setup(layers=["ip3", "ip1"]).layers] == ["ip1", "ip3"]
    with pytest.raises(ModelError, match="it has ip1, ip2, ip3"):
        plain.setup(layers=["conv1"])
    with pytest.raises(InputError, match="no protocol"):
        plain.setup(protocol="other")


def test_the_validation_stage_is_for_the_prototxts_own_data():
    assert plain.setup().stages == ("validation",)
    assert plain.setup(own_data=False).stages == ()
    assert plain.setup(protocol="paper").stages == ()
