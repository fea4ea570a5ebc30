"""Step 2: how much accuracy and how many bytes each fc layer costs at which error bound (3.3).

One layer at a time is encoded, decoded and put in place of the original; the rest of the network
stays as it is. The loss is measured with exactly the weights that the file would give. Only the
tail of the network runs in a test (`runtime.features`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.container import EncodedLayer
from deepsz_caffe.errors import CaffeError, InputError, ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import CaffeModel, read_caffemodel
from deepsz_caffe.network.prototxt import check_weights, fc_layers, phase, read_prototxt
from deepsz_caffe.runtime.data import Data, source_files
from deepsz_caffe.runtime.pool import CaffePool, Progress, WorkerDied, processes_for
from deepsz_caffe.runtime.tail import (
    Features,
    Outcome,
    Pass,
    compute_features,
    compute_in_parallel,
    measure_weights,
)
from deepsz_caffe.steps.assess.journal import Journal
from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment, Point
from deepsz_caffe.steps.assess.search import (
    Subject,
    default_search,
    exhaustive_search,
    paper_search,
)
from deepsz_caffe.steps.encode import encode_layer
from deepsz_caffe.steps.optimize import images_allowed

Path_ = str | os.PathLike[str]
Protocol = Literal["validation", "paper"]
Search = Literal["default", "paper"]

#: The stage of a prototxt's validation data, see `Session`.
VALIDATION = "validation"

# A test that ends its process so often is at fault itself.
_ATTEMPTS = 3

# Bytes read of a large data file for its digest: this many pieces of 1 MiB, evenly spread.
_PIECES, _PIECE = 256, 1 << 20


@dataclass(frozen=True)
class _Layer:
    name: str
    sharers: tuple[str, ...]
    shape: tuple[int, int]
    nonzeros: int
    typical: float
    largest: float


def assess(
    network: Path_,
    weights: Path_,
    *,
    max_loss: float = 0.002,
    search: Search = "default",
    bounds: Sequence[float] | None = None,
    **options: Any,  # noqa: ANN401
) -> Assessment:
    """Measure size and loss of every fc layer at the error bounds that matter.

    Parameters
    ----------
    network
        A prototxt whose TEST phase has data and labels.
    weights
        The pruned network.
    max_loss
        Loss of top-1 (a fraction) for the whole network that bounds are sought for.
    search
        "default": few tests; "paper": the dynamic range of the paper.
    bounds
        Test all layers at exactly these bounds instead.
    **options
        See `Session`.

    Raises
    ------
    InputError
        A loss, bound or name out of range.
    ModelError, DataError
        Network, weights and data can't be read or don't fit, or there is no fc layer.
    CaffeError
        Caffe aborted, or a test ended its process three times; it is named.
    """
    with Session(network, weights, **options) as session:
        return session.assess(max_loss, search=search, bounds=bounds)


class Session:
    """A network on its evaluation data: features computed, ready for tests.

    Parameters
    ----------
    network, weights
        Prototxt and caffemodel.
    protocol
        "validation": measure on the data of the prototxt's TEST phase with stage ``validation``,
        where it has one, so that nothing is chosen on the test data; "paper": on the plain TEST
        phase, as the paper does.
    profile
        Codecs.
    layers
        The fc layers to compress; default: all that the scores depend on.
    data
        In place of the prototxt's source, see `runtime.forward.evaluate`.
    executor
        Where tests run. Default: a `CaffePool` of `workers` processes on this machine. On a
        cluster the weights and `features` must be on a file system that all machines share.
    workers, gpus
        Of the default executor.
    journal
        A file in which every finished test is written down, and looked up; see `journal`.
    features
        A folder for the features, kept there for a later run; default: a temporary one.
    progress
        Called with ``("bytes", n)`` (size of the features), ``("body", done, total)`` (images) and
        ``("test", layer, Point)``, the last from several threads.

    Attributes
    ----------
    stages
        Caffe's stages in use.
    executor
        Where tests run.
    features
        What was computed once.
    """

    def __init__(
        self,
        network: Path_,
        weights: Path_,
        *,
        protocol: Protocol = "validation",
        profile: str = "balanced",
        layers: Iterable[str] | None = None,
        data: Data = None,
        executor: Executor | None = None,
        workers: int = 1,
        gpus: Sequence[int] = (),
        journal: Path_ | None = None,
        features: Path_ | None = None,
        progress: Progress | None = None,
    ) -> None:
        if protocol not in ("validation", "paper"):
            raise InputError(f"no protocol {protocol!r}", hint="validation or paper")
        self.network, self.weights = str(network), str(weights)
        self.protocol, self.profile, self.data = protocol, profile, data
        self._progress: Progress = progress or (lambda message: None)
        whole = read_prototxt(network)
        self.stages: tuple[str, ...] = ()
        if protocol == "validation" and data is None and has_validation(whole):
            self.stages = (VALIDATION,)
        net = phase(whole, "TEST", self.stages)
        self.model = read_caffemodel(weights)
        self._layers = _find_layers(net, self.model, layers)
        self.digests = _digests(net, self.weights, data)
        key = _digest_of(*self.digests.values())
        software = [f"{name} {version(name)}" for name in ("deepsz-caffe", "pysz", "numcodecs")]
        self._journal = Journal(journal, _digest_of(key, profile, *software))
        self._closing = ExitStack()
        self._pool: CaffePool | None = None
        if executor is None:
            pool = CaffePool(workers, gpus=gpus)
            executor = self._pool = self._closing.enter_context(pool)
        self.executor = executor
        # As many tests at a time as there are workers, and one more that is encoded meanwhile.
        self._threads = getattr(executor, "workers", getattr(executor, "_max_workers", 16)) + 1
        self._encoders = threading.Semaphore(2)
        self._stopped = False
        try:
            self.features = self._ready_features(features, key)
        except BaseException:
            self._closing.close()
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
        self._stopped = True
        if self._pool is not None:
            self._pool.kill()
        self._closing.close()

    @property
    def total(self) -> int:
        """Images that count."""
        return self.features.total

    def assess(
        self,
        max_loss: float,
        *,
        search: Search = "default",
        bounds: Sequence[float] | None = None,
        budget: int | None = None,
    ) -> Assessment:
        """Do step 2; `budget` overrides `max_loss` (in images) for the search alone."""
        limit = images_allowed(max_loss, self.total)
        budget = limit if budget is None else budget
        subjects = [Subject(each.name, each.typical, each.largest) for each in self._layers]
        paper = self.protocol == "paper"
        name = search if bounds is None else "grid"
        try:
            if bounds is not None:
                for bound in bounds:
                    _check_bound(bound)
                test = self._tester(None)
                found = exhaustive_search(subjects, sorted(set(bounds)), test, self._threads)
            elif search == "paper":
                found = paper_search(subjects, self._tester(None), self.total, budget)
            elif search == "default":
                # Where gains count as measured, every count must be exact.
                stop = None if paper else limit
                test = self._tester(stop)
                found = default_search(
                    subjects, test, self._size, self.total, budget, self._threads
                )
            else:
                raise InputError(f"no search {search!r}", hint="default or paper")
        except BaseException:
            # Threads of a search that are still waiting for a test give up.
            self._stopped = True
            if self._pool is not None:
                self._pool.kill()
            raise
        layers = tuple(
            LayerAssessment(
                layer.name,
                layer.shape,
                layer.nonzeros,
                tuple(point for _, point in sorted(found[layer.name].items())),
                layer.sharers,
            )
            for layer in self._layers
        )
        return Assessment(
            network=self.network,
            weights=self.weights,
            protocol=self.protocol,
            stages=self.stages,
            profile=self.profile,
            search=name,
            max_loss=max_loss,
            total=self.total,
            top1_correct=self.features.top1_correct,
            top5_correct=self.features.top5_correct,
            digests=self.digests,
            layers=layers,
        )

    def measure(self, bounds: Mapping[str, float]) -> Outcome:
        """Measure a whole configuration: all these layers encoded at once."""
        encoded = {name: self.encode(name, bound) for name, bound in bounds.items()}
        what = ", ".join(f"{name}={bound:g}" for name, bound in bounds.items())
        return self._run(encoded, None, f"all layers at {what}")

    def sizes(self, bounds: Mapping[str, float]) -> tuple[int, int]:
        """Return the bytes of the layers encoded at these bounds, and as dense float32."""
        encoded = [self.encode(name, bound) for name, bound in bounds.items()]
        return sum(each.bytes for each in encoded), sum(each.dense_bytes for each in encoded)

    def _tester(self, limit: int | None) -> Callable[[str, float], Point]:
        return lambda layer, bound: self._test(layer, bound, limit)

    def _test(self, layer: str, bound: float, limit: int | None) -> Point:
        known = self._journal.find(layer, bound, limit)
        if known is not None:
            return known
        names = (layer, *self._layer(layer).sharers)
        encoded = self.encode(layer, bound)
        outcome = self._run({layer: encoded}, limit, f"layer {layer} at {bound:g}")
        point = Point(
            bound=bound,
            bytes=encoded.bytes * len(names),
            images=outcome.images,
            top1_correct=outcome.top1_correct,
            top5_correct=outcome.top5_correct,
            lost=outcome.lost,
            gained=outcome.gained,
            stopped=outcome.images < self.total,
        )
        self._journal.add(layer, point, limit)
        self._progress(("test", layer, point))
        return point

    def _run(self, encoded: Mapping[str, EncodedLayer], limit: int | None, what: str) -> Outcome:
        """Run one test where the executor likes, again where a worker dies."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self.executor.submit(
                    measure_weights, self.features.folder, encoded, limit, None
                ).result()
            except Exception as error:
                if self._stopped or not _is_death(error):
                    raise
                if attempt == _ATTEMPTS:
                    raise CaffeError(
                        f"this test ended its process {attempt} times: {error}", where=what
                    ) from error
        raise AssertionError

    def encode(self, name: str, bound: float) -> EncodedLayer:
        """Encode one layer with the session's codecs."""
        with self._encoders:
            return encode_layer(name, self.model[name].matrix, bound, self.profile)

    def _size(self, name: str, bound: float) -> int:
        sharers = self._layer(name).sharers
        known = self._journal.find(name, bound, None)
        return known.bytes if known else self.encode(name, bound).bytes * (1 + len(sharers))

    def _layer(self, name: str) -> _Layer:
        return next(layer for layer in self._layers if layer.name == name)

    def _ready_features(self, folder: Path_ | None, key: str) -> Features:
        if folder is None:
            folder = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="deepsz-"))
        names = [layer.name for layer in self._layers]
        key = _digest_of(key, *names)
        known = Features.load(folder, key)
        if known is not None:
            return known
        job = Pass(
            self.network, self.weights, tuple(names), str(folder), key, self.stages, self.data
        )
        if not isinstance(self.executor, CaffePool):
            # Parts of it on several machines would write into the same pages of shared files.
            return self.executor.submit(compute_features, job).result()
        gpus = self.executor.gpus
        return compute_in_parallel(
            job, len(gpus) or processes_for(self.weights), gpus, self._forward
        )

    def _forward(self, message: tuple[Any, ...]) -> None:
        self._progress(("body", *message[1:]) if message[0] == "images" else message)


