"""Pictures from every source are the same ones, and what is wrong is named before any work."""

import hashlib
import os
import pickle
import zlib

import cv2
import lmdb
import numpy as np
import pytest
from caffe.proto import caffe_pb2

from deepsz_caffe.errors import DataError, DeepSZWarning, InputError
from deepsz_caffe.experiments.datasets.images import open_images
from deepsz_caffe.runtime.pictures import open_pictures
from deepsz_caffe.runtime.preprocess import Preprocessing
from deepsz_caffe.runtime.sources import lmdb_entries

HOW = Preprocessing((3, 12, 14), mean=(10, 20, 30))


@pytest.fixture(scope="module")
def some():
    """Give four pictures, uint8[4, 3, 12, 14]."""
    return np.random.default_rng(0).integers(0, 256, (4, 3, 12, 14), np.uint8)


@pytest.fixture
def folder(some, tmp_path):
    """Write them as PNG files, at two depths."""
    place = tmp_path / "pictures"
    for number, picture in enumerate(some):
        path = place / f"class{number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture.transpose(1, 2, 0))
    (place / "readme.txt").write_text("not a picture")
    return place


def write_lmdb(path, some, encoded, labelled=True):
    with (
        lmdb.open(str(path), map_size=1 << 20) as environment,
        environment.begin(write=True) as entries,
    ):
        for number, picture in enumerate(some):
            datum = caffe_pb2.Datum(channels=3, height=12, width=14, encoded=encoded)
            image = picture.transpose(1, 2, 0)
            datum.data = cv2.imencode(".png", image)[1].tobytes() if encoded else picture.tobytes()
            if labelled:
                datum.label = 5 + number
            entries.put(b"%d" % number, datum.SerializeToString())
    return path


def sources(folder, some, place):
    listed = place / "list.txt"
    names = [f"class{number // 2}/{number}.png" for number in range(4)]
    listed.write_text("".join(f"pictures/{name}\n" for name in names))
    numbered = place / "numbered.txt"
    numbered.write_text("".join(f"{folder / name} {5 + i}\n" for i, name in enumerate(names)))
    np.savez(place / "some.npz", data=some, label=np.arange(5, 9))
    return {
        "folder": folder,
        "list": listed,
        "labelled list": numbered,
        "pattern": folder / "*" / "?.png",
        "deep pattern": folder / "**" / "*.png",
        "npz": place / "some.npz",
        "lmdb": write_lmdb(place / "plain_lmdb", some, False),
        "encoded lmdb": write_lmdb(place / "png_lmdb", some, True),
    }


def test_every_source_gives_the_same_pictures(folder, some, tmp_path):
    expected = some.astype(np.float32) - np.float32([10, 20, 30])[:, None, None]
    for source in sources(folder, some, tmp_path).values():
        pictures = pickle.loads(pickle.dumps(open_pictures(source, HOW)))
        assert pictures.total == 4
        assert pictures.labels is None
        np.testing.assert_array_equal(np.concatenate(list(pictures.arrays())), expected)
        np.testing.assert_array_equal(np.concatenate(list(pictures.arrays(2))), expected[2:])


def test_labels_where_they_are_asked_for(folder, some, tmp_path):
    found = sources(folder, some, tmp_path)
    for name in ("labelled list", "npz", "lmdb"):
        assert open_pictures(found[name], HOW, labelled=True).labels.tolist() == [5, 6, 7, 8]
    assert open_pictures(folder, HOW, labelled=True).labels.tolist() == [0, 0, 1, 1]
    names = tmp_path / "labels.txt"
    names.write_text("".join(f"class{i // 2}/{i}.png {9 - i}\n" for i in range(4)))
    labelled = open_pictures(found["folder"], HOW, labels=names)
    assert labelled.labels.tolist() == [9, 8, 7, 6]
    assert [label for _, label in labelled.inputs(1)] == [8, 7, 6]
    names.write_text("".join(f"pictures/class{i // 2}/{i}.png {9 - i}\n" for i in range(4)))
    labelled = open_pictures(found["deep pattern"], HOW, labels=names)
    assert labelled.labels.tolist() == [9, 8, 7, 6]
    for name in ("list", "pattern"):
        with pytest.raises(DataError):
            open_pictures(found[name], HOW, labelled=True)


