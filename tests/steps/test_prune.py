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
from deepsz_caffe.steps.masks import magnitude_mask, together_masks
from deepsz_caffe.steps.prune import (
    SCHEDULES,
    PruningSteps,
    Shown,
    Trained,
    gradual,
    iterative,
    one_shot,
    surgery,
)
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


def test_layers_together_share_one_threshold(lenet, tmp_path):
    solver, out = lenet.solver(tmp_path / "solver.prototxt"), tmp_path / "p.caffemodel"
    prune(solver, lenet.dense, {"all": 0.05, "ip3": 0.5}, out, schedule=one_shot, iterations=0)
    dense, pruned = read_caffemodel(lenet.dense), read_caffemodel(out)
    masks = together_masks({name: dense[name].matrix for name in ("ip1", "ip2")}, 0.05)
    masks["ip3"] = magnitude_mask(dense["ip3"].matrix, 0.5)
    for name, mask in masks.items():
        np.testing.assert_array_equal(pruned[name].matrix, dense[name].matrix * mask)
    left = prune(solver, lenet.dense, {"all": 0.05}, out, layers=["ip1"], iterations=30).layers
    assert left[0].nonzeros == 11_760
    assert min(layer.nonzeros / layer.weights for layer in left[1:]) > 0.9


def test_together_no_layer_gets_denser_either(lenet, tmp_path):
    solver, out = lenet.solver(tmp_path / "solver.prototxt"), tmp_path / "p.caffemodel"
    sparse = tmp_path / "sparse.caffemodel"
    prune(solver, lenet.dense, {"all": 0.05}, sparse, iterations=0)
    with pytest.warns(DeepSZWarning, match="all layers together: only 13,310 of their 266,200"):
        result = prune(solver, sparse, {"all": 0.1}, out, iterations=3)
    assert sum(layer.nonzeros for layer in result.layers) == 13_310
    result = prune(solver, sparse, {"all": 0.02}, out, iterations=20)
    assert sum(layer.nonzeros for layer in result.layers) == round(0.02 * 266_200)


def test_a_curve_begins_where_the_layer_is():
    rule = gradual({"a": 0.02, "b": 0.5}, 1000, until=0.4, steps=4).beginning_at({"a": 0.1})
    for time, keep in rule.steps:
        left = (1 - time / 400) ** 3
        assert dict(keep) == pytest.approx({"a": 0.02 + 0.08 * left, "b": 0.5 + 0.5 * left})


def test_each_round_of_iterative_pruning_keeps_the_same_part_of_the_last():
    rule = iterative({"a": 0.01}, 1000, until=0.5, rounds=2)
    assert [(time, dict(keep)["a"]) for time, keep in rule.steps] == [
        (0, pytest.approx(0.1)),
        (500, pytest.approx(0.01)),
    ]
    assert [rule.rewinds(iteration) for iteration in (0, 499, 500)] == [False, False, True]


def test_weights_rewind_to_what_they_were(lenet, tmp_path):
    # At a rate of nearly 0 after the last round only what was rewound to is left.
    rate = 'lr_policy: "step"\nstepsize: 6\ngamma: 1e-9\n'
    solver = lenet.solver(tmp_path / "s.prototxt", rate, ("lr_policy", "power", "momentum"))
    out = tmp_path / "p.caffemodel"

    def rounds(keep, iterations):
        return iterative(keep, iterations, until=0.75, rounds=2)

    prune(solver, lenet.dense, {"all": 0.1}, out, schedule=rounds, iterations=8)
    dense, pruned = read_caffemodel(lenet.dense), read_caffemodel(out)
    for name in ("ip1", "ip2", "ip3"):
        left = pruned[name].matrix != 0
        np.testing.assert_allclose(pruned[name].matrix[left], dense[name].matrix[left], atol=1e-6)
        np.testing.assert_allclose(pruned[name].blobs[1].data, dense[name].blobs[1].data, atol=1e-6)


def test_in_surgery_pruned_weights_learn_unseen_and_come_back(lenet, tmp_path):
    solver, out = lenet.solver(tmp_path / "solver.prototxt"), tmp_path / "p.caffemodel"
    keep = {"ip1": 0.02, "ip2": 0.05}
    masks = []

    def watched(keep, iterations):
        rule = surgery(keep, iterations, until=0.2, returns_until=0.9, steps=1)
        assert [time for time, _ in rule.steps] == [20, 40, 60, 80]
        return rule

    result = prune(solver, lenet.dense, keep, out, schedule=watched, lr=0.3)
    assert [layer.nonzeros for layer in result.layers[:2]] == [4_704, 1_500]
    score = evaluate(lenet.network, out, stages=["validation"])
    assert score.top1_correct == result.training.test_correct
    rule = PruningSteps(((0, (("a", 0.5),)), (1, (("a", 0.5),))), returning=True)
    weights = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    masks.append(rule.masks(0, lambda name: weights))
    learned = np.array([[3.2, 2.0, 3.0, 4.0]], np.float32)
    masks.append(rule.masks(1, lambda name: learned, masks[0]))
    np.testing.assert_array_equal(masks[1]["a"], masks[0]["a"])  # not larger by the gap
    learned[0, 0] = 3.4
    np.testing.assert_array_equal(
        rule.masks(1, lambda name: learned, masks[0])["a"], [[True, False, False, True]]
    )


