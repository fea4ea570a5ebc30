"""``deepsz compare``: table, JSON and page of what `deepsz_caffe.compare` finds."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import toy as toys

from deepsz_caffe import compare, preprocessing_of, read_caffemodel, write_dsz
from deepsz_caffe.dsz.layout import Measured
from deepsz_caffe.errors import DataError, DeepSZWarning
from deepsz_caffe.network.writer import write_caffemodel
from deepsz_caffe.steps.encode import encode


@pytest.fixture(scope="module")
def files(toy, tmp_path_factory):
    """A folder with a coarse version of the toy's network, pictures, and names of classes."""
    folder = tmp_path_factory.mktemp("comparing")
    bounds = dict.fromkeys(toys.FC_LAYERS, 0.03)
    write_dsz(folder / "b.dsz", encode(toy.network, toy.weights, bounds))
    pixels = (toy.arrays()["data"][:60, 0] * 256).astype(np.uint8)
    (folder / "pictures").mkdir()
    for number, image in enumerate(pixels):
        cv2.imwrite(str(folder / "pictures" / f"{number:02}.png"), image)
    (folder / "classes.txt").write_text("".join(f"<b>kind {n}</b>\n" for n in range(9)))
    return folder


class Page(HTMLParser):
    """The cells, images and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.images, self.tags, self.inside = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.inside = tag in ("td", "img")
        if tag == "td":
            self.cells.append("")
        self.images += [value for name, value in attributes if (tag, name) == ("img", "src")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data.strip("\n")


def test_table_json_and_page_say_the_same(deepsz, toy, files):
    pictures = ("--images", files / "pictures", "--scale", 1 / 256, "--opencv")
    named = ("--classes", files / "classes.txt")
    command = ("compare", toy.deploy, toy.weights, files / "b.dsz", *pictures, *named)
    done = deepsz(*command, "--json", "--page", files / "page.html")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (output,) = document["outputs"]
    changed = output["classes"]["changed"]
    assert document["images"] == 60
    assert 0 < len(changed) < 60
    assert output["classes"]["agreement"] == 1 - len(changed) / 60
    assert document["preprocessing"] == "1x11x11; resize 11x11; crop center; scale 0.00390625"
    assert {x["layer"] for x in document["layers"] if x["changed"]} == set(toys.FC_LAYERS)
    first = changed[0]
    assert first["name"] == str(files / "pictures" / f"{first['image']:02}.png")

    text = (files / "page.html").read_text()
    page = Page(text)
    assert "b" not in page.tags  # names of classes are text
    assert len(page.images) == len(changed)
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert not re.search(r"(src|href)=.?(?!data:)[\w/]*[:/.]", text)
    for one in changed:
        row = page.cells.index(one["name"])
        shown = [f"{a:.4g}, {b:.4g}" for a, b in (one["before_scores"], one["after_scores"])]
        wanted = [one["before_name"], shown[0], one["after_name"], shown[1]]
        assert page.cells[row + 1 : row + 5] == wanted
    nine = [one for one in changed if one["before"] == 9]
    assert all(one["before_name"] == "9" for one in nine)
    assert all(
        one["before_name"] == f"{one['before']} <b>kind {one['before']}</b>"
        for one in changed
        if one not in nine
    )

    table = deepsz(*command).stdout
    assert f"{60 - len(changed)} of 60" in table
    assert first["name"] in table
    assert "ip was taken for scores of classes; --scores none if it is not" in table
    same = sum(not x["changed"] for x in document["layers"])
    assert f"{same} of {len(document['layers'])} blobs of weights are the same" in table


def recorded(toy, path, how, bound=0.03):
    """Write a file that says how its pictures were prepared."""
    contents = encode(toy.network, toy.weights, dict.fromkeys(toys.FC_LAYERS, bound))
    measured = Measured(f"pictures: {how}", *[60] * 5)
    write_dsz(path, replace(contents, origin=replace(contents.origin, measured=measured)))
    return path


def test_pictures_are_prepared_as_the_file_records_it(deepsz, toy, files, tmp_path):
    how = "1x11x11; resize 11x11; crop center; mean 3.5; scale 0.00390625"
    b = recorded(toy, tmp_path / "b.dsz", how)
    command = ("compare", toy.deploy, toy.weights, b, "--images", files / "pictures", "--opencv")
    given = ("--scale", 1 / 256, "--mean", 3.5)
    plain = deepsz(*command[:3], files / "b.dsz", *command[4:], *given, "--json")
    done = deepsz(*command, "--json")
    assert json.loads(done.stdout)["preprocessing"] == how
    assert "measured" not in done.stderr
    assert json.loads(done.stdout)["outputs"] == json.loads(plain.stdout)["outputs"]
    assert "measured" not in deepsz(*command, *given).stderr
    other = deepsz(*command, "--mean", 4, "--json")
    changed = how.replace("3.5", "4")
    assert json.loads(other.stdout)["preprocessing"] == changed
    said = " ".join(other.stderr.split())
    assert f"b.dsz: was measured on pictures prepared as {how}; these: {changed}" in said


def test_two_files_that_record_something_else_are_told_apart(toy, tmp_path):
    third = "1x11x11; resize 11x11; crop center; scale 0.333333333"
    first, again = (recorded(toy, tmp_path / name, third) for name in ("a.dsz", "c.dsz"))
    other = recorded(toy, tmp_path / "b.dsz", "1x11x11; resize 20x30; crop 10")
    with pytest.warns(DeepSZWarning, match="b.dsz.*crop 10") as said:
        how = preprocessing_of(toy.deploy, recorded=(toy.weights, first, again, other))
    assert len(said) == 1
    assert how.scale == 0.333333333
    assert preprocessing_of(toy.deploy, recorded=(first,), scale=1 / 3).scale == 1 / 3


@pytest.mark.parametrize(
    "how",
    [
        "nonsense",
        "1x11x11; resize 99999x99999; crop center",
        "1x11x11; resize 9x11; crop center",
        f"{'9' * 5000}x1x1; crop center",
        "1x11x11; crop center; mean nan",
        "1x11x11; crop center; scale 0",
    ],
)
def test_a_record_without_sense_is_said_and_left_out(toy, tmp_path, how):
    path = recorded(toy, tmp_path / "b.dsz", how)
    with pytest.warns(DeepSZWarning, match="b.dsz"):
        assert preprocessing_of(toy.deploy, recorded=(path,)) == preprocessing_of(toy.deploy)


def test_records_for_another_input_or_of_a_file_that_is_gone(toy, tmp_path):
    other = recorded(toy, tmp_path / "b.dsz", "3x11x11; crop center; channels BGR")
    with pytest.warns(DeepSZWarning, match="3x11x11"):
        assert preprocessing_of(toy.deploy, recorded=(other,)) == preprocessing_of(toy.deploy)
    gone = recorded(toy, tmp_path / "c.dsz", "1x11x11; crop center; mean file gone.binaryproto")
    with pytest.raises(DataError, match=r"gone\.binaryproto"):
        preprocessing_of(toy.deploy, recorded=(gone,))


def test_weights_alone(deepsz, toy, files, tmp_path):
    done = deepsz("compare", toy.weights, files / "b.dsz", "--json")
    found = compare(None, toy.weights, files / "b.dsz").to_json()
    assert json.loads(done.stdout) == json.loads(json.dumps(found))
    same = deepsz("compare", toy.weights, toy.weights, "--page", tmp_path / "page.html")
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "7 of 7 blobs of weights are the same\n"
    assert "Outputs" not in (tmp_path / "page.html").read_text()


def test_names_of_layers_stay_text(deepsz, tmp_path, toy):
    model = read_caffemodel(toy.weights)
    content = toy.weights.read_bytes()
    name = b"<i>\x1b[2"
    (tmp_path / "a.caffemodel").write_bytes(content.replace(b"right", name[:5]))
    model = read_caffemodel(tmp_path / "a.caffemodel")
    (strange,) = (layer.name for layer in model.layers if layer.name.startswith("<i>"))
    write_caffemodel(tmp_path / "b", model, {strange: model[strange].matrix + np.float32(1)})
    page = tmp_path / "page.html"
    done = deepsz("compare", tmp_path / "a.caffemodel", tmp_path / "b", "--page", page)
    assert "\x1b" not in done.stdout
    assert r"<i>\x1b[" in done.stdout
    parsed = Page(page.read_text())
    assert "i" not in parsed.tags
    assert parsed.cells[0] == r"<i>\x1b["


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("A",), 2, "NET may be left out"),
        (("A", "B", "--opencv"), 2, "outputs need a prototxt"),
        (("A", "B", "--images", "pictures"), 2, "outputs need a prototxt"),
        (("NET", "A", "B", "--data", "x.npz", "--images", "pictures"), 2, "either --images"),
        (("NET", "A", "B", "--scale", "2"), 2, "give --images"),
        (("NET", "A", "gone"), 1, "gone: can't read"),
        (("A", "B", "--classes", "gone"), 1, "gone: can't read"),
        (("A", "B", "--page", "A"), 2, "read and written at once"),
        (("A", "B", "--max-output", "10"), 1, "the limit is 10"),
    ],
)
def test_wrong_use_is_said_before_any_work(deepsz, toy, files, monkeypatch, arguments, code, said):
    monkeypatch.chdir(files)
    known = {"NET": toy.deploy, "A": toy.weights, "B": files / "b.dsz"}
    done = deepsz("compare", *(known.get(each, each) for each in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