def has_validation(net: Any) -> bool:  # noqa: ANN401
    """Say whether a prototxt sets data apart under the stage ``validation``."""
    return any(VALIDATION in rule.stage for layer in net.layer for rule in layer.include)


def _find_layers(
    net: Any,  # noqa: ANN401
    model: CaffeModel,
    wanted: Iterable[str] | None,
) -> tuple[_Layer, ...]:
    check_weights(net, model)
    known = [layer.name for layer in fc_layers(net)]
    scores = graph.find_judged(net).scores
    reached = {net.layer[i].name for i in graph.needed_layers(net, [scores])}
    names = [name for name in known if name in reached]
    if wanted is not None:
        wanted = list(wanted)
        for name in wanted:
            if name not in known:
                raise ModelError(
                    "not an fc layer of the network",
                    where=f"layer {name}",
                    hint=f"it has {', '.join(known)}",
                )
        names = [name for name in names if name in wanted]
    if not names:
        raise ModelError("the scores depend on no fc layer (InnerProduct)")
    sharers = graph.shared_weights(net)
    found: list[_Layer] = []
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        group = sharers.get(name, (name,))
        done.update(group)
        # HDF5 files hold shared weights once.
        name = next(each for each in group if each in model)
        others = tuple(each for each in group if each in model and each != name)
        found.append(_Layer(name, others, *_statistics(name, model[name].matrix)))
    return tuple(found)


