"""The `.dsz` file: what is written is read, one layer alone, versions before this one too."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe import CodecError, DszFile, FormatError, InputError, codecs, decode, expand
from deepsz_caffe.dsz import reader
from deepsz_caffe.dsz.chunks import pack
from deepsz_caffe.dsz.header import read_header
from deepsz_caffe.dsz.layout import (
    MAGIC,
    BlobBound,
    ChangedBlob,
    Contents,
    Header,
    Measured,
    Origin,
    Packing,
    Rest,
    rest_checksum,
)
from deepsz_caffe.dsz.message import serialize
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.steps.encode import assemble, encode, encode_layer
from tests.fixtures.make import DIGESTS, FOLDER, sha256
from tests.hostile.samples import BOUNDS, lenet_caffemodel, pruned

FIXTURES = json.loads(DIGESTS.read_text())
MODELS = Path(__file__).resolve().parents[2] / "models"
SHIPPED = sorted(MODELS.glob("*/*.dsz"))


@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_version_1_stay_readable(name, tmp_path):
    expand(FOLDER / name, tmp_path / "x.caffemodel")
    weights = {layer: sha256(matrix.tobytes()) for layer, matrix in decode(FOLDER / name).items()}
    caffemodel = sha256((tmp_path / "x.caffemodel").read_bytes())
    assert weights | {"caffemodel": caffemodel} == FIXTURES[name]


def test_version_1_has_a_file_for_every_codec_and_no_other():
    assert sorted(FIXTURES) == sorted(path.name for path in FOLDER.iterdir())
    used = set()
    for name in FIXTURES:
        with DszFile(FOLDER / name) as file:
            used |= {layer.data_codec for layer in file.layers}
            used |= {layer.index_codec for layer in file.layers}
    assert used - {""} == {*codecs.DATA, *codecs.INDEX, *codecs.MATRIX}


def contents_of(file):
    """All that an open file holds."""
    chunks = tuple(
        replace(c, data=b) for c, b in zip(file._rest.chunks, sections(file), strict=True)
    )
    layers = tuple(file.layer(layer.name) for layer in file.layers)
    return Contents(layers, replace(file._rest, chunks=chunks), file.deploy(), file.origin)


def sections(file):
    content, end = file.path.read_bytes(), file.file_bytes
    start = end - sum(chunk.bytes for chunk in file._rest.chunks)
    for chunk in file._rest.chunks:
        yield content[start : start + chunk.bytes]
        start += chunk.bytes


@pytest.mark.parametrize("name", [f"{path.parent.name}/{path.name}" for path in SHIPPED])
def test_what_is_shipped_is_written_again_to_the_same_bytes(name, tmp_path):
    path = MODELS / name
    with DszFile(path) as file:
        contents = contents_of(file)
    write_dsz(tmp_path / "again.dsz", contents)
    assert (tmp_path / "again.dsz").read_bytes() == path.read_bytes()
    pruned_model = path.with_name("pruned.caffemodel")
    if not pruned_model.exists() or path.stem == "small":
        return  # of full size, or pruned by `--auto`: the weights are not shipped
    bounds = {layer.name: layer.error_bound for layer in contents.layers}
    again = encode(None, pruned_model, bounds, contents.origin.profile)
    assert again.layers == contents.layers
    assert again.rest == contents.rest
    assert again.origin.source_sha256 == contents.origin.source_sha256


def test_without_the_compiled_kernels_they_read_the_same():
    code = (
        "import json, sys; from pathlib import Path\n"
        "from deepsz_caffe import decode; from deepsz_caffe.codecs.kernels import COMPILED\n"
        "from tests.fixtures.make import FOLDER, sha256\n"
        "print(json.dumps([COMPILED] + [{layer: sha256(m.tobytes()) for layer, m in\n"
        "    decode(FOLDER / name).items()} for name in sys.argv[1:]]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *FIXTURES],
        env={**os.environ, "DEEPSZ_KERNELS": "python", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiled, *found = json.loads(run.stdout)
    assert not compiled
    for weights, expected in zip(found, FIXTURES.values(), strict=True):
        assert weights == {name: d for name, d in expected.items() if name != "caffemodel"}


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(texts, min_size=1, max_size=4, unique=True),
    st.binary(max_size=300),
    st.none() | st.binary(max_size=100),
    st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, names, rest, deploy, data):
    path = tmp_path_factory.getbasetemp() / "roundtrip.dsz"
    layers = tuple(
        encode_layer(name, pruned((5, 8), 0.3, seed), 0.01 * (seed + 1), profile)
        for seed, (name, profile) in enumerate(
            zip(names, ["paper", "small", "fast", "balanced"], strict=False)
        )
    )
    places = st.lists(
        st.integers(0, len(rest) + 3), min_size=len(names), max_size=len(names), unique=True
    )
    slots = tuple(sorted(data.draw(places)))
    # A reader refuses slots outside the rest: make it long enough.
    rest += bytes(3)
    digests = [layer.digest for layer in layers]
    contents = Contents(
        layers,
        Rest(len(rest), slots, (pack(rest),), rest_checksum(slots, digests, [rest])),
        deploy,
        Origin("small", "some 1.0", bytes(range(32)), Measured("test", 9, 8, 7, 9, 9)),
    )
    write_dsz(path, contents)
    with DszFile(path) as file:
        assert tuple(file.layer(layer.name) for layer in file.layers) == layers
        assert b"".join(file.rest()) == rest
        assert file.slots == slots
        assert file.deploy() == deploy
        assert file.origin == contents.origin
        summary = file.summary()
    assert summary["file_bytes"] == path.stat().st_size
    assert summary["fc_bytes"] == sum(layer.bytes for layer in layers) < path.stat().st_size
    assert json.loads(json.dumps(summary)) == summary


@pytest.fixture
def contents(tmp_path):
    (tmp_path / "net.caffemodel").write_bytes(lenet_caffemodel())
    return encode(None, tmp_path / "net.caffemodel", BOUNDS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "ip2"}, "layer ip2: two layers have this name"),
        ({"name": ""}, "it has no name"),
        ({"rows": 0}, "no rows"),
        ({"error_bound": 0.0}, "error bound"),
        ({"error_bound": float("inf")}, "error bound"),
        ({"nonzeros": 60 * 196 + 1}, "non-zeros"),
        ({"nonzeros": 0}, "non-zeros and data codec disagree"),
        ({"index_codec": "zstd"}, "index codec and bytes disagree"),
        ({"index_count": 5}, "index codec and count disagree"),
    ],
)
def test_what_is_not_allowed_is_not_written(contents, tmp_path, change, says):
    first, *others = contents.layers
    with pytest.raises(InputError, match=says):
        write_dsz(tmp_path / "x", replace(contents, layers=(replace(first, **change), *others)))
    assert not (tmp_path / "x").exists()


def test_changed_biases_make_a_file_of_version_2_that_declares_their_bounds(tmp_path):
    source, path, back = (tmp_path / name for name in ("a.caffemodel", "x.dsz", "b.caffemodel"))
    source.write_bytes(lenet_caffemodel())
    model = read_caffemodel(source)
    layers = [encode_layer(name, model[name].matrix, bound) for name, bound in BOUNDS.items()]
    old = {name: model[name].blobs[1].data for name in BOUNDS}
    new = {name: np.rint(values * 16).astype("<f4") / 16 + 0 for name, values in old.items()}
    changes = [ChangedBlob(name, 1, 1 / 32, values.tobytes()) for name, values in new.items()]
    assembled = assemble(model, list(BOUNDS), layers, "small", changes=changes)
    assert assembled.rest.chunks[0].packing == Packing.GRIDS
    write_dsz(path, assembled)
    assert path.read_bytes()[8] == 2
    with DszFile(path) as file:
        declared = [{"layer": n, "blob": 1, "error_bound": 1 / 32} for n in BOUNDS]
        assert file.summary()["rest_bounds"] == declared
    expand(path, back)
    expanded = read_caffemodel(back)
    for layer in model.layers:
        for number, blob in enumerate(layer.blobs):
            values = expanded[layer.name].blobs[number].data
            if layer.name in BOUNDS and number == 1:
                np.testing.assert_array_equal(values, new[layer.name])
                assert not np.array_equal(values, blob.data)
            elif layer.name not in BOUNDS:
                np.testing.assert_array_equal(values, blob.data)
    # The header's checksum has the version in it; a file that says another is refused.
    content = bytearray(path.read_bytes())
    content[8] = 1
    path.write_bytes(content)
    with pytest.raises(FormatError):
        DszFile(path)
    without = replace(assembled, rest=replace(assembled.rest, bounds=()))
    with pytest.raises(InputError, match="blobs on a grid belong to version 2"):
        write_dsz(path, without)
    beyond = [replace(change, error_bound=1e-6) for change in changes]
    with pytest.raises(CodecError, match="blob 1 is beyond its bound"):
        assemble(model, list(BOUNDS), layers, "small", changes=beyond)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ([("ip1", 0, 0.1)], "blob 0 of layer ip1: it has two bounds"),
        ([("ip1", 1, 0.1), ("ip1", 1, 0.2)], "two bounds"),
        ([("ip1", 1, float("inf"))], "error bound"),
        ([("", 1, 0.1)], "no name"),
    ],
)
def test_bounds_of_blobs_that_make_no_sense_are_not_written(contents, tmp_path, bounds, says):
    rest = replace(contents.rest, bounds=tuple(BlobBound(*each) for each in bounds))
    with pytest.raises(InputError, match=says):
        write_dsz(tmp_path / "x", replace(contents, rest=rest))


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_does_not_fit_the_bounds_is_refused(contents, version):
    bounds = (BlobBound("ip1", 1, 0.1),) if version == 1 else ()
    header = Header(contents.layers, replace(contents.rest, bounds=bounds), None, contents.origin)
    content = serialize(header)
    sizes = struct.pack("<II", version, len(content))
    preamble = MAGIC + sizes + struct.pack("<I", crc32(content, crc32(sizes)))
    with pytest.raises(FormatError, match="belong to version 2, and to it alone"):
        read_header(preamble, content)


def test_the_sizes_of_the_sections_and_the_header_make_the_file(contents, tmp_path):
    write_dsz(tmp_path / "x.dsz", contents)
    content = (tmp_path / "x.dsz").read_bytes()
    header = int.from_bytes(content[12:16], "little")
    sections = sum(layer.data_bytes + layer.index_bytes for layer in contents.layers)
    sections += sum(len(chunk.data) for chunk in contents.rest.chunks)
    assert len(content) == 20 + header + sections


def test_a_file_that_is_cut_anywhere_is_refused(contents, tmp_path):
    write_dsz(tmp_path / "x.dsz", contents)
    content = (tmp_path / "x.dsz").read_bytes()
    for size in np.linspace(0, len(content) - 1, 60, dtype=int):
        (tmp_path / "cut.dsz").write_bytes(content[:size])
        with pytest.raises(FormatError):
            DszFile(tmp_path / "cut.dsz")


def test_a_closed_file_says_so(contents, tmp_path):
    write_dsz(tmp_path / "x.dsz", contents)
    with DszFile(tmp_path / "x.dsz") as file:
        pass
    with pytest.raises(InputError, match="the file is closed"):
        file.layer("ip1")


def test_what_no_call_can_read_at_once_is_read_in_pieces(contents, tmp_path, monkeypatch):
    write_dsz(tmp_path / "x.dsz", contents)
    with DszFile(tmp_path / "x.dsz") as file:
        whole = [file.layer(layer.name).data for layer in file.layers], b"".join(file.rest())
        monkeypatch.setattr(reader, "_PIECE", 7)
        assert [file.layer(layer.name).data for layer in file.layers] == whole[0]
        assert b"".join(file.rest()) == whole[1]
