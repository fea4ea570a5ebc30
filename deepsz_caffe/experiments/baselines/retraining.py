"""Retraining as the two techniques publish it, by the Caffe solver.

Deep Compression adjusts its shared values: the gradient of a shared value is gathered from all
weights that share it. Weightless leaves the layer in the filter as it decodes, false positives
included, and lets the other layers make them good.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.experiments.baselines.deep_compression import SharedLayer
from deepsz_caffe.folders import temporary_folder
from deepsz_caffe.runtime import worker
from deepsz_caffe.runtime.net import load_weights
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.solver_setup import networks_of, override

if TYPE_CHECKING:
    from caffe._caffe import Solver
    from caffe.proto.caffe_pb2 import SolverParameter

Path_ = str | os.PathLike[str]
_NEVER = 2**31 - 1


def retrain_codebooks(
    solver_prototxt: Path_,
    weights: Path_,
    layers: Mapping[str, SharedLayer],
    iterations: int,
    lr: float | None = None,
    seed: int | None = None,
) -> dict[str, SharedLayer]:
    """Adjust the shared values of quantized layers, everything else held (Han 2016, section 3.3).

    Every weight of a cluster gets the mean of the cluster's gradients in place of its own, so that
    weights that are equal stay equal and the solver's learning rate keeps its meaning (the
    published sum is this mean times the cluster's size). Other layers and biases don't change.

    Parameters
    ----------
    solver_prototxt
        Caffe's solver definition; its test nets and snapshots are not used.
    weights
        The pruned caffemodel.
    layers
        Layer name -> quantized layer.
    iterations, lr, seed
        In place of the solver's ``max_iter``, ``base_lr`` and ``random_seed``.

    Returns
    -------
    dict
        The layers with adjusted codebooks; codes and steps are the same.

    Raises
    ------
    InputError
        Fewer than one iteration.
    CaffeError
        Caffe failed; the message is Caffe's own.
    """
    solver = _solver(solver_prototxt, iterations, lr, seed)
    books = run_in_caffe(
        _retrain_codebooks, solver.SerializeToString(), str(weights), dict(layers), iterations
    )
    return {name: layers[name].with_codebook(book) for name, book in books.items()}


def retrain_others(
    solver_prototxt: Path_,
    weights: Path_,
    fixed: Mapping[str, np.ndarray],
    out: Path_,
    iterations: int,
    lr: float | None = None,
    seed: int | None = None,
) -> None:
    """Hold some layers at given weights and retrain the others (Reagen 2018, section 3.3).

    Zeros of the other fc layers stay zeros.

    Parameters
    ----------
    solver_prototxt
        Caffe's solver definition; its test nets and snapshots are not used.
    weights
        The pruned caffemodel.
    fixed
        Layer name -> float32[r, c], e.g. what the filter gives.
    out
        The caffemodel to write, with the fixed layers as given.
    iterations, lr, seed
        In place of the solver's ``max_iter``, ``base_lr`` and ``random_seed``.

    Raises
    ------
    InputError
        Fewer than one iteration.
    CaffeError
        Caffe failed; the message is Caffe's own.
    """
    solver = _solver(solver_prototxt, iterations, lr, seed)
    run_in_caffe(
        _retrain_others,
        solver.SerializeToString(),
        str(weights),
        dict(fixed),
        str(Path(out).absolute()),
        iterations,
    )


def _solver(path: Path_, iterations: int, lr: float | None, seed: int | None) -> SolverParameter:
    """Read a solver and leave only the training in it."""
    from deepsz_caffe.network.prototxt import read_solver

    solver = read_solver(path)
    override(solver, seed, iterations, lr)
    for name in ("test_iter", "test_state", "test_net", "snapshot"):
        solver.ClearField(name)
    solver.test_interval = _NEVER
    solver.snapshot_after_train = False
    solver.display = 0
    return solver


def _open(solver_bytes: bytes, weights: str) -> Solver:
    """Make the solver in the Caffe process, with the weights loaded."""
    caffe = worker.import_caffe()
    from caffe.proto.caffe_pb2 import SolverParameter

    parameters = SolverParameter.FromString(solver_bytes)
    with temporary_folder() as folder:
        definition = folder / "solver.prototxt"
        definition.write_text(str(parameters), encoding="utf-8")
        solver = caffe.get_solver(str(definition))
    load_weights(solver.net, networks_of(parameters)[0], weights, complete=False)
    return solver


def _retrain_codebooks(
    solver_bytes: bytes, weights: str, layers: dict[str, SharedLayer], iterations: int
) -> dict[str, np.ndarray]:
    solver = _open(solver_bytes, weights)
    labels = {name: _labels(layer) for name, layer in layers.items()}
    sizes = {
        name: np.maximum(np.bincount(label, minlength=layers[name].codebook.size), 1)
        for name, label in labels.items()
    }
    for name, layer in layers.items():
        solver.net.params[name][0].data[...] = layer.decode().reshape(
            solver.net.params[name][0].data.shape
        )

    def share() -> None:
        for name, blobs in solver.net.params.items():
            for number, blob in enumerate(blobs):
                if name not in labels or number:
                    blob.diff[...] = 0
                    continue
                label = labels[name]
                book = np.bincount(label, blob.diff.ravel(), sizes[name].size) / sizes[name]
                book[0] = 0
                blob.diff[...] = book.astype(np.float32)[label].reshape(blob.diff.shape)

    before = {
        (name, number): blob.data.copy()
        for name, blobs in solver.net.params.items()
        for number, blob in enumerate(blobs)
        if name not in labels or number
    }
    solver.add_callback(lambda: None, share)
    for _ in range(iterations):
        solver.step(1)
        # Weight decay moves what has no gradient, too.
        for (name, number), held in before.items():
            solver.net.params[name][number].data[...] = held
    books = {}
    for name, label in labels.items():
        book = layers[name].codebook.copy()
        book[label] = solver.net.params[name][0].data.ravel()
        book[0] = 0
        books[name] = book
    return books


def _labels(layer: SharedLayer) -> np.ndarray:
    """Give each weight of the matrix the number of its codebook entry; 0 for zeros."""
    numbered = layer.with_codebook(np.arange(layer.codebook.size))
    return numbered.decode().ravel().astype(np.intp)


def _retrain_others(
    solver_bytes: bytes, weights: str, fixed: dict[str, np.ndarray], out: str, iterations: int
) -> None:
    from deepsz_caffe.network.layers import is_compressible

    solver = _open(solver_bytes, weights)
    params = solver.net.params
    kinds = dict(
        zip(solver.net._layer_names, (layer.type for layer in solver.net.layers), strict=True)
    )
    masks = {
        name: (blobs[0].data != 0).astype(np.float32)
        for name, blobs in params.items()
        if is_compressible(kinds[name]) and name not in fixed
    }

    def hold() -> None:
        for name, value in fixed.items():
            params[name][0].data[...] = value.reshape(params[name][0].data.shape)
        for name, mask in masks.items():
            params[name][0].data[...] *= mask

    hold()
    for _ in range(iterations):
        solver.step(1)
        hold()
    solver.net.save(out)
