"""HDF5 weights that reach out of their file, or are much larger than it.

External storage, a virtual dataset or an external link put another file's bytes into the network,
and from there into the `.dsz` file that its author publishes; an external link also made the wrong
file be mapped, at an offset of the right one. A dataset that is nothing but its fill value has any
size in a file of 2 KB. All are refused before anything is read.
"""

import h5py
import numpy as np
import pytest

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel

SECRET = np.arange(1000, dtype=np.float32)


@pytest.fixture
def victim(tmp_path):
    """Give a file of the user's own, as bytes and as HDF5."""
    SECRET.tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data/fc/0"] = SECRET
        file["elsewhere"] = SECRET
    return tmp_path


def external_storage(file, victim):
    file.create_dataset(
        "data/fc/0", (1000,), "f4", external=[(str(victim / "secret"), 0, SECRET.nbytes)]
    )


def virtual(file, victim):
    layout = h5py.VirtualLayout((1000,), "f4")
    layout[:] = h5py.VirtualSource(str(victim / "secret.h5"), "data/fc/0", (1000,))
    file.create_virtual_dataset("data/fc/0", layout)


def external_dataset(file, victim):
    file["data/fc/0"] = h5py.ExternalLink(str(victim / "secret.h5"), "/data/fc/0")


def external_layer(file, victim):
    file["data/fc"] = h5py.ExternalLink(str(victim / "secret.h5"), "/data/fc")


def external_data(file, victim):
    file["data"] = h5py.ExternalLink(str(victim / "secret.h5"), "/data")


def soft_link_out(file, victim):
    file["elsewhere"] = SECRET
    file["data/fc/0"] = h5py.SoftLink("/elsewhere")


def relative_link_out(file, victim):
    file["elsewhere"] = SECRET
    file["data/fc/0"] = h5py.SoftLink("../../elsewhere")


def soft_data(file, victim):
    file["elsewhere/fc/0"] = SECRET
    file["data"] = h5py.SoftLink("/elsewhere")


def soft_to_external(file, victim):
    file["data/x"] = h5py.ExternalLink(str(victim / "secret.h5"), "/data/fc")
    file["data/fc/0"] = h5py.SoftLink("/data/x/0")


def fill_value(file, victim):
    file.create_dataset("data/fc/0", (1 << 20, 1 << 12), "f4", fillvalue=7)


def many_fill_values(file, victim):
    for number in range(100):
        file.create_dataset(f"data/fc{number}/0", (40_000,), "f4", fillvalue=7)


def bomb(file, victim):
    file.create_dataset("data/fc/0", data=np.zeros(10_000_000, "f4"), compression="gzip")


def large_chunk(file, victim):
    file.create_dataset("data/fc/0", (1,), "f4", maxshape=(None,), chunks=(1 << 28,), fillvalue=7)


def linked_again_and_again(file, victim):
    # Not native: each would be read into memory of its own.
    file["data/fc0/0"] = np.ones(100_000, ">f4")
    for number in range(1, 1000):
        file[f"data/fc{number}/0"] = file["data/fc0/0"]


def circle(file, victim):
    file.create_group("data/a")
    file["data/a/b"] = file["data/a"]


def deep(file, victim):
    file["data/" + "a/" * 500 + "0"] = SECRET


def many(file, victim):
    group = file.create_group("data")
    for number in range(40_000):
        group[f"x{number}"] = h5py.SoftLink("/data/y")


KINDS = [
    external_storage, virtual, external_dataset, external_layer, external_data, soft_link_out,
    relative_link_out, soft_data, soft_to_external, fill_value, many_fill_values, bomb, large_chunk,
    linked_again_and_again, circle, deep, many,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_refused(kind, victim, monkeypatch):
    with h5py.File(victim / "net.h5", "w") as file:
        kind(file, victim)
    monkeypatch.chdir(victim)
    with pytest.raises(ModelError) as error:
        read_caffemodel(victim / "net.h5")
    assert "damaged" not in str(error.value)


def test_a_dataset_that_lies_outside_of_the_file_is_refused(victim):
    path = victim / "net.h5"
    with h5py.File(path, "w") as file:
        file["data/fc/0"] = SECRET
    content = path.read_bytes()
    path.write_bytes(content[: content.index(SECRET.tobytes()) + 100])
    with pytest.raises(ModelError):
        read_caffemodel(path)
