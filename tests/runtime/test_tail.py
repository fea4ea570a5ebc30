"""Features once, then only the tail: the same decisions as the whole network, bit for bit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy as toys

from deepsz_caffe.errors import DataError
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime import body
from deepsz_caffe.runtime import features as stored
from deepsz_caffe.runtime import tail as module
from deepsz_caffe.runtime.evaluate import decide, evaluate
from deepsz_caffe.runtime.features import (
    Features,
    Pass,
    compute_features,
    compute_in_parallel,
)
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.sampled import measure_divergence, measure_moments
from deepsz_caffe.runtime.tail import measure_weights
from deepsz_caffe.steps.encode import encode_layer
from deepsz_caffe.steps.evaluator import Outcome


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def features(toy, pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    job = Pass(str(toy.network), str(toy.weights), toys.FC_LAYERS, str(folder), "key")
    return pool.submit(compute_features, job).result()


def coarse(toy, *names, step=0.3):
    model = read_caffemodel(toy.weights)
    return {n: np.rint(model[n].matrix / step).astype(np.float32) * np.float32(step) for n in names}


def tail_scores(folder, replace, batch, ordered=False):
    """Return the tail's scores in the order of the data; `ordered`: run in that order, too."""
    tail = module.Tail(folder, frozenset(replace), batch, None)
    order = np.random.default_rng(0).permutation(tail.images)
    if ordered:
        tail._inputs = {version: array[order] for version, array in tail._inputs.items()}
    for name, weights in replace.items():
        module.put_weights(tail.caffe_net, name, weights)
    starts = range(0, tail.images, tail.batch)
    rows = (slice(start, min(start + tail.batch, tail.images)) for start in starts)
    scores = np.concatenate([tail.scores(part).copy() for part in rows])
    return scores if ordered else scores[order]


def whole_scores(network, weights, replace):
    from deepsz_caffe.runtime import evaluate as forward
    from deepsz_caffe.runtime import net as net_module
    from deepsz_caffe.runtime.worker import import_caffe

    caffe = import_caffe()
    prepared = forward.prepare(network, (), None, caffe)
    net = graph.subnet(prepared.net, range(len(prepared.net.layer)), ())
    caffe_net = net_module.build_net(caffe, net)
    net_module.load_weights(caffe_net, net, weights)
    for name, array in replace.items():
        net_module.put_weights(caffe_net, name, array)
    scores = prepared.judged.scores
    batches = forward.forward_batches(caffe_net, prepared, [scores])
    return np.concatenate([taken[scores] for _, taken in batches])


def test_the_network_as_it_is_is_counted_on_the_way(toy, pool, features):
    assert features.score == evaluate(toy.network, toy.weights, executor=pool)
    assert features.images == 2030


@pytest.mark.parametrize(
    "names", [("left",), ("right",), ("ip",), ("left", "ip"), ("left", "right", "ip")]
)
def test_a_tail_counts_as_the_whole_network_does(toy, pool, features, names):
    replace = coarse(toy, *names)
    outcome = pool.submit(measure_weights, features.folder, replace).result()
    whole = evaluate(toy.network, toy.weights, replace=replace, executor=pool)
    assert (outcome.images, outcome.top1_correct) == (whole.total, whole.top1_correct)
    assert outcome.top5_correct == whole.top5_correct
    assert outcome.lost - outcome.gained == features.top1_correct - outcome.top1_correct
    assert outcome.lost > 0


@pytest.mark.parametrize("names", [("left",), ("right",), ("ip",), ("left", "right", "ip")])
def test_scores_are_the_same_to_the_bit_in_the_same_batches(toy, pool, features, names):
    replace = coarse(toy, *names)
    whole = pool.submit(whole_scores, str(toy.network), str(toy.weights), replace).result()
    job = (tail_scores, features.folder, replace, toys.BATCH)
    full = 2000  # the last batch of a tail is shorter, that of the whole network is filled up
    np.testing.assert_array_equal(pool.submit(*job, True).result()[:full], whole[:full])
    # In the stored order an image has another place in its batch, where BLAS adds up in another
    # order: scores differ by rounding, decisions only between classes as close as that.
    shuffled = pool.submit(*job).result()
    np.testing.assert_allclose(shuffled, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shuffled.argmax(axis=1), whole.argmax(axis=1))


