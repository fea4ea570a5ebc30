"""Package `deepsz-caffe`: the library `deepsz_caffe` and the command `deepsz`."""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

# Ids and places of the codecs stand in the package, which needs nothing to say them.
sys.path.insert(0, str(Path(__file__).parent))
from deepsz_caffe.codecs import DATA, INDEX, MATRIX

setup(
    name="deepsz-caffe",
    version="0.1.0",
    description="DeepSZ (HPDC 2019) for Caffe: error-bounded compression of fully connected layers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    python_requires=">=3.11",
    # Said explicitly, an editable install is a path, not a finder that every Python start imports.
    package_dir={"": "."},
    packages=find_packages(include=["deepsz_caffe", "deepsz_caffe.*"]),
    package_data={"deepsz_caffe": ["py.typed", "**/*.proto", "*/native/*.[ch]", "*/native/*.cu"]},
    install_requires=[
        "click>=8.1",
        "msgspec>=0.19",
        "numcodecs>=0.13",
        "numpy>=1.26",
        "protobuf>=4.25",
        "pysz>=1.1.0",
        "rich>=13",
        "threadpoolctl>=3.5",
        "zstandard>=0.22",
    ],
    # Without a C compiler the package installs too: slow twins in Python do the same.
    ext_modules=[
        Extension(
            "deepsz_caffe.codecs._kernels",
            [
                f"deepsz_caffe/codecs/native/{name}.c"
                for name in ("module", "mixing", "planes", "scatter")
            ],
            depends=[f"deepsz_caffe/codecs/native/{name}.h" for name in ("digest", "kernels")],
            extra_compile_args=["-O3", "-std=c99", "-Wall", "-Wextra"],
            optional=True,
        ),
        Extension(
            "deepsz_caffe.running._kernels",
            [
                f"deepsz_caffe/running/native/{name}.c"
                for name in ("module", "form", "lists", "product")
            ],
            depends=[
                "deepsz_caffe/codecs/native/digest.h",
                *(f"deepsz_caffe/running/native/{name}.h" for name in ("running", "lanes", "rows")),
            ],
            # A product fused with an addition would make results differ among processors.
            extra_compile_args=["-O3", "-std=c99", "-ffp-contract=off", "-Wall", "-Wextra"],
            optional=True,
        ),
    ],
    extras_require={
        # Caffe itself is not on PyPI: docker/install-caffe.sh
        "caffe": ["lmdb>=1.4", "h5py>=3.10", "pillow>=10"],
        # OpenCV 5 does not read Caffe's networks any more
        "opencv": ["opencv-python-headless>=4.10,<5"],
        "plots": ["matplotlib>=3.8"],
        "cluster": ["distributed>=2024.1"],
        "mpi": ["mpi4py>=4"],
        # numcodecs 0.16 fails to import beside zfpy 1.0.1.post0
        "zfp": ["zfpy>=1.0.1,!=1.0.1.post0"],
        "brotli": ["brotli>=1.2"],
        "fuzz": ["atheris>=3"],
        "dev": [
            "hypothesis>=6.100",
            "mypy>=1.11",
            "opencv-python-headless>=4.10,<5",
            "psutil>=5.9",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "zarr>=3.1",
        ],
    },
    entry_points={
        "console_scripts": ["deepsz = deepsz_caffe.cli:main"],
        "numcodecs.codecs": [
            line for registry in (DATA, INDEX, MATRIX) for line in registry.entry_points()
        ],
    },
)
