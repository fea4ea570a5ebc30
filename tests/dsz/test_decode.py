"""Decoding files: piecewise, into given arrays, back to a caffemodel; damage is found."""

import dataclasses
import subprocess
import sys
from zlib import crc32

import numpy as np
import pytest

import deepsz_caffe
from deepsz_caffe import (
    DszFile,
    FormatError,
    InputError,
    LimitError,
    Limits,
    codecs,
    decode,
    expand,
)
from deepsz_caffe.dsz.chunks import pack, split
from deepsz_caffe.dsz.layout import Rest, rest_checksum
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import split_weights, write_caffemodel
from deepsz_caffe.steps.encode import encode, write_dsz
from tests.hostile.samples import BOUNDS, lenet_caffemodel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("decode") / "pruned.caffemodel"
    path.write_bytes(lenet_caffemodel())
    return path


@pytest.fixture(scope="module")
def packed(model):
    path = model.with_suffix(".dsz")
    write_dsz(path, encode(None, model, BOUNDS))
    return path


def test_functions_go_before_modules_of_their_name():
    assert callable(deepsz_caffe.encode)
    assert deepsz_caffe.decode is decode


def test_weights_are_within_their_bounds(model, packed):
    weights = decode(packed)
    assert list(weights) == list(BOUNDS)
    for name, matrix in weights.items():
        original = read_caffemodel(model)[name].matrix
        assert np.abs(matrix.astype(np.float64) - original).max() <= BOUNDS[name]
        assert not matrix[original == 0].any()


def test_expand_gives_the_caffemodel_with_the_decoded_weights(model, packed, tmp_path):
    expand(packed, tmp_path / "expanded.caffemodel")
    write_caffemodel(tmp_path / "expected.caffemodel", read_caffemodel(model), decode(packed))
    expanded = (tmp_path / "expanded.caffemodel").read_bytes()
    assert expanded == (tmp_path / "expected.caffemodel").read_bytes()
    assert len(expanded) == model.stat().st_size


def test_layers_that_are_not_named_stay_as_they_are(model, tmp_path):
    write_dsz(tmp_path / "a.dsz", encode(None, model, {"ip2": 0.02}))
    expand(tmp_path / "a.dsz", tmp_path / "a.caffemodel")
    original, expanded = read_caffemodel(model), read_caffemodel(tmp_path / "a.caffemodel")
    for before, after in zip(original.layers, expanded.layers, strict=True):
        for blob, (a, b) in enumerate(zip(before.blobs, after.blobs, strict=True)):
            if (before.name, blob) != ("ip2", 0):
                np.testing.assert_array_equal(a.data, b.data)


def test_one_layer_needs_nothing_of_the_others(packed, tmp_path):
    with DszFile(packed) as file:
        last = file.layers[-1]
        expected = decode(packed)[last.name]
    # Damage all of the first layers' sections.
    data = bytearray(packed.read_bytes())
    with DszFile(packed) as file:
        start = file.section_offset(file.layers[0].name)
        end = file.section_offset(last.name)
    data[start:end] = bytes(end - start)
    (tmp_path / "damaged.dsz").write_bytes(data)
    with DszFile(tmp_path / "damaged.dsz") as file:
        np.testing.assert_array_equal(deepsz_caffe.decode_layer(file.layer(last.name)), expected)
        with pytest.raises(FormatError, match="checksum"):
            file.layer(file.layers[0].name)


def test_into_given_arrays(packed):
    expected = decode(packed, threads=1)
    out = {name: np.full(matrix.shape, 7, np.float32) for name, matrix in expected.items()}
    decoded = decode(packed, out=out)
    for name in expected:
        assert decoded[name] is out[name]
        np.testing.assert_array_equal(decoded[name], expected[name])
    with pytest.raises(InputError, match="C-contiguous"):
        decode(packed, out={"ip1": np.zeros((3, 4), np.float32)})


def test_more_memory_than_allowed(packed, tmp_path):
    with pytest.raises(LimitError, match="limit is 30,000"):
        decode(packed, limits=Limits(memory=30_000))
    with pytest.raises(LimitError):
        expand(packed, tmp_path / "out", limits=Limits(memory=30_000))
    assert not list(tmp_path.iterdir())
    decode(packed, limits=Limits(memory=10_000_000))


def test_the_same_input_gives_the_same_bytes(model, packed, tmp_path):
    write_dsz(tmp_path / "again.dsz", encode(None, model, dict(reversed(BOUNDS.items()))))
    assert (tmp_path / "again.dsz").read_bytes() == packed.read_bytes()


