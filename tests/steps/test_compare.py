"""Comparisons of weights and outputs against plain numpy on whole arrays."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.weights import Blob, CaffeModel, LayerWeights
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.steps.compare import (
    ChangedClass,
    Comparison,
    LayerChange,
    Tally,
    compare_values,
    compare_weights,
    tally_outputs,
)

ROOT = Path(__file__).resolve().parents[2]


def model(**layers):
    made = [
        LayerWeights(
            name,
            "InnerProduct",
            tuple(Blob(array.shape, array.size, lambda a=array: a.reshape(-1)) for array in blobs),
        )
        for name, blobs in layers.items()
    ]
    return CaffeModel("made", made)


def arrays(seed, *shapes):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_values_are_those_of_numpy():
    before, noise = arrays(1, (700, 900), (700, 900))  # several blocks
    after = np.where(noise > 1, before + noise / 10, before)
    found = compare_values("fc", "InnerProduct", 0, before, after)
    change = after.astype(np.float64) - before
    assert (found.layer, found.shape, found.changed) == ("fc", (700, 900), (change != 0).sum())
    assert found.rms == pytest.approx(np.sqrt((before.astype(np.float64) ** 2).mean()))
    assert found.rms_change == pytest.approx(np.sqrt((change**2).mean()))
    assert found.largest_change == np.abs(change).max()
    assert found.relative_change == pytest.approx(found.rms_change / found.rms)


def test_what_only_one_has_is_said():
    w, bias, other = arrays(2, (3, 4), (3,), (4, 3))
    a = model(one=[w, bias], gone=[w], flat=[w], turned=[w])
    b = model(one=[w], flat=[w.reshape(1, 1, 3, 4)], turned=[other], new=[bias])
    found = {(x.layer, x.blob): x for x in compare_weights(a, b)}
    assert {key: x.only_in for key, x in found.items()} == {
        ("one", 0): "",
        ("one", 1): "a",
        ("gone", 0): "a",
        ("flat", 0): "",
        ("turned", 0): "both",
        ("new", 0): "b",
    }
    assert all(x.changed == 0 for x in found.values())


def test_a_layer_of_zeros_that_changes_is_infinitely_other():
    found = compare_values("fc", "", 0, np.zeros(3, np.float32), np.ones(3, np.float32))
    assert found.relative_change == np.inf
    document = Comparison(0, (found,)).to_json()
    assert document["layers"][0]["relative_change"] is None
    json.dumps(document, allow_nan=False)
    same = compare_values("fc", "", 0, np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert same.relative_change == 0


def plain_classes(before, after):
    """Say in plain Python what two networks choose, an image at a time."""
    changed, common = [], 0
    for image, (a, b) in enumerate(zip(before, after, strict=True)):
        one, other = int(np.argmax(a)), int(np.argmax(b))
        if one != other:
            pairs = ((float(a[one]), float(a[other])), (float(b[one]), float(b[other])))
            changed.append(ChangedClass(image, one, other, *pairs))
        common += len(set(np.argsort(a)[-5:]) & set(np.argsort(b)[-5:]))
    return tuple(changed), common


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 23), st.integers(2, 12), st.integers(1, 9), st.integers(0, 2**32))
def test_batches_add_up_to_the_whole(images, classes, batch, seed):
    before, noise = arrays(seed, (images, classes), (images, classes))
    after = before + noise
    total = None
    for start in range(0, images, batch):
        rows = min(batch, images - start)
        pair = [np.full((batch, classes, 1, 1), 7, np.float32) for _ in range(2)]  # the rest: stale
        for array, source in zip(pair, (before, after), strict=True):
            array[:rows, :, 0, 0] = source[start : start + rows]
        tally = tally_outputs(*pair, rows, start, scores=True)
        total = tally if total is None else total + tally
    found = total.change("prob")
    old, new = before.astype(np.float64), after.astype(np.float64)
    change = np.abs(new - old)
    changed, common = plain_classes(before, after)
    assert (found.images, found.not_compared, found.shape) == (images, 0, (classes, 1, 1))
    assert found.rms == pytest.approx(np.sqrt((old**2).mean()))
    assert found.rms_change == pytest.approx(np.sqrt((change**2).mean()))
    assert found.mean_change == pytest.approx(change.mean())
    assert found.largest_change == change.max()
    assert found.largest_image == change.max(axis=1).argmax()
    assert found.classes.changed == changed
    assert found.classes.same == images - len(changed)
    assert found.classes.agreement == pytest.approx(1 - len(changed) / images)
    if classes > 5:
        assert found.classes.top5_overlap == pytest.approx(common / (5 * images))
    else:
        assert found.classes.top5_overlap is None


def test_what_is_said_of_other_images_is_exact():
    """As many changes, or fewer, are seen with probability 0.1 at the limit that is said."""
    images, classes, changes = 40, 3, 2
    before = np.eye(classes, dtype=np.float32)[np.zeros(images, int)]
    after = before.copy()
    after[:changes] = after[:changes, ::-1]
    found = tally_outputs(before, after, images, 0, scores=True).change("prob")
    other = 1 - found.agreement_at_least
    seen = sum(
        math.comb(images, k) * other**k * (1 - other) ** (images - k) for k in range(changes + 1)
    )
    assert seen == pytest.approx(0.1, rel=1e-4)


def test_places_of_an_image_have_classes_of_their_own():
    before, after = arrays(4, (3, 6, 5, 4), (3, 6, 5, 4))
    found = tally_outputs(before, after, 2, 0, scores=True).change("score")
    same = before[:2].argmax(axis=1) == after[:2].argmax(axis=1)
    assert (found.classes.places, found.classes.same) == (40, same.sum())
    assert found.classes.changed == ()
    assert found.agreement_at_least is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite_are_not_compared(bad):
    before, after = arrays(5, (4, 6), (4, 6))
    after[1, 2] = bad
    found = tally_outputs(before, after, 4, 10, scores=True).change("prob")
    kept = [0, 2, 3]
    rest = tally_outputs(before[kept], after[kept], 3, 0, scores=True).change("prob")
    assert (found.images, found.not_compared) == (3, 1)
    assert found.rms_change == rest.rms_change
    places = [10 + kept[one.image] for one in rest.classes.changed]
    assert [one.image for one in found.classes.changed] == places
    json.dumps(Comparison(4, (), (found,)).to_json(), allow_nan=False)


def test_where_no_image_is_finite_none_is_compared():
    before, after = arrays(5, (4, 6), (4, 6))
    found = tally_outputs(before, after * np.nan, 4, 0, scores=True).change("prob")
    assert (found.images, found.not_compared, found.classes) == (0, 4, None)


def test_an_output_without_rows_counts_as_a_whole():
    boxes, moved = arrays(6, (1, 1, 5, 7), (1, 1, 5, 7))
    found = tally_outputs(boxes, moved, 3, 0).change("detections")
    assert (found.images, found.shape) == (1, (1, 1, 5, 7))
    assert found.largest_change == np.abs(moved.astype(np.float64) - boxes).max()
    fewer = tally_outputs(boxes, moved[:, :, :4], 1, 3).change("detections")
    assert (fewer.images, fewer.not_compared, fewer.largest_image) == (0, 1, None)
    both = tally_outputs(boxes, moved, 1, 0) + tally_outputs(boxes, moved[:, :, :4], 1, 1)
    assert (both.images, both.not_compared) == (1, 1)


def test_nothing_changes_in_a_network_that_is_the_same():
    (scores,) = arrays(7, (5, 10))
    found = tally_outputs(scores, scores.copy(), 5, 0, scores=True).change("prob")
    assert (found.relative_change, found.largest_image) == (0, None)
    assert (found.classes.agreement, found.classes.top5_overlap) == (1, 1)


def test_files_of_two_kinds_are_compared(tmp_path):
    a = read_caffemodel(ROOT / "models" / "lenet_300_100" / "dense.caffemodel")
    changed = {"ip2": a["ip2"].matrix + np.float32(0.25)}
    write_caffemodel(tmp_path / "b.caffemodel.h5", a, changed)
    found = compare_weights(a, read_caffemodel(tmp_path / "b.caffemodel.h5"))
    assert [(x.layer, x.blob) for x in found if x.changed] == [("ip2", 0)]
    (ip2,) = (x for x in found if x.changed)
    assert isinstance(ip2, LayerChange)
    assert ip2.rms_change == pytest.approx(0.25, rel=1e-3)
    assert Tally((1,)) + Tally((1,)) == Tally((1,))
