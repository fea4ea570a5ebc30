"""Which blobs a folder of features keeps, and of how many images.

Within a limit of bytes the smallest blobs are kept: they enter the last layers, and spare most.
What enters the lowest of the layers is always there. Where single layers are only measured on few
images, as a search by divergences does, what enters the others is kept of so many alone, but of
more where it enters fc layers and is small.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from deepsz_caffe.errors import DataError
from deepsz_caffe.network import graph
from deepsz_caffe.runtime.body import Body, room_for

#: Bytes that features take on the disk, at most, unless said.
LIMIT = 16 << 30

# Moments and divergences are measured on as many images as have so many bytes of features: where
# much enters the layers, much is computed, and what a divergence says is known from few images.
_FEWEST, _MOST, _BYTES = 32, 256, 1 << 30
#: Of a small blob that enters an fc layer, as many images are kept as have so many bytes.
_SMALL = 1 << 28


def images_to_sample(each: int) -> int:
    """Say of how many images moments and divergences are measured, of `each` bytes of features."""
    return min(max(_BYTES // max(each, 1), _FEWEST), _MOST)


def images_kept(
    body: Body,
    layers: Collection[str],
    outputs: Collection[graph.Version],
    whole: bool,
    limit: int,
    folder: Path,
) -> dict[graph.Version, int]:
    """Say what is to be kept, and of how many images, within the limit and the room on the disk.

    Parameters
    ----------
    body
        Gives what enters the layers.
    layers, outputs, whole, limit, folder
        As of `features.Pass`; the folder exists.

    Returns
    -------
    dict
        Blob -> images.

    Raises
    ------
    DataError
        What can't be computed again is over it.
    """
    prepared, total = body.prepared, body.prepared.images.total
    wanted = outputs or (prepared.judged.scores,)
    lowest = {*graph.cut(prepared.net, layers, *wanted).inputs, *outputs}
    sizes = {version: 4 * math.prod(shape) for version, shape in body.shapes.items()}
    kept = dict.fromkeys(sorted(lowest), total)
    least = sum(sizes[version] * total for version in lowest)
    if least > limit:
        raise DataError(
            f"what enters the lowest layer takes {least:,} bytes, over the limit of {limit:,}",
            where=folder,
            hint="allow more: --features-limit; or take fewer images",
        )
    left = min(limit, room_for(folder)) - least
    few = min(images_to_sample(body.bytes_each), total) if whole else total
    others = sorted(sizes.keys() - lowest, key=lambda v: (sizes[v], -v.producer))
    for version in others:
        if sizes[version] * few <= left:
            kept[version] = few
            left -= sizes[version] * few
    fc = {layer.name for layer in prepared.net.layer if layer.type == "InnerProduct"}
    cuts = (graph.cut(prepared.net, [name], *wanted) for name in layers if name in fc)
    entering = {version for each in cuts for version in each.inputs}
    for version in (each for each in others if each in entering):
        many = min(_SMALL // sizes[version], total)
        more = sizes[version] * (many - few)
        if version in kept and 0 < more <= left:
            kept[version] = many
            left -= more
    return kept
