"""What of deepsz's surroundings is installed here: the facts behind ``deepsz doctor``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

#: Run in a child process: importing Caffe can abort, and asks BLAS and glog for memory and logs.
_CAFFE_PROBE = """
import ctypes, json, os
os.environ["GLOG_minloglevel"] = "3"
import caffe
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if ".so" in line}
blas = sorted(os.path.basename(f) for f in files if "openblas" in f and "numpy" not in f
              and "scipy" not in f)
kernels = ""
for file in files:
    if os.path.basename(file) in blas:
        library = ctypes.CDLL(file)
        if hasattr(library, "openblas_get_config"):
            library.openblas_get_config.restype = ctypes.c_char_p
            kernels = library.openblas_get_config().decode()
cuda = any("libcudart" in f or "libcublas" in f for f in files)
print(json.dumps({"version": caffe.__version__, "layers": len(caffe.layer_type_list()),
                  "blas": kernels or ", ".join(blas), "gpu": cuda}))
"""


@dataclass(frozen=True)
class Finding:
    """One part: its name, what was found ("" = missing), and what the user can do about it."""

    name: str
    found: str
    advice: str = ""
    required: bool = True


def examine() -> list[Finding]:
    """Look for everything that some command needs; takes about a second."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("Python", python), *_caffe()]
    for package in ("pysz", "numcodecs", "numpy", "protobuf", "zstandard"):
        findings.append(_package(package, "pip install deepsz-caffe", required=True))
    findings.append(_kernels())
    findings.append(_package("lmdb", "pip install 'deepsz-caffe[caffe]', to make and read LMDBs"))
    findings.append(_package("h5py", "pip install 'deepsz-caffe[caffe]', for .caffemodel.h5 files"))
    findings.append(_package("matplotlib", "pip install 'deepsz-caffe[plots]', for figures"))
    findings.append(_package("zfpy", "pip install 'deepsz-caffe[zfp]', to compare with ZFP"))
    findings.append(
        _package("distributed", "pip install 'deepsz-caffe[cluster]', to assess on a Dask cluster")
    )
    return findings


def _package(name: str, advice: str, *, required: bool = False) -> Finding:
    try:
        return Finding(name, metadata.version(name), required=required)
    except metadata.PackageNotFoundError:
        return Finding(name, "", advice, required=required)


def _kernels() -> Finding:
    from deepsz_caffe.codecs.kernels import COMPILED

    if COMPILED:
        return Finding("our C kernels", "compiled")
    advice = "apt-get install gcc python3-dev and install deepsz-caffe again: it gets faster"
    return Finding("our C kernels", "", advice, required=False)


def _caffe() -> list[Finding]:
    probe = subprocess.run(
        [sys.executable, "-c", _CAFFE_PROBE], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        reason = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else "it aborts"
        advice = f"docker/install-caffe.sh {sys.prefix} ({reason})"
        return [Finding("Caffe", "", advice, required=False)]
    facts = json.loads(probe.stdout)
    return [
        Finding("Caffe", f"{facts['version']}, {facts['layers']} layer types", required=False),
        Finding("Caffe's BLAS", facts["blas"], required=False),
        Finding("Caffe on GPUs", "yes" if facts["gpu"] else "no, CPU only", required=False),
    ]
