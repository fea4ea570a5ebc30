"""The search by divergence on plain Python networks, against the optimum of their true curves."""

import threading
from dataclasses import dataclass, field
from math import log2

import numpy as np
import pytest

from deepsz_caffe.steps.assess.divergence_search import (
    Curve,
    Sample,
    divergence_search,
    frontier,
)
from deepsz_caffe.steps.assess.search import Subject
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.evaluator import Outcome

IMAGES = 10_000


def within_20(outcome):
    return images_needed(outcome, 0.9) <= 20


@dataclass
class Made:
    """Layers whose divergence is a power of the bound and whose weights cost a bit a halving."""

    layers: int
    seed: int = 0
    noise: float = 0.0
    together: float = 1.0
    lost_per_nat: float = 1500.0
    asked: dict = field(default_factory=lambda: {"diverge": 0, "count": 0})

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)
        names = [f"conv{number}" for number in range(self.layers)]
        self.weights = dict(
            zip(names, self.random.integers(500, 500_000, self.layers), strict=True)
        )
        self.typical = dict(
            zip(names, 10 ** self.random.uniform(-2.5, -0.5, self.layers), strict=True)
        )
        self.scale = dict(zip(names, 10 ** self.random.uniform(-3, 0, self.layers), strict=True))
        self.power = dict(zip(names, self.random.uniform(1.8, 2.6, self.layers), strict=True))
        self.subjects = [
            Subject(name, self.typical[name], 6 * self.typical[name]) for name in names
        ]

    def size(self, name, bound):
        bits = log2(1 + self.typical[name] / bound)
        return 20 + round(self.weights[name] * bits / 8)

    def nats(self, bounds):
        return sum(
            self.scale[name] * (bound / self.typical[name]) ** self.power[name]
            for name, bound in bounds.items()
        )

    def diverge(self, bounds):
        self.asked["diverge"] += 1
        mean = self.nats(bounds) * (self.together if len(bounds) > 1 else 1)
        return Divergence(mean * np.exp(self.noise * self.random.normal()), 0, 200)

    def count(self, bounds):
        self.asked["count"] += 1
        lost = round(self.lost_per_nat * self.together * self.nats(bounds))
        lost = min(lost, 9000)
        return Outcome(IMAGES, 9900 - lost, 9990, lost, 0, lost, 0)

    def optimum(self, nats):
        """Least bytes with so many nats in all, by a Lagrangian over the true curves."""
        grids = {s.name: s.typical * np.geomspace(1e-3, 6, 800) for s in self.subjects}
        sizes = {
            n: 20 + self.weights[n] * np.log2(1 + self.typical[n] / g) / 8 for n, g in grids.items()
        }
        loss = {n: self.scale[n] * (g / self.typical[n]) ** self.power[n] for n, g in grids.items()}
        best = np.inf
        for price in np.geomspace(1e2, 1e12, 250):
            place = {n: np.argmin(sizes[n] + price * loss[n]) for n in grids}
            if sum(loss[n][i] for n, i in place.items()) <= nats:
                best = min(best, sum(sizes[n][i] for n, i in place.items()))
        return best


@pytest.mark.parametrize(("count", "seed"), [(1, 1), (3, 2), (26, 3), (150, 4)])
def test_it_comes_near_the_optimum_in_few_counts(count, seed):
    made = Made(count, seed, noise=0.1)
    found = divergence_search(made.subjects, made, within_20)
    assert images_needed(found.outcome, 0.9) <= 20
    assert found.bytes == sum(made.size(name, bound) for name, bound in found.best.bounds.items())
    # 20 images with the margin are about 15 lost.
    assert found.bytes <= 1.03 * made.optimum(15 / made.lost_per_nat)
    assert made.asked["count"] == found.counted <= 30
    assert made.asked["diverge"] <= 3.2 * count + 2


