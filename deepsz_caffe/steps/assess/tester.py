"""Step 2: how much accuracy and how many bytes each fc layer costs at which error bound (3.3).

One layer at a time is encoded, decoded and put in place of the original; the rest of the network
stays as it is. The loss is measured with exactly the weights that the file would give. What a
`Tester` has encoded it keeps: tests, sizes, the check of the whole and the file share it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe import codecs
from deepsz_caffe.codecs.mixing_step import step_of
from deepsz_caffe.dsz.layout import ChangedBlob, EncodedLayer
from deepsz_caffe.errors import CaffeError, DeepSZWarning, InputError
from deepsz_caffe.steps.assess.journal import Journal, journal_key
from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment, Point
from deepsz_caffe.steps.assess.search import (
    Points,
    Subject,
    default_search,
    exhaustive_search,
    paper_search,
)
from deepsz_caffe.steps.assess.setup import Layer, Setup
from deepsz_caffe.steps.biases import changed_blobs
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.encode import check_bound, encode_layer, encode_rounded
from deepsz_caffe.steps.evaluator import Evaluator, MarginEvaluator, Moments, Outcome, Reference
from deepsz_caffe.steps.optimize import images_allowed
from deepsz_caffe.steps.rounding import round_weights

Search = Literal["default", "paper", "divergence"]
#: What becomes of biases, see `Tester`.
Biases = Literal["exact", "corrected"]
#: Called with a layer and a finished test of it, from several threads.
Tested = Callable[[str, Point], None]
Margins = NDArray[np.float32]
Result = TypeVar("Result")

#: Profiles whose layers may be rounded by their inputs, where they are stored by context mixing.
_ROUNDED = ("small", "balanced")
#: The quantizer's step in 64ths of the bound: half of it, so that rounding has a choice.
_STEP = 32
# Layers encoded at a time: one core or two, beside those that test.
_ENCODERS = 2


class Tester:
    """A network's layers at error bounds: each pair is encoded once and measured once.

    Parameters
    ----------
    setup
        The network.
    evaluator
        Measures.
    profile
        Codecs, see `deepsz_caffe.codecs.profile`.
    journal
        A file in which every finished test is written down, and looked up; see `journal`.
    tested
        Told of every test that was run.
    rounded
        Choose the levels of weights by what enters a layer (`deepsz_caffe.steps.rounding`), in the
        profiles small and balanced and layers that these store by context mixing.
    biases
        "corrected": of layers that are rounded so, see `deepsz_caffe.steps.biases`; "exact": they
        stay as they are.

    Notes
    -----
    All that was encoded stays in memory, compressed: for bvlc_alexnet, pruned, about 5 MB for each
    bound that is tried on all layers.
    """

    def __init__(
        self,
        setup: Setup,
        evaluator: Evaluator,
        *,
        profile: str = "balanced",
        journal: str | os.PathLike[str] | None = None,
        tested: Tested | None = None,
        rounded: bool = False,
        biases: Biases = "exact",
    ) -> None:
        self.rounded = rounded and profile in _ROUNDED
        self.biases = biases
        self.setup, self.evaluator, self.profile = setup, evaluator, profile
        self._options = journal, tested
        self._tested: Tested = tested or (lambda layer, point: None)
        form = f"{profile}, rounded" if self.rounded else profile
        form = f"{form}, biases corrected" if biases == "corrected" else form
        self._journal = Journal(journal, journal_key(evaluator.digests, form))
        self._used: set[object] = set()
        self._layers = {layer.name: layer for layer in setup.layers}
        self._encoders = threading.Semaphore(_ENCODERS)
        self._encoding = threading.Lock()
        self._margins: dict[tuple[str, float], Margins] = {}
        self._known_moments: dict[str, Moments | None] = {}
        self._encoded: dict[tuple[str, float], Future[EncodedLayer]] = {}
        self._warn_of_chance()

    def _warn_of_chance(self) -> None:
        chance, total = self.evaluator.chance, self.total
        scores = {self.setup.weights: self.evaluator.score}
        if self.setup.original is not None:
            scores[self.setup.original] = self.evaluator.original
        for weights, score in scores.items():
            if score.top1_correct <= chance < total:
                warnings.warn(
                    f"{weights}: gets {score.top1_correct:,} of {total:,} images right, no more "
                    f"than always answering the most frequent label would ({chance:,}): do the "
                    "weights, the network and the data belong together?",
                    DeepSZWarning,
                    stacklevel=3,
                )

    def with_profile(self, profile: str) -> Tester:
        """Give a tester of the same network that encodes with another profile's codecs."""
        journal, tested = self._options
        other = Tester(
            self.setup,
            self.evaluator,
            profile=profile,
            journal=journal,
            tested=tested,
            rounded=self.rounded,
            biases=self.biases,
        )
        other._used = self._used
        return other

    @property
    def total(self) -> int:
        """Images that count."""
        return self.evaluator.total

    @property
    def lost_before(self) -> int:
        """Images that the network as it is loses against the original one: by pruning."""
        return self.evaluator.original.top1_correct - self.evaluator.score.top1_correct

    @property
    def threads(self) -> int:
        """Threads to ask for tests: one a worker, and one more that encodes meanwhile."""
        return self.evaluator.workers + 1

    @property
    def tests(self) -> int:
        """Tests that were asked for: of single layers and of whole configurations, each once.

        Those of `with_profile` count, too.
        """
        return len(self._used)

    def layer(self, name: str) -> Layer:
        """Give what is known of a layer."""
        return self._layers[name]

    def encode(self, name: str, bound: float) -> EncodedLayer:
        """Encode a layer at an error bound, or give what was encoded before.

        It is not decoded here: tests do, and so does `assemble` with what is to be written.
        """
        with self._encoding:
            known = self._encoded.get((name, bound))
            future = self._encoded.setdefault((name, bound), Future())
        if known is None:
            try:
                with self._encoders:
                    future.set_result(self._encode(name, bound))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _encode(self, name: str, bound: float) -> EncodedLayer:
        matrix = self.setup.model[name].matrix
        moments = self._moments(name, matrix.size) if self.rounded else None
        if moments is None:
            return encode_layer(name, matrix, bound, self.profile)
        turned = self.layer(name).transposed  # outputs are columns then
        weights = np.ascontiguousarray(matrix.T if turned else matrix)
        layer, correct = self.layer(name), self.biases == "corrected"
        matter = moments.centered if correct and layer.bias is not None else moments.matrices
        quantizer, levels = round_weights(weights, matter, bound, step_of(bound, _STEP))
        changes: tuple[ChangedBlob, ...] = ()
        if correct:
            blobs = layer.bias, layer.scaling, self.setup.model
            changes = changed_blobs(*blobs, weights, quantizer.values(levels), moments)
        levels = np.ascontiguousarray(levels.T if turned else levels)
        return encode_rounded(name, matrix, bound, _STEP, quantizer, levels, changes)

    def _moments(self, name: str, cells: int) -> Moments | None:
        """Give the second moments of what enters a layer of the network as it is, measured once."""
        if "mixing" not in codecs.profile(self.profile).for_layer(cells).matrix:
            return None
        if name not in self._known_moments:
            self._known_moments[name] = self.evaluator.moments(name, {})
        return self._known_moments[name]

    def encode_all(self, bounds: Mapping[str, float]) -> dict[str, EncodedLayer]:
        """Encode a whole configuration: layer name -> bound."""
        pool = ThreadPoolExecutor(_ENCODERS)
        try:
            encoded = pool.map(self.encode, bounds.keys(), bounds.values())
            return dict(zip(bounds, encoded, strict=True))
        finally:
            # After an error or Ctrl-C nobody waits for the others.
            pool.shutdown(wait=False, cancel_futures=True)

    def size(self, name: str, bound: float) -> int:
        """Return the bytes of a layer, with the layers that share its weights."""
        known = self._journal.find(name, bound, None)
        if known is not None:
            return known.bytes
        return self.encode(name, bound).bytes * (1 + len(self.layer(name).sharers))

    def test(self, name: str, bound: float, limit: int | None = None) -> Point:
        """Measure one layer at one bound; stop where it loses more than `limit` images."""
        self._used.add((self.profile, name, bound))
        known = self._journal.find(name, bound, limit)
        if known is not None:
            return known
        point = self._test(name, bound, limit)
        self._journal.add(name, point, limit)
        self._tested(name, point)
        return point

    def _test(self, name: str, bound: float, limit: int | None) -> Point:
        encoded = self.encode(name, bound)
        what = f"layer {name} at {bound:g}"
        if isinstance(self.evaluator, MarginEvaluator):
            measured = self._measure(self.evaluator.measure_margins, {name: encoded}, limit, what)
            outcome, margins = measured
            if margins is not None:
                self._margins[name, bound] = margins
        else:
            outcome = self._measure(self.evaluator.measure, {name: encoded}, limit, what)
        return Point(
            bound=bound,
            bytes=encoded.bytes * (1 + len(self.layer(name).sharers)),
            images=outcome.images,
            top1_correct=outcome.top1_correct,
            top5_correct=outcome.top5_correct,
            lost=outcome.lost,
            gained=outcome.gained,
            stopped=outcome.images < self.total,
        )

    def margins(self, name: str, bound: float) -> Margins | None:
        """Give the margins of a layer at a bound, where it was tested.

        The journal does not hold them: where a test was found there, it is done again.
        """
        known = self._journal.find(name, bound, None)
        if (name, bound) not in self._margins and known is not None and self.reference is not None:
            self._test(name, bound, None)
        return self._margins.get((name, bound))

    @property
    def reference(self) -> Reference | None:
        """What margins are compared with; None where the evaluator does not tell."""
        evaluator = self.evaluator
        return evaluator.reference if isinstance(evaluator, MarginEvaluator) else None

    def measure(self, bounds: Mapping[str, float], limit: int | None = None) -> Outcome:
        """Measure a whole configuration: all these layers encoded at once; none: as it is.

        Stops where it will certainly lose more than `limit` images against the network as it is.
        """
        if bounds:
            self._used.add((self.profile, frozenset(bounds.items())))
        digests = self.evaluator.digests
        original = digests.get("original", digests["weights"])
        known = self._journal.find_whole(bounds, original)
        if known is not None:
            return known
        what = ", ".join(f"{name}={bound:g}" for name, bound in bounds.items())
        whole = self.encode_all(bounds)
        outcome = self._measure(self.evaluator.measure, whole, limit, f"all layers at {what}")
        if outcome.images == self.total:
            self._journal.add_whole(bounds, original, outcome)
        return outcome

    def changes(self, bounds: Mapping[str, float]) -> Mapping[str, Divergence]:
        """Measure how a whole configuration changes each output, on all images."""
        self._used.add((self.profile, frozenset(bounds.items())))
        return self.evaluator.changes(self.encode_all(bounds))

    def _measure(
        self,
        measure: Callable[[Mapping[str, EncodedLayer], int | None], Result],
        encoded: Mapping[str, EncodedLayer],
        limit: int | None,
        what: str,
    ) -> Result:
        try:
            return measure(encoded, limit)
        except CaffeError as error:
            raise type(error)(error.what, where=error.where or what, hint=error.hint) from error


