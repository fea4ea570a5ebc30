"""Configurations forecast by what layers alone do to each image."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.steps.assess import joint
from deepsz_caffe.steps.assess.estimate import Option
from deepsz_caffe.steps.assess.joint import Alone, WithinLoss, search_configurations
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.superposition import Superposition
from deepsz_caffe.steps.evaluator import Outcome, Reference


class Network:
    """Layers whose shifts of each image's margin add up exactly, in any combination."""

    def __init__(self, seed, options, images, scale=0.3):
        random = np.random.default_rng(seed)
        margins = random.normal(1, 1, images).astype(np.float32)
        original = (margins + random.normal(0, 0.05, images)) > 0
        self.counted = random.random(images) < 0.9
        self.reference = Reference(margins, original, self.counted)
        self.shifts = [
            [
                random.normal(0, scale * (k + 1) / count, images).astype(np.float32)
                for k in range(count)
            ]
            for count in options
        ]

    def margins(self, layer, option):
        return self.reference.margins + self.shifts[layer][option]

    def outcome(self, choice):
        moved = self.reference.margins + sum(self.shifts[i][k] for i, k in enumerate(choice))
        right, before = (moved > 0)[self.counted], (self.reference.margins > 0)[self.counted]
        first = self.reference.original[self.counted]
        counts = [
            int((one & ~other).sum())
            for reference in (before, first)
            for one, other in ((reference, right), (right, reference))
        ]
        return Outcome(int(self.counted.sum()), int(right.sum()), 0, *counts)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans())
def test_every_configuration_is_forecast_as_it_counts(seed, options, blocks):
    network = Network(seed, options, 300)
    known = Superposition(network.reference, options)
    for layer, count in enumerate(options):
        for option in range(count):
            known.learn(layer, option, network.margins(layer, option))
    choices = np.array(list(product(*map(range, options))))
    assert known.knows(choices).all()
    net, changed = known.forecast(choices, most=7 if blocks else 1 << 22)
    outcomes = [network.outcome(choice) for choice in choices]
    # Margins near the line may be rounded to its other side.
    assert np.abs(net - [o.original_lost - o.original_gained for o in outcomes]).max() <= 1
    assert np.abs(changed - [o.original_lost + o.original_gained for o in outcomes]).max() <= 1


def test_what_was_not_tested_is_not_known():
    network = Network(1, [2, 2], 50)
    known = Superposition(network.reference, [2, 2])
    known.learn(0, 1, network.margins(0, 1))
    known.learn(1, 0, network.margins(1, 0))
    assert known.knows(np.array([[1, 0], [0, 0], [1, 1]])).tolist() == [True, False, False]


def test_the_very_best_of_all_is_found_where_margins_add_up():
    counts = [12, 10, 8]
    network = Network(5, counts, 4000, scale=0.15)
    sizes = [
        [round(w * (40 - 2 * k)) for k in range(n)]
        for w, n in zip((90, 20, 5), counts, strict=True)
    ]
    limit = 25
    # What single layers lose says little: as if all were off by many images.
    layers = [[Option(size, 10, 40, 60) for size in each] for each in sizes]
    tested, measured = set(), []

    def test(layer, option):
        assert (layer, option) not in tested
        tested.add((layer, option))
        return layers[layer][option], network.margins(layer, option)

    def measure(choice):
        measured.append(choice)
        return network.outcome(choice)

    def size_of(choice):
        return sum(sizes[i][k] for i, k in enumerate(choice))

    alone = Alone(
        network.reference,
        {(i, k): network.margins(i, k) for i, n in enumerate(counts) for k in range(n)},
        test,
    )
    found = search_configurations(
        layers,
        measure,
        lambda i, k: sizes[i][k],
        WithinLoss(limit),
        0.9,
        network.outcome([]),
        alone,
    )
    every = list(product(*map(range, counts)))
    best = min(size_of(c) for c in every if images_needed(network.outcome(c), 0.9) <= limit)
    assert size_of(found.choice) <= 1.005 * best
    assert len(measured) <= 12
    assert not tested
    # With nothing tested beforehand it is tested as it is asked for, each at most once.
    alone = Alone(network.reference, {}, test)
    found = search_configurations(
        layers,
        measure,
        lambda i, k: sizes[i][k],
        WithinLoss(limit),
        0.9,
        network.outcome([]),
        alone,
    )
    assert found.choice is not None
    assert {*enumerate(found.choice)} <= tested
    assert len(found.measured) <= joint._MOST + 3 * joint._MOST_EACH


def test_tests_without_margins_are_not_asked_for_again():
    reference = Network(2, [1], 20).reference
    asked = []

    def test(layer, option):
        asked.append((layer, option))
        return Option(100 - option, option, option, 1), None

    found = search_configurations(
        [[Option(100 - k, 0, 0, 1) for k in range(5)]],
        lambda choice: Outcome(1000, 900, 900, choice[0], 0, choice[0], 0),
        lambda layer, option: 100 - option,
        WithinLoss(2),
        0.5,
        None,
        Alone(reference, {}, test),
    )
    assert found.choice == (2,)
    assert len(asked) == len(set(asked))
