"""The joint check and its margin."""

import numpy as np
import pytest

from deepsz_caffe.steps.assess.significance import images_needed as needed
from deepsz_caffe.steps.evaluator import Outcome


def test_the_margin_holds_for_original_to_compressed():
    """Asked for 90 %, the true loss is within what was measured and the margin in 90 % of cases.

    Pruning changes many decisions here and compression few, some of them back.
    """
    random = np.random.default_rng(3)
    images, true = 5000, (0.012 - 0.008) + (0.002 - 0.001)
    # original and pruned, and pruned and compressed: same, lost, gained.
    pruning = random.choice([0, 1, -1], (2000, images), p=[0.98, 0.012, 0.008])
    coding = random.choice([0, 1, -1], (2000, images), p=[0.997, 0.002, 0.001])
    coding[pruning != 0] *= pruning[pruning != 0] != coding[pruning != 0]
    held = held_against_pruned = 0
    for one, other in zip(pruning, coding, strict=True):
        both = np.clip(one + other, -1, 1)
        counts = [int(n) for each in (other, both) for n in ((each > 0).sum(), (each < 0).sum())]
        outcome = Outcome(images, 0, 0, *counts)
        held += needed(outcome, 0.9) >= true * images
        narrow = Outcome(images, 0, 0, *counts[:2], *counts[:2])
        before = int((one > 0).sum() - (one < 0).sum())
        held_against_pruned += before + needed(narrow, 0.9) >= true * images
    assert held / 2000 == pytest.approx(0.9, abs=0.03)
    assert held_against_pruned / 2000 < 0.8


def test_without_a_margin_it_is_the_measured_loss():
    assert needed(Outcome(1000, 0, 0, 9, 4, 30, 10), 0.5) == 20
    assert needed(Outcome(1000, 0, 0, 9, 4, 30, 10), 0.9) > 20