def test_layers_are_measured_at_a_time_and_the_same_is_found():
    meeting = threading.Barrier(3, timeout=10)

    class Meeting(Made):
        def diverge(self, bounds):
            if next(self.first, None):
                meeting.wait()
            return super().diverge(bounds)

    made = Meeting(8, 9)
    made.first = iter([True] * 3)  # they wait for each other, or the barrier breaks
    found = divergence_search(made.subjects, made, within_20, threads=3)
    alone = Made(8, 9)
    assert found.best == divergence_search(alone.subjects, alone, within_20).best
    assert made.asked == alone.asked


def test_an_error_of_one_layer_is_raised():
    made = Made(8, 9)

    def diverge(bounds):
        if "conv5" in bounds:
            raise ValueError("conv5")
        return Made.diverge(made, bounds)

    made.diverge = diverge
    with pytest.raises(ValueError, match="conv5"):
        divergence_search(made.subjects, made, within_20, threads=2)


def test_layers_that_harm_each_other_are_judged_by_the_whole():
    made = Made(20, 5, together=3.0)
    found = divergence_search(made.subjects, made, within_20)
    assert images_needed(found.outcome, 0.9) <= 20
    assert found.divergence.mean == pytest.approx(3 * found.best.divergence, rel=0.2)
    assert found.bytes <= 1.03 * made.optimum(5 / made.lost_per_nat)


def test_nothing_holds_where_the_network_itself_loses_too_much():
    made = Made(3, 6)
    made.count = lambda bounds: Outcome(IMAGES, 0, 0, 500, 0, 500, 0)
    found = divergence_search(made.subjects, made, within_20)
    assert found.best is None
    assert set(found.curves) == set(made.typical)


def test_everything_holds_where_nothing_is_lost():
    made = Made(3, 7, lost_per_nat=0.0)
    found = divergence_search(made.subjects, made, within_20)
    least = sum(made.size(s.name, s.largest) for s in made.subjects)
    assert found.bytes == pytest.approx(least, rel=0.05)


def test_a_curve_goes_through_its_samples_and_on_like_a_square():
    curve = Curve((Sample(0.04, 700, 4e-3), Sample(0.01, 1000, 2e-4)))
    at = np.array([0.01, 0.02, 0.04, 0.08, 0.005])
    assert curve.divergence(at) == pytest.approx([2e-4, (2e-4 * 4e-3) ** 0.5, 4e-3, 1.6e-2, 5e-5])
    assert curve.bytes(at) == pytest.approx([1000, 850, 700, 550, 1150])
    assert curve.bytes(np.array([10.0])) == [1]


def test_sizes_beyond_the_samples_never_rise_with_the_bound():
    # Weights that were quantized before: fewer bytes at the smaller bound.
    curve = Curve((Sample(0.01, 900, 1e-3), Sample(0.02, 1000, 2e-3)))
    sizes = curve.bytes(np.geomspace(1e-5, 0.01, 20))
    assert (np.diff(sizes) < 0).all()
    assert sizes[-1] == 900
    assert sizes[0] == pytest.approx(900 * (1 + np.log2(1000) / 16))
    assert curve.bytes(np.array([0.1]))[0] == 1000


def test_noise_never_makes_a_curve_fall():
    curve = Curve((Sample(0.01, 1000, 3e-3), Sample(0.02, 800, 2e-3), Sample(0.04, 900, 0.0)))
    at = np.geomspace(0.001, 1, 50)
    assert (np.diff(curve.divergence(at)) > 0).all()


def test_a_frontier_goes_from_careful_to_bold():
    made = Made(5, 8)
    curves = {
        s.name: Curve(
            Sample(b, made.size(s.name, b), made.nats({s.name: b}))
            for b in (s.typical / 10, s.typical / 2)
        )
        for s in made.subjects
    }
    proposals = frontier(curves, made.subjects)
    assert (np.diff([each.divergence for each in proposals]) > 0).all()
    assert (np.diff([each.bytes for each in proposals]) <= 0).all()
