"""Wrong input gets one clear line that names what is wrong and where, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.steps.encode import encode

ROOT = Path(__file__).parents[2]
DENSE = ROOT / "models" / "lenet_300_100" / "dense.caffemodel"

#: a network without an fc layer, and the same with labels in use
NO_FC = """
layer { name: "d" type: "Data" top: "data" top: "label"
  data_param { source: "empty" backend: LMDB batch_size: 10 } }
layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { global_pooling: true } }
layer { name: "l" type: "SoftmaxWithLoss" bottom: "p" bottom: "label" top: "l" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mnist):
    """Give a working folder with a network and its weights, and wrong things of every kind."""
    path = tmp_path_factory.mktemp("wrong")
    original = (ROOT / "prototxt" / "lenet_300_100" / "train_val.prototxt").read_text()
    (path / "net.prototxt").write_text(original)  # its data/mnist is not in this folder
    (path / "real.prototxt").write_text(original.replace("data/mnist", str(mnist)))
    (path / "empty_data.prototxt").write_text(
        original.replace("data/mnist/test_lmdb", "empty").replace(
            "data/mnist/validation_lmdb", "empty"
        )
    )
    (path / "no_fc.prototxt").write_text(NO_FC)
    for name in ("net", "real"):
        text = f'net: "{name}.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 9'
        (path / f"{name}_solver.prototxt").write_text(text)
    (path / "dense.caffemodel").symlink_to(DENSE)
    (path / "other.caffemodel").symlink_to(ROOT / "models" / "lenet_5" / "dense.caffemodel")
    (path / "garbage").write_text("garbage\n")
    lmdb.open(str(path / "empty")).close()
    bounds = dict.fromkeys(("ip1", "ip2", "ip3"), 0.1)
    write_dsz(path / "good.dsz", encode(path / "net.prototxt", DENSE, bounds, "fast"))
    return path


FAILED = [
    # no such file
    ("eval no.prototxt dense.caffemodel", "no.prototxt"),
    ("eval real.prototxt no.caffemodel", "no.caffemodel"),
    ("assess net.prototxt no.caffemodel --out out", "no.caffemodel"),
    ("compress net.prototxt no.caffemodel out --max-loss 0.1", "no.caffemodel"),
    ("encode net.prototxt no.caffemodel out --bounds ip1=0.1", "no.caffemodel"),
    (
        "prune real_solver.prototxt --weights no.caffemodel --keep ip1=0.5 --out out",
        "no.caffemodel",
    ),
    ("train no.prototxt --out out", "no.prototxt"),
    ("optimize no.json --max-loss 0.1", "no.json"),
    ("report no.json", "no.json"),
    ("expand no.dsz out", "no.dsz"),
    ("inspect no.dsz", "no.dsz"),
    # not what it should be
    ("eval real.prototxt garbage", "garbage, byte 0: not a caffemodel"),
    ("eval garbage dense.caffemodel", "garbage: not a prototxt"),
    ("encode net.prototxt garbage out --bounds ip1=0.1", "garbage, byte 0: not a caffemodel"),
    ("prune real_solver.prototxt --weights garbage --keep ip1=0.5 --out out", "not a caffemodel"),
    ("prune net.prototxt --weights dense.caffemodel --keep ip1=0.5 --out out", "net.prototxt: not"),
    ("expand garbage out", "garbage: not a .dsz file"),
    ("inspect dense.caffemodel", "dense.caffemodel: not a .dsz file"),
    ("optimize garbage --max-loss 0.1", "garbage: not an assessment"),
    # a layer that is not in the network, and no fc layer at all
    ("encode net.prototxt dense.caffemodel out --bounds ip9=0.1", "ip1, ip2, ip3"),
    (
        "prune net_solver.prototxt --weights dense.caffemodel --keep ip9=0.5 --out out",
        "ip1, ip2, ip3",
    ),
    ("assess net.prototxt dense.caffemodel --layers ip9 --out out", "ip1, ip2, ip3"),
    ("compress no_fc.prototxt dense.caffemodel out --layers fc --max-loss 0.1", "no fc layer"),
    ("assess no_fc.prototxt dense.caffemodel --out out", "no fc layer"),
    ("compress no_fc.prototxt dense.caffemodel out --layers all --max-loss 0.1", "no layer that"),
    ("encode no_fc.prototxt dense.caffemodel out --bounds ip1=0.1", "no layer that can"),
    # weights that don't fit the prototxt
    ("eval real.prototxt other.caffemodel", "layer ip1: weights of 500 × 800"),
    (
        "encode net.prototxt other.caffemodel out --bounds ip1=0.1",
        "layer ip1: weights of 500 × 800",
    ),
    ("assess net.prototxt other.caffemodel --out out", "layer ip1: weights of 500 × 800"),
    ("compress net.prototxt other.caffemodel out --max-loss 0.1", "layer ip1: weights of 500"),
    ("prune real_solver.prototxt --weights other.caffemodel --keep ip1=0.5 --out out", "layer ip1"),
    # data that is missing or empty
    ("eval net.prototxt dense.caffemodel", "data/mnist/test_lmdb: no such LMDB"),
    ("assess net.prototxt dense.caffemodel --out out", "data/mnist/validation_lmdb: no such LMDB"),
    ("compress net.prototxt dense.caffemodel out --max-loss 0.1", "no such LMDB"),
    ("prune net_solver.prototxt --weights dense.caffemodel --keep ip1=0.5 --out out", "_lmdb"),
    ("train net_solver.prototxt --out out", "_lmdb"),
    ("eval empty_data.prototxt dense.caffemodel", "empty: the LMDB is empty"),
    ("compress empty_data.prototxt dense.caffemodel out --max-loss 0.1", "the LMDB is empty"),
    ("mnist out --from empty", "train-images-idx3-ubyte"),
    # a place that can't be written
    ("encode net.prototxt dense.caffemodel no/out --bounds ip1=0.1,ip2=0.1,ip3=0.1", "no/out"),
    ("compress net.prototxt dense.caffemodel no/out --max-loss 0.1", "no"),
    ("train net_solver.prototxt --out no/out", "no/out"),
    ("expand good.dsz no/out", "no/out"),
    ("expand good.dsz empty", "empty: can't write: it is a folder"),
    ("expand good.dsz /dev/null", "/dev/null: can't write: it is a device"),
]

