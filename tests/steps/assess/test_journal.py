"""The journal: what is found again, and what a kill may leave."""

import json

import pytest

from deepsz_caffe.errors import DeepSZError
from deepsz_caffe.steps.assess import journal as journal_module
from deepsz_caffe.steps.assess.journal import Journal
from deepsz_caffe.steps.assess.result import Point
from deepsz_caffe.steps.evaluator import Outcome

FULL = Point(0.02, 500, 1000, 900, 990, 12, 2)
STOPPED = Point(0.1, 100, 200, 100, 150, 90, 0, stopped=True)


def test_finished_tests_are_found_again(tmp_path):
    journal = Journal(tmp_path / "j", "key")
    journal.add("ip1", FULL, 20)
    journal.add("ip2", STOPPED, 20)
    again = Journal(tmp_path / "j", "key")
    assert again.find("ip1", 0.02, None) == FULL
    assert again.find("ip1", 0.03, None) is None
    assert again.find("ip2", 0.02, None) is None


def test_a_stopped_test_holds_for_smaller_limits_only(tmp_path):
    Journal(tmp_path / "j", "key").add("ip2", STOPPED, 20)
    journal = Journal(tmp_path / "j", "key")
    assert journal.find("ip2", 0.1, 20) == journal.find("ip2", 0.1, 3) == STOPPED
    assert journal.find("ip2", 0.1, 21) is None
    assert journal.find("ip2", 0.1, None) is None


def test_other_networks_data_and_codecs_share_a_file(tmp_path):
    Journal(tmp_path / "j", "key").add("ip1", FULL, None)
    other = Journal(tmp_path / "j", "other")
    assert other.find("ip1", 0.02, None) is None
    other.add("ip1", STOPPED, 5)
    assert Journal(tmp_path / "j", "key").find("ip1", 0.02, None) == FULL


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_short_by_a_kill_costs_that_line_only(tmp_path, cut):
    path = tmp_path / "j"
    journal = Journal(path, "key")
    journal.add("ip1", FULL, None)
    whole = path.read_bytes()
    journal.add("ip2", FULL, None)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, "key")
    assert journal.find("ip1", 0.02, None) == FULL
    journal.add("ip3", FULL, None)
    again = Journal(path, "key")
    assert again.find("ip3", 0.02, None) == again.find("ip1", 0.02, None) == FULL
    assert path.read_bytes().startswith(whole)
    assert json.loads(path.read_bytes().splitlines()[-1])["layer"] == "ip3"


def signed(line):
    """Give a line the checksum that its contents want."""
    rest = {name: value for name, value in line.items() if name != "checksum"}
    return rest | {"checksum": journal_module._checksum(rest)}


def test_a_line_that_was_changed_is_passed_over(tmp_path):
    path = tmp_path / "j"
    Journal(path, "key").add("ip1", FULL, None)
    good = path.read_bytes()
    for old, new in ((b'"lost": 12', b'"lost": 11'), (b'"key": "key"', b'"key": "yek"')):
        assert old in good
        path.write_bytes(good.replace(old, new))
        for key in ("key", "yek"):
            assert Journal(path, key).find("ip1", 0.02, None) is None
    del (entry := json.loads(good))["checksum"]
    path.write_text(json.dumps(entry) + "\n")
    assert Journal(path, "key").find("ip1", 0.02, None) is None
    path.write_bytes(good)
    assert Journal(path, "key").find("ip1", 0.02, None) == FULL


def test_lines_that_hold_anything_else_are_passed_over(tmp_path):
    path = tmp_path / "j"
    Journal(path, "key").add("ip1", FULL, None)
    good = json.loads(path.read_text())
    wrong = [good | {name: value} for name in good for value in ("x", None, [[]], -1, 0.5)]
    wrong = [line for line in wrong if line != good and line["layer"] != "x"]
    lines = [json.dumps(signed(line)).encode() for line in wrong]
    lines += [b"[" * 100_000, b"[]", b"\xff", b"7", b""]
    # A stopped test says nothing without the limit that it was stopped at.
    lines.append(json.dumps(signed(good | {"stopped": True})).encode())
    path.write_bytes(b"\n".join([*lines, json.dumps(signed(good | {"layer": "ip2"})).encode()]))
    journal = Journal(path, "key")
    assert journal.find("ip2", 0.02, None) == FULL
    found = {bound: journal.find("ip1", bound, None) for bound in (0.02, 0.5)}
    assert {point.bound for point in found.values() if point} <= {0.02, 0.5}


def test_without_a_file_tests_are_kept_in_memory():
    journal = Journal(None, "key")
    journal.add("ip1", FULL, None)
    assert journal.find("ip1", 0.02, None) == FULL


def test_a_journal_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(DeepSZError, match="can't write"):
        Journal(tmp_path / "no" / "j", "key").add("ip1", FULL, None)


def test_whole_configurations_are_found_by_bounds_and_original(tmp_path):
    bounds = {"ip1": 0.02, "ip2": 0.03}
    first, second = Outcome(1000, 900, 990, 9, 4, 20, 3), Outcome(1000, 900, 990, 9, 4, 7, 1)
    journal = Journal(tmp_path / "j", "key")
    journal.add_whole(bounds, "a", first)
    journal.add_whole(bounds, "b", second)
    journal.add("ip1", FULL, None)
    for found in (journal, Journal(tmp_path / "j", "key")):
        assert found.find_whole(bounds, "a") == first
        assert found.find_whole(dict(reversed(bounds.items())), "b") == second
        assert found.find_whole(bounds) in (first, second)
        assert found.find_whole(bounds, "c") is None
        assert found.find_whole({"ip1": 0.02}, "a") is None
        assert found.find("ip1", 0.02, None) == FULL
    assert Journal(tmp_path / "j", "other").find_whole(bounds, "a") is None
