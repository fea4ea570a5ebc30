"""What ``deepsz doctor`` finds in this environment, where everything is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("asked", "found"), [("", "compiled"), ("python", "")])
def test_doctor_finds_caffe_and_says_which_kernels_run(asked, found):
    done = subprocess.run(
        [Path(sys.executable).with_name("deepsz"), "doctor", "--json"],
        env=os.environ | {"DEEPSZ_KERNELS": asked},
        capture_output=True,
        check=True,
    )
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert "layer types" in findings["Caffe"]["found"]
    assert "OpenBLAS" in findings["Caffe's BLAS"]["found"]
    kernels = findings["our C kernels"]
    assert kernels["found"] == found
    assert bool(kernels["advice"]) == (not found)
