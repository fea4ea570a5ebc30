"""The commands of public data sets: one for each that can be prepared."""

import json
from pathlib import Path

from click.testing import CliRunner

from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.experiments.datasets import DATA_SETS, prepare_of


def test_every_data_set_that_can_be_prepared_has_a_command():
    listed = CliRunner().invoke(deepsz, ["--help"]).stdout
    for name, data_set in DATA_SETS.items():
        assert (f"\n  {name} " in listed) == bool(data_set.source)
        if data_set.source:
            shown = CliRunner().invoke(deepsz, [name, "--help"]).stdout
            assert f"Fetch {data_set.title} and write it as LMDBs" in shown
            assert f"deepsz {name} data/{name}" in shown
            assert callable(prepare_of(name))


def test_mnist_that_is_there_is_left_alone(checkout):
    folder = Path("data/mnist")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("data.mdb")}
    result = CliRunner().invoke(deepsz, ["mnist", str(folder), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {
        str(folder / "train_lmdb"): 50_000,
        str(folder / "validation_lmdb"): 10_000,
        str(folder / "test_lmdb"): 10_000,
    }
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("data.mdb")}
