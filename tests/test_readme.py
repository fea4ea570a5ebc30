"""README's examples of what is done with a file that was compressed, on the shipped LeNet-5."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKS = """
import cv2, numpy as np
image = np.random.default_rng(1).random((1, 1, 28, 28), np.float32)
net.blobs["data"].reshape(*image.shape)
net.blobs["data"].data[...] = image
by_caffe = net.forward()["prob"].copy()
cv_net.setInput(image)
truth = cv2.dnn.readNetFromCaffe("deploy.prototxt", "net.caffemodel")
truth.setInput(image)
assert scores.shape == (1, 10)
assert np.allclose(cv_net.forward(), truth.forward(), atol=1e-5)
assert np.allclose(by_caffe, truth.forward(), atol=1e-5)
assert np.array_equal(weights["ip1"], deepsz_caffe.read_caffemodel("net.caffemodel")["ip1"].matrix)
there = zarr.open_array("weights.zarr", mode="r")[:]
assert 0 < np.abs(there - weights["ip1"]).max() <= 0.01
assert not there[weights["ip1"] == 0].any()
assert sum(f.stat().st_size for f in Path("weights.zarr").rglob("*")) < 4 * there.size / 20
"""


def blocks(section, language):
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "prototxt" / "lenet_5" / "deploy.prototxt", tmp_path)
    shutil.copy(ROOT / "models" / "lenet_5" / "paper.dsz", tmp_path / "net.dsz")
    return tmp_path


def test_what_comes_out_is_used_as_it_says(folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    (shell,) = blocks("Use what comes out", "bash")
    (expand,) = (line for line in shell.splitlines() if line.startswith("deepsz expand"))
    run("sh", "-c", expand.replace("--prototxt deploy.prototxt", ""))
    head = "from pathlib import Path\nimport numpy as np\nimport deepsz_caffe\n"
    python = blocks("Use what comes out", "python")
    assert len(python) == 4
    run(sys.executable, "-c", head + "\n".join(python) + CHECKS)
