"""Write a `.dsz` file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from deepsz_caffe.dsz.chunks import pack
from deepsz_caffe.dsz.header import write_header
from deepsz_caffe.dsz.layout import CHUNK, Contents, Deploy, Header
from deepsz_caffe.errors import FormatError, InputError
from deepsz_caffe.files import atomic_write


def write_dsz(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a file; it appears complete or not at all.

    Raises
    ------
    InputError
        The contents break a rule of the format, e.g. two layers have the same name.
    DeepSZError
        The file can't be written.
    """
    pieces = list(_pieces(contents))
    with atomic_write(path) as file:
        for piece in pieces:
            file.write(piece)


def _pieces(contents: Contents) -> Iterator[bytes]:
    deploy = None
    if contents.deploy is not None:
        if len(contents.deploy) > CHUNK:
            raise InputError(f"the deploy prototxt has more than {CHUNK} bytes")
        deploy = Deploy(len(contents.deploy), pack(contents.deploy))
    try:
        yield write_header(Header(contents.layers, contents.rest, deploy, contents.origin))
    except FormatError as error:
        raise InputError(f"this can't be stored: {error}") from error
    for layer in contents.layers:
        yield layer.data + layer.index
    if deploy is not None:
        yield deploy.chunk.data
    for chunk in contents.rest.chunks:
        yield chunk.data
