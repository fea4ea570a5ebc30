"""All of a `.dsz` file's network but the compressed weights, without room for these."""

from __future__ import annotations

import os

from deepsz_caffe.dsz.expand import write_rest
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.files import nameless_file
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.network.weights import CaffeModel


def read_rest(file: DszFile) -> CaffeModel:
    """Read the caffemodel that an open file holds; compressed weights have their shape, and are 0.

    They are holes in a file in memory, which take no room as long as nobody looks at them.

    Raises
    ------
    FormatError, LimitError
        As `DszFile.rest`.
    ModelError
        What the file holds is no caffemodel.
    """
    with nameless_file() as (descriptor, path):
        os.ftruncate(descriptor, file.rest_bytes + sum(x.dense_bytes for x in file.layers))
        write_rest(file, descriptor)
        return read_caffemodel(path, named=file.path)
