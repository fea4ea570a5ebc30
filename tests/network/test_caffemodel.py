"""Weights files of all of Caffe's ages, generated, against Caffe's own reading of them."""

import numpy as np
import pytest

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import wire
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.writer import join_weights, split_weights, write_bare, write_caffemodel
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

DEFINITION = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 4 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 5 } }
layer { name: "turned" type: "InnerProduct" bottom: "ip" top: "turned"
  inner_product_param { num_output: 3 transpose: true bias_term: false } }
"""
SHAPES = {"conv": [(6, 2, 3, 3), (6,)], "ip": [(5, 96), (5,)], "turned": [(5, 3)]}
RANDOM = np.random.default_rng(11)
VALUES = {
    # Half precision holds these exactly.
    name: [RANDOM.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in shapes]
    for name, shapes in SHAPES.items()
}


def field(number, payload):
    return wire.tag(number, wire.LEN) + wire.varint(len(payload)) + payload


def number(field_number, value):
    return wire.tag(field_number, wire.VARINT) + wire.varint(value)


def unpacked(field_number, array, kind):
    return b"".join(wire.tag(field_number, kind) + value.tobytes() for value in array.ravel())


def packed(array):
    return field(5, array.astype("<f4").tobytes())


def split(array):
    flat = array.ravel()
    half = flat.size // 2
    return (
        packed(flat[:half])
        + unpacked(5, flat[half : half + 2], wire.I32)
        + unpacked(5, flat[half + 2 : half + 3], wire.I32)
        + packed(flat[half + 3 :])
    )


VALUES_AS = {
    "packed": packed,
    "unpacked": lambda array: unpacked(5, array.astype("<f4"), wire.I32),
    "split": split,
    "doubles": lambda array: field(8, array.astype("<f8").tobytes()),
    "unpacked doubles": lambda array: unpacked(8, array.astype("<f8"), wire.I64),
    # Doubles go before floats.
    "both": lambda array: field(8, array.astype("<f8").tobytes()) + packed(array + 1),
    "half": lambda array: number(10, 2) + field(12, array.astype("<f2").tobytes()),
    "raw floats": lambda array: field(12, array.astype("<f4").tobytes()) + number(10, 1),
    "raw doubles": lambda array: field(12, array.astype("<f8").tobytes()),
}


def shape_of(array):
    return field(7, field(1, b"".join(wire.varint(dim) for dim in array.shape)))


def unpacked_shape_of(array):
    return field(7, b"".join(number(1, dim) for dim in array.shape))


def old_shape_of(array):
    four = (1,) * (4 - array.ndim) + array.shape
    return b"".join(number(n, dim) for n, dim in enumerate(four, 1))


def blobs(name, values_as, shape_as):
    return [shape_as(array) + VALUES_AS[values_as](array) for array in VALUES[name]]


def new_file(values_as, shape_as=shape_of):
    types = {"conv": b"Convolution", "ip": b"InnerProduct", "turned": b"InnerProduct"}
    return field(1, b"net") + b"".join(
        field(
            100,
            field(1, name.encode())
            + field(2, types[name])
            + b"".join(field(7, blob) for blob in blobs(name, values_as, shape_as)),
        )
        for name in VALUES
    )


def v1_file(values_as, shape_as=old_shape_of):
    types = {"conv": 4, "ip": 14, "turned": 14}
    return field(1, b"net") + b"".join(
        field(
            2,
            field(4, name.encode())
            + number(5, types[name])
            + b"".join(field(6, blob) for blob in blobs(name, values_as, shape_as)),
        )
        for name in VALUES
    )


def v0_file(values_as, shape_as=old_shape_of):
    types = {"conv": b"conv", "ip": b"innerproduct", "turned": b"innerproduct"}
    return field(1, b"net") + b"".join(
        field(
            2,
            field(
                1,
                field(1, name.encode())
                + field(2, types[name])
                + b"".join(field(50, blob) for blob in blobs(name, values_as, shape_as)),
            ),
        )
        for name in VALUES
    )


RAW = ("half", "raw floats", "raw doubles")
FILES = {
    **{f"new, {kind}": new_file(kind) for kind in VALUES_AS},
    "new, old shapes": new_file("packed", old_shape_of),
    "new, unpacked shapes": new_file("packed", unpacked_shape_of),
    "V1": v1_file("packed"),
    "V1, new shapes, split": v1_file("split", shape_of),
    "V0": v0_file("packed"),
    "V0, unpacked": v0_file("unpacked"),
    "V0, doubles": v0_file("doubles"),
    "V1, half": v1_file("half"),
}


def params(folder, names):
    """Let Caffe load each file, in this (Caffe) process."""
    caffe = import_caffe()
    found = {}
    for name in names:
        net = caffe.Net(f"{folder}/net.prototxt", caffe.TEST)
        net.copy_from(f"{folder}/{name}")
        found[name] = {
            layer: [blob.data.copy() for blob in blobs] for layer, blobs in net.params.items()
        }
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, arrays in wanted.items():
        for one, other in zip(found[name], arrays, strict=True):
            np.testing.assert_array_equal(one.reshape(other.shape), other)


@pytest.fixture(scope="module")
def in_caffe(tmp_path_factory):
    """Give every file as Caffe reads it, and as Caffe reads what is written with a new `ip`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "net.prototxt").write_text(DEFINITION)
    new = -VALUES["ip"][0]
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        model = read_caffemodel(folder / name)
        write_caffemodel(folder / f"{name}, again", model, {})
        write_caffemodel(folder / f"{name}, changed", model, {"ip": new})
        write_bare(folder / f"{name}, bare", model)
    names = [name for name in FILES if not name.endswith(RAW)]  # BVLC Caffe can't read those
    names += [f"{name}, {what}" for name in FILES for what in ("again", "changed", "bare")]
    return folder, run_in_caffe(params, str(folder), names)