def test_inputs_start_inside_a_picture_of_ten_crops(folder):
    how = Preprocessing((3, 10, 10), crop="10")
    pictures = open_pictures(folder, how, labelled=True)
    inputs = list(pictures.inputs())
    assert len(inputs) == 40
    for first in (0, 7, 10, 39):
        rest = list(pictures.inputs(first))
        assert [label for _, label in rest] == [label for _, label in inputs[first:]]
        np.testing.assert_array_equal(rest[0][0], inputs[first][0])


def test_the_same_picture_counts_once_whatever_file_it_is_in(folder, some, tmp_path):
    repeated = some[[0, 1, 0, 2, 2, 3, 0]]
    kept = [0, 1, 3, 5]
    np.savez(tmp_path / "some.npz", data=repeated, label=np.arange(7))
    files = [folder / f"class{n // 2}" / f"{n}.png" for n in (0, 1, 0, 2, 2, 3, 0)]
    bitmap = tmp_path / "copy.bmp"
    assert cv2.imwrite(str(bitmap), some[0].transpose(1, 2, 0))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path} {n}\n" for n, path in enumerate([*files[:6], bitmap])))
    entries = (write_lmdb(tmp_path / f"lmdb{sealed}", repeated, sealed) for sealed in (0, 1))
    for source in (tmp_path / "some.npz", listed, *entries):
        pictures = open_pictures(source, HOW, labelled=True)
        with pytest.warns(DeepSZWarning, match="and 2 others.*4 of 7 pictures are taken"):
            found = pickle.loads(pickle.dumps(pictures.distinct()))
        assert found.total == 4
        assert found.labels.tolist() == [pictures.labels[place] for place in kept]
        assert [found.name(number) for number in range(4)] == [pictures.name(n) for n in kept]
        for first in range(5):
            given = [array[0] for array in found.arrays(first)]
            np.testing.assert_array_equal(
                np.array(given).reshape(-1, 3, 12, 14),
                some[first:].astype(np.float32) - np.float32([10, 20, 30])[:, None, None],
            )
        assert found.distinct() is found


def test_an_lmdb_that_is_cut_short_is_an_error_and_no_bus_error(some, tmp_path):
    file = write_lmdb(tmp_path / "cut_lmdb", np.repeat(some, 50, axis=0), False) / "data.mdb"
    content = file.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 9_000):
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match="cut_lmdb: cut short"):
            open_pictures(file.parent, HOW, labelled=True)
    file.write_bytes(content)
    assert open_pictures(file.parent, HOW).total == 200


def test_what_is_no_source_is_named_for_what_it_is(some, tmp_path):
    np.save(tmp_path / "some.npy", some)
    with pytest.raises(DataError, match=r"list of files: it is a numpy array \(numpy\.savez"):
        open_pictures(tmp_path / "some.npy", HOW)
    for source in ("some.npy", "plain.mdb"):
        with pytest.raises(DataError, match="not an LMDB, it is a numpy array"):
            lmdb_entries((tmp_path / "some.npy").rename(tmp_path / source))


