"""What the cards of the shipped networks say of their files, against the files."""

import re
from pathlib import Path

import pytest

from deepsz_caffe.runtime.evaluate import evaluate

ROOT = Path(__file__).parents[1]
#: | `paper.dsz` | 9,832 | 9,848 |, under the columns "test set" and "validation split"
ROW = re.compile(r"^\| `(\w+\.dsz)` \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


def figures(name):
    card = (ROOT / "models" / name / "README.md").read_text(encoding="utf-8")
    assert "| file | test set | validation split |" in card
    return {
        file: [int(count.replace(",", "")) for count in counts]
        for file, *counts in ROW.findall(card)
    }


@pytest.mark.parametrize("name", ["lenet_300_100", pytest.param("lenet_5", marks=pytest.mark.slow)])
def test_shipped_files_decide_as_their_cards_say(checkout, name):
    found = figures(name)
    shipped = {path.name for path in (ROOT / "models" / name).glob("*.dsz")}
    assert shipped == found.keys()
    network = ROOT / "prototxt" / name / "train_val.prototxt"
    for file, counts in found.items():
        for stages, count in zip(((), ("validation",)), counts, strict=True):
            path = ROOT / "models" / name / file
            score = evaluate(network, path, stages=stages)
            # Another kind of processor may round a score otherwise.
            assert abs(score.top1_correct - count) <= 1, (file, stages)