@pytest.mark.parametrize("name", FILES)
def test_every_form_is_read_as_caffe_reads_it(in_caffe, name):
    folder, caffe = in_caffe
    model = read_caffemodel(folder / name)
    ours = {layer: [blob.data for blob in model[layer].blobs] for layer in VALUES}
    assert [layer.name for layer in model.layers] == list(VALUES)
    assert [layer.type for layer in model.layers] == [
        "Convolution", "InnerProduct", "InnerProduct",
    ]  # fmt: skip
    if not name.endswith(RAW):
        assert_same(ours, caffe[name])
    assert_same(ours, VALUES)
    assert [model[layer].matrix_shape for layer in VALUES] == [(6, 18), (5, 96), (5, 3)]
    assert all(not array.flags.writeable for arrays in ours.values() for array in arrays)


@pytest.mark.parametrize("name", FILES)
def test_every_form_is_written_as_caffe_can_read_it(in_caffe, name):
    folder, caffe = in_caffe
    if not name.endswith(RAW):
        assert (folder / f"{name}, again").read_bytes() == FILES[name]
    assert_same(caffe[f"{name}, again"], VALUES)
    changed = {**VALUES, "ip": [-VALUES["ip"][0], VALUES["ip"][1]]}
    assert_same(caffe[f"{name}, changed"], changed)
    assert_same(caffe[f"{name}, bare"], VALUES)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_joined_again(in_caffe, name, tmp_path):
    folder, _ = in_caffe
    model = read_caffemodel(folder / name)
    rest, slots = split_weights(model, ["turned", "ip"])
    assert [slot.layer for slot in slots] == ["ip", "turned"]
    with (tmp_path / "joined").open("wb") as file:
        join_weights(b"".join(rest), slots, [VALUES["ip"][0], VALUES["turned"][0]], file)
    again = read_caffemodel(tmp_path / "joined")
    assert_same({n: [blob.data for blob in again[n].blobs] for n in VALUES}, VALUES)


def test_what_is_not_understood_stays_where_it_is(tmp_path):
    strange = field(200, b"of a fork") + wire.tag(77, wire.I32) + b"abcd"
    arrays = blobs("ip", "packed", shape_of)
    weights = b"".join(strange + field(7, blob + strange) for blob in arrays)
    layer = field(100, strange + field(1, b"ip") + field(2, b"CInner") + weights + strange)
    content = strange + layer + strange
    (tmp_path / "net").write_bytes(content)
    model = read_caffemodel(tmp_path / "net")
    assert [layer.type for layer in model.layers] == ["CInner"]
    new = -VALUES["ip"][0]
    write_caffemodel(tmp_path / "changed", model, {"ip": new})
    assert (tmp_path / "changed").read_bytes() == content.replace(
        VALUES["ip"][0].tobytes(), new.tobytes()
    )


def odd_layer(blob):
    return field(100, field(1, b"odd") + field(2, b"X") + field(7, blob))


FLAWED = {
    "empty": odd_layer(b""),
    "negative shape": odd_layer(field(7, number(1, 2**64 - 1)) + packed(RANDOM.random(3))),
    "40 axes": odd_layer(field(7, number(1, 1) * 40) + packed(RANDOM.random(1))),
    "too few values": odd_layer(field(7, number(1, 9)) + packed(RANDOM.random(3))),
    "integers": odd_layer(number(10, 3) + field(12, bytes(8))),
    "a half of a half": odd_layer(number(10, 2) + field(12, bytes(3)) + field(7, number(1, 1))),
}


@pytest.mark.parametrize("what", FLAWED)
def test_a_flawed_blob_is_an_error_where_it_is_wanted_alone(what, tmp_path):
    odd = FLAWED[what]
    content = FILES["new, packed"] + odd
    (tmp_path / "net").write_bytes(content)
    model = read_caffemodel(tmp_path / "net")
    np.testing.assert_array_equal(model["ip"].matrix, VALUES["ip"][0])
    write_caffemodel(tmp_path / "again", model, {"ip": VALUES["ip"][0]})
    assert (tmp_path / "again").read_bytes() == content
    with pytest.raises(ModelError, match="layer odd, byte"):
        _ = model["odd"].blobs[0].data


def test_the_last_of_several_layers_with_weights_counts(tmp_path):
    twice = FILES["new, packed"] + FILES["new, doubles"].replace(b"\x0a\x03net", b"")
    bare = field(100, field(1, b"ip") + field(2, b"InnerProduct"))
    (tmp_path / "net").write_bytes(twice + bare)
    model = read_caffemodel(tmp_path / "net")
    assert model["ip"].blobs[0].data.dtype == np.float64


def test_names_may_be_any_bytes(tmp_path):
    for name in (b"\xe9", b"file", b"class", b"../../etc", b"7", b"n" * 250, "层=1,a".encode()):
        weights = b"".join(field(7, blob) for blob in blobs("ip", "packed", shape_of))
        layer = field(100, field(1, name) + field(2, b"InnerProduct") + weights)
        (tmp_path / "net").write_bytes(layer)
        model = read_caffemodel(tmp_path / "net")
        shown = name.decode("utf-8", "backslashreplace")
        assert shown in model
        write_caffemodel(tmp_path / "net", model, {shown: np.ones((5, 96), np.float32)})
        assert read_caffemodel(tmp_path / "net")[shown].matrix.all()
