"""Step 1: the smallest weights go, exactly as many as said, and stay away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from deepsz_caffe.api import prune
from deepsz_caffe.errors import DataError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.steps.prune import Trained, gradual, magnitude_mask, one_shot
from deepsz_caffe.steps.prune import prune as steps_prune

KEEP = {"ip1": 0.08, "ip2": 0.09, "ip3": 0.26}
NONZEROS = {"ip1": 18_816, "ip2": 2_700, "ip3": 260}

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(width=32),
).filter(lambda matrix: not np.isnan(matrix).any())


@given(matrices, st.floats(0, 1, exclude_min=True))
def test_the_largest_magnitudes_stay_the_earlier_of_equal_ones(matrix, keep):
    mask = magnitude_mask(matrix, keep)
    order = np.argsort(-np.abs(matrix).ravel(), kind="stable")
    expected = np.zeros(matrix.size, bool)
    expected[order[: max(1, round(keep * matrix.size))]] = True
    np.testing.assert_array_equal(mask, expected.reshape(matrix.shape))


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_keep_ratio_is_in_0_to_1(keep):
    with pytest.raises(InputError, match="not in"):
        magnitude_mask(np.ones((2, 2), np.float32), keep)


def test_what_is_no_number_has_no_magnitude():
    with pytest.raises(InputError, match="not a number"):
        magnitude_mask(np.array([[1, np.nan]], np.float32), 0.5)


def test_one_shot_prunes_before_the_first_iteration_only():
    schedule = one_shot({"ip": 0.25}, 100)
    weights = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert schedule.masks(0, lambda name: weights)["ip"].sum() == 2
    assert schedule.masks(1, lambda name: weights) is None
    assert schedule.last_change == 0


def test_gradual_pruning_follows_the_cubic_curve():
    schedule = gradual({"a": 0.02, "b": 0.5}, 1000, until=0.4, steps=4)
    assert schedule.last_change == 400
    times = [time for time, _ in schedule.steps]
    assert times == [100, 200, 300, 400]
    for time, keep in schedule.steps:
        left = (1 - time / 400) ** 3
        assert dict(keep) == pytest.approx({"a": 0.02 + 0.98 * left, "b": 0.5 + 0.5 * left})


def test_gradual_pruning_of_few_iterations_still_prunes():
    assert gradual({"a": 0.02}, 1).steps == one_shot({"a": 0.02}, 1).steps
    assert dict(gradual({"a": 0.02}, 3).steps[-1][1])["a"] == pytest.approx(0.02)


def test_pruned_weights_are_zero_the_rest_retrained(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    out = tmp_path / "pruned.caffemodel"
    result = prune(solver, lenet.dense, KEEP, out, schedule=one_shot)
    dense = read_caffemodel(lenet.dense)
    pruned = read_caffemodel(out)
    assert {layer.name: layer.nonzeros for layer in result.layers} == NONZEROS
    for name, keep in KEEP.items():
        before, after = (model[name].blobs[0].data for model in (dense, pruned))
        mask = magnitude_mask(before, keep)
        np.testing.assert_array_equal(after != 0, mask)
        # Zeros are positive ones, all bits 0.
        np.testing.assert_array_equal(after.view(np.uint32) != 0, mask)
        assert (before[mask] != after[mask]).mean() > 0.9
        assert (dense[name].blobs[1].data != pruned[name].blobs[1].data).any()
    score = evaluate(lenet.network, out, stages=["validation"])
    assert (score.top1_correct, score.total) == (
        result.training.test_correct,
        result.training.test_total,
    )
    assert score.top1_correct / score.total > 0.95
    assert [path.name for path in tmp_path.iterdir() if path != solver] == ["pruned.caffemodel"]


def test_layers_that_are_not_named_stay_whole(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    result = prune(solver, lenet.dense, {"ip2": 0.5}, tmp_path / "p.caffemodel", iterations=2)
    left = {layer.name: layer.nonzeros / layer.weights for layer in result.layers}
    assert left["ip2"] == 0.5
    assert min(left["ip1"], left["ip3"]) > 0.9


@pytest.mark.parametrize("schedule", [one_shot, gradual])
def test_without_iterations_it_prunes_by_magnitude_alone(lenet, tmp_path, schedule):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    out = tmp_path / "pruned.caffemodel"
    result = prune(solver, lenet.dense, KEEP, out, schedule=schedule, iterations=0)
    assert {layer.name: layer.nonzeros for layer in result.layers} == NONZEROS
    assert (result.training.iterations, result.training.test_total) == (0, 0)
    dense, pruned = read_caffemodel(lenet.dense), read_caffemodel(out)
    for name, keep in KEEP.items():
        before = dense[name].blobs[0].data
        expected = np.where(magnitude_mask(before, keep), before, np.float32(0))
        np.testing.assert_array_equal(pruned[name].blobs[0].data, expected)
        np.testing.assert_array_equal(pruned[name].blobs[1].data, dense[name].blobs[1].data)


@pytest.mark.parametrize("iterations", [0, 20])
@pytest.mark.parametrize("schedule", [one_shot, gradual])
def test_no_layer_gets_denser_and_it_is_said(lenet, tmp_path, schedule, iterations):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    sparse, out = tmp_path / "sparse.caffemodel", tmp_path / "out.caffemodel"
    prune(solver, lenet.dense, {"ip1": 0.05, "ip2": 0.05}, sparse, iterations=0)
    options = {"schedule": schedule, "iterations": iterations}
    with pytest.warns(DeepSZWarning, match=r"layer ip1: only 11,760 of its 235,200 .* stays so"):
        result = prune(solver, sparse, {"ip1": 0.08, "ip3": 0.5}, out, **options)
    assert [layer.nonzeros for layer in result.layers] == [11_760, 1_500, 500]
    before, after = read_caffemodel(sparse), read_caffemodel(out)
    for name in ("ip1", "ip2"):  # the one is sparser than asked, the other was not named
        zeros = before[name].blobs[0].data == 0
        assert not after[name].blobs[0].data[zeros].any()


def test_with_nothing_to_prune_zeros_are_held(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    sparse, out = tmp_path / "sparse.caffemodel", tmp_path / "out.caffemodel"
    prune(solver, lenet.dense, KEEP, sparse, iterations=0)
    with pytest.warns(DeepSZWarning, match="layer ip1"):
        result = prune(solver, sparse, {"ip1": 0.9}, out, iterations=5)
    assert {layer.name: layer.nonzeros for layer in result.layers} == NONZEROS


def test_gradual_pruning_ends_at_the_ratio_and_takes_nothing_back(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    keep = {"ip1": 0.02, "ip2": 0.02, "ip3": 0.26}
    out = tmp_path / "p.caffemodel"
    result = prune(solver, lenet.dense, keep, out)
    assert [layer.nonzeros for layer in result.layers] == [4_704, 600, 260]
    # Only states after the last pruning may be chosen.
    assert result.training.chosen >= 50
    score = evaluate(lenet.network, out, stages=["validation"])
    assert score.top1_correct == result.training.test_correct
    # The one who prunes at once loses far more.
    once = prune(solver, lenet.dense, keep, out, schedule=one_shot, iterations=1).training
    assert once.test_correct < score.top1_correct


def test_the_same_seed_gives_the_same_bytes(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt", 'train_state { stage: "dropout" }')
    outs = [tmp_path / f"{name}.caffemodel" for name in "abc"]
    for out, seed in zip(outs, (5, 5, 6), strict=True):
        prune(solver, lenet.dense, KEEP, out, seed=seed, iterations=40)
    contents = [out.read_bytes() for out in outs]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize("keep", [{"ip1": 0.0}, {"ip1": 1.5}, {}])
def test_wrong_ratios_are_refused_before_anything_runs(lenet, tmp_path, keep):
    with pytest.raises(InputError, match=r"not in \(0, 1\]|no layer"):
        prune(tmp_path / "none.prototxt", lenet.dense, keep, tmp_path / "p.caffemodel")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_not_there_is_named(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    with pytest.raises(ModelError, match=r"layer ip9.*it has ip1, ip2, ip3"):
        prune(solver, lenet.dense, {"ip9": 0.5}, tmp_path / "p.caffemodel")


def test_missing_weights_and_data_are_named(lenet, tmp_path):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    with pytest.raises(ModelError, match=r"no\.caffemodel"):
        prune(solver, tmp_path / "no.caffemodel", KEEP, tmp_path / "p.caffemodel")
    network = tmp_path / "net.prototxt"
    network.write_text(lenet.network.read_text().replace("train_lmdb", "nowhere_lmdb"))
    elsewhere = lenet.solver(tmp_path / "elsewhere.prototxt", net=network)
    with pytest.raises(DataError, match="nowhere_lmdb"):
        prune(elsewhere, lenet.dense, KEEP, tmp_path / "p.caffemodel")
    assert not (tmp_path / "p.caffemodel").exists()


def test_without_caffe_the_rule_is_given_to_whoever_trains(lenet, tmp_path):
    solver, out = lenet.solver(tmp_path / "solver.prototxt"), tmp_path / "p.caffemodel"
    rules = []

    def train(rule):
        model = read_caffemodel(lenet.dense)
        masks = rule.masks(rule.last_change, lambda name: model[name].matrix)
        changed = {name: np.where(mask, model[name].matrix, 0) for name, mask in masks.items()}
        write_caffemodel(out, model, changed)
        rules.append(rule)
        return Trained(100, 100, 0, 0, 0, 0.0)

    for schedule in (one_shot, gradual):
        result = steps_prune(solver, lenet.dense, KEEP, out, train, schedule=schedule)
        assert {layer.name: layer.nonzeros for layer in result.layers} == NONZEROS
        assert result.training.iterations == 100
    assert [rule.last_change for rule in rules] == [0, 50]