def test_a_codec_that_decodes_to_other_weights_is_found(packed):
    # What an attacker, or a fault, would do: all checksums are right, the values are not.
    with DszFile(packed) as file:
        layer = file.layer("ip1")
    other = deepsz_caffe.encode_layer("ip1", np.ones(layer.shape, np.float32), layer.error_bound)
    forged = dataclasses.replace(
        layer,
        **{f: getattr(other, f) for f in ("data", "index", "data_codec", "index_codec")},
        **{f: getattr(other, f) for f in ("column_major", "index_count")},
        checksum=crc32(other.index, crc32(other.data)),
    )
    with pytest.raises(FormatError, match="not those that were encoded"):
        deepsz_caffe.decode_layer(forged)
    with pytest.raises(FormatError, match="codec 'next' is unknown"):
        deepsz_caffe.decode_layer(dataclasses.replace(layer, data_codec="next"))


def with_packed_layer(model):
    """Contents whose first layer is packed, which small layers otherwise are not."""
    contents = encode(None, model, BOUNDS)
    first, *others = contents.layers
    data = codecs.Packed(first.error_bound).encode(read_caffemodel(model)[first.name].matrix)
    first = dataclasses.replace(
        first, data=data, data_codec="packed", data_bytes=len(data), checksum=crc32(data)
    )
    return dataclasses.replace(contents, layers=(first, *others))


def test_expanding_waits_for_nothing_that_it_does_not_need(model, tmp_path):
    contents = with_packed_layer(model)
    write_dsz(tmp_path / "all.dsz", contents)
    expand(tmp_path / "all.dsz", tmp_path / "all")
    write_caffemodel(tmp_path / "c", read_caffemodel(model), decode(tmp_path / "all.dsz"))
    assert (tmp_path / "all").read_bytes() == (tmp_path / "c").read_bytes()
    # The packed layer alone.
    slots, pieces = contents.rest.slots[:1], list(split_weights(read_caffemodel(model), ["ip1"])[0])
    pieces = [bytes(piece) for piece in split(pieces)]
    digests = [contents.layers[0].digest]
    rest = Rest(
        sum(map(len, pieces)),
        slots,
        tuple(map(pack, pieces)),
        rest_checksum(slots, digests, pieces),
    )
    write_dsz(
        tmp_path / "a.dsz", dataclasses.replace(contents, layers=contents.layers[:1], rest=rest)
    )
    code = (
        "import sys; from deepsz_caffe import expand; expand('a.dsz', 'b')\n"
        "print([m for m in ('google', 'pysz', 'matplotlib', 'h5py', 'rich') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"
    write_caffemodel(tmp_path / "c", read_caffemodel(model), decode(tmp_path / "a.dsz"))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("codec", ["packed", "mixing"])
def test_an_expanded_layer_of_other_weights_is_found(codec, packed, model, tmp_path):
    # As above, in the file.
    contents = with_packed_layer(model) if codec == "packed" else encode(None, model, BOUNDS)
    assert contents.layers[0].data_codec == codec
    first, *others = contents.layers
    wrong = dataclasses.replace(first, digest=first.digest ^ 1)
    slots, rest = contents.rest.slots, contents.rest
    with DszFile(packed) as file:
        pieces = [bytes(piece) for piece in file.rest()]
    digests = [layer.digest for layer in (wrong, *others)]
    rest = dataclasses.replace(rest, checksum=rest_checksum(slots, digests, pieces))
    write_dsz(tmp_path / "a.dsz", dataclasses.replace(contents, layers=(wrong, *others), rest=rest))
    with pytest.raises(FormatError, match=r"a\.dsz, layer ip1: the decoded weights are not those"):
        expand(tmp_path / "a.dsz", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.dsz"]


def test_declared_nonzeros_that_lie_are_found(packed, tmp_path):
    """The digest made right too, as an attacker can."""
    with DszFile(packed) as file:
        layer = file.layer("ip1")
    weights = deepsz_caffe.decode_layer(layer)
    digest, nonzeros = codecs.tally(weights)
    assert nonzeros == layer.nonzeros == np.count_nonzero(weights)
    for lie in (nonzeros - 1, nonzeros + 1, weights.size):
        with pytest.raises(FormatError, match=f"layer ip1: it has {nonzeros} non-zeros, not {lie}"):
            deepsz_caffe.decode_layer(layer.sealed(digest, lie))


def test_a_declared_bound_that_lies_is_found(model, tmp_path):
    matrix = read_caffemodel(model)["ip1"].matrix
    for profile in ("paper", "small", "fast", "sz+raw", "zfp+raw"):
        layer = deepsz_caffe.encode_layer("ip1", matrix, 0.02, profile)
        with pytest.raises(FormatError, match="layer ip1"):
            deepsz_caffe.decode_layer(dataclasses.replace(layer, error_bound=0.01))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_part_is_that_of_its_layer(threads, model, tmp_path):
    contents = with_packed_layer(model)
    first = contents.layers[0]
    broken = first.data[:-1] + bytes([first.data[-1] ^ 255])
    forged = dataclasses.replace(first, data=broken).sealed(1, first.nonzeros)
    with pytest.raises(FormatError, match="layer ip1"):
        deepsz_caffe.decode_layer(forged, threads=threads)
