"""AlexNet and VGG-16 at full size with generated weights: sizes, times and memory, no accuracy.

Every command runs as a process of its own, so that its peak memory can be told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deepsz_caffe.errors import DeepSZError, InputError
from deepsz_caffe.experiments import results
from deepsz_caffe.experiments.baselines import techniques
from deepsz_caffe.experiments.folder import Folder, Progress, key_of
from deepsz_caffe.experiments.full_size import generated
from deepsz_caffe.experiments.measure import (
    RETRAINED_BITS,
    RETRAINED_FILTER,
    forward_seconds,
    layer_of,
    machine,
)
from deepsz_caffe.experiments.networks import NETWORKS, Network
from deepsz_caffe.experiments.reproduce import RUN
from deepsz_caffe.experiments.results import Cost, IndexSize, Layer, Point, Run

PROFILES = ("paper", "small", "fast")
#: images of the timed evaluation
IMAGES = 50


def measure_generated(network: Network, out: Path, progress: Progress, seed: int = 1) -> Run:
    """Generate a network, take it through every command, and encode it by all techniques.

    Parameters
    ----------
    network
        An entry of `networks` with bounds for generated weights.
    out
        Folder; needs room for four times the network.
    progress
        As for `reproduce`.
    seed
        Of the weights.

    Raises
    ------
    InputError
        The network is none of those.
    DeepSZError
        A command failed; the message is the command's.
    """
    if not network.generated_bounds:
        measured = " and ".join(one.id for one in NETWORKS.values() if one.generated_bounds)
        raise InputError(f"--generated is for {measured}", hint="the others run for real")
    folder = Folder(out)
    key = key_of(network.id, seed, network.generated_bounds, PROFILES)
    found = folder.step("measured", key, Run, lambda: _measure(network, out, progress, seed))
    run = replace(found, command=f"deepsz reproduce {network.id} --generated", seed=seed)
    results.save(run, out / RUN)
    return run


def _measure(network: Network, out: Path, progress: Progress, seed: int) -> Run:
    from deepsz_caffe.runtime.pool import run_in_caffe

    pruned = out / "pruned.caffemodel"
    costs = _run_commands(network, out, progress, seed)
    points, layers = _deepsz_points(network, out, costs)
    others, index = _others(network, pruned, progress)
    progress("forward pass", None)
    deploy = str(network.path("deploy.prototxt"))
    return Run(
        network=network.id,
        command="",
        seed=seed,
        generated=True,
        fc_dense_bytes=network.fc_dense_bytes,
        file_bytes=(out / f"{PROFILES[0]}.dsz").stat().st_size,
        layers=layers,
        points=(*points, *others),
        index=index,
        costs=costs,
        forward_seconds=run_in_caffe(forward_seconds, deploy, str(pruned), IMAGES),
        machine=machine(),
    )


def _run_commands(network: Network, out: Path, progress: Progress, seed: int) -> tuple[Cost, ...]:
    """Generate the network in `out` and take it through every command, one process each."""
    dense, images = out / "dense.caffemodel", out / "images_lmdb"
    progress("generating the network", None)
    generated.write_caffemodel(network, dense, seed, pruned=False)
    if not images.exists():
        channels, height, width = network.image
        generated.write_images(images, IMAGES, (channels, max(height, 256), max(width, 256)), 1000)
    costs = []
    commands = _commands(network, out)
    for number, (title, command) in enumerate(commands.items()):
        progress("commands, each a process", number / len(commands))
        costs.append(run_measured(title, command))
    (out / "expanded.caffemodel").unlink()
    dense.unlink()
    return tuple(costs)


def _commands(network: Network, out: Path) -> dict[str, list[str]]:
    """Give what is run, title -> command line, in this order."""
    net = str(network.path("train_val.prototxt"))
    dense, pruned = str(out / "dense.caffemodel"), str(out / "pruned.caffemodel")
    dsz = {profile: str(out / f"{profile}.dsz") for profile in PROFILES}
    solver = str(network.path("solver.prototxt"))
    keep = ",".join(f"{name}={part:g}" for name, part in network.keep.items())
    arguments: tuple[str, ...] = ("prune", solver, "--weights", dense, "--keep", keep)
    commands = {"pruning masks": _deepsz(*arguments, "--iterations", "0", "--out", pruned)}
    for profile, path in dsz.items():
        arguments = ("encode", net, pruned, path, "--bounds", _bounds(network))
        commands[_encode(profile)] = _deepsz(*arguments, "--profile", profile)
    for profile in ("paper", "fast"):
        decode = f"from deepsz_caffe.dsz.decode import decode; decode({dsz[profile]!r})"
        commands[f"decode to arrays, profile {profile}"] = _python(decode)
    commands["expand"] = _deepsz("expand", dsz["fast"], str(out / "expanded.caffemodel"))
    data = str(out / "images_lmdb")
    commands[f"eval, {IMAGES} images"] = _deepsz("eval", net, dsz["paper"], "--data", data)
    return commands


def _encode(profile: str) -> str:
    return f"encode, profile {profile}"


def _bounds(network: Network) -> str:
    return ",".join(f"{name}={bound:g}" for name, bound in network.generated_bounds.items())


def _deepsz_points(
    network: Network, out: Path, costs: Iterable[Cost]
) -> tuple[list[Point], tuple[Layer, ...]]:
    """Decode the files that were written, one a profile; the layers of the first, too."""
    from deepsz_caffe.dsz.reader import DszFile

    seconds = {cost.command: cost.seconds for cost in costs}
    points = []
    layers: tuple[Layer, ...] = ()
    for profile in PROFILES:
        with DszFile(out / f"{profile}.dsz") as file:
            encoded = [file.layer(layer.name) for layer in file.layers]
        layers = layers or tuple(map(layer_of, encoded))
        outcome = techniques.deepsz(encoded, f"profile {profile}, bounds {_bounds(network)}")
        points.append(_point(outcome, seconds[_encode(profile)]))
    return points, layers


def _others(
    network: Network, pruned: Path, progress: Progress
) -> tuple[tuple[Point, ...], tuple[IndexSize, ...]]:
    """Encode by the other techniques, and the index arrays by every lossless codec."""
    from deepsz_caffe.network.caffemodel import read_caffemodel

    model = read_caffemodel(pruned)
    matrices = {shape.name: model[shape.name].matrix for shape in network.fc}
    progress("Deep Compression", None)
    shared = _point(techniques.deep_compression_outcome(matrices, *RETRAINED_BITS))
    progress("Weightless", None)
    filtered = _point(techniques.weightless_outcome(matrices, *RETRAINED_FILTER))
    progress("index arrays", None)
    return (shared, filtered), techniques.index_sizes(matrices)


def run_measured(title: str, command: list[str]) -> Cost:
    """Run a command and measure its time and its largest resident set.

    Raises
    ------
    DeepSZError
        It failed; the message is its last line on standard error.
    """
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        # wait4 and not Popen.wait: only it gives the resources of this one child.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise DeepSZError(lines[-1] if lines else "failed without a word", where=title)
    return Cost(title, seconds, 1024 * usage.ru_maxrss)


def _point(outcome: techniques.Outcome, encode_seconds: float | None = None) -> Point:
    return Point(
        outcome.technique,
        outcome.setting,
        outcome.bytes,
        encode_seconds=outcome.encode_seconds if encode_seconds is None else encode_seconds,
        decode_seconds=outcome.decode_seconds,
    )


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _deepsz(*arguments: str) -> list[str]:
    return [*_python("from deepsz_caffe.cli import main; main()"), *arguments]
