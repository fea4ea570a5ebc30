"""What a configuration does to each image, from what its layers do alone.

The margin of an image is how far its class is ahead of the best other; over 0 it is classified
correctly. Errors of several layers are small, so what they change of a margin adds up, which the
images lost and gained do not: a layer may put right what another spoils, and two that spoil little
may spoil much together. Of LeNet-300-100's configurations the loss with its margin is forecast
within 2 images (standard deviation) where single losses added up are off by 10 and more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.steps.evaluator import Reference

#: margins that are added up at a time
_BLOCK = 1 << 22

Floats = NDArray[np.float64]
Choices = NDArray[np.intp]


class Superposition:
    """Margins of images, and how options of layers change them.

    Parameters
    ----------
    reference
        The network as it is.
    counts
        Options of each layer.
    """

    def __init__(self, reference: Reference, counts: Sequence[int]) -> None:
        self._counted = np.flatnonzero(reference.counted)
        self._margins = reference.margins[self._counted]
        self._first = reference.original[self._counted]
        #: for each layer the row of each option's shifts, -1 where they are not known
        self._places = [np.full(count, -1) for count in counts]
        self._shifts: list[list[NDArray[np.float32]]] = [[] for _ in counts]

    def learn(self, layer: int, option: int, margins: NDArray[np.float32]) -> None:
        """Add what an option of a layer makes of the margins, float32[images]."""
        self._places[layer][option] = len(self._shifts[layer])
        self._shifts[layer].append(margins[self._counted] - self._margins)

    def knows(self, choices: Choices) -> NDArray[np.bool_]:
        """Say of which configurations all options are known."""
        known = np.ones(len(choices), bool)
        for places, column in zip(self._places, choices.T, strict=True):
            known &= places[column] >= 0
        return known

    def forecast(self, choices: Choices, most: int = _BLOCK) -> tuple[Floats, Floats]:
        """Give the net loss and the images that change sides, of configurations that are known.

        Parameters
        ----------
        choices
            int[n, layers]: for each layer the number of its option.
        most
            Margins that are added up at a time.
        """
        # Most images are so far from the line that nothing takes them across.
        farthest = np.sum([np.max(np.abs(shifts), axis=0) for shifts in self._shifts], axis=0)
        near = ~(np.abs(self._margins) > farthest)
        margins, first = self._margins[near], self._first[near]
        shifts = [np.array([shift[near] for shift in each]) for each in self._shifts]
        far_right, far_first = self._margins[~near] > 0, self._first[~near]
        lost = np.full(len(choices), np.count_nonzero(far_first & ~far_right))
        gained = np.full(len(choices), np.count_nonzero(far_right & ~far_first))
        size = max(1, most // max(1, margins.size))
        for start in range(0, len(choices), size):
            rows = slice(start, start + size)
            places = [p[c] for p, c in zip(self._places, choices[rows].T, strict=True)]
            moved = margins + shifts[0][places[0]]
            for each, place in zip(shifts[1:], places[1:], strict=True):
                moved += each[place]
            right = moved > 0
            lost[rows] += np.count_nonzero(first & ~right, axis=1)
            gained[rows] += np.count_nonzero(right & ~first, axis=1)
        return (lost - gained).astype(np.float64), (lost + gained).astype(np.float64)
