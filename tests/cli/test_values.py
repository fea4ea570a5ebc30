"""Options that name layers: any name can be written, and is read as it was written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.cli.values import format_numbers, parse_names, parse_numbers
from deepsz_caffe.errors import InputError

NAMES = st.text(
    st.one_of(st.sampled_from(",=\"'\\@ {}[]層"), st.characters(codec="utf-8")), min_size=1
)


def parse(text):
    return parse_numbers(text, "--bounds ip1=0.02")


@given(st.dictionaries(NAMES, st.sampled_from([0.01, 1e-05, 2.0]), min_size=1))
def test_every_name_is_read_as_it_was_written(numbers):
    assert parse(format_numbers(numbers)) == numbers


@given(st.lists(NAMES, min_size=1))
def test_every_list_of_names_is_read_as_it_was_written(names):
    text = ",".join('"' + n.replace("\\", "\\\\").replace('"', '\\"') + '"' for n in names)
    assert parse_names(text) == tuple(names)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ip1=0.08, fc6/x=1", {"ip1": 0.08, "fc6/x": 1.0}),
        ("a=b=0.1,c= 2 ", {"a=b": 0.1, "c": 2.0}),
        ('"层=2,b"=0.01,fc 1/a=0.02', {"层=2,b": 0.01, "fc 1/a": 0.02}),
        ("'a,\"b\"'=1e-3", {'a,"b"': 0.001}),
        (r'"a\"\\"=1', {'a"\\': 1.0}),
        ("file=1,class=2,7=3,../x=4", {"file": 1.0, "class": 2.0, "7": 3.0, "../x": 4.0}),
        (f"{'n' * 250}=1", {"n" * 250: 1.0}),
    ],
)
def test_names_are_data(text, numbers):
    assert parse(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "ip1", "=1", "ip1=", "ip1=x", "ip1=1,ip1=2", 'a"=1,', '"a=1', "a=1,,b=2", '""=1']
)
def test_anything_else_is_wrong_use(text):
    if text == 'a"=1,':  # a quote inside a name is a letter
        assert parse(text) == {'a"': 1.0}
        return
    with pytest.raises(InputError):
        parse(text)


def test_a_json_file_names_anything(tmp_path):
    path = tmp_path / "bounds.json"
    path.write_text(json.dumps({"层=2,b": 0.01, '"': 1}))
    for text in (str(path), f"@{path}"):
        assert parse(text) == {"层=2,b": 0.01, '"': 1.0}
    for wrong in ("[1]", '{"a": "x"}', "{", '{"a": [1]}'):
        path.write_text(wrong)
        with pytest.raises(InputError, match=r"bounds\.json"):
            parse(str(path))
    with pytest.raises(InputError):
        parse(f"@{tmp_path}/none")
