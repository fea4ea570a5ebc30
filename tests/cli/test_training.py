"""The commands of training and pruning: their JSON, their exit codes, their one line of error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepsz_caffe.cli.main import main
from deepsz_caffe.cli.training import prune, train

KEEP = "ip1=0.08,ip2=0.09,ip3=0.26"


@pytest.fixture
def run():
    """Give a function that runs a command in this process and returns what it printed."""

    def run(command, *arguments):
        result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_prune_says_what_is_left(lenet, tmp_path, run):
    solver = lenet.solver(tmp_path / "s.prototxt")
    out = tmp_path / "p.caffemodel"
    options = (solver, "--weights", lenet.dense, "--out", out, "--keep", KEEP, "--iterations", 20)
    document = json.loads(run(prune, *options, "--json"))
    assert document["out"] == str(out)
    assert document["layers"] == [
        {"name": "ip1", "shape": [300, 784], "nonzeros": 18_816},
        {"name": "ip2", "shape": [100, 300], "nonzeros": 2_700},
        {"name": "ip3", "shape": [10, 100], "nonzeros": 260},
    ]
    training = document["training"]
    assert (training["iterations"], training["chosen"], training["test_total"]) == (20, 20, 500)
    shown = run(prune, *options)
    assert "18,816" in shown
    assert "26.00 %" in shown
    assert f"{training['test_correct']:,}" in shown


def test_train_writes_a_caffemodel(lenet, tmp_path, run):
    solver = lenet.solver(tmp_path / "s.prototxt")
    out = tmp_path / "t.caffemodel"
    document = json.loads(run(train, solver, "--out", out, "--iterations", 40, "--json"))
    assert (document["iterations"], document["test_total"]) == (40, 500)
    assert document["test_correct"] > 350
    assert out.stat().st_size > 4 * 266_200


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--keep": "ip1=0"}, 2, "ip1: keep ratio 0.0 is not in (0, 1]"),
        ({"--keep": "ip1=-0.1"}, 2, "keep ratio -0.1"),
        ({"--keep": "ip1=1.01"}, 2, "keep ratio 1.01"),
        ({"--keep": "ip1=nan"}, 2, "keep ratio nan"),
        ({"--keep": "ip1=8%"}, 2, "can't be read: 'ip1=8%'"),
        ({"--keep": "0.08"}, 2, "write LAYER=PART"),
        ({"--keep": "ip1=0.1,ip1=0.2"}, 2, "ip1: is given twice"),
        ({"--seed": "-1"}, 2, "a seed is"),
        ({"--out": "no/such/folder/p.caffemodel"}, 1, "the folder does not exist"),
        ({"--keep": "ip9=0.5"}, 1, "no such layer that can be compressed (it has ip1, ip2, ip3)"),
        ({"--weights": "no.caffemodel"}, 1, "no.caffemodel"),
        ({"--weights": "s.prototxt"}, 1, "s.prototxt"),
        ({"SOLVER": "no.prototxt"}, 1, "no.prototxt"),
        ({"SOLVER": "no_data.prototxt"}, 1, "nowhere_lmdb: no such LMDB"),
        ({"SOLVER": "bad_layer.prototxt"}, 1, "Unknown layer type: NoSuchLayer"),
    ],
)
def test_wrong_input_gets_one_clear_line(lenet, tmp_path, monkeypatch, capfd, change, code, said):
    monkeypatch.chdir(tmp_path)
    lenet.solver(tmp_path / "s.prototxt")
    for name, old, new in (
        ("no_data", "train_lmdb", "nowhere_lmdb"),
        ("bad_layer", "ReLU", "NoSuchLayer"),
    ):
        network = tmp_path / f"{name}.net"
        network.write_text(lenet.network.read_text().replace(old, new))
        lenet.solver(tmp_path / f"{name}.prototxt", net=network)
    before = sorted(tmp_path.iterdir())
    options = {"--weights": str(lenet.dense), "--keep": KEEP, "--out": "p.caffemodel"} | change
    solver = options.pop("SOLVER", "s.prototxt")
    flat = [part for option in options.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["deepsz", "prune", solver, *flat])
    with pytest.raises(SystemExit) as stop:
        main()
    last = capfd.readouterr().err.rstrip().splitlines()[-1]
    assert stop.value.code == code
    assert last.startswith("deepsz: ")
    assert said in last
    assert sorted(tmp_path.iterdir()) == before


def test_the_console_script_ends_with_the_code(lenet, tmp_path):
    command = [Path(sys.executable).with_name("deepsz"), "prune", "s.prototxt"]
    options = ("--weights", "w.caffemodel", "--keep", "ip1=2", "--out", tmp_path / "p")
    run = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.strip() == (
        "deepsz: ip1: keep ratio 2.0 is not in (0, 1] (0.08 keeps 8 % of the weights)"
    )
