"""Commands and functions that need no Caffe, where there is none, nor anything but the package.

Packages of the extras are there while tests run; here importing them fails, in child processes,
too. OpenCV alone is let through, for those that run networks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "prototxt" / "lenet_5" / "deploy.prototxt"
DENSE = ROOT / "models" / "lenet_5" / "dense.caffemodel"
ABSENT = ("caffe", "lmdb", "h5py", "PIL", "matplotlib", "distributed", "zfpy", "brotli")
BOUNDS = "conv1=0.02,conv2=0.02,ip1=0.01,ip2=0.02"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Run Python with a module search path on which these packages can't be imported."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ABSENT:
        (folder / "absent" / name).mkdir(parents=True)
        text = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        (folder / "absent" / name / "__init__.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder / "absent")}

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr.decode()
        return done

    run.folder = folder
    random = np.random.default_rng(2)
    np.savez(folder / "inputs.npz", data=random.random((20, 1, 28, 28), np.float32))
    pixels = random.integers(0, 256, (20, 28, 28), np.uint8)
    np.savez(folder / "pictures.npz", data=pixels)
    run("-m", "deepsz_caffe", "encode", DENSE, "net.dsz", "--bounds", BOUNDS)
    return run


def test_there_is_no_caffe(bare):
    assert b"No module named 'caffe'" in bare("-c", "import caffe", code=1).stderr
    command = ("-m", "deepsz_caffe", "compare", DEPLOY, DENSE, "net.dsz", "--data", "inputs.npz")
    assert b"--opencv runs networks without it" in bare(*command, code=1).stderr


def test_files_are_read_and_written(bare):
    told = json.loads(bare("-m", "deepsz_caffe", "inspect", "net.dsz", "--json").stdout)
    assert [layer["name"] for layer in told["layers"]] == ["conv1", "conv2", "ip1", "ip2"]
    bare("-m", "deepsz_caffe", "expand", "net.dsz", "net.caffemodel")
    expanded = (bare.folder / "net.caffemodel").read_bytes()
    assert len(expanded) == DENSE.stat().st_size
    assert bare("-m", "deepsz_caffe", "expand", "net.dsz", "-").stdout == expanded


def test_networks_are_compared(bare):
    for source in (("--data", "inputs.npz"), ("--images", "pictures.npz", "--scale", 1 / 256)):
        command = ("compare", DEPLOY, DENSE, "net.dsz", *source, "--opencv", "--page", "page.html")
        found = json.loads(bare("-m", "deepsz_caffe", *command, "--json").stdout)
        assert found["images"] == 20
        assert 0 < found["outputs"][0]["relative_change"] < 0.5
        assert (bare.folder / "page.html").stat().st_size > 1000


def test_opencv_runs_the_network(bare):
    code = f"""
import warnings, numpy as np, cv2, deepsz_caffe
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ours = deepsz_caffe.opencv_net({str(DEPLOY)!r}, "net.dsz")
print(said[0].message)
deepsz_caffe.expand("net.dsz", "net.caffemodel")
truth = cv2.dnn.readNetFromCaffe({str(DEPLOY)!r}, "net.caffemodel")
images = np.load("inputs.npz")["data"]
for net in (ours, truth):
    net.setInput(images)
print(np.array_equal(ours.forward(), truth.forward()))
"""
    warning, same = bare("-c", code).stdout.decode().splitlines()
    assert "run dense: pycaffe can't be imported" in warning
    assert same == "True"
