"""Two assessments with one folder of features at the same time: each gives what it gives alone."""

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import toy as toys

from deepsz_caffe.api import assess
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.runtime.pool import CaffePool


@pytest.fixture(scope="module")
def weights(toy, tmp_path_factory):
    """Give two networks of one shape whose layers lose differently."""
    other = tmp_path_factory.mktemp("two") / "other.caffemodel"
    model = read_caffemodel(toy.weights)
    random = np.random.default_rng(8)
    changed = {
        name: model[name].matrix * random.uniform(0.5, 1.5, model[name].matrix_shape)
        for name in toys.FC_LAYERS
    }
    new = {name: array.astype(np.float32) for name, array in changed.items()}
    write_caffemodel(other, model, new)
    return toy.weights, other


def start(toy, weights, out, features):
    command = [Path(sys.executable).with_name("deepsz"), "assess", toy.network, weights]
    command += ["--out", out, "--features", features, "--bounds", "0.4"]
    return subprocess.Popen(
        [*map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process):
    document, errors = process.communicate()
    assert process.returncode == 0, errors
    return found(json.loads(document))


def found(assessment):
    """Give what must be equal, as it is in a file."""
    names = ("top1_correct", "layers", "digests")
    return [json.loads(json.dumps(assessment[name])) for name in names]


def rounds(toy, weights, folder, seed, pauses):
    with CaffePool(1) as pool:
        alone = [
            found(assess(toy.network, each, bounds=(0.4,), executor=pool).to_json())
            for each in weights
        ]
    assert alone[0][0] != alone[1][0]
    random = Random(seed)
    for turn, pause in enumerate(pauses):
        chosen = random.choices((0, 1), k=1)[0], random.choices((0, 1), k=1)[0]
        chosen = (0, 1) if turn == 0 else chosen
        running = []
        for place, number in enumerate(chosen):
            out = folder / f"{turn}-{place}.json"
            running.append(start(toy, weights[number], out, folder / f"shared-{turn}"))
            time.sleep(pause if place == 0 else 0)
        for number, process in zip(chosen, running, strict=True):
            assert result(process) == alone[number], (turn, pause)
        kept = {path.name for path in (folder / f"shared-{turn}").iterdir()}
        assert len(kept) == len(set(chosen))
        assert not [name for name in kept if name.startswith(".")]


def test_two_networks_share_a_folder_of_features(toy, weights, tmp_path):
    rounds(toy, weights, tmp_path, 0, [0])


@pytest.mark.slow
def test_fifty_times_from_0_to_3_seconds_apart(toy, weights, tmp_path):
    random = Random(1)
    rounds(toy, weights, tmp_path, 1, [random.uniform(0, 3) for _ in range(50)])


def test_two_runs_on_one_output_are_one_after_the_other(toy, weights, tmp_path):
    first = start(toy, weights[0], tmp_path / "a.json", tmp_path / "f")
    while not (tmp_path / ".a.json.lock").exists():
        time.sleep(0.01)
        assert first.poll() is None
    second = start(toy, weights[0], tmp_path / "a.json", tmp_path / "f")
    _, said = second.communicate()
    assert first.wait() == second.returncode == 0
    assert "a.json: another run is writing to it; waiting until it is done" in " ".join(
        said.split()
    )
    assert json.loads((tmp_path / "a.json").read_text())["layers"]
    assert not (tmp_path / ".a.json.lock").exists()
