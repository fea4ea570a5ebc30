"""The report: a PNG that is one, and a page that needs nothing else."""

import base64
import re

import cv2
import numpy as np
import pytest
from assessments import assessment, point

from deepsz_caffe.errors import TargetError
from deepsz_caffe.steps.assess.report import write_report
from deepsz_caffe.steps.assess.result import LayerAssessment


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "A.json"
    assessment().save(path)
    return path


def test_the_report_is_a_png_and_one_page(saved, tmp_path):
    files = write_report(saved, tmp_path / "out", max_loss=0.004)
    assert [path.name for path in files] == ["A.png", "A.html"]
    picture = files[0].read_bytes()
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert image.std() > 10
    page = files[1].read_text()
    assert base64.b64encode(picture).decode() in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(re.findall(r'<tr class="chosen"><td>[ab]</td><td>0\.01</td>', page)) == 2
    assert "6,000 → 600 bytes (10.0×)" in page
    assert "(stopped)" in page


def test_names_are_escaped(tmp_path):
    import dataclasses

    odd = LayerAssessment("<fc>&", (100, 10), 80, (point(0.01, 400, 900),))
    dataclasses.replace(assessment(), layers=(odd,)).save(tmp_path / "A.json")
    page = write_report(tmp_path / "A.json")[1].read_text()
    assert "&lt;fc&gt;&amp;" in page
    assert "<fc>" not in page


def test_a_target_out_of_reach_is_said(saved):
    with pytest.raises(TargetError):
        write_report(saved, target_ratio=1000)
