"""From a `.dsz` file to weights that Caffe loads: a caffemodel, or HDF5 where the name says so."""

from __future__ import annotations

import os
from pathlib import Path

from deepsz_caffe.dsz import expand as dsz
from deepsz_caffe.dsz.limits import Limits
from deepsz_caffe.files import check_output
from deepsz_caffe.folders import temporary_folder
from deepsz_caffe.network import HDF5_SUFFIXES


def expand(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    isolated: bool = False,
) -> None:
    """Write the weights that a `.dsz` file holds: decoded fc weights, all else as it was.

    Parameters
    ----------
    path
        The `.dsz` file.
    output
        The file to write: a caffemodel; or HDF5, as Caffe's own snapshots are, where its name ends
        in ``.h5`` or ``.hdf5``.
    limits
        What decoding may use.
    isolated
        Decode in a process of its own, for files from strangers.

    Raises
    ------
    InputError, FormatError, LimitError
        As `deepsz_caffe.dsz.decode.decode`; `output` is then as it was before.
    DeepSZError
        The output can't be written.
    """
    run = dsz.expand
    if isolated:
        from deepsz_caffe.dsz import isolated as apart

        run = apart.expand
    if Path(output).suffix.lower() not in HDF5_SUFFIXES:
        run(path, output, limits=limits)
        return
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.network.writer import write_caffemodel

    check_output(output, [path])
    with temporary_folder(beside=output) as folder:
        expanded = folder / "expanded.caffemodel"
        run(path, expanded, limits=limits)
        write_caffemodel(output, read_caffemodel(expanded, named=path), {})