def test_another_batch_changes_scores_by_rounding_only(toy, pool, features):
    replace = coarse(toy, "left")
    small = pool.submit(tail_scores, features.folder, replace, 7).result()
    large = pool.submit(tail_scores, features.folder, replace, 1000).result()
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-6)
    assert (small.argmax(axis=1) == large.argmax(axis=1)).all()


def test_encoded_layers_are_decoded_in_the_worker(toy, pool, features):
    encoded = encode_layer("right", read_caffemodel(toy.weights)["right"].matrix, 0.2, "paper")
    outcome = pool.submit(measure_weights, features.folder, {"right": encoded}).result()
    whole = evaluate(toy.network, toy.weights, replace={"right": encoded}, executor=pool)
    assert outcome.top1_correct == whole.top1_correct


def test_nothing_of_one_test_is_left_in_the_next(toy, pool, features):
    original = {"left": np.array(read_caffemodel(toy.weights)["left"].matrix)}
    pool.submit(measure_weights, features.folder, coarse(toy, "left", step=2.0)).result()
    pool.submit(measure_weights, features.folder, coarse(toy, "ip", step=2.0)).result()
    outcome = pool.submit(measure_weights, features.folder, original).result()
    assert outcome == Outcome(2030, features.top1_correct, features.top5_correct, 0, 0, 0, 0)


def test_a_layer_held_already_counts_as_one_put_in_anew(toy, pool, features):
    model = read_caffemodel(toy.weights)
    name = toys.FC_LAYERS[0]
    fine, rough = ({name: encode_layer(name, model[name].matrix, b)} for b in (0.001, 0.02))
    arrays = coarse(toy, name, step=0.1)

    def measure(replace):
        return pool.submit(measure_weights, features.folder, replace, None, None).result()

    alone = [measure(each) for each in (fine, rough, arrays)]
    assert len(set(alone)) == 3
    for number in (2, 0, 0, 1, 1, 2, 1, 0):
        assert measure((fine, rough, arrays)[number]) == alone[number]


def test_a_hopeless_test_stops_early_and_a_harmless_one_never(toy, pool, features):
    zero = {"ip": np.zeros((10, 40), np.float32)}
    stopped = pool.submit(measure_weights, features.folder, zero, 20, 100).result()
    assert stopped.images < 500
    same = {"ip": np.array(read_caffemodel(toy.weights)["ip"].matrix)}
    full = pool.submit(measure_weights, features.folder, same, 20, 100).result()
    assert full.images == 2030


def test_margins_say_what_is_right_and_add_up_to_the_counts(toy, pool, features):
    reference = stored.load_reference(features.folder, None)
    assert reference.counted.all()
    assert np.array_equal(reference.margins > 0, reference.original)
    assert (reference.margins > 0).sum() == features.top1_correct
    replace = coarse(toy, "ip")
    outcome, margins = pool.submit(
        measure_weights, features.folder, replace, with_margins=True
    ).result()
    assert outcome == pool.submit(measure_weights, features.folder, replace).result()
    assert (margins > 0).sum() == outcome.top1_correct
    assert (reference.original & ~(margins > 0)).sum() == outcome.lost
    scores = pool.submit(tail_scores, features.folder, replace, 100).result()
    order = np.random.default_rng(0).permutation(len(scores))
    scores = np.sort(scores.reshape(len(scores), -1), axis=1)[np.argsort(order)]
    ahead = (scores[:, -1] - scores[:, -2])[margins > 0]
    assert np.allclose(np.sort(ahead), np.sort(margins[margins > 0]), rtol=1e-4, atol=1e-5)


