"""What the house promises to whoever adds something, each done once in a copy of the house.

A codec is the codecs' own promise, and is tested there.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

DATA_SET = '''
"""Stripes: a class is the direction that they run in."""

from pathlib import Path

import numpy as np

from deepsz_caffe.experiments.datasets.databases import records_of, write_splits

SIZES = {"train_lmdb": 400, "validation_lmdb": 200, "test_lmdb": 200}


def prepare(folder, source=None, report=None):
    def read(scratch):
        random = np.random.default_rng(1)
        rows = 60 + 120 * (np.arange(8) % 2)
        kinds = np.stack([np.tile(rows, (8, 1)), np.tile(rows, (8, 1)).T])
        parts = {}
        for name, count in SIZES.items():
            labels = random.integers(0, 2, count)
            images = kinds[labels] + random.integers(-60, 61, (count, 8, 8))
            parts[name] = records_of(images[:, None].astype(np.uint8), labels)
        return parts

    return write_splits(Path(folder), SIZES, read, report or print)
'''

LAYER = """
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ scale: 0.00390625 }}
  data_param {{ source: "data/stripes/{name}_lmdb" backend: LMDB batch_size: 50 }} }}
"""
BODY = """
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"""
JUDGES = """
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include { phase: TEST } }
layer { name: "top5" type: "Accuracy" bottom: "ip2" bottom: "label" top: "top5"
  include { phase: TEST } accuracy_param { top_k: 2 } }
"""
INPUT = (
    'layer { name: "data" type: "Input" top: "data" '
    "input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }"
)
PROTOTXT = {
    "train_val": LAYER.format(phase="TRAIN", name="train")
    + LAYER.format(phase='TEST not_stage: "validation"', name="test")
    + LAYER.format(phase='TEST stage: "validation"', name="validation")
    + BODY
    + JUDGES,
    "deploy": INPUT + BODY,
    "solver": 'net: "prototxt/tiny/train_val.prototxt" test_state { stage: "validation" } '
    'test_iter: 4 test_interval: 30 base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 60 '
    "random_seed: 1",
}
NETWORK = """
_TINY = Network(
    id="tiny",
    title="Tiny",
    data_set="stripes",
    image=(1, 8, 8),
    conv={},
    fc=(
        FcShape("ip1", (12, 64), 0.4, 0.05, 0.03),
        FcShape("ip2", (2, 12), 0.5, 0.05, 0.03),
    ),
    paper=None,
    folder="tiny",
)
"""

SCHEDULE = '''
def at_half(keep: Mapping[str, float], iterations: int) -> PruningSteps:
    """Prune at once, in the middle of the training."""
    return PruningSteps(((iterations // 2, tuple(keep.items())),))
'''


class House:
    """A copy of the package and of prototxt/, in which files are added and changed."""

    def __init__(self, root):
        self.root = root
        for name in ("deepsz_caffe", "prototxt"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
        self.before = self._digests()

    def _digests(self):
        return {
            str(path.relative_to(self.root)): hashlib.md5(path.read_bytes()).hexdigest()
            for name in ("deepsz_caffe", "prototxt")
            for path in (self.root / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def touched(self):
        """Give what was added and changed since this was asked for last."""
        now = self._digests()
        found = {name for name, digest in now.items() if self.before.get(name) != digest}
        self.before = now
        return found

    def add(self, name, text):
        (self.root / name).parent.mkdir(exist_ok=True)
        (self.root / name).write_text(text)

    def insert(self, name, after, text):
        path = self.root / name
        (before, found, rest) = path.read_text().partition(after)
        assert found, after
        path.write_text(before + found + text + rest)

    def deepsz(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "deepsz_caffe", *map(str, arguments)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A house with a data set that was added, and what that touched."""
    house = House(tmp_path_factory.mktemp("house"))
    rooms = "deepsz_caffe/experiments/datasets"
    house.add(f"{rooms}/stripes.py", DATA_SET)
    line = '    "stripes": DataSet("Stripes", "nowhere"),\n'
    house.insert(f"{rooms}/__init__.py", "DATA_SETS: dict[str, DataSet] = {\n", line)
    house.by_data_set = house.touched()
    house.counts = json.loads(house.deepsz("stripes", "data/stripes", "--json"))
    return house


def test_a_data_set_is_a_file_and_a_line(house):
    rooms = "deepsz_caffe/experiments/datasets"
    assert house.by_data_set == {f"{rooms}/stripes.py", f"{rooms}/__init__.py"}
    assert house.counts == {
        "data/stripes/train_lmdb": 400,
        "data/stripes/validation_lmdb": 200,
        "data/stripes/test_lmdb": 200,
    }
    listed = house.deepsz("--help")
    assert re.search(r"^  stripes +Fetch Stripes and write it", listed, re.MULTILINE)


@pytest.fixture(scope="module")
def with_network(house):
    for name, text in PROTOTXT.items():
        house.add(f"prototxt/tiny/{name}.prototxt", text)
    networks = "deepsz_caffe/experiments/networks.py"
    house.insert(networks, 'return ROOT / "prototxt" / self.folder / name\n', f"\n{NETWORK}\n")
    house.insert(networks, "for network in (", "_TINY, ")
    house.by_network = house.touched()
    return house


def test_a_network_is_a_folder_and_an_entry(with_network):
    """It is trained, pruned, compressed, measured and printed like the paper's own."""
    assert with_network.by_network == {
        "deepsz_caffe/experiments/networks.py",
        *(f"prototxt/tiny/{name}.prototxt" for name in PROTOTXT),
    }
    command = ("reproduce", "tiny", "--deepsz-only", "--max-loss", "0.3", "--out", "results")
    (run,) = json.loads(with_network.deepsz(*command, "--json"))
    assert (run["network"], run["seed"]) == ("tiny", 1)
    assert [layer["name"] for layer in run["layers"]] == ["ip1", "ip2"]
    assert run["dense"]["total"] == 200
    assert run["dense"]["top1"] > 190
    assert run["layers"][0]["nonzeros"] <= round(0.4 * 12 * 64)
    printed = with_network.deepsz(*command)
    assert "Tiny (Stripes)" in printed


def test_a_pruning_schedule_is_a_function(with_network):
    prune = "deepsz_caffe/steps/prune.py"
    house = with_network
    house.insert(prune, "        or one_shot(keep, iterations).steps\n    )\n", f"\n{SCHEDULE}")
    house.insert(prune, "SCHEDULES: dict[str, Schedule] = {", '"at-half": at_half, ')
    assert house.touched() == {prune}
    solver = "prototxt/tiny/solver.prototxt"
    house.deepsz("train", solver, "--iterations", 10, "--out", "d.caffemodel")
    options = ("--weights", "d.caffemodel", "--keep", "ip1=0.25", "--schedule", "at-half")
    pruned = json.loads(
        house.deepsz("prune", solver, *options, "--iterations", 10, "--out", "p", "--json")
    )
    assert pruned["layers"][0]["nonzeros"] == 192
    assert "at-half" in house.deepsz("prune", "--help")
