"""What ``deepsz formats`` says, against what the package does."""

import importlib
import json
import re

import numpy as np
import pytest

from deepsz_caffe import codecs
from deepsz_caffe.cli.main import COMMANDS
from deepsz_caffe.network.layers import KINDS, is_compressible
from deepsz_caffe.runtime import formats
from deepsz_caffe.runtime.formats import codec_formats, file_formats, layer_formats


@pytest.fixture
def said(deepsz):
    return json.loads(deepsz("formats", "--json").stdout)


def test_every_codec_is_listed_and_those_that_are_installed_work(said):
    listed = {(each["encodes"], each["name"]): each["installed"] for each in said["codecs"]}
    registries = {
        "non-zero weights": codecs.DATA,
        "their positions": codecs.INDEX,
        "whole matrices": codecs.MATRIX,
    }
    assert set(listed) == {(what, name) for what, each in registries.items() for name in each}
    for (what, name), installed in listed.items():
        if not installed:
            continue
        codec = registries[what][name]
        if what == "their positions":
            array, coder = np.arange(9, dtype=np.uint8), codec()
        else:
            shape = (3, 3) if what == "whole matrices" else 9
            array, coder = np.linspace(1, 2, 9, dtype=np.float32).reshape(shape), codec(0.01)
        back = coder.decode(coder.encode(array), np.empty_like(array))
        assert np.abs(back.astype(np.float64) - array).max() <= 0.0101


def test_layers_are_those_that_can_be_compressed(said):
    assert set(said["layers"]) == set(KINDS)
    for kind, group in said["layers"].items():
        assert is_compressible(kind, group or "all")


def test_commands_exist(said):
    for each in said["files"]:
        for text in (each["read"], each["written"]):
            if text and not re.search("wherever|all that", text):
                names = {part.split()[0] for part in text.split(", ")}
                assert names <= set(COMMANDS), each


def test_what_is_missing_is_named(monkeypatch):
    assert not any(each.missing for each in file_formats())  # this machine has all of it
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "cv2" else name)
    lacking = {each.name for each in file_formats() if each.missing == ("OpenCV",)}
    assert lacking == {each.name for each in file_formats() if "OpenCV" in each.needs}
    assert lacking
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "zfpy" else name)
    assert [each.name for each in codec_formats() if not each.installed] == ["zfp"]
    for module in formats._PARTS.values():
        importlib.import_module(module)


def test_the_table_is_for_people(deepsz):
    text = deepsz("formats").stdout
    assert ".dsz, version 1" in text
    assert "InnerProduct (--layers fc)" in text
    assert "Embed (--layers NAME)" in text
    assert layer_formats()["Embed"] == ""
