"""Hostile files by the thousand, and those that have a story; `make fuzz` is the long run."""

import faulthandler
import os
import struct
from random import Random

import pytest

from deepsz_caffe import DszFile, FormatError, LimitError, Limits, codecs, decode, expand
from deepsz_caffe.dsz import isolated
from deepsz_caffe.dsz.layout import MAGIC
from tests.hostile import fuzz, guided
from tests.hostile.inputs import inputs
from tests.hostile.mutations import Forgery, damage, forge


def test_good_files_taken_apart_and_put_together_are_the_same(samples):
    for sample in samples:
        assert Forgery(sample.file).file() == sample.file, sample.name


def test_a_seed_gives_the_same_file(sample):
    for make in (damage, forge):
        assert make(sample.file, Random(1)) == make(sample.file, Random(1)) != sample.file


def test_three_thousand_hostile_files(samples, tmp_path):
    results = dict(fuzz.run(samples, range(3000), tmp_path))
    assert len(results) == 3000
    failures = {seed: result for seed, result in results.items() if fuzz.is_failure(result)}
    assert not failures
    # Most must be refused for what they are, and some changes do no harm.
    assert set(results.values()) == {"FormatError", "LimitError", "right"}


def test_three_hundred_of_every_other_kind(tmp_path):
    for kind in inputs(tmp_path):
        results = dict(fuzz.run([kind], range(300), tmp_path))
        assert not [result for result in results.values() if fuzz.is_failure(result)], kind.name
        assert "read" in results.values()
        assert kind.name == "journal" or len(set(results.values())) > 1


def test_libfuzzer_starts_from_good_input(tmp_path):
    found = guided.targets(tmp_path)
    names = {"header", "caffemodel", "json", "grids"}
    assert {*names, *codecs.DATA, *codecs.INDEX, *codecs.MATRIX} == {*found}
    for target, good in found.values():
        for content in good:
            target(content)


def abort():
    faulthandler.disable()  # the child is forked, and would print what pytest prints of a crash
    os.abort()


def test_a_child_that_dies_is_found(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "outcome", lambda *_: struct.unpack("<Q", b"")[0])
    assert dict(fuzz.run(samples, range(1), tmp_path))[0].startswith("ALIEN")
    monkeypatch.setattr(fuzz, "outcome", lambda *_: abort())
    assert dict(fuzz.run(samples, range(2), tmp_path)) == {0: "CRASH SIGABRT", 1: "CRASH SIGABRT"}
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "outcome", lambda *_: fuzz.time.sleep(60))
    assert dict(fuzz.run(samples, range(1), tmp_path)) == {0: "HANG"}


def test_layers_whose_places_were_changed_do_not_expand(sample, tmp_path):
    forgery = Forgery(sample.file)
    forgery.streams.reverse()
    layers = list(forgery.header.layers)[::-1]
    del forgery.header.layers[:]
    forgery.header.layers.extend(layers)
    (tmp_path / "x.dsz").write_bytes(forgery.file())
    with pytest.raises(FormatError, match="rest"):
        expand(tmp_path / "x.dsz", tmp_path / "x.caffemodel")
    assert not (tmp_path / "x.caffemodel").exists()


def test_a_bomb_is_refused_before_anything_is_allocated(sample, tmp_path):
    forgery = Forgery(sample.file)
    layer = forgery.header.layers[0]
    layer.rows, layer.columns = 1 << 20, 1 << 20
    (tmp_path / "x.dsz").write_bytes(forgery.file())
    with DszFile(tmp_path / "x.dsz") as file:
        assert file["ip1"].dense_bytes == 4 << 40
    for decoder in (decode, isolated.decode):
        with pytest.raises(LimitError, match="the limit is"):
            decoder(tmp_path / "x.dsz", limits=Limits(memory=1 << 30))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a .dsz file"),
        (MAGIC[:5], "not a .dsz file"),
        (MAGIC + b"\1\0\0\0", "ends in the preamble"),
        (MAGIC.replace(b"\r\n", b"\n") + bytes(50), "text mode"),
        (MAGIC + struct.pack("<III", 3, 0, 0), "version 3"),
        (MAGIC + struct.pack("<III", 1, 1 << 30, 0), "1073741824 bytes"),
    ],
)
def test_other_files(tmp_path, content, says):
    (tmp_path / "x.dsz").write_bytes(content)
    with pytest.raises(FormatError, match=says):
        DszFile(tmp_path / "x.dsz")


def test_an_unknown_codec_is_named(sample, tmp_path):
    forgery = Forgery(sample.file)
    forgery.header.layers[1].data_codec = "tomorrow"
    (tmp_path / "x.dsz").write_bytes(forgery.file())
    with pytest.raises(FormatError, match=r"x\.dsz, layer ip2: codec 'tomorrow' is unknown"):
        decode(tmp_path / "x.dsz")


def test_forged_files_isolated(samples, tmp_path):
    for seed in (1, 2, 3, 5, 6, 7):
        sample = samples[seed % len(samples)]
        (tmp_path / "x.dsz").write_bytes(fuzz.hostile(sample, seed))
        try:
            decoded = isolated.decode(tmp_path / "x.dsz", limits=Limits(memory=fuzz.MEMORY))
        except FormatError:
            continue
        assert {name: m.tobytes() for name, m in decoded.items()} == sample.weights
