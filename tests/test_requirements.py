"""The pins of the installer and the image: complete, and each with its digest."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOCKER = Path(__file__).resolve().parent.parent / "docker"
EXTRAS = ("", "caffe", "plots", "cluster", "zfp", "brotli")  # of the image
PIN = re.compile(r"(\S+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")


@pytest.fixture(scope="module")
def pins():
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches)
    return {canonicalize_name(match[1]): match[2] for match in matches}


def test_what_the_package_asks_for_is_pinned(pins):
    wanted = [Requirement(text) for text in requires("deepsz-caffe")]
    for requirement in wanted:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_what_the_installer_fetches_is_pinned(pins):
    script = (DOCKER / "install-caffe.sh").read_text()
    (fetched,) = re.findall(r"^fetched=\((.*)\)$", script, re.MULTILINE)
    assert {"numpy", "protobuf", "setuptools"} <= set(fetched.split()) <= set(pins)
    # Every pip command that may fetch does so under digests.
    for command in re.findall(r"pip (?:install|download)(?:.*\\\n)*.*", script):
        local = "--no-deps" in command and "caffe-*.whl" in command
        assert local or "--require-hashes" in command or command.endswith("version-check)")
    uses = re.findall(r'^"\$\{pip_install\[@\]\}".*', script, re.MULTILINE)
    assert uses
    assert all("--require-hashes --only-binary :all:" in use for use in uses)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_the_image_installs_nothing_else(name):
    text = (DOCKER / name).read_text()
    for command in re.findall(r"pip install(?:.*\\\n)*.*", text):
        assert "--require-hashes" in command or "--no-deps" in command
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (DOCKER.parent / path).exists()
