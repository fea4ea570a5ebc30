"""What a solver's definition asks for: its networks, its numbers, and what decides its result."""

from __future__ import annotations

import math
import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepsz_caffe.errors import InputError, ModelError
from deepsz_caffe.files import read_input
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.layers import check_weights, compressible_layers
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.runtime.masked import FixedMasks, MaskRule
from deepsz_caffe.runtime.training import Fingerprint

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter, SolverParameter

Path_ = str | os.PathLike[str]


def override(
    solver: SolverParameter,
    seed: int | None,
    iterations: int | None,
    lr: float | None,
    threads: int | None = None,
) -> None:
    """Put numbers of the user's in place of a solver's; the one of threads is only checked.

    Raises
    ------
    InputError
        One of them makes no sense.
    """
    check_run(seed, threads)
    if seed is not None:
        solver.random_seed = seed
    if iterations is not None:
        solver.max_iter = iterations
    if lr is not None:
        if not (math.isfinite(lr) and lr > 0):
            raise InputError("a learning rate is a number above 0", where=f"lr {lr}")
        solver.base_lr = lr
    if solver.max_iter < 1:
        raise InputError("at least one iteration is wanted", where=f"iterations {solver.max_iter}")


def check_run(seed: int | None, threads: int | None) -> None:
    """Check what a training is run with.

    Raises
    ------
    InputError
        It makes no sense.
    """
    if seed is not None and not 0 <= seed < 2**31:
        raise InputError("a seed is a whole number from 0 to 2^31 - 1", where=f"seed {seed}")
    if threads is not None and threads < 1:
        raise InputError("at least one thread is wanted", where=f"threads {threads}")


def networks_of(solver: SolverParameter) -> tuple[NetParameter, NetParameter | None]:
    """Read the training network and the first test network, as Caffe will build them.

    Raises
    ------
    ModelError
        The solver names no network by its file, or one that is not there.
    """
    training = _network(solver.train_net or solver.net)
    net = phase(training, "TRAIN", tuple(solver.train_state.stage))
    if not solver.test_iter:
        return net, None
    testing = _network(solver.test_net[0]) if solver.test_net else training
    stages = tuple(solver.test_state[0].stage) if solver.test_state else ()
    return net, phase(testing, "TEST", stages)


def train_instead(solver: SolverParameter, net: NetParameter) -> None:
    """Let a solver train a network that is in no file; what it tests stays."""
    if solver.net and solver.test_iter:
        solver.test_net[:] = [solver.net] * len(solver.test_iter)
    for name in ("net", "train_net"):
        solver.ClearField(name)
    solver.train_net_param.CopyFrom(net)


def _network(path: str) -> NetParameter:
    if not path:
        raise ModelError(
            "the solver does not name its network's file",
            hint="`net`, or `train_net` and `test_net`, is wanted, not net_param",
        )
    if not Path(path).is_file():
        raise ModelError(
            "no such file, though the solver names it as its net",
            where=path,
            hint="paths are relative to the working directory",
        )
    return read_prototxt(path)


def check_start(net: NetParameter, weights: Path_) -> None:
    """Check that the file has every layer; Caffe would train on from random values, silently."""
    model = read_caffemodel(weights)
    check_weights(compressible_layers(net), model, extra_blobs=True)
    for layer in net.layer:
        if layer.type in ("Convolution", "Deconvolution") and layer.name not in model:
            raise ModelError("the network's layer is not in it", where=f"{weights}, {layer.name}")


def fingerprint(
    solver: SolverParameter,
    nets: tuple[NetParameter, NetParameter | None],
    weights: Path_ | None,
    teacher: Path_ | None,
    rule: MaskRule | None,
) -> Fingerprint:
    """Write down all that decides the result, so that only the same training is resumed."""
    rest = type(solver)()
    rest.CopyFrom(solver)
    for name in ("base_lr", "max_iter", "random_seed"):
        rest.ClearField(name)
    return {
        "lr": repr(solver.base_lr),
        "iterations": str(solver.max_iter),
        "seed": str(solver.random_seed),
        "solver": _digest(rest.SerializeToString(deterministic=True)),
        "network": _digest(
            *(net.SerializeToString(deterministic=True) for net in nets if net is not None)
        ),
        "weights": _file_digest(weights),
        "teacher": _file_digest(teacher),
        "masks": _masks_digest(rule),
    }


def _file_digest(weights: Path_ | None) -> str:
    return "none" if weights is None else _digest(read_input(weights, ModelError))


def _masks_digest(rule: MaskRule | None) -> str:
    if not isinstance(rule, FixedMasks):
        return _digest(repr(rule).encode())
    parts = (
        (name.encode(), np.packbits(rule.fixed[name]).tobytes()) for name in sorted(rule.fixed)
    )
    return _digest(*(part for pair in parts for part in pair))


def _digest(*parts: bytes) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