def test_a_stopped_test_and_older_features_have_no_margins(toy, pool, features, tmp_path):
    zero = {"ip": np.zeros((10, 40), np.float32)}
    seen, margins = pool.submit(
        measure_weights, features.folder, zero, 20, 100, with_margins=True
    ).result()
    assert seen.images < 500
    assert margins is None
    older = shutil.copytree(features.folder, tmp_path / "older")
    (older / "margins.npy").unlink()
    assert stored.load_reference(str(older), None) is None


def test_features_are_found_again_by_their_key(features):
    assert Features.load(features.folder, "key") == features
    assert Features.load(features.folder, "other") is None
    assert Features.load("/nowhere", "key") is None
    path = Path(features.folder) / "features.json"
    kept = path.read_text()
    for wrong in ("[" * 100_000, "[]", "{}", '{"key": "key", "images": NaN}', '{"key": "key"}'):
        path.write_text(wrong)
        assert Features.load(features.folder, "key") is None
    path.write_text(kept)


def test_progress_announces_the_size_first(toy, tmp_path):
    seen = []
    job = Pass(str(toy.network), str(toy.weights), ("ip",), str(tmp_path / "f"))
    compute_in_parallel(job, 2, progress=seen.append)
    assert seen[0] == ("bytes", 4 * 2030 * 40)
    assert [message[1] for message in seen[1:]] == sorted(message[1] for message in seen[1:])
    assert seen[-1] == ("images", 2030, 2030)
    (stored,) = (tmp_path / "f").glob("0008-*.npy")
    assert stored.stat().st_size == 128 + 4 * 2030 * 40


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_give_what_one_process_gives(toy, features, tmp_path, parts):
    folder = tmp_path / "parts"
    job = Pass(str(toy.network), str(toy.weights), toys.FC_LAYERS, str(folder), "key")
    found = compute_in_parallel(job, parts)
    assert found == replace(features, folder=found.folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in Path(features.folder).iterdir())
    for name in (name for name in names if name.endswith(".npy")):
        np.testing.assert_array_equal(np.load(folder / name), np.load(f"{features.folder}/{name}"))


def test_more_parts_than_batches_leave_some_with_nothing_to_do(toy, pool, features):
    job = Pass(str(toy.network), str(toy.weights), toys.FC_LAYERS, features.folder, "key")
    kept = stored.Stored.load(Path(features.folder)).kept
    rows, labels, decisions = pool.submit(stored._run_part, job, kept, 0, 25, None).result()
    assert (rows, labels.shape, decisions.shape) == (slice(0, 0), (0,), (3, 0))


