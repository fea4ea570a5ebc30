"""README's recipe: a deploy prototxt, weights and a folder of pictures, and nothing else."""

import json
import os
import time
from itertools import islice
from pathlib import Path

import cv2
import pytest

from deepsz_caffe.runtime.sources import read_lmdb_images

LENET = ("prototxt/lenet_5/deploy.prototxt", "models/lenet_5/pruned.caffemodel")
#: MNIST's LMDB has bytes, and the network was trained on 256ths
HOW = ("--scale", 1 / 256)


@pytest.fixture(scope="module")
def folders(mnist, tmp_path_factory):
    """Write 300 digits as PNG files to choose with, and 300 others to judge by."""
    place = tmp_path_factory.mktemp("digits")
    images = read_lmdb_images(str(mnist / "test_lmdb"), 2000, color=False)
    for name in ("some", "others"):
        (place / name / "deep" / "inside").mkdir(parents=True)
        for number, (image, label) in enumerate(islice(images, 300)):
            folder = place / name / "deep" if number % 2 else place / name / "deep" / "inside"
            assert cv2.imwrite(str(folder / f"{number:03}-{label}.png"), image)
    return place


@pytest.mark.parametrize("profile", ["fast", pytest.param("small", marks=pytest.mark.slow)])
def test_compressed_with_some_pictures_the_network_agrees_on_others(
    folders, checkout, deepsz, tmp_path, profile
):
    out = tmp_path / "net.dsz"
    done = deepsz(
        *("compress", *LENET, out, "--images", folders / "some", *HOW),
        *("--agreement", 0.98, "--profile", profile, "--with-prototxt", LENET[0]),
    )
    assert done.returncode == 0, done.stderr
    assert "300 pictures" in done.stderr
    assert "1x28x28; resize 28x28; crop center; scale 0.00390625" in done.stderr
    assert "the same top-1 as before on" in done.stdout
    assert "with confidence 0.9" in done.stdout
    done = deepsz("compare", *LENET, out, "--images", folders / "others", *HOW, "--json")
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert compared["images"] == 300
    changed = compared["outputs"][0]["classes"]["changed"]
    # The promise of 98 % is one of the network; a count on 300 has noise of its own.
    assert len(changed) <= 9
    ratio = (checkout / LENET[1]).stat().st_size / out.stat().st_size
    assert ratio > {"fast": 40, "small": 75}[profile]


def test_with_labels_in_the_names_of_folders_a_loss_is_kept(folders, checkout, deepsz, tmp_path):
    labels = tmp_path / "labels.txt"
    files = sorted((folders / "some").rglob("*.png"))
    labels.write_text("".join(f"{path} {path.stem[-1]}\n" for path in files))
    out = tmp_path / "net.dsz"
    done = deepsz(
        *("compress", *LENET, out, "--images", folders / "some", "--labels", labels, *HOW),
        *("--max-loss", 0.02, "--profile", "fast", "--json"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["total"] == 300
    assert said["top1_before"] > 290
    assert said["top1_before"] - said["top1_after"] <= 6
    assert said["measured_on"] == "pictures"
    assert list(said["bounds"]) == ["conv1", "conv2", "ip1", "ip2"]
    done = deepsz(
        *("eval", LENET[0], out, "--images", folders / "some", "--labels", labels, *HOW, "--json")
    )
    assert json.loads(done.stdout)["top1_correct"] == said["top1_after"]


@pytest.mark.slow
@pytest.mark.skipif(
    not {"DEEPSZ_SQUEEZENET", "DEEPSZ_PICTURES"} <= set(os.environ),
    reason="its weights and pictures are named by DEEPSZ_SQUEEZENET and DEEPSZ_PICTURES",
)
def test_the_recipe_on_squeezenet_takes_less_than_ten_minutes(deepsz, tmp_path):
    place, pictures = Path(os.environ["DEEPSZ_SQUEEZENET"]), Path(os.environ["DEEPSZ_PICTURES"])
    files = sorted(pictures.rglob("*.jpg"))
    for name, part in (("some", files[:400:2]), ("others", files[1:400:2])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{path}\n" for path in part))
    network = place / "deploy.prototxt", place / "squeezenet.caffemodel", tmp_path / "net.dsz"
    how = "--mean", "104,117,123", "--crop", "center"
    start = time.monotonic()
    some = "--images", tmp_path / "some.txt"
    done = deepsz("compress", *network, *some, *how, "--agreement", 0.95)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    done = deepsz("compare", *network, "--images", tmp_path / "others.txt", *how, "--json")
    changed = json.loads(done.stdout)["outputs"][0]["classes"]["changed"]
    print(said)
    print(f"{len(changed)} of 200 others change, {time.monotonic() - start:.0f} s")
    assert len(changed) <= 20
    assert time.monotonic() - start < 600