WRONG_USE = [
    ("prune net_solver.prototxt --weights dense.caffemodel --keep ip1=1.5 --out out", "(0, 1]"),
    ("prune net_solver.prototxt --weights dense.caffemodel --keep ip1=0 --out out", "(0, 1]"),
    ("prune net_solver.prototxt --weights dense.caffemodel --keep ip1 --out out", "ip1"),
    ("assess net.prototxt dense.caffemodel --max-loss -1 --out out", "-1"),
    ("assess net.prototxt dense.caffemodel --search divergence --out out", "deepsz compress"),
    ("compress net.prototxt dense.caffemodel out --max-loss -1", "-1"),
    ("compress net.prototxt dense.caffemodel out", "maximal loss or a target ratio"),
    ("encode net.prototxt dense.caffemodel out --bounds ip1=-0.1", "layer ip1: an error bound"),
    ("encode net.prototxt dense.caffemodel out --bounds ip1", "--bounds ip1=0.02"),
    ("encode net.prototxt dense.caffemodel out", "--bounds or --plan"),
    ("encode net.prototxt dense.caffemodel out --plan dense.caffemodel", "deepsz optimize makes"),
    (
        "encode net.prototxt dense.caffemodel out --plan net.prototxt",
        "not a plan: JSON is",
    ),
]


@pytest.mark.parametrize(
    ("command", "says", "code"),
    [(*case, 1) for case in FAILED] + [(*case, 2) for case in WRONG_USE],
)
def test_one_clear_line(folder, deepsz, monkeypatch, command, says, code):
    there = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    done = deepsz(*command.split())
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("deepsz: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(folder.iterdir()) == there


@pytest.mark.parametrize("command", ["bogus", "eval net.prototxt", "eval --bogus a b"])
def test_wrong_use_shows_how_it_is_used(folder, command):
    arguments = [sys.executable, "-m", "deepsz_caffe", *command.split()]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "expand good.dsz out",
        "encode net.prototxt dense.caffemodel out --bounds ip1=1e-4,ip2=1e-4,ip3=1e-4",
    ],
)
def test_a_full_disk_leaves_nothing(folder, command):
    there = sorted(folder.iterdir())
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        f"sys.argv = ['deepsz', *{command.split()!r}];"
        "from deepsz_caffe.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("deepsz: out: can't write: File too large"), done.stderr
    assert sorted(folder.iterdir()) == there
