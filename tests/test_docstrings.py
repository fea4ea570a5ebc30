"""The examples in the package's docstrings, each module's as a test."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "deepsz_caffe"
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_codecs_and_the_file_have_examples():
    for module in ("codecs.registry", "codecs.profiles", "codecs.varint", "dsz.decode"):
        assert f"deepsz_caffe.{module}" in WITH_EXAMPLES
