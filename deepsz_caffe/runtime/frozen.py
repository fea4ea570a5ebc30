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

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.errors import DataError, InputError, ModelError
from deepsz_caffe.files import atomic_write
from deepsz_caffe.folders import exclusive, kept_folder
from deepsz_caffe.network import graph
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.network.prototxt import read_solver
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.runtime import solver
from deepsz_caffe.runtime.body import Body, pass_pool, reserve
from deepsz_caffe.runtime.data import data_digest, prepare_images
from deepsz_caffe.runtime.evaluate import Prepared
from deepsz_caffe.runtime.masked import FixedMasks, MaskRule, Masks
from deepsz_caffe.runtime.net import build_net, load_weights
from deepsz_caffe.runtime.pool import processes_for, run_in_caffe
from deepsz_caffe.runtime.solver_setup import networks_of, override
from deepsz_caffe.runtime.training import TrainingProgress
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.prune import Trained

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

Path_ = str | os.PathLike[str]

#: what layers and blobs of ours are called, as no network calls its own
_OWN = "features of deepsz"
_FILE_BYTES = 64 * 2**20  # of one HDF5 file: Caffe holds a whole one in memory
_LIST = "files.txt"
#: Where a data layer says how many images are in a batch.
_SOURCES = ("data_param", "hdf5_data_param", "image_data_param", "memory_data_param")


