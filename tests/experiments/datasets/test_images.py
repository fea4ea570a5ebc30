"""One's own images: what is written, read back by Caffe itself, is what the files hold."""

import gzip
import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from deepsz_caffe.cli.data import parse_size
from deepsz_caffe.cli.main import deepsz
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.experiments.datasets.images import choose, open_images
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

CLASSES = ("bird", "cat", "dog")


def read_by_caffe(source, count):
    """Run a Data layer over an LMDB; runs in a Caffe process."""
    import tempfile

    caffe = import_caffe()
    text = (
        'layer { name: "data" type: "Data" top: "data" top: "label" data_param '
        f'{{ source: "{source}" backend: LMDB batch_size: {count} }} }}'
    )
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(text)
        file.flush()
        net = caffe.Net(file.name, caffe.TEST)
    net.forward()
    return net.blobs["data"].data.copy(), net.blobs["label"].data.astype(int).tolist()


def run(*arguments):
    command = ["lmdb", *map(str, arguments), "--json"]
    result = CliRunner().invoke(deepsz, command, catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder a class of PNG files, 12 x 10; the first pixel's blue is the image's number."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(1)
    number = 0
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for _ in range(4 * (label + 1)):
            image = random.integers(0, 256, (10, 12, 3), np.uint8)
            image[0, 0, 0] = number
            cv2.imwrite(str(folder / name / f"{number:03}.png"), image)
            number += 1
    (folder / "notes.txt").write_text("no image")
    return folder


def files(folder):
    return [
        (path, label)
        for label, name in enumerate(CLASSES)
        for path in sorted((folder / name).iterdir())
    ]


def expected(listed, size=None, color=True):
    flag = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    images = [cv2.imread(str(path), flag) for path, _ in listed]
    if size:
        images = [cv2.resize(image, size) for image in images]
    return np.stack([np.atleast_3d(image).transpose(2, 0, 1) for image in images])


def test_a_folder_is_shuffled_and_whole(pictures, tmp_path):
    document = run(tmp_path / "db", "--images", pictures)
    assert document == {"images": {str(tmp_path / "db"): 24}, "classes": list(CLASSES)}
    images, labels = run_in_caffe(read_by_caffe, str(tmp_path / "db"), 24)
    order = images[:, 0, 0, 0].astype(int)
    assert sorted(order) == list(range(24)) != order.tolist()
    listed = files(pictures)
    np.testing.assert_array_equal(images, expected(listed)[order])
    assert labels == [listed[number][1] for number in order]


def test_a_list_keeps_its_order_and_is_scaled_as_caffe_does(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the files are beside the list, not in the working folder
    listed = files(pictures)[::-2]
    lines = [f"{path.relative_to(pictures)} {label + 7}" for path, label in listed]
    (pictures / "some list.txt").write_text("\n".join(lines))
    run("db", "--images", pictures / "some list.txt", "--resize", "8x6")
    images, labels = run_in_caffe(read_by_caffe, str(tmp_path / "db"), 12)
    np.testing.assert_array_equal(images, expected(listed, (8, 6)))
    assert labels == [label + 7 for _, label in listed]
    run("gray", "--images", pictures / "some list.txt", "--gray")
    images, _ = run_in_caffe(read_by_caffe, str(tmp_path / "gray"), 12)
    np.testing.assert_array_equal(images, expected(listed, color=False))


def test_a_split_takes_its_part_of_each_class(pictures, tmp_path):
    options = ("--images", pictures, "--split", "validation=0.25,test=0.25")
    out = tmp_path / "db"
    counts = run(out, *options)["images"]
    names = {"train": 12, "validation": 6, "test": 6}
    assert counts == {str(out / f"{name}_lmdb"): count for name, count in names.items()}
    seen = []
    for name, count in names.items():
        images, labels = run_in_caffe(read_by_caffe, str(out / f"{name}_lmdb"), count)
        seen += images[:, 0, 0, 0].astype(int).tolist()
        assert np.bincount(labels).tolist() == [count // 6, count // 3, count // 2]
    assert sorted(seen) == list(range(24))
    again = tmp_path / "again"
    run(again, *options)
    for name in names:
        first, second = ((x / f"{name}_lmdb" / "data.mdb").read_bytes() for x in (out, again))
        assert first == second


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_bytes_and_floats(tmp_path, dtype):
    random = np.random.default_rng(2)
    data = (random.random((6, 2, 5, 4)) * 200).astype(dtype)
    np.savez(tmp_path / "x.npz", data=data, label=np.arange(6))
    run(tmp_path / "db", "--images", tmp_path / "x.npz")
    images, labels = run_in_caffe(read_by_caffe, str(tmp_path / "db"), 6)
    np.testing.assert_array_equal(images, data)
    assert labels == list(range(6))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_finds_its_labels_as_mnist_names_them(tmp_path, pack):
    pixels = np.random.default_rng(3).integers(0, 256, (5, 3, 4), np.uint8)
    (tmp_path / "t-images-idx3-ubyte").write_bytes(
        pack(b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes())
    )
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x05" + bytes(range(5)))
    run(tmp_path / "db", "--images", tmp_path / "t-images-idx3-ubyte")
    images, labels = run_in_caffe(read_by_caffe, str(tmp_path / "db"), 5)
    np.testing.assert_array_equal(images, pixels[:, np.newaxis])
    assert labels == list(range(5))


def test_a_split_of_any_labels_is_a_partition():
    labels = np.random.default_rng(4).integers(0, 5, 200)
    chosen = choose(labels, {"a": 0.1, "b": 0.3}, shuffle=False)
    assert sorted(np.concatenate(list(chosen.values()))) == list(range(200))
    for order in chosen.values():
        assert (np.diff(order) > 0).all()
    for label in range(5):
        of_class = (labels == label).sum()
        assert (labels[chosen["a"]] == label).sum() == round(0.1 * of_class)
        assert (labels[chosen["b"]] == label).sum() == round(0.3 * of_class)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", None, "no image files"),
        ("list.txt", "a.png one\n", "FILE LABEL"),
        ("list.txt", "missing.png 1\n", "missing.png: can't read: No such file"),
        ("list.txt", "list.txt 1\n", "not an image"),
        ("list.txt", "", "empty"),
        ("x-idx3", b"\0\0\x08\x03\0\0\0\x09", "not an IDX file"),
        ("x.npz", {"data": np.zeros((2, 1, 4, 4))}, "no array label"),
        ("x.npz", {"data": np.zeros((2, 8, 8, 3)), "label": np.zeros(2)}, "channels last"),
        ("x.npz", {"data": np.zeros((2, 1, 8, 8)), "label": np.zeros(3)}, "2 images, and labels"),
        (
            "x.npz",
            {"data": np.zeros((1, 1, 8, 8)), "label": np.full(1, 0.5)},
            "label 0.5 is no",
        ),
        ("x.npz", {"data": np.zeros((2, 8)), "label": np.zeros(2)}, "are not images"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(tmp_path, name, content, said):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "x-idx1").write_bytes(b"")
    arguments = ["lmdb", str(tmp_path / "out"), "--images", str(path)]
    result = CliRunner().invoke(deepsz, arguments)
    assert isinstance(result.exception, DataError)
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_images_of_other_sizes_are_refused(pictures, tmp_path):
    cv2.imwrite(str(tmp_path / "odd.png"), np.zeros((3, 4, 3), np.uint8))
    first = next((pictures / "bird").iterdir())
    (tmp_path / "list").write_text(f"{first} 0\n{tmp_path / 'odd.png'} 1\n")
    arguments = ["lmdb", str(tmp_path / "out"), "--images", str(tmp_path / "list")]
    result = CliRunner().invoke(deepsz, arguments)
    assert "image 1 is 3 × 3 × 4, those before are 3 × 10 × 12" in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list", "odd.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--split", "validation=0"), "not a part"),
        (("--split", "train=0.1"), "not a part"),
        (("--split", "../x=0.1"), "does not name a part"),
        (("--split", "a=0.6,b=0.6"), "no image is left"),
        (("--split", "a=0.001"), "no image is left"),
        (("--resize", "8"), "WIDTHxHEIGHT"),
        (("--resize", "0x8"), "WIDTHxHEIGHT"),
        (("--labels", "x"), "folders' names"),
    ],
)
def test_wrong_use_is_said_before_anything_is_written(pictures, tmp_path, options, said):
    arguments = ["lmdb", str(tmp_path / "out"), "--images", str(pictures), *options]
    result = CliRunner().invoke(deepsz, arguments)
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(pictures, tmp_path):
    arguments = ["lmdb", str(tmp_path), "--images", str(pictures)]
    result = CliRunner().invoke(deepsz, arguments)
    assert isinstance(result.exception, InputError)
    assert "is there already" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_not_there_is_wrong_use(tmp_path):
    with pytest.raises(InputError, match="no such list"):
        open_images(tmp_path / "none")
    assert parse_size("32X16") == (32, 16)
    assert parse_size(None) is None
