"""IDX: the form of array that MNIST's files have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import DataError


def parse_idx(raw: bytes, name: str = "IDX file") -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Parameters
    ----------
    raw
        The file: two zero bytes, the type (8, unsigned byte), the number of dimensions, each
        dimension as a big-endian uint32, then the values.

    Returns
    -------
    numpy.ndarray
        uint8, of the shape that the file declares; a view of `raw`.

    Raises
    ------
    DataError
        It is no such file, or holds more or fewer values than it declares.
    """
    dimensions = raw[3] if len(raw) >= 4 else 0
    if raw[:3] != b"\0\0\x08" or not 0 < dimensions <= 4 or len(raw) < 4 + 4 * dimensions:
        raise DataError("not an IDX file of unsigned bytes", where=name)
    shape = tuple(np.frombuffer(raw, ">u4", dimensions, offset=4).tolist())
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"holds {values.size} values, declares {shape}", where=name)
    return values.reshape(shape)
