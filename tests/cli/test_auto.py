"""`deepsz compress --auto`: its options, what it refuses, what it prints."""

import json

import pytest
from click.testing import CliRunner

from deepsz_caffe.cli.auto import _seconds
from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.auto import STATE


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2 m ", 120)]
)
def test_a_time_has_a_unit_or_is_in_seconds(text, seconds):
    assert _seconds(None, None, text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-3m", "3 days", "0", "nan"])
def test_what_is_no_time_is_said(lenet, tmp_path, text):
    arguments = ["compress", str(lenet.network), str(lenet.dense), str(tmp_path / "o.dsz")]
    run = CliRunner().invoke(deepsz, [*arguments, "--auto", "--max-loss", "0.1", "--time", text])
    assert run.exit_code == 2
    assert "is no time such as 90s, 30m or 2h" in run.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--auto needs --max-loss"),
        (("--journal", "j"), "--journal and --auto"),
        (("--target-ratio", "50"), "--target-ratio and --auto"),
        (("--original", "x"), "--original and --auto"),
        (("--search", "default"), "--search and --auto"),
        (("--protocol", "paper"), "--protocol paper and --auto"),
        (("--max-loss", "-1"), "loss"),
        (("--max-loss", "0.1", "--confidence", "2"), "confidence"),
    ],
)
def test_what_does_not_go_with_it_is_refused(lenet, tmp_path, more, said):
    arguments = ["compress", str(lenet.network), str(lenet.dense), str(tmp_path / "o.dsz")]
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(deepsz, [*arguments, "--auto", *more], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_the_trade_off_is_shown_and_told(lenet, tmp_path):
    out, folder = tmp_path / "o.dsz", tmp_path / "run"
    arguments = ["compress", str(lenet.network), str(lenet.dense), str(out), "--auto", "--run"]
    arguments += [str(folder), "--max-loss", "0.1", "--layers", "ip3", "--time", "0.001s"]
    run = CliRunner().invoke(deepsz, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    assert "the trade-off on 500 validation images" in run.output
    assert "keep-1.00000.dsz ←" in run.output
    assert "top-1 on the test data, which decided nothing: 49" in run.output
    document = json.loads(CliRunner().invoke(deepsz, [*arguments, "--json"]).stdout)
    assert document["taken"]["bytes"] == document["file_bytes"] == out.stat().st_size
    assert document["test_before"]["total"] == 500
    assert [point["keep"] for point in document["points"]] == [1.0]
    assert json.loads((folder / STATE).read_bytes())["points"][0]["file"] == "keep-1.00000.dsz"
