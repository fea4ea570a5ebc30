"""Assessments as files: right, or refused with the place of what is wrong."""

import json

import pytest
from assessments import assessment
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.errors import DataError
from deepsz_caffe.steps.assess.result import Assessment

DOCUMENT = json.loads(json.dumps(assessment().to_json()))
VALUES = [None, True, -1, 1.5, "text", [], {}, [[]], {"a": 1}]


def places(document, place=()):
    """Every place in a document, the document itself last."""
    if isinstance(document, dict | list):
        inner = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in inner:
            yield from places(value, (*place, key))
    if place:
        yield place


def changed(place, value=None, *, drop=False):
    document = json.loads(json.dumps(DOCUMENT))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    if drop:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return document


def test_an_assessment_survives_its_file(tmp_path):
    assessment().save(tmp_path / "A.json")
    assert Assessment.load(tmp_path / "A.json") == assessment()


@given(st.sampled_from(list(places(DOCUMENT))), st.sampled_from(VALUES))
def test_a_value_of_another_type_is_refused_or_kept(place, value):
    document = changed(place, value)
    try:
        found = Assessment.from_json(document)
    except DataError:
        return
    assert json.loads(json.dumps(found.to_json())) == document


@pytest.mark.parametrize("name", list(DOCUMENT))
def test_a_missing_key_is_named(name):
    with pytest.raises(DataError, match="version 1" if name == "version" else f"`{name}`"):
        Assessment.from_json(changed((name,), drop=True))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("total",), 899, "900 and 900 of 899 right"),
        (("layers", 0, "nonzeros"), 1001, r"layer a of shape \(100, 10\) has 1001"),
        (("layers", 0, "shape"), [0, 10], "layer a of shape"),
        (("layers", 1, "points", 0, "bound"), 0, "error bound 0"),
        (("layers", 1, "points", 0, "lost"), -1, "negative"),
        (("layers", 1, "points", 0, "bytes"), 10**30, "too large"),
        (("layers", 1, "points", 0, "bound"), "0.1", "got `str`"),
    ],
)
def test_what_can_not_be_is_said(place, value, said):
    with pytest.raises(DataError, match=said):
        Assessment.from_json(changed(place, value))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, '{"a":' * 100_000, json.dumps(DOCUMENT).replace("0.01", "NaN")],
)
@pytest.mark.parametrize("command", ["optimize", "report"])
def test_the_commands_say_it_too(tmp_path, text, command):
    path = tmp_path / "A.json"
    path.write_text(text)
    result = CliRunner().invoke(deepsz, [command, str(path), "--max-loss", "0.1"])
    assert isinstance(result.exception, DataError)
    assert result.exception.where == str(path)