def test_the_end_sees_the_levels_and_they_are_what_is_written(lenet, tmp_path):
    solver, out = lenet.solver(tmp_path / "solver.prototxt"), tmp_path / "p.caffemodel"
    bounds = {"ip1": 0.08, "ip2": 0.1}
    options = {"keep": {"ip1": 0.08, "ip2": 0.1}, "out": out, "iterations": 60}
    result = prune(solver, lenet.dense, bounds=bounds, noise=0.2, **options)
    assert result.training.chosen >= 48
    pruned = read_caffemodel(out)
    for name, bound in bounds.items():
        left = np.unique(pruned[name].matrix)
        assert left.size < 40
        assert np.diff(left[left > 0]).min() == pytest.approx(2 * bound, rel=1e-3)
    score = evaluate(lenet.network, out, stages=["validation"])
    assert score.top1_correct == result.training.test_correct
    assert score.top1_correct > 0.9 * score.total


def test_what_is_shown_is_taken_back():
    shown = Shown(0.3, (("a", 0.5),), since=10)
    assert shown.noisy(9)
    assert not shown.noisy(10)
    weights = np.array([0, 0.2, 1.4, -2.6], np.float32)
    assert shown.levels(9, "a", weights) is None
    assert shown.levels(10, "b", weights) is None
    levels = shown.levels(10, "a", weights)
    assert (levels[:2] == 0).all()
    assert np.abs(levels - weights).max() <= 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": -0.1}, "noise is a part"),
        ({"noise": 1.0}, "noise is a part"),
        ({"bounds": {"ip1": 0.0}}, "error bound must be"),
        ({"keep": {"all": 0.1, "ip1": 0.2}, "layers": ["ip1"]}, "no layer is left"),
    ],
)
def test_what_makes_no_sense_is_refused(lenet, tmp_path, options, said):
    solver = lenet.solver(tmp_path / "solver.prototxt")
    with pytest.raises(InputError, match=said):
        prune(solver, lenet.dense, out=tmp_path / "p.caffemodel", **{"keep": KEEP} | options)


def test_every_schedule_ends_at_the_ratio():
    for schedule in SCHEDULES.values():
        for iterations in (1, 2, 7, 1000):
            rule = schedule({"a": 0.1, "b": 0.3}, iterations)
            assert dict(rule.steps[-1][1]) == pytest.approx({"a": 0.1, "b": 0.3})
            assert list(rule.steps) == sorted(rule.steps)
            assert rule.last_change < iterations


@pytest.fixture(scope="module")
def lenet_5(lenet, tmp_path_factory):
    """LeNet-5's definition on the same images, and its dense weights."""
    repository = lenet.dense.parents[2]
    text = (repository / "prototxt/lenet_5/train_val.prototxt").read_text()
    network = tmp_path_factory.mktemp("lenet_5") / "train_val.prototxt"
    network.write_text(text.replace("data/mnist/", f"{lenet.folder}/data/mnist/"))
    return network, repository / "models/lenet_5/dense.caffemodel"


def test_convolutions_are_pruned_by_the_solver_too(lenet, lenet_5, tmp_path):
    network, dense = lenet_5
    solver, out = lenet.solver(tmp_path / "s.prototxt", net=network), tmp_path / "p.caffemodel"
    keep = {"conv1": 0.66, "conv2": 0.12, "ip1": 0.08}
    result = prune(solver, dense, keep, out, schedule=one_shot, iterations=4, lr=0.01)
    left = {layer.name: layer.nonzeros for layer in result.layers}
    assert left["ip2"] > 4_900
    for name, part in keep.items():
        before, after = (read_caffemodel(path)[name].matrix for path in (dense, out))
        np.testing.assert_array_equal(after != 0, magnitude_mask(before, part))
        assert left[name] == round(part * before.size)


def test_together_is_what_layers_says(lenet, lenet_5, tmp_path):
    network, dense = lenet_5
    solver, out = lenet.solver(tmp_path / "s.prototxt", net=network), tmp_path / "p.caffemodel"
    for layers, names in (("conv", ["conv1", "conv2"]), ("all", ["conv1", "conv2", "ip1", "ip2"])):
        prune(solver, dense, {"all": 0.1}, out, iterations=0, layers=layers)
        before, after = read_caffemodel(dense), read_caffemodel(out)
        masks = together_masks({name: before[name].matrix for name in names}, 0.1)
        for name in ("conv1", "conv2", "ip1", "ip2"):
            expected = masks.get(name, before[name].matrix != 0)
            np.testing.assert_array_equal(after[name].matrix != 0, expected)