def _statistics(
    name: str, matrix: NDArray[np.float32]
) -> tuple[tuple[int, int], int, float, float]:
    """Return shape, non-zeros, root mean square of the non-zeros and largest magnitude."""
    nonzeros, squares, largest = 0, 0.0, 0.0
    for start in range(0, matrix.shape[0], 256):  # blocks: the file may be larger than memory
        block = matrix[start : start + 256]
        nonzeros += int(np.count_nonzero(block))
        with np.errstate(over="ignore", invalid="ignore"):
            squares += float(np.einsum("ij,ij->", block, block, dtype=np.float64))
        largest = max(largest, float(block.max()), -float(block.min()))
    if not np.isfinite(squares):
        raise ModelError(
            "a weight is NaN or infinite",
            where=f"layer {name}",
            hint="the network's training diverged",
        )
    shape = (matrix.shape[0], matrix.shape[1])
    if nonzeros == 0:
        return shape, 0, 1e-3, 1e-3  # any bound will do
    return shape, nonzeros, (squares / nonzeros) ** 0.5, largest


def _check_bound(bound: float) -> None:
    if not (np.isfinite(bound) and bound > 0):
        raise InputError(f"an error bound must be a number over 0, not {bound}")


def _is_death(error: BaseException) -> bool:
    # Dask gives up on a task after several workers died of it; its name says so without Dask.
    return isinstance(error, WorkerDied | BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _digests(net: Any, weights: str, data: Data) -> dict[str, str]:  # noqa: ANN401
    contents = hashlib.blake2b(digest_size=16)
    if isinstance(data, Mapping):
        for name, array in sorted(data.items()):
            contents.update(f"{name} {array.dtype} {array.shape}".encode())
            contents.update(np.ascontiguousarray(array).data)
    for path in source_files(net, data):
        if path.exists():  # a missing source is reported where it is read
            contents.update(f"{path.name} {path.stat().st_size}".encode())
            _add_file(contents, path, sampled=True)
    whole = hashlib.blake2b(digest_size=16)
    _add_file(whole, Path(weights), sampled=False)
    return {
        "network": _digest_of(str(net)),
        "weights": whole.hexdigest(),
        "data": contents.hexdigest(),
    }


def _add_file(digest: hashlib.blake2b, path: Path, *, sampled: bool) -> None:
    """Add a file's contents; of a large one with `sampled` only pieces, evenly spread."""
    size = path.stat().st_size
    step = max(_PIECE, size // _PIECES) if sampled else _PIECE
    with path.open("rb") as file:
        for offset in range(0, size, step):
            file.seek(offset)
            digest.update(file.read(_PIECE))


def _digest_of(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
