"""The weights of a network under a rule: the masks that hold them, and what the network is shown.

Between two steps of the solver a masked weight is 0, unless masks may come back: then it keeps the
value that it has learned, and is 0 only while the network sees it. During a step the network may be
shown other values than its weights (noise, the levels of a bound); the solver's change is then made
to the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import ModelError
from deepsz_caffe.steps.prune import Shown

if TYPE_CHECKING:
    from caffe import Net
    from caffe._caffe import Blob

Masks = Mapping[str, np.ndarray]


class MaskRule(Protocol):
    """Masks that change in the course of training, as gradual pruning wants them."""

    @property
    def layers(self) -> frozenset[str]:
        """Names of the layers whose weights are masked or shown otherwise."""

    @property
    def last_change(self) -> int:
        """The last iteration at which the masks, or what is shown of the weights, change."""

    @property
    def returning(self) -> bool:
        """Whether masked weights go on learning and may come back."""

    @property
    def shown(self) -> Shown:
        """What the network sees of the weights."""

    def masks(
        self, iteration: int, weights: Callable[[str], np.ndarray], now: Masks | None = None
    ) -> Masks | None:
        """Give the masks to hold from before this iteration on; None leaves them as they are.

        `weights` gives the present weights of a layer, float32[r, c]; masked ones are 0 unless they
        may come back. `now` are the present masks.
        """

    def rewinds(self, iteration: int) -> bool:
        """Say whether all weights go back to their first values before this iteration."""


@dataclass(frozen=True)
class FixedMasks:
    """The same masks from beginning to end, layer name -> bool[r, c], true where kept."""

    fixed: Masks
    last_change: int = 0
    returning: bool = False
    shown: Shown = field(default_factory=Shown)

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(self.fixed)

    def masks(
        self, iteration: int, weights: Callable[[str], np.ndarray], now: Masks | None = None
    ) -> Masks | None:
        return self.fixed if iteration == 0 else None

    def rewinds(self, iteration: int) -> bool:
        return False


class MaskedWeights:
    """The weights of a network that is trained under a rule.

    Parameters
    ----------
    net
        The network, with its first weights in it.
    rule
        Decides.
    seed
        Of the noise.
    """

    def __init__(self, net: Net, rule: MaskRule, seed: int) -> None:
        self.masks: dict[str, np.ndarray] = {}
        self._net = net
        self._rule = rule
        self._seed = max(seed, 0)
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._places: dict[str, NDArray[np.intp]] = {}
        rewinding = any(rule.rewinds(iteration) for iteration in range(1, rule.last_change + 1))
        self._first = (
            {name: [np.array(blob.data) for blob in blobs] for name, blobs in net.params.items()}
            if rewinding
            else {}
        )

    def matrix(self, name: str) -> np.ndarray:
        """Give a layer's weights as float32[r, c], a view."""
        if name not in self._net.params:
            raise ModelError(
                "the network has no such layer with weights",
                where=f"layer {name}",
                hint="it has " + ", ".join(self._net.params),
            )
        data = self._net.params[name][0].data
        return np.reshape(data, (data.shape[0], -1))

    def change(self, iteration: int) -> None:
        """Hold what the rule wants from before this iteration on."""
        masks = self._rule.masks(iteration, self.matrix, self.masks)
        if masks is None:
            return
        for name, mask in masks.items():
            if mask.shape != self.matrix(name).shape:
                raise ModelError(
                    f"a mask of {mask.shape} for weights of {self.matrix(name).shape}",
                    where=f"layer {name}",
                )
        if self._rule.rewinds(iteration):
            for name, values in self._first.items():
                for blob, value in zip(self._net.params[name], values, strict=True):
                    blob.data[...] = value
        self.set_masks(masks)

    def set_masks(self, masks: Masks) -> None:
        """Put masks in place of those of the same layers."""
        self.masks.update(masks)
        # Multiplying by floats made once is the fastest way to hold a mask (asking the blob each
        # time keeps this right on a GPU, where `.data` brings the weights over).
        for name, mask in masks.items():
            self._kept[name] = mask.astype(np.float32).reshape(self._blob(name).data.shape)
            self._places.pop(name, None)
        self._hold()

    def step(self, iteration: int, step: Callable[[], object]) -> None:
        """Let the solver do one step on what the network is shown."""
        back = [*self._hide(), *self._show(iteration)]
        step()
        for name, places, difference in back:
            data = self._blob(name).data.reshape(-1)
            data[places] += difference
        self._hold()

    @contextmanager
    def judged(self, iteration: int) -> Iterator[None]:
        """Let the network have the weights that the training would come to if it ended now.

        Masked ones are 0, and where levels are shown, those; positive zeros, as every weight below
        0 times 0 is −0.
        """
        before: dict[str, np.ndarray] = {}
        names = {*self._kept, *(name for name, _ in self._rule.shown.bounds)}
        for name in sorted(names):
            data = self._blob(name).data
            shown = data * self._kept[name] if name in self._kept else data
            levels = self._rule.shown.levels(iteration, name, shown)
            if self._rule.returning or levels is not None:
                before[name] = np.array(data)
                data[...] = shown if levels is None else levels
        self.settle()
        yield
        for name, values in before.items():
            self._blob(name).data[...] = values

    def settle(self) -> None:
        """Make zeros positive."""
        for name in self._kept:
            data = self._blob(name).data
            data += np.float32(0)

    def _blob(self, name: str) -> Blob:
        return self._net.params[name][0]

    def _hold(self) -> None:
        if not self._rule.returning:
            for name, kept in self._kept.items():
                data = self._blob(name).data
                data *= kept

    def _hide(self) -> Iterator[tuple[str, slice, np.ndarray]]:
        """Set masked weights to 0 that are not; gives what is to be added again."""
        if self._rule.returning:
            for name, kept in self._kept.items():
                data = self._blob(name).data
                hidden = data.reshape(-1) * (1 - kept.reshape(-1))
                data *= kept
                yield name, slice(None), hidden

    def _show(self, iteration: int) -> Iterator[tuple[str, NDArray[np.intp], np.ndarray]]:
        """Put what is shown in place of the weights; gives what is to be added again."""
        shown = self._rule.shown
        if not shown.noisy(iteration) and (not shown.bounds or iteration < shown.since):
            return
        random = np.random.default_rng((self._seed, iteration))
        noisy = self._kept if shown.noisy(iteration) else [name for name, _ in shown.bounds]
        for name in noisy:
            places = self._nonzero_places(name)
            data = self._blob(name).data.reshape(-1)
            weights = data[places]
            if shown.noisy(iteration):
                scale = np.float32(shown.noise) * np.abs(weights).mean()
                difference = (random.random(places.size, np.float32) * 2 - 1) * scale
                data[places] = weights - difference
            else:
                levels = shown.levels(iteration, name, weights)
                assert levels is not None  # it has a bound
                data[places] = levels
                difference = weights - levels
            yield name, places, difference

    def _nonzero_places(self, name: str) -> NDArray[np.intp]:
        """Give where weights are kept, in the flat blob; all of them where there is no mask."""
        if name not in self._places:
            flat = self.matrix(name).reshape(-1)
            mask = self.masks.get(name)
            kept = np.ones(flat.size, bool) if mask is None else mask.reshape(-1)
            self._places[name] = np.flatnonzero(kept)
        return self._places[name]