def assess(
    tester: Tester,
    max_loss: float = 0.002,
    *,
    search: Search = "default",
    bounds: Sequence[float] | None = None,
    budget: int | None = None,
) -> Assessment:
    """Measure size and loss of every layer at the error bounds that matter.

    Parameters
    ----------
    tester
        The network.
    max_loss
        Loss of top-1 (a fraction) for the whole network that bounds are sought for.
    search
        "default": few tests; "paper": the dynamic range of the paper.
    bounds
        Test all layers at exactly these bounds instead.
    budget
        Overrides `max_loss` (in images) for the search alone.

    Raises
    ------
    InputError
        A loss, bound or name out of range.
    """
    total = tester.total
    check_search(max_loss, search, bounds)
    limit = images_allowed(max_loss, total)
    try:
        found = _search(tester, limit, limit if budget is None else budget, search, bounds)
    except BaseException:
        # Threads of a search that are still waiting for a test give up.
        tester.evaluator.close()
        raise
    return assessment_of(tester, max_loss, search if bounds is None else "grid", found)


def assessment_of(tester: Tester, max_loss: float, search: str, found: Points) -> Assessment:
    """Put what was measured of a network together; layers that `found` lacks have no points."""
    setup = tester.setup
    layers = tuple(
        LayerAssessment(
            layer.name,
            layer.shape,
            layer.nonzeros,
            tuple(point for _, point in sorted(found.get(layer.name, {}).items())),
            layer.sharers,
        )
        for layer in setup.layers
    )
    score = tester.evaluator.score
    return Assessment(
        network=setup.network,
        weights=setup.weights,
        protocol=setup.protocol,
        stages=setup.stages,
        profile=tester.profile,
        search=search,
        max_loss=max_loss,
        total=tester.total,
        top1_correct=score.top1_correct,
        top5_correct=score.top5_correct,
        digests=dict(tester.evaluator.digests),
        layers=layers,
    )