def test_names_in_any_encoding_and_lists_from_any_editor(some, tmp_path):
    # OpenCV, given such a name, ended the process.
    latin = os.fsdecode(b"caf\xe9.png")
    for name, picture in zip((latin, "a\u2028b.png", "c d.png"), some, strict=False):
        _, content = cv2.imencode(".png", picture.transpose(1, 2, 0))
        (tmp_path / name).write_bytes(content)
    names = [latin, "a\u2028b.png", "c d.png"]
    for kind, end, labels in (("plain", "\n", False), ("windows", " 7\r\n\r\n", True)):
        lines = "".join(name + end for name in names)
        start = "\ufeff" if labels else ""
        (tmp_path / kind).write_bytes(os.fsencode(start + lines))
        pictures = open_pictures(tmp_path / kind, HOW, labelled=labels)
        expected = some[:3].astype(np.float32) - np.float32([10, 20, 30])[:, None, None]
        np.testing.assert_array_equal(np.concatenate(list(pictures.arrays())), expected)
        pictures.add_to(hashlib.blake2b())
        assert pictures.labels is None or pictures.labels.tolist() == [7, 7, 7]
    assert open_pictures(tmp_path, HOW).total == 3
    (tmp_path / "sixteen").write_text("c d.png\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"sixteen: not a list of files: it is a text.*UTF-8"):
        open_pictures(tmp_path / "sixteen", HOW)


def test_a_picture_larger_than_opencv_takes_is_an_error(tmp_path):
    _, content = cv2.imencode(".png", np.zeros((2, 2), np.uint8))
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes(content[24:29])
    header += zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content[:12]) + header + bytes(content[33:]))
    datum = caffe_pb2.Datum(encoded=True, data=(tmp_path / "bomb.png").read_bytes(), label=1)
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as entries:
        entries.put(b"0", datum.SerializeToString())
    for source in ("bomb.png", "lmdb"):
        with pytest.raises(DataError, match=r"not an image .*that OpenCV reads"):
            next(open_pictures(tmp_path / source, HOW).arrays())
    (tmp_path / "list").write_text(f"{tmp_path / 'bomb.png'} 1\n")
    with pytest.raises(DataError, match=r"bomb\.png: not an image that OpenCV reads"):
        open_images(tmp_path / "list").read(0)


def test_gray_networks_see_gray_pictures(folder):
    gray = next(open_pictures(folder, Preprocessing((1, 12, 14))).arrays())
    read = cv2.imread(str(folder / "class0" / "0.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(gray[0, 0], read)


def test_what_is_wrong_is_named_before_any_work(folder, some, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    np.savez(tmp_path / "last.npz", data=some.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "none.npz", images=some)
    (tmp_path / "gone.txt").write_text("nowhere.png\n")
    for source, error, said in (
        (tmp_path / "empty", DataError, "no pictures"),
        (tmp_path / "nothing", InputError, "no such folder"),
        (tmp_path / "*.gif", DataError, "no file has such a name"),
        (tmp_path / "last.npz", DataError, "transpose"),
        (tmp_path / "none.npz", DataError, "no array data, only images"),
        (tmp_path / "gone.txt", DataError, r"nowhere\.png, a line of .*gone\.txt: can't"),
    ):
        with pytest.raises(error, match=said):
            open_pictures(source, HOW)
    with pytest.raises(DataError, match="network takes 4"):
        open_pictures(folder, Preprocessing((4, 12, 14)))
    (folder / "class0" / "9.jpg").write_bytes(b"nothing like it")
    (folder / "class0" / "8.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"8\.jpg: not a picture.*1 others"):
        open_pictures(folder, HOW)


def test_a_damaged_or_small_picture_is_named_when_it_is_read(folder):
    path = folder / "class1" / "3.png"
    cv2.imwrite(str(path), np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"3\.png: a picture of 5 × 5 is smaller"):
        list(open_pictures(folder, HOW).arrays())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"3\.png: not an image"):
        list(open_pictures(folder, HOW).arrays())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_picture_that_is_not_finite_is_named_when_it_is_read(some, tmp_path, bad):
    values = some.astype(np.float32)
    values[2, 0, 3, 3] = bad
    np.savez(tmp_path / "bad.npz", data=values)
    read = open_pictures(tmp_path / "bad.npz", HOW).arrays()
    assert all(np.isfinite(next(read)).all() for _ in range(2))
    with pytest.raises(DataError, match=r"bad\.npz, picture 2: .*not finite"):
        next(read)


def test_an_lmdb_without_labels_has_no_label_0(some, tmp_path):
    source = write_lmdb(tmp_path / "lmdb", some, False, labelled=False)
    assert len(list(open_pictures(source, HOW).arrays())) == len(some)
    with pytest.raises(DataError, match=r"lmdb: entry 0 has no label.*--agreement"):
        open_pictures(source, HOW, labelled=True)
