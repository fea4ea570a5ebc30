"""The `Evaluator` that runs Caffe: the features folder, the executor, retries, digests.

`tail` is what runs in the Caffe processes; this is the side that asks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.errors import CaffeError, DataError
from deepsz_caffe.folders import kept_folder, temporary_folder
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.runtime.body import pass_pool
from deepsz_caffe.runtime.data import Data, add_file, data_digest
from deepsz_caffe.runtime.evaluate import answer, decide, evaluate, prepare_net, score_of
from deepsz_caffe.runtime.features import (
    LAYOUT,
    Features,
    Pass,
    compute_features,
    compute_in_parallel,
    has_original,
    load_original,
    load_reference,
    most_frequent,
    store_original,
)
from deepsz_caffe.runtime.kept import LIMIT
from deepsz_caffe.runtime.net import Replacement
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.runtime.pool import CaffePool, processes_for, threads_for
from deepsz_caffe.runtime.process import Progress, WorkerDied
from deepsz_caffe.runtime.sampled import (
    measure_changes,
    measure_divergence,
    measure_moments,
)
from deepsz_caffe.runtime.sources import PARAMETERS
from deepsz_caffe.runtime.tail import measure_weights
from deepsz_caffe.steps.assess.journal import digest_of
from deepsz_caffe.steps.assess.setup import Setup
from deepsz_caffe.steps.assess.significance import hopeless
from deepsz_caffe.steps.divergence import Divergence
from deepsz_caffe.steps.evaluator import Moments, Outcome, Reference, Score

#: The size of the features, and images done and in total.
BodyMessage = tuple[Literal["bytes"], int] | tuple[Literal["body"], int, int]
BodyProgress = Callable[[BodyMessage], None]

Result = TypeVar("Result")

#: One function by what it gives.
_MEASURE = cast("Callable[..., Outcome]", measure_weights)
_MEASURE_MARGINS = cast(
    "Callable[..., tuple[Outcome, NDArray[np.float32] | None]]", measure_weights
)

# A test that ends its process so often is at fault itself.
_ATTEMPTS = 3

# Tests at a time on an executor that does not say how many workers it has.
_WORKERS = 16

#: Where images have more bytes of features together than `DEEP`, a test of all of them takes long:
#: it runs in parts of so many bytes, by all workers.
_PART = 1 << 29


class CaffeEvaluator:
    """A network on its evaluation data in Caffe: features computed, ready for tests.

    Parameters
    ----------
    setup
        The network, and the layers that will be tested.
    data
        In place of the prototxt's source, see `deepsz_caffe.runtime.evaluate.evaluate`. Pictures
        without labels count as right where the network says what the original network says, or,
        where none is given, the network as it is.
    executor
        Where tests run; it goes on when this is closed. Default: a `CaffePool` of `workers`
        processes on this machine. On a cluster the weights and `features` must be on a file system
        that all machines share.
    workers, gpus
        Of the default executor. None: one worker, but of deep networks, whose features take over
        1 GiB, as many as share the pass over the body.
    features
        A folder for the features, kept there for a later run, in a subfolder of their digest:
        other runs may share it. Default: a temporary one.
    features_limit
        Bytes that they may take, 16 GiB unless said: what is over it is computed again where it is
        needed.
    whole
        Only all layers together are measured on all images, single ones on few: features of more
        are not kept.
    progress
        Of the pass over the body.

    Attributes
    ----------
    setup
        The network.
    digests
        Of network, weights, data and original network.
    executor
        Where tests run.
    features
        What was computed once.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        data: Data = None,
        executor: Executor | None = None,
        workers: int | None = None,
        gpus: Sequence[int] = (),
        features: str | os.PathLike[str] | None = None,
        features_limit: int | None = None,
        whole: bool = False,
        progress: BodyProgress | None = None,
    ) -> None:
        self.setup, self._whole, self._limit = setup, whole, features_limit or LIMIT
        if executor is None or isinstance(executor, CaffePool):  # other machines have other disks
            _check_data(setup, data)
        self._closing = ExitStack()
        told = None if progress is None else lambda message: _forward(message, progress)
        self._pool: CaffePool | None = None
        own = executor is None
        if executor is None:
            executor = self._start_pool(
                max(len(gpus), 1) if workers is None else workers, gpus, told
            )
        self.executor = executor
        self._closed = False
        try:
            data = self._with_answers(setup, data)
            self.digests: Mapping[str, str] = _digests(setup, data)
            self.features = self._ready_features(setup, data, features, told)
            if own and workers is None and not gpus and self.features.deep:
                self._share_tests()
            self._original = None
            if setup.original is not None:
                self._original = self._ready_original(setup.original, data)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; an executor that was given goes on."""
        self._closed = True
        if self._pool is not None:
            self._pool.kill()
        self._closing.close()

    @property
    def total(self) -> int:
        """Images that count."""
        return self.features.total

    @property
    def score(self) -> Score:
        """Counts of the network as it is."""
        return self.features.score

    @property
    def original(self) -> Score:
        """Counts of the original network."""
        if self._original is None:
            return self.score
        return score_of(load_original(self.features.folder, self._original))

    @cached_property
    def chance(self) -> int:
        """Images that always answering the most frequent label would get right."""
        return most_frequent(self.features.folder)

    @cached_property
    def reference(self) -> Reference | None:
        """What the margins of tests are compared with."""
        if self.features.deep:
            return None
        return load_reference(self.features.folder, self._original)

    @property
    def workers(self) -> int:
        """Tests that run at a time."""
        found = getattr(self.executor, "workers", getattr(self.executor, "_max_workers", _WORKERS))
        return int(found)

    def measure(self, layers: Mapping[str, Replacement], limit: int | None = None) -> Outcome:
        """Run one test where the executor likes, again where a worker dies.

        Raises
        ------
        CaffeError
            Caffe aborted, or the test ended its process three times.
        """
        folder = self.features.folder
        if layers and self.features.deep:
            return self._measure_in_parts(layers, limit)
        return self._run(_MEASURE, folder, layers, limit, original=self._original)

    def on_test_data(
        self, before: str | os.PathLike[str], layers: Mapping[str, EncodedLayer]
    ) -> tuple[Score, Score] | None:
        """Count on the test data what was chosen without it; None where it is not there.

        Parameters
        ----------
        before
            Weights of the network to compare with.
        layers
            Layer name -> weights in place of their own.
        """
        network, weights = self.setup.network, self.setup.weights
        try:
            return (
                evaluate(network, before, executor=self.executor),
                evaluate(network, weights, replace=layers, executor=self.executor),
            )
        except DataError:
            return None

    def _measure_in_parts(self, layers: Mapping[str, Replacement], limit: int | None) -> Outcome:
        """Run one test by all workers, each on a few images at a time."""

        def part(rows: slice) -> Outcome:
            folder = self.features.folder
            return self._run(_MEASURE, folder, layers, original=self._original, rows=rows)

        seen = Outcome(0, 0, 0, 0, 0, 0, 0)
        pool = ThreadPoolExecutor(self.workers)
        try:
            for outcome in pool.map(part, self.features.parts(_PART)):
                seen += outcome
                stopped = seen.images < self.total
                if stopped and limit is not None and hopeless(seen, self.score, limit):
                    break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return seen

    def measure_margins(
        self, layers: Mapping[str, Replacement], limit: int | None = None
    ) -> tuple[Outcome, NDArray[np.float32] | None]:
        """Run one test as `measure` does; also give the margins of all images."""
        if self.features.deep:  # it is run in parts
            return self.measure(layers, limit), None
        folder = self.features.folder
        return self._run(
            _MEASURE_MARGINS, folder, layers, limit, original=self._original, with_margins=True
        )

    def moments(self, layer: str, layers: Mapping[str, Replacement]) -> Moments | None:
        """Measure the second moments of what enters a layer, on few images."""
        known = self.features
        return self._run(measure_moments, known.folder, layer, layers, known.sampled)

    def diverge(self, layers: Mapping[str, Replacement]) -> Divergence:
        """Measure the divergence of the outputs, on few images."""
        return self._run(measure_divergence, self.features.folder, layers, self.features.sampled)

    def changes(self, layers: Mapping[str, Replacement]) -> Mapping[str, Divergence]:
        """Measure the change of each of the setup's outputs on all images."""
        folder = self.features.folder
        return self._run(measure_changes, folder, layers, self.features.images)

    def _start_pool(self, workers: int, gpus: Sequence[int], told: Progress | None) -> CaffePool:
        threads = threads_for(self.setup.weights)
        self._pool = self._closing.enter_context(pass_pool(workers, gpus, told, threads))
        return self._pool

    def _share_tests(self) -> None:
        """Run tests in as many processes as the pass over the body ran in."""
        processes = processes_for(self.setup.weights)
        if processes > 1 and self._pool is not None:
            self._pool.kill()
            self.executor = self._start_pool(processes, (), None)

    def _run(self, job: Callable[..., Result], *arguments: object, **options: object) -> Result:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self.executor.submit(job, *arguments, **options).result()
            except Exception as error:
                if self._closed or not _is_death(error):
                    raise
                if attempt == _ATTEMPTS:
                    raise CaffeError(f"this test ended its process {attempt} times: {error}") from (
                        error
                    )
        raise AssertionError

    def _ready_features(
        self,
        setup: Setup,
        data: Data,
        folder: str | os.PathLike[str] | None,
        told: Progress | None,
    ) -> Features:
        if folder is None:
            folder = self._closing.enter_context(temporary_folder())
        names = [layer.name for layer in setup.layers]
        tested = [self.digests[name] for name in ("network", "weights", "data")]
        outputs = [f"output {version.blob}" for version in setup.outputs]
        extent = "whole" if self._whole else "single"
        key = digest_of(digest_of(*tested), *names, *outputs, extent, LAYOUT)

        def make(place: Path) -> None:
            job = Pass(
                setup.network,
                setup.weights,
                tuple(names),
                str(place),
                key,
                setup.stages,
                data,
                setup.outputs,
                self._whole,
                self._limit,
            )
            # Parts of it on several machines would write into the same pages of shared files. And
            # without convolutions the pass takes less time than starting processes for it.
            if not isinstance(self.executor, CaffePool) or (
                self._pool is not None and not compressible_layers(setup.net, "conv")
            ):
                self.executor.submit(compute_features, job).result()
                return
            gpus = self.executor.gpus
            parts = len(gpus) or processes_for(setup.weights)
            compute_in_parallel(job, parts, gpus, told)

        place = kept_folder(folder, key, make)
        features = Features.load(place, key)
        if features is None:
            raise DataError("damaged features", where=place, hint="remove that folder")
        return features

    def _with_answers(self, setup: Setup, data: Data) -> Data:
        """Label unlabelled pictures with what the original network, where there is one, says."""
        if not isinstance(data, Pictures) or data.labels is not None or setup.original is None:
            return data
        said = self.executor.submit(answer, setup.network, setup.original, data).result()
        return replace(data, labels=said)

    def _ready_original(self, weights: str, data: Data) -> str:
        """Run the original network unless its decisions are there; gives their key."""
        setup = self.setup
        key = digest_of(*(self.digests[name] for name in ("network", "original", "data")))
        if not has_original(self.features.folder, key):
            decisions = self.executor.submit(
                decide, setup.network, weights, setup.stages, data, {}, None
            ).result()
            store_original(self.features.folder, key, decisions)
        return key


def _forward(
    message: tuple[Literal["bytes"], int] | tuple[Literal["images"], int, int] | tuple[int, int],
    progress: BodyProgress,
) -> None:
    if message[0] == "images":
        progress(("body", *message[1:]))
    elif message[0] == "bytes":  # what else runs in the pool reports, too
        progress(message)


def _is_death(error: BaseException) -> bool:
    # Dask gives up on a task after several workers died of it; its name says so without Dask.
    return isinstance(error, WorkerDied | BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _check_data(setup: Setup, data: Data) -> None:
    """Find the images before Caffe is started to run them."""
    net = type(setup.net)()
    net.CopyFrom(setup.net)
    # As if Caffe could read everything: nothing is decoded here.
    prepare_net(net, data, frozenset(PARAMETERS), setup.network, setup.outputs)


def _digests(setup: Setup, data: Data) -> dict[str, str]:
    found = {
        "network": digest_of(str(setup.net)),
        "weights": _weights_digest(setup.weights),
        "data": data_digest(setup.net, data),
    }
    if setup.original is not None:
        found["original"] = _weights_digest(setup.original)
    return found


def _weights_digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    add_file(digest, Path(path))
    return digest.hexdigest()
