"""Our own messages beside protobuf: the same values, the same bytes, the same refusals."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.dsz.layout import Chunk, Header, LayerEntry, Measured, Origin, Rest
from deepsz_caffe.dsz.message import parse, serialize, wire_fields
from deepsz_caffe.errors import FormatError
from tests.dsz.protobuf import pb


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
            parse(Header, content)
    else:
        found = parse(Header, content)
        assert same(expected, found)
        whole = expected.HasField("rest") and expected.HasField("origin")
        # What a file always has is written though it may be empty.
        if whole and expected.HasField("deploy") <= expected.deploy.HasField("chunk"):
            assert serialize(found) == content


def test_numbers_and_types_of_version_1_stay_as_they_are():
    """What files hold: a field may be added at the end of a message, none may change."""
    written = {
        message: [f"{f.name} {getattr(f.kind, '__name__', f.kind)}" for f in wire_fields(message)]
        for message in (Header, LayerEntry, Rest, Chunk, Origin, Measured)
    }
    assert written[Header] == ["layers LayerEntry", "rest Rest", "deploy Deploy", "origin Origin"]
    assert written[LayerEntry] == [
        *("name string", "rows uint32", "columns uint32", "error_bound double"),
        *("nonzeros uint64", "column_major bool", "data_codec string", "data_bytes uint64"),
        *("index_codec string", "index_bytes uint64", "index_count uint64"),
        *("checksum fixed32", "digest fixed64"),
    ]
    assert written[Rest] == [
        *("bytes uint64", "slots uint64", "chunks Chunk", "checksum fixed32", "bounds BlobBound")
    ]
    assert written[Chunk] == ["packing enum", "bytes uint64", "checksum fixed32"]
    assert written[Origin][2:] == ["source_sha256 bytes", "measured Measured"]
    assert [field.split()[1] for field in written[Measured]] == ["string"] + 5 * ["uint64"]


numbers = st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 2**64 - 1))
words = st.integers(0, 2**32 - 1)
text = st.text(max_size=8)
chunks = st.builds(pb.Chunk, packing=st.integers(0, 5), bytes=numbers, checksum=words)
layers = st.builds(
    pb.LayerEntry,
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