def check_search(
    max_loss: float, search: str, bounds: Sequence[float] | None, *, whole: bool = False
) -> None:
    """Check what a search is asked for, before any work; `whole`: for a whole network's bounds.

    Raises
    ------
    InputError
        A loss, bound or name out of range.
    """
    images_allowed(max_loss, 1)
    if search not in get_args(Search):
        raise InputError(f"no search {search!r}", hint=" or ".join(get_args(Search)))
    if search == "divergence" and not whole:
        raise InputError(
            "a search by divergences measures whole networks, and no layers to choose from",
            hint="deepsz compress --search divergence",
        )
    for bound in bounds or ():
        check_bound(bound)


def check_biases(biases: str, search: str, profile: str) -> None:
    """Check that biases can be treated so, before any work.

    Raises
    ------
    InputError
        There is no such treatment, or it needs what only another search or profile measures.
    """
    if biases not in get_args(Biases):
        raise InputError(f"no treatment of biases {biases!r}", hint=" or ".join(get_args(Biases)))
    if biases == "corrected" and not (search == "divergence" and profile in _ROUNDED):
        raise InputError(
            "biases are corrected by what enters their layers, which is not measured here",
            hint=f"--search divergence, and --profile {' or '.join(_ROUNDED)}",
        )


def subject_of(layer: Layer) -> Subject:
    """Say what a search knows of a layer beforehand."""
    return Subject(layer.name, layer.typical, layer.largest)


def _search(
    tester: Tester, limit: int, budget: int, search: Search, bounds: Sequence[float] | None
) -> Points:
    subjects = [subject_of(layer) for layer in tester.setup.layers]
    if bounds is not None:
        return exhaustive_search(subjects, sorted(set(bounds)), tester.test, tester.threads)
    if search == "paper":
        return paper_search(subjects, tester.test, tester.total, budget)
    # Where gains count as measured, every count must be exact.
    stop = None if tester.setup.protocol == "paper" else limit
    return default_search(
        subjects,
        lambda name, bound: tester.test(name, bound, stop),
        tester.size,
        tester.total,
        budget,
        tester.threads,
    )