def test_parts_of_given_arrays_are_those_of_one_process(toy, tmp_path):
    def arrays(parts):
        folder = str(tmp_path / str(parts))
        data = str(toy.folder / "test.npz")
        job = Pass(str(toy.deploy), str(toy.weights), ("ip",), folder, data=data)
        assert compute_in_parallel(job, parts).images == 2030
        return np.load(f"{folder}/labels.npy"), np.load(f"{folder}/decisions.npy")

    for one, three in zip(arrays(1), arrays(3), strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.fixture(scope="module", params=["whole", "limit", "small"])
def fewer(request, toy, pool, tmp_path_factory):
    """Give features of all layers, and others of which less is kept: of few images, or bytes."""
    layers, found = ("conv", *toys.FC_LAYERS), []
    few = {
        "whole": {"whole": True, "limit": 4 * (2030 * 121 + 256 * (100 + 24 + 16 + 40))},
        "limit": {"limit": 2030 * 4 * (121 + 41)},
        "small": {"whole": True},
    }[request.param]
    for options in ({}, few):
        folder = str(tmp_path_factory.mktemp("fewer"))
        job = Pass(str(toy.network), str(toy.weights), layers, folder, "key", **options)
        found.append(pool.submit(compute_features, job).result())
    rows = [
        sorted(rows for *_, rows in stored.Stored.load(Path(each.folder)).kept) for each in found
    ]
    # data 121 numbers, conv 100, left 24, right 16, both 40
    expected = {"whole": [256] * 4 + [2030], "limit": [2030] * 3, "small": [2030] * 5}
    assert rows == [[2030] * 5, expected[request.param]]
    return found


@pytest.mark.parametrize("names", [("ip",), ("left",), ("conv", "ip"), ("conv", *toys.FC_LAYERS)])
def test_from_the_nearest_features_the_same_is_measured(toy, pool, fewer, names):
    full, less = fewer
    assert (less.top1_correct, less.each) == (full.top1_correct, full.each)
    replace = coarse(toy, *names)
    for job, arguments in (
        (measure_weights, (replace,)),
        (measure_divergence, (replace, full.sampled)),
        (measure_moments, (names[-1], {n: replace[n] for n in names[:-1]}, full.sampled)),
    ):
        one, other = (pool.submit(job, each.folder, *arguments).result() for each in (full, less))
        if job is measure_moments and one.count != other.count:
            # Of an fc layer behind layers as they are, all that is kept is seen.
            assert (one.count, other.count, len(names)) == (2030, 256, 1)
        elif job is measure_moments:
            np.testing.assert_allclose(one.matrices, other.matrices, rtol=1e-6, atol=1e-9)
        elif job is measure_divergence:
            assert one.mean == pytest.approx(other.mean, rel=1e-6)
        else:
            assert one == other


def test_a_limit_that_the_lowest_layer_is_over_is_refused(toy, pool, tmp_path):
    options = {"limit": 2030 * 4 * 121 - 1}
    job = Pass(str(toy.network), str(toy.weights), ("conv", "ip"), str(tmp_path), **options)
    with pytest.raises(DataError, match="takes 982,520 bytes, over the limit of 982,519"):
        pool.submit(compute_features, job).result()
    assert not list(tmp_path.iterdir())


def test_on_a_nearly_full_disk_less_is_kept(toy, pool, tmp_path):
    job = Pass(str(toy.network), str(toy.weights), ("conv", *toys.FC_LAYERS), str(tmp_path / "f"))
    found = pool.submit(_computed_in, job, 2030 * 4 * (121 + 24)).result()
    kept = [blob for _, blob, _ in stored.Stored.load(tmp_path / "f").kept]
    assert kept == ["data", "right_tanh"]
    assert found.score == evaluate(toy.network, toy.weights, executor=pool)
    job = replace(job, folder=str(tmp_path / "g"))
    with pytest.raises(DataError, match="features need 982,520 bytes, the disk has 900,000 free"):
        pool.submit(_computed_in, job, 900_000).result()


def _computed_in(job, free):
    usual = shutil.disk_usage
    shutil.disk_usage = lambda place: usual(place)._replace(free=free)
    try:
        return compute_features(job)
    finally:
        shutil.disk_usage = usual


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(DataError, match="the features need"):
        body.reserve(tmp_path, usage.free, "--features")


def test_losses_are_counted_against_an_original_network_too(toy, pool, features):
    """Image by image: the original network's decisions lie beside those of the stored order."""
    original = coarse(toy, "left", step=0.5)
    now = coarse(toy, "ip")
    decisions = [
        pool.submit(decide, str(toy.network), str(toy.weights), (), None, replaced, None).result()
        for replaced in (original, now)
    ]
    stored.store_original(features.folder, "o", decisions[0])
    outcome = pool.submit(measure_weights, features.folder, now, original="o").result()
    first, after = (each[1] for each in decisions)
    assert outcome.original_lost == (first & ~after).sum() > 0
    assert outcome.original_gained == (after & ~first).sum() > 0
    assert outcome.top1_correct == after.sum()
    assert outcome.lost - outcome.gained == features.top1_correct - after.sum()
    unchanged = measure_weights(features.folder, {}, original="o")
    assert (unchanged.lost, unchanged.gained) == (0, 0)
    assert unchanged.score == features.score
    assert (
        unchanged.original_lost - unchanged.original_gained == first.sum() - unchanged.top1_correct
    )
    with pytest.raises(DataError, match=r"original-other\.npy: can't read"):
        measure_weights(features.folder, {}, original="other")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.npy", b""),
        ("labels.npy", b"\x93NUMPY\x01\x00"),
        ("decisions.npy", b"PK\x03\x04"),
        ("features.json", b'{"key": "key", "images": "many"}'),
        ("features.json", b"[" * 10**5),
    ],
)
def test_damaged_features_are_named(features, tmp_path, name, content):
    shutil.copytree(features.folder, tmp_path / "f")
    (tmp_path / "f" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*remove that folder"):
        stored.Stored.load(tmp_path / "f")
        stored.most_frequent(str(tmp_path / "f"))


def test_layers_below_the_first_change_are_not_run_again(toy, pool, features):
    model = read_caffemodel(toy.weights)
    names = ("left", "right", "ip")
    encoded = {
        n: [encode_layer(n, model[n].matrix, bound, "balanced") for bound in (0.03, 0.2)]
        for n in names
    }
    picks = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (0, 1, 0), (0, 1, 0), (1, 1, 1)]
    layers = [
        dict(zip(names, (encoded[n][k] for n, k in zip(names, p, strict=True)), strict=True))
        for p in picks
    ]
    layers.insert(0, {"left": encoded["left"][1]})
    layers.append({"left": encoded["left"][0], "ip": encoded["ip"][1]})
    one_by_one = [
        pool.submit(_measured_afresh, features.folder, replace).result() for replace in layers
    ]
    assert pool.submit(_measured_in_turn, features.folder, layers).result() == one_by_one
    assert len({(o.lost, o.gained) for o in one_by_one}) > 3


