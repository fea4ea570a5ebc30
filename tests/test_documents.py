"""Documents that something else wrote: every one is refused with an error of ours, or right."""

import json
import os
from dataclasses import asdict, dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe.documents import convert_document, parse_document, read_document
from deepsz_caffe.errors import DataError


@dataclass(frozen=True)
class Part:
    name: str
    bounds: dict[str, float]
    shape: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    best: Part | None
    total: int

    def __post_init__(self):
        if self.total < 0:
            raise ValueError("total is negative")


GOOD = {
    "parts": [{"name": "fc", "bounds": {"fc": 0.5}, "shape": [3, 4]}],
    "best": None,
    "total": 3,
}
RIGHT = Whole((Part("fc", {"fc": 0.5}, (3, 4)),), None, 3)


def test_what_was_written_comes_back_the_same(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(asdict(RIGHT)))
    assert read_document(tmp_path / "w.json", Whole, hint="") == RIGHT
    assert convert_document(GOOD | {"later": [1]}, Whole) == RIGHT


def test_names_that_are_no_utf8_come_back_and_nothing_else_with_them(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80")
    odd = replace(RIGHT, best=Part(name, {name: 1e-300}))
    raw = json.dumps(asdict(odd))
    assert parse_document(raw, Whole) == odd
    for half in (r"\ud800", r"\udc00", r"\udc7f"):
        with pytest.raises(DataError):
            parse_document(raw.replace(r"\udce9", half), Whole)
    for wrong in ("NaN", "-Infinity", "1e999", '"1"', "9" * 5000, "[" * 100_000):
        with pytest.raises(DataError):
            parse_document(raw.replace("1e-300", wrong), Whole)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", "truncated"),
        ("[" * 100_000 + "]" * 100_000, "expected `object`, got `array`"),
        ('{"later":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        (json.dumps(GOOD)[:-1], "truncated"),
        (json.dumps(GOOD | {"total": "3"}), r"got `str` - at `\$.total`"),
        (json.dumps(GOOD | {"total": 3.5}), r"got `float` - at `\$.total`"),
        (json.dumps(GOOD | {"total": True}), r"got `bool` - at `\$.total`"),
        (json.dumps(GOOD | {"total": -1}), "total is negative"),
        (json.dumps(GOOD).replace("0.5", "NaN"), "malformed"),
        (json.dumps(GOOD).replace("0.5", "Infinity"), "malformed"),
        (json.dumps(GOOD).replace("0.5", "1e999"), "out of range"),
        (json.dumps(GOOD).replace("0.5", "null"), r"got `null` - at `\$.parts\[0\].bounds"),
        (json.dumps({"total": 3, "best": None}), "missing required field `parts`"),
        (json.dumps(GOOD).replace("[3, 4]", "[3]"), "length 2"),
        (json.dumps(GOOD).encode("utf-16"), "malformed|invalid"),
        (b'{"parts": [], "best": {"name": "\xff", "bounds": {}}, "total": 1}', "utf-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, raw, said):
    path = tmp_path / "w.json"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(DataError, match=f"(?i){said}") as error:
        read_document(path, Whole, hint="write it again")
    assert error.value.where == str(path)
    assert error.value.hint == "write it again"


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_document(tmp_path / "none.json", Whole, hint="")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(GOOD, JSON)))
def test_any_other_document_is_refused_or_right(document):
    try:
        found = parse_document(json.dumps(document), Whole)
    except DataError:
        return
    assert json.loads(json.dumps(asdict(found))) == document


@given(st.binary())
def test_any_bytes_are_refused(raw):
    with pytest.raises(DataError):
        parse_document(raw, Whole)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "bounds.json"
    path.write_text('{"fc1": 0.1, "fc2": 1e-400, "fc1": 0.2}')
    with pytest.raises(DataError, match="'fc1' is given twice"):
        read_document(path, dict[str, float])
    path.write_text('[{"a": 1}, {"a": 2}]')  # two objects
    assert len(read_document(path, list[dict[str, float]])) == 2