def train_frozen(
    solver_prototxt: Path_,
    out: Path_,
    weights: Path_,
    folder: Path_,
    masks: Masks | MaskRule | None = None,
    *,
    seed: int | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    resume: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
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
    InputError
        A layer of the body is to be pruned, or as in `train`.
    DeepSZError, CaffeError
        As in `train`.
    """
    whole = read_solver(solver_prototxt)
    override(whole, seed, iterations, lr, threads)
    with exclusive(out):
        return _train_frozen(
            whole,
            Path(out),
            weights,
            Path(folder),
            masks,
            body_progress,
            gpu,
            partial(
                solver.train,
                seed=seed,
                iterations=iterations,
                lr=lr,
                resume=resume,
                progress=progress,
                threads=threads,
                gpu=gpu,
            ),
        )


def _train_frozen(
    whole: SolverParameter,
    target: Path,
    weights: Path_,
    folder: Path,
    masks: Masks | MaskRule | None,
    body_progress: Callable[[int, int], None] | None,
    gpu: int | None,
    train: Callable[..., Trained],
) -> Trained:
    nets = networks_of(whole)
    rule = FixedMasks(masks) if isinstance(masks, Mapping) else masks
    if rule is not None:
        _check_trained(nets[0], rule)
    model = read_caffemodel(weights)
    states = (whole.train_state, whole.test_state[0] if whole.test_state else None)
    tail = type(nets[0])(name=f"{nets[0].name} (fc layers)")
    for phase, net, state in zip(("train", "test"), nets, states, strict=True):
        if net is not None:
            place = _keep_features(net, model, folder, phase, body_progress, gpu)
            tail.MergeFrom(_tail(net, place, tuple(state.stage) if state else ()))
    trained = target.with_name(f"{target.name}.fc")
    whole_net = target.with_name(f"{target.name}.whole")
    begun = any(layer.name in model for layer in compressible_layers(nets[0]))
    with _written_solver(whole, tail, trained) as tail_solver:
        result = train(tail_solver, trained, weights if begun else None, rule)
    try:
        job = (nets[0].SerializeToString(), str(weights), str(trained), str(whole_net))
        run_in_caffe(_join, *job)
        whole_net.replace(target)
    finally:
        whole_net.unlink(missing_ok=True)
    trained.unlink()
    return result


def _check_trained(net: NetParameter, rule: MaskRule) -> None:
    """Check, before anything is computed, that no layer of the body is to be pruned."""
    trained = {net.layer[i].name for i in graph.fc_tail(net).layers}
    for layer in net.layer:
        if layer.name in rule.layers - trained:
            raise InputError(
                "a frozen body stays as it is, and this layer with it",
                where=f"layer {layer.name}",
                hint="prune layers above it alone: --keep LAYER=PART, or --keep all=PART with "
                "--layers fc",
            )


def _keep_features(
    net: NetParameter,
    model: CaffeModel,
    folder: Path,
    phase: str,
    progress: Callable[[int, int], None] | None,
    gpu: int | None,
) -> Path:
    """Compute and store the features of one phase, unless they are there; gives their folder."""
    cut = graph.fc_tail(net)
    body = type(net)()
    body.CopyFrom(net)
    for layer in body.layer:
        if layer.HasField("transform_param"):  # to touch it is to have it, which HDF5Data refuses
            layer.transform_param.ClearField("mirror")
    key = f"{phase}-{_digest(body, cut, model)}"

    def make(place: Path) -> None:
        job = _Job(body.SerializeToString(), cut.inputs, str(model.path), str(place))
        names = _store_in_parallel(job, progress, gpu)
        final = Path(folder).absolute() / key
        _write(place / _LIST, "".join(f"{final / name}\n" for name in names))

    return kept_folder(folder, key, make)


def _digest(net: NetParameter, cut: graph.Cut, model: CaffeModel) -> str:
    """Digest what decides the features: the body's layers, their weights, the data."""
    digest = blake2b(repr((cut.inputs, _OWN)).encode(), digest_size=16)
    layers = graph.needed_layers(net, cut.inputs)
    for layer in (net.layer[i] for i in layers):
        digest.update(layer.SerializeToString(deterministic=True))
        for blob in model[layer.name].blobs if layer.name in model else ():
            digest.update(np.ascontiguousarray(blob.data).data)
    digest.update(data_digest(graph.subnet(net, layers, ()), None).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """A pass over the body of one phase: the network, what to keep, weights, where."""

    net: bytes
    inputs: tuple[graph.Version, ...]
    weights: str
    folder: str


def _store_in_parallel(
    job: _Job, progress: Callable[[int, int], None] | None, gpu: int | None
) -> list[str]:
    """Store the features by several Caffe processes, or by one on a GPU; gives the files' names."""

    def on_message(message: tuple[str, *tuple[int, ...]]) -> None:
        kind, *counts = message
        if progress is not None and kind == "images":
            progress(*counts)

    parts = processes_for(job.weights) if gpu is None else 1
    with pass_pool(parts, () if gpu is None else (gpu,), on_message) as pool:
        return [
            name
            for names in pool.map(_store, [job] * parts, range(parts), [parts] * parts)
            for name in names
        ]


def _store(job: _Job, part: int, parts: int) -> list[str]:
    """Run one of `parts` equal parts of the batches through the body and store what it gives."""
    caffe = import_caffe()
    from caffe.proto.caffe_pb2 import NetParameter

    net = NetParameter.FromString(job.net)
    images = prepare_images(net, None, frozenset(caffe.layer_type_list()))
    body = Body(caffe, Prepared(net, images, graph.Judged(job.inputs[0], None)), job.inputs)
    reserve(Path(job.folder), images.total * body.bytes_each, "--freeze-body")
    batches = (taken for _, taken in body.run(job.weights, part, parts))
    names = []
    rows = max(1, _FILE_BYTES // body.bytes_each)
    for number, arrays in enumerate(_files(batches, job.inputs, rows)):
        names.append(f"{part:03}-{number:05}.h5")
        _write_hdf5(Path(job.folder, names[-1]), arrays)
    return names


def _files(
    batches: Iterable[dict[graph.Version, np.ndarray]],
    inputs: Sequence[graph.Version],
    rows: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Collect batches into arrays of at least `rows` images; the last may have fewer."""
    waiting: list[dict[graph.Version, np.ndarray]] = []

    def joined() -> dict[str, np.ndarray]:
        return {
            _dataset(number): np.concatenate([b[version] for b in waiting])
            for number, version in enumerate(inputs)
        }

    for batch in batches:
        waiting.append(batch)
        if sum(len(next(iter(each.values()))) for each in waiting) >= rows:
            yield joined()
            waiting.clear()
    if waiting:
        yield joined()


def _dataset(number: int) -> str:
    # Not the blob's name: Caffe finds no dataset whose name has a slash.
    return f"{_OWN}, input {number}"


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
    data = result.layer.add(name=_OWN, type="HDF5Data")
    for number, version in enumerate(cut.inputs):
        data.top.append(_dataset(number))
        result.layer.add(name=data.top[-1], type="Split", bottom=[data.top[-1]], top=[version.blob])
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


@contextmanager
def _written_solver(whole: SolverParameter, tail: NetParameter, trained: Path) -> Iterator[Path]:
    """Write the fc layers' network and its solver beside what is trained; gives the solver's path.

    The names are always the same, so that an interrupted training finds its snapshots.
    """
    net = trained.with_name(f"{trained.name}.train_val.prototxt").absolute()
    path = trained.with_name(f"{trained.name}.solver.prototxt")
    result = type(whole)()
    result.CopyFrom(whole)
    for field in ("train_net", "test_net"):
        result.ClearField(field)
    result.net = str(net)
    try:
        _write(net, str(tail))
        _write(path, str(result))
        yield path
    finally:
        net.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _join(serialized: bytes, weights: str, trained: str, out: str) -> None:
    """Save the whole network with the layers of `trained` in it; runs in a Caffe process."""
    caffe = import_caffe()
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
        file.write(os.fsencode(text))
