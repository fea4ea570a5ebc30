"""Configurations measured as wholes, against all of them measured."""

from itertools import product
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.steps.assess.estimate import Option
from deepsz_caffe.steps.assess.joint import WithinBytes, WithinLoss
from deepsz_caffe.steps.assess.joint import search_configurations as search
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.evaluator import Outcome

OPTIONS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=6)


def certain(options):
    return [Option(size, loss, loss, 0) for size, loss in options]


def additive(layers, choice):
    lost = sum(round(layers[i][k].loss) for i, k in enumerate(choice))
    return Outcome(1000, 900, 900, lost, 0, lost, 0)


def search_configurations(layers, count, *rest):
    return search(layers, count, lambda layer, option: layers[layer][option].bytes, *rest)


def size_of(layers, choice):
    return sum(layers[i][k].bytes for i, k in enumerate(choice))


@settings(deadline=None, max_examples=60)
@given(st.lists(OPTIONS, min_size=1, max_size=3), st.integers(0, 20))
def test_where_losses_add_up_it_is_the_best_of_all(instance, limit):
    layers = [certain(options) for options in instance]
    every = list(product(*(range(len(options)) for options in layers)))
    holds = [c for c in every if additive(layers, c).lost <= limit]
    found = search_configurations(layers, lambda c: additive(layers, c), WithinLoss(limit), 0.5)
    if not holds:
        assert found.choice is None
    else:
        assert found.choice is not None
        best = min(size_of(layers, c) for c in holds)
        assert size_of(layers, found.choice) <= 1.01 * best + 1
        assert additive(layers, found.choice).lost <= limit


def network(seed):
    """Simulate two layers: each image survives noise up to a level of its own.

    Gives, for each bound of each layer, what it weighs, and a function that counts configurations.
    """
    random = np.random.default_rng(seed)
    bounds = np.arange(1, 21) / 100
    images = 10_000
    sizes = [4000 - 900 * np.log2(bounds / 0.01), 1000 - 150 * np.log2(bounds / 0.01)]
    distance = random.normal(2, 1, images)  # of the score from the decision, in some unit
    noise = [random.normal(0, 1, (len(bounds), images)) * bounds[:, None] * k for k in (2, 1)]

    def right(choice):
        shift = sum(noise[i][k] for i, k in enumerate(choice) if k is not None)
        return distance + shift > 0

    before = right((None, None))

    def count(choice):
        after = right(choice)
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        return Outcome(images, int(after.sum()), int(after.sum()), lost, gained, lost, gained)

    return sizes, count


def options_of(sizes, count):
    layers = []
    for layer, each in enumerate(sizes):
        options = []
        for number, size in enumerate(each):
            alone = count(tuple(number if i == layer else None for i in range(len(sizes))))
            changed = alone.lost + alone.gained
            options.append(Option(int(size), alone.lost - alone.gained, changed, changed + 1))
        layers.append(options)
    return layers


@pytest.mark.parametrize("seed", range(6))
def test_the_smallest_that_holds_is_among_the_best_of_all(seed):
    sizes, count = network(seed)
    layers = options_of(sizes, count)
    limit = 20
    sizes_that_hold = [
        size_of(layers, c)
        for c in product(range(20), range(20))
        if images_needed(count(c), 0.9) <= limit
    ]
    found = search_configurations(layers, count, WithinLoss(limit), 0.9)
    assert images_needed(count(found.choice), 0.9) <= limit
    # Of 400 configurations one or another holds by luck alone: none but those may be smaller.
    assert sum(1.03 * size < size_of(layers, found.choice) for size in sizes_that_hold) <= 2
    assert len(found.measured) <= 32


@pytest.mark.parametrize("seed", range(6))
def test_the_least_loss_within_bytes_is_among_the_best_of_all(seed):
    sizes, count = network(seed)
    layers = options_of(sizes, count)
    limit = ceil(np.quantile([size_of(layers, c) for c in product(range(20), range(20))], 0.5))
    within = [
        images_needed(count(c), 0.9)
        for c in product(range(20), range(20))
        if size_of(layers, c) <= limit
    ]
    found = search_configurations(layers, count, WithinBytes(limit), 0.9)
    assert size_of(layers, found.choice) <= limit
    needed = images_needed(count(found.choice), 0.9)
    assert sum(each < needed - 3 for each in within) <= 2


def test_what_was_lost_before_counts():
    layers = [certain([(100, 0), (50, 5)])]

    def chosen(before):
        def count(choice):
            lost = 5 * choice[0]
            return Outcome(1000, 900, 900, lost, 0, before + lost, 0)

        pruned = Outcome(1000, 900, 900, 0, 0, before, 0)
        return search_configurations(layers, count, WithinLoss(8), 0.5, pruned).choice

    assert [chosen(before) for before in (0, 4, 9)] == [(1,), (0,), None]


def test_of_many_layers_only_near_configurations_are_compared():
    layers = [certain([(100, 0), (60, 1), (30, 3), (20, 6)]) for _ in range(12)]  # 4**12
    found = search_configurations(layers, lambda c: additive(layers, c), WithinLoss(6), 0.5)
    assert found.choice is not None
    # The best: six layers at 60 bytes, or one at 30 for each two of them.
    assert size_of(layers, found.choice) <= 12 * 100 - 6 * 40


def test_hopeless_options_of_which_little_is_known_do_not_crowd_out_the_good_ones():
    """Three layers of 30 options: most lose hundreds of images, give or take as many."""

    def layer(weight):
        return [
            Option(int(weight * (40 - k)), loss, loss + 1, 2 + (loss / 3) ** 2)
            for k, loss in enumerate([0.3 * k if k < 15 else 50 * (k - 14) for k in range(30)])
        ]

    layers = [layer(100), layer(10), layer(1)]

    def count(choice):
        # Together the layers lose a little less than alone.
        lost = round(sum(0.8 * layers[i][k].loss for i, k in enumerate(choice)))
        return Outcome(10_000, 9000, 9000, lost, 0, lost, 0)

    found = search_configurations(layers, count, WithinLoss(10), 0.5)
    every = product(range(30), repeat=3)
    best = min(size_of(layers, c) for c in every if count(c).lost <= 10)
    assert size_of(layers, found.choice) <= 1.03 * best


def test_a_tighter_bound_that_weighs_less_than_it_seemed_is_taken():
    layers = [certain([(110, 0), (104, 1), (100, 2), (98, 9)])]
    weights = [110, 90, 100, 98]
    found = search(
        layers,
        lambda choice: additive(layers, choice),
        lambda layer, option: weights[option],
        WithinLoss(5),
        0.5,
    )
    assert found.choice == (1,)
