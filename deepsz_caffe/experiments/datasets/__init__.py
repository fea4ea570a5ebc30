"""Data sets as the LMDBs that Caffe's Data layer reads: the public ones, and anybody's own.

A new public data set is a module here, which holds a function ``prepare(folder, source, report)``,
and a line in `DATA_SETS`; its command, ``deepsz ID DIR``, comes from that line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Prepare(Protocol):
    """Write a data set's training, validation and test LMDBs; what is there already is kept.

    Parameters
    ----------
    folder
        Gets ``train_lmdb``, ``validation_lmdb`` and ``test_lmdb``, each complete or not at all.
    source
        What to read instead of fetching it; each data set says what it may be.
    report
        Called with a line of text as the work goes on.

    Returns
    -------
    dict
        Path of each LMDB and its number of images.

    Raises
    ------
    DataError
        The data can't be fetched or read, or are not those of the data set.
    InputError
        There is no such `source`.
    """

    def __call__(
        self,
        folder: str | os.PathLike[str],
        source: str | os.PathLike[str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> dict[str, int]: ...


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes
    ----------
    title
        As tables name it.
    source
        What it may be taken from instead of being fetched; empty where nothing prepares it here.
    how_to_get
        What to do about one that is not at hand.
    """

    title: str
    source: str = ""
    how_to_get: str = ""


#: id -> data set; the id names the module here and the command
DATA_SETS: dict[str, DataSet] = {
    "mnist": DataSet("MNIST", "a folder of the four raw files (or .gz)", "deepsz mnist data/mnist"),
    "cifar10": DataSet(
        "CIFAR-10",
        "a folder or tar archive of the binary files, or of train/CLASS/*.jpg and test/CLASS/*.jpg",
        "deepsz cifar10 data/cifar10",
    ),
    "imagenet": DataSet(
        "ImageNet",
        how_to_get="register at image-net.org, then deepsz lmdb or Caffe's convert_imageset makes "
        "the LMDB",
    ),
}


def prepare_of(name: str) -> Prepare:
    """Give the function that prepares a data set, by the data set's id."""
    prepare: Prepare = importlib.import_module(f"{__name__}.{name}").prepare
    return prepare