def test_a_stopped_test_leaves_nothing_to_begin_with(toy, pool, features):
    model = read_caffemodel(toy.weights)
    coarse = {n: encode_layer(n, model[n].matrix, 0.6, "balanced") for n in ("left", "ip")}
    fine = coarse | {"ip": encode_layer("ip", model["ip"].matrix, 0.01, "balanced")}
    stopped = pool.submit(measure_weights, features.folder, coarse, 0).result()
    assert stopped.images < features.total
    after = pool.submit(measure_weights, features.folder, fine).result()
    assert after == pool.submit(_measured_afresh, features.folder, fine).result()


@pytest.mark.parametrize(("room", "batch"), [(0, 1), (64 << 10, 40), (1 << 40, 500)])
def test_a_batch_takes_no_more_memory_than_it_may(toy, pool, features, room, batch):
    """An image takes some 1,600 bytes in the toy's tail: inputs, their copies, what is computed."""
    names = toys.FC_LAYERS
    replace = coarse(toy, *names)
    found, outcome = pool.submit(_measured_within, features.folder, replace, room).result()
    assert found == batch
    assert outcome == pool.submit(_measured_afresh, features.folder, replace).result()


def _measured_within(folder, replace, room):
    usual, module._BATCH_BYTES = module._BATCH_BYTES, room
    try:
        outcome = _measured_afresh(folder, replace)
        return module._current[1].batch, outcome
    finally:
        module._BATCH_BYTES, module._current = usual, None


def _measured_afresh(folder, replace):
    module._current = None
    return measure_weights(folder, replace)


def _measured_in_turn(folder, layers):
    module._current = None
    outcomes = [measure_weights(folder, replace) for replace in layers[:-1]]
    tail = module._current[1]
    assert tail._above is not None
    assert tail._above._above is not None
    return [*outcomes, measure_weights(folder, layers[-1])]
