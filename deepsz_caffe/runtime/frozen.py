"""Training with the body frozen: features once, then the solver on the fc layers alone.

When only the fc layers are trained, everything below them gives the same features in every epoch.
`train_frozen` runs the body once over the training images and over the solver's test images,
stores what enters the fc layers as HDF5 files, and lets the solver train a network that reads
these. For bvlc_alexnet that leaves 4 % of an iteration's arithmetic in the fc layers, and the
forward and backward passes of all convolutions out.

The body computes as in the TEST phase: images are cropped from their middle and not mirrored, the
same in every epoch. What is random in the fc layers' part of the network (Dropout, also directly
below the first of them) stays random.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepsz_caffe.errors import DataError, ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.network.prototxt import read_solver
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.runtime import evaluate as forward
from deepsz_caffe.runtime import solver
from deepsz_caffe.runtime import training as caffe_training
from deepsz_caffe.runtime.data import prepare_images, source_files
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.pool import CaffePool, added_up, processes_for, run_in_caffe
from deepsz_caffe.runtime.solver_setup import networks_of
from deepsz_caffe.runtime.worker import import_caffe, report
from deepsz_caffe.steps.prune import Trained

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

Path_ = str | os.PathLike[str]

_FILE_BYTES = 64 * 2**20  # of one HDF5 file: Caffe holds a whole one in memory
_KEY, _LIST = "features.json", "files.txt"
#: Where a data layer says how many images are in a batch.
_SOURCES = ("data_param", "hdf5_data_param", "image_data_param", "memory_data_param")


def train_frozen(
    solver_prototxt: Path_,
    out: Path_,
    weights: Path_,
    folder: Path_,
    masks: caffe_training.Masks | caffe_training.MaskRule | None = None,
    *,
    seed: int | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    resume: bool = True,
    progress: Callable[[caffe_training.TrainingProgress], None] | None = None,
    body_progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    gpu: int | None = None,
) -> Trained:
    """Train the fc layers of a network on features that are computed once.

    Parameters
    ----------
    solver_prototxt
        Solver of the whole network.
    out
        The caffemodel of the whole network to write.
    weights
        Caffemodel to start from. Where it holds none of the fc layers, they start from their
        fillers.
    folder
        Gets the features: 4 bytes a value that enters the fc layers, for every training and test
        image. Those that are there are used again if they come from the same layers, weights and
        data.
    body_progress
        Called with images done and in total.
    masks, seed, iterations, lr, resume, progress, threads, gpu
        As in `deepsz_caffe.runtime.solver.train`.

    Raises
    ------
    DataError
        The disk has no room for the features, or a data set is missing.
    ModelError
        The network has no fc layer, its images come from no file, or the weights don't fit it.
    DeepSZError, InputError, CaffeError
        As in `train`.
    """
    whole = read_solver(solver_prototxt)
    training, testing = networks_of(whole)
    model = read_caffemodel(weights)
    place = Path(folder).absolute()
    tail = type(training)(name=f"{training.name} (fc layers)")
    states = (whole.train_state, whole.test_state[0] if whole.test_state else None)
    for name, net, state in zip(("train", "test"), (training, testing), states, strict=True):
        if net is not None:
            _keep_features(net, model, place / name, body_progress, gpu)
            tail.MergeFrom(_tail(net, place / name, tuple(state.stage) if state else ()))
    tail_solver = _write_solver(whole, tail, place)
    begun = any(layer.name in model for layer in compressible_layers(training))
    target = Path(out)
    trained = target.with_name(f"{target.name}.fc")
    result = solver.train(
        tail_solver,
        trained,
        weights if begun else None,
        masks,
        seed=seed,
        iterations=iterations,
        lr=lr,
        resume=resume,
        progress=progress,
        threads=threads,
        gpu=gpu,
    )
    whole_net = target.with_name(f"{target.name}.whole")
    try:
        job = (training.SerializeToString(), str(weights), str(trained), str(whole_net))
        run_in_caffe(_join, *job)
        whole_net.replace(target)
    finally:
        whole_net.unlink(missing_ok=True)
    trained.unlink()
    return result


def _keep_features(
    net: NetParameter,
    model: CaffeModel,
    place: Path,
    progress: Callable[[int, int], None] | None,
    gpu: int | None,
) -> None:
    """Compute and store the features of one phase, unless they are there."""
    cut = graph.fc_tail(net)
    body = type(net)()
    body.CopyFrom(net)
    for layer in body.layer:
        layer.transform_param.ClearField("mirror")
    key = _digest(body, cut, model)
    try:
        if json.loads((place / _KEY).read_bytes())["key"] == key:
            return
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    job = _Job(body.SerializeToString(), cut.inputs, str(model.path), str(place))
    done = _store_in_parallel(job, progress, gpu)
    _write(place / _LIST, "".join(f"{file}\n" for part in done for file in part.files))
    # Last: it says that the others are complete.
    _write(place / _KEY, json.dumps({"key": key, "images": done[0].images}))


def _digest(net: NetParameter, cut: graph.Cut, model: CaffeModel) -> str:
    """Digest what decides the features: the body's layers, their weights, the data."""
    digest = blake2b(repr(cut.inputs).encode(), digest_size=16)
    layers = graph.needed_layers(net, cut.inputs)
    for layer in (net.layer[i] for i in layers):
        digest.update(layer.SerializeToString(deterministic=True))
        for blob in model[layer.name].blobs if layer.name in model else ():
            digest.update(np.ascontiguousarray(blob.data).data)
    for file in source_files(graph.subnet(net, layers, ()), None):
        if file.exists():  # a missing source is reported where it is read
            state = file.stat()
            digest.update(f"{file.absolute()} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """A pass over the body of one phase: the network, what to keep, weights, where."""

    net: bytes
    inputs: tuple[graph.Version, ...]
    weights: str
    folder: str


@dataclass(frozen=True)
class _Stored:
    """What one part of a pass has written, in the order of the data; `images` of all parts."""

    images: int
    files: tuple[str, ...]


def _store_in_parallel(
    job: _Job, progress: Callable[[int, int], None] | None, gpu: int | None
) -> list[_Stored]:
    """Store the features by several Caffe processes, or by one on a GPU."""
    add = None if progress is None else added_up(progress)
    on_message = None if add is None else lambda message: add(*message)
    parts = processes_for(job.weights) if gpu is None else 1
    with CaffePool(parts, gpus=() if gpu is None else (gpu,), progress=on_message) as pool:
        return list(pool.map(_store, [job] * parts, range(parts), [parts] * parts))


def _store(job: _Job, part: int, parts: int) -> _Stored:
    """Run one of `parts` equal parts of the batches through the body and store what it gives."""
    caffe = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter.FromString(job.net)
    images = prepare_images(net, None, frozenset(caffe.layer_type_list()))
    body = graph.subnet(net, graph.needed_layers(net, job.inputs), ())
    caffe_net = build_net(caffe, body)
    load_weights(caffe_net, body, job.weights)
    row = sum(4 * caffe_net.blobs[version.blob].data[0].size for version in job.inputs)
    free = shutil.disk_usage(job.folder).free
    if images.total * row > 0.95 * free:
        raise DataError(
            f"the features need {images.total * row:,} bytes, the disk has {free:,} free",
            where=job.folder,
            hint="name a folder on a larger disk: --freeze-body DIR",
        )
    prepared = forward.Prepared(net, images, graph.Judged(job.inputs[0], None))
    first, last = images.part(part, parts)

    def batches() -> Iterator[dict[graph.Version, np.ndarray]]:
        for rows, taken in forward.forward_batches(caffe_net, prepared, job.inputs, first, last):
            report((rows.stop - rows.start, images.total))
            yield taken

    files = []
    for number, arrays in enumerate(_files(batches(), max(1, _FILE_BYTES // row))):
        files.append(str(Path(job.folder, f"{part:03}-{number:05}.h5")))
        _write_hdf5(Path(files[-1]), arrays)
    return _Stored(images.total, tuple(files))


def _files(
    batches: Iterable[dict[graph.Version, np.ndarray]], rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """Collect batches into arrays of at least `rows` images; the last may have fewer."""
    waiting: list[dict[graph.Version, np.ndarray]] = []

    def joined() -> dict[str, np.ndarray]:
        return {
            version.blob: np.concatenate([b[version] for b in waiting]) for version in waiting[0]
        }

    for batch in batches:
        waiting.append(batch)
        if sum(len(next(iter(each.values()))) for each in waiting) >= rows:
            yield joined()
            waiting.clear()
    if waiting:
        yield joined()


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    try:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    except OSError as error:
        raise DataError(f"can't write: {error}", where=path) from error


def _tail(net: NetParameter, place: Path, stages: tuple[str, ...]) -> NetParameter:
    """Build the fc layers' part of one phase, fed by the stored features, in their order."""
    cut = graph.fc_tail(net)
    result = type(net)()
    data = result.layer.add(name="features", type="HDF5Data")
    data.top.extend(version.blob for version in cut.inputs)
    data.hdf5_data_param.source = str(place / _LIST)
    data.hdf5_data_param.batch_size = _batch(net)
    for i in cut.layers:
        layer = result.layer.add()
        layer.CopyFrom(net.layer[i])
        layer.ClearField("exclude")
    for layer in result.layer:
        layer.ClearField("include")
        layer.include.add(phase=net.state.phase, stage=stages)
    return result


def _batch(net: NetParameter) -> int:
    """Find the batch size of the layer that reads the images."""
    for layer in net.layer:
        for field in _SOURCES:
            if not layer.bottom and layer.HasField(field):
                return int(getattr(layer, field).batch_size)
    raise ModelError("no layer reads images from files", where=net.name or None)


def _write_solver(whole: SolverParameter, tail: NetParameter, place: Path) -> Path:
    """Write the fc layers' network and its solver; gives the solver's path."""
    result = type(whole)()
    result.CopyFrom(whole)
    result.net = str(place / "train_val.prototxt")
    _write(place / "train_val.prototxt", str(tail))
    _write(place / "solver.prototxt", str(result))
    return place / "solver.prototxt"


def _join(serialized: bytes, weights: str, trained: str, out: str) -> None:
    """Save the whole network with the layers of `trained` in it; runs in a Caffe process."""
    caffe: Any = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter.FromString(serialized)
    prepare_images(net, None, frozenset(caffe.layer_type_list()))
    whole = graph.subnet(net, range(len(net.layer)), ())
    caffe_net = build_net(caffe, whole)
    load_weights(caffe_net, whole, weights, complete=False)
    load_weights(caffe_net, whole, trained, complete=False)
    caffe_net.save(out)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
