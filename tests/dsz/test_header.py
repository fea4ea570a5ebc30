"""The header's own reader beside protobuf: the same messages, the same refusals."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.dsz import container_pb2 as pb
from deepsz_caffe.dsz.header import HEADER, read_header
from deepsz_caffe.errors import FormatError

KINDS = {1: "double", 4: "uint64", 6: "fixed64", 7: "fixed32", 8: "bool", 9: "string"}
KINDS |= {12: "bytes", 13: "uint32", 14: "enum"}


def canonical(content):
    """Give the message where protobuf would write the same bytes again, else None."""
    try:
        message = pb.Header.FromString(content)
    except DecodeError:
        return None
    known = pb.Header.FromString(content)
    known.DiscardUnknownFields()
    same = known.SerializeToString(deterministic=True) == content
    return message if same else None


def same(message, found):
    for field in message.DESCRIPTOR.fields:
        expected, value = getattr(message, field.name), getattr(found, field.name)
        if value is None:
            assert not message.HasField(field.name)
        elif field.is_repeated:
            assert len(expected) == len(value)
            for a, b in zip(expected, value, strict=True):
                assert same(a, b) if field.message_type else a == b
        elif field.message_type:
            assert same(expected, value)
        else:
            assert repr(expected) == repr(value)  # nan and -0.0 too
    return True


def check(content):
    expected = canonical(content)
    if expected is None:
        with pytest.raises(FormatError):
            read_header(content)
    else:
        assert same(expected, read_header(content))


def test_the_fields_are_those_of_container_proto():
    def compare(fields, descriptor):
        assert {n: f.name for n, f in fields.items()} == {
            f.number: f.name for f in descriptor.fields
        }
        for field in descriptor.fields:
            ours = fields[field.number]
            assert ours.repeated == field.is_repeated
            if field.message_type:
                compare(ours.kind, field.message_type)
            else:
                assert ours.kind == KINDS[field.type]

    compare(HEADER, pb.Header.DESCRIPTOR)


numbers = st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 2**64 - 1))
words = st.integers(0, 2**32 - 1)
text = st.text(max_size=8)
chunks = st.builds(pb.Chunk, packing=st.integers(0, 5), bytes=numbers, checksum=words)
layers = st.builds(
    pb.Layer,
    name=text,
    rows=words,
    columns=st.integers(0, 5),
    error_bound=st.floats(),
    nonzeros=numbers,
    column_major=st.booleans(),
    data_codec=text,
    index_bytes=numbers,
    checksum=words,
    digest=numbers,
)
measured = st.builds(pb.Measured, data=text, total=numbers, top5_after=numbers)
headers = st.builds(
    pb.Header,
    layers=st.lists(layers, max_size=3),
    rest=st.none()
    | st.builds(
        pb.Rest, bytes=numbers, slots=st.lists(numbers, max_size=3), chunks=st.lists(chunks)
    ),
    deploy=st.none() | st.builds(pb.Deploy, bytes=numbers, chunk=st.none() | chunks),
    origin=st.none()
    | st.builds(
        pb.Origin,
        software=text,
        source_sha256=st.binary(max_size=4),
        measured=st.none() | measured,
    ),
)


@given(headers)
@settings(max_examples=200, deadline=None)
def test_what_protobuf_writes_is_read(header):
    content = header.SerializeToString(deterministic=True)
    assert canonical(content) is not None
    check(content)


@given(headers, st.data())
@settings(max_examples=500, deadline=None)
def test_what_is_damaged_is_read_as_protobuf_reads_it(header, data):
    content = bytearray(header.SerializeToString(deterministic=True))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.binary(max_size=3))
        content[at : at + data.draw(st.integers(0, 3))] = piece
    check(bytes(content))


@given(st.binary(max_size=24))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_read_as_protobuf_reads_them(content):
    check(content)
