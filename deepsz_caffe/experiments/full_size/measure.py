"""AlexNet and VGG-16 at full size with generated weights: sizes, times and memory, no accuracy.

Every command runs as a process of its own, so that its peak memory can be told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from deepsz_caffe.errors import DeepSZError
from deepsz_caffe.experiments import results, techniques
from deepsz_caffe.experiments.folder import Folder, Progress, key_of
from deepsz_caffe.experiments.full_size import generated
from deepsz_caffe.experiments.measure import (
    RETRAINED_BITS,
    RETRAINED_FILTER,
    forward_seconds,
    layer_of,
    machine,
)
from deepsz_caffe.experiments.networks import Network
from deepsz_caffe.experiments.reproduce import RUN
from deepsz_caffe.experiments.results import Cost, Point, Run

#: network -> error bounds, layer by layer
BOUNDS = {
    "alexnet": {"fc6": 7e-3, "fc7": 7e-3, "fc8": 5e-3},
    "vgg-16": {"fc6": 5e-3, "fc7": 5e-3, "fc8": 5e-3},
}
PROFILES = ("paper", "small", "fast")
#: images of the timed evaluation
IMAGES = 50


def measure_generated(network: Network, out: Path, progress: Progress, seed: int = 1) -> Run:
    """Generate a network, take it through every command, and encode it by all techniques.

    Parameters
    ----------
    network
        An entry of `networks` with an entry in `BOUNDS`.
    out
        Folder; needs room for four times the network.
    progress
        As for `reproduce`.
    seed
        Of the weights.

    Raises
    ------
    DeepSZError
        A command failed; the message is the command's.
    """
    folder = Folder(out)
    key = key_of(network.id, seed, BOUNDS[network.id], PROFILES)
    found = folder.step("measured", key, lambda: asdict(_measure(network, out, progress, seed)))
    run = replace(
        results.from_json(found), command=f"deepsz reproduce {network.id} --generated", seed=seed
    )
    results.save(run, out / RUN)
    return run


def prune_at_once(dense: str, keep: Mapping[str, float], out: str) -> None:
    """Set the smallest weights of each layer to 0, without retraining, and write the network."""
    from deepsz_caffe.network.caffemodel import read_caffemodel, write_caffemodel
    from deepsz_caffe.steps.prune import magnitude_mask

    model = read_caffemodel(dense)
    pruned = {}
    for name, part in keep.items():
        matrix = model[name].matrix
        pruned[name] = matrix * magnitude_mask(matrix, part)
    write_caffemodel(out, model, pruned)


def _measure(network: Network, out: Path, progress: Progress, seed: int) -> Run:
    from deepsz_caffe.dsz.container import DszFile
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.runtime.pool import run_in_caffe

    dense, pruned = out / "dense.caffemodel", out / "pruned.caffemodel"
    images = out / "images_lmdb"
    progress("generating the network", None)
    generated.write_caffemodel(network, dense, seed, pruned=False)
    if not images.exists():
        channels, height, width = network.image
        generated.write_images(images, IMAGES, (channels, max(height, 256), max(width, 256)), 1000)
    bounds = BOUNDS[network.id]
    written = ",".join(f"{name}={bound:g}" for name, bound in bounds.items())
    net = str(network.path("train_val.prototxt"))
    module = __name__
    commands: list[tuple[str, list[str]]] = [
        (
            "pruning masks",
            _python(
                f"from {module} import prune_at_once; "
                f"prune_at_once({str(dense)!r}, {network.keep!r}, {str(pruned)!r})"
            ),
        )
    ]
    for profile in PROFILES:
        arguments = ["encode", net, str(pruned), str(out / f"{profile}.dsz"), "--bounds", written]
        commands.append((f"encode, profile {profile}", _deepsz(*arguments, "--profile", profile)))
    for profile in ("paper", "fast"):
        path = str(out / f"{profile}.dsz")
        commands.append(
            (
                f"decode to arrays, profile {profile}",
                _python(f"from deepsz_caffe.dsz.decode import decode; decode({path!r})"),
            )
        )
    expanded = out / "expanded.caffemodel"
    commands.append(("expand", _deepsz("expand", str(out / "fast.dsz"), str(expanded))))
    commands.append(
        (
            f"eval, {IMAGES} images",
            _deepsz("eval", net, str(out / "paper.dsz"), "--data", str(images)),
        )
    )
    costs = []
    for number, (title, command) in enumerate(commands):
        progress("commands, each a process", number / len(commands))
        costs.append(run_measured(title, command))
    expanded.unlink()
    dense.unlink()

    seconds = {cost.command: cost.seconds for cost in costs}
    points = []
    for profile in PROFILES:
        with DszFile(out / f"{profile}.dsz") as file:
            encoded = [file.layer(layer.name) for layer in file.layers]
        if profile == "paper":
            layers = tuple(layer_of(layer) for layer in encoded)
        outcome = techniques.deepsz(encoded, f"profile {profile}, bounds {written}")
        points.append(_point(outcome, seconds[f"encode, profile {profile}"]))
    model = read_caffemodel(pruned)
    matrices = {shape.name: model[shape.name].matrix for shape in network.fc}
    progress("Deep Compression", None)
    points.append(_point(techniques.deep_compression_outcome(matrices, *RETRAINED_BITS)))
    progress("Weightless", None)
    points.append(_point(techniques.weightless_outcome(matrices, *RETRAINED_FILTER)))
    progress("index arrays", None)
    index = techniques.index_sizes(matrices)
    progress("forward pass", None)
    forward = run_in_caffe(
        forward_seconds, str(network.path("deploy.prototxt")), str(pruned), IMAGES
    )
    return Run(
        network=network.id,
        command="",
        seed=seed,
        generated=True,
        fc_dense_bytes=network.fc_dense_bytes,
        file_bytes=(out / "paper.dsz").stat().st_size,
        layers=layers,
        points=tuple(points),
        index=index,
        costs=tuple(costs),
        forward_seconds=forward,
        machine=machine(),
    )


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
