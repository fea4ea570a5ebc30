"""``deepsz remove``: step 1 on pictures, without labels or training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsz_caffe.cli.measuring import PATH, measure_progress, selection
from deepsz_caffe.cli.output import json_option, print_json, print_line, print_table
from deepsz_caffe.cli.pictures import PictureOptions, picture_options
from deepsz_caffe.cli.values import parse_numbers
from deepsz_caffe.errors import InputError

if TYPE_CHECKING:
    from deepsz_caffe.network.layers import Selection


def _keep(context: object, parameter: object, text: str) -> float | dict[str, float]:
    try:
        return float(text)
    except ValueError:
        return parse_numbers(text, "--keep 0.3 or --keep conv1=0.5,ip1=0.2")


@click.command()
@click.argument("network", metavar="NET", type=PATH)
@click.argument("weights", metavar="WEIGHTS", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option(
    "--keep",
    metavar="0.3|ip1=0.2,…",
    required=True,
    callback=_keep,
    help="Fraction of the weights to keep, of each layer or of these.",
)
@click.option(
    "--layers",
    metavar="fc|conv|all|A,B",
    default="all",
    show_default=True,
    callback=selection,
    help="Of which layers, where --keep is one fraction.",
)
@picture_options
@json_option
def remove(
    pictures: PictureOptions,
    network: Path,
    weights: Path,
    out: Path,
    keep: float | dict[str, float],
    layers: Selection,
    as_json: bool,
) -> None:
    """Do step 1 on pictures: remove weights that the others make good.

    Neither labels nor training: what is left of each layer is adapted to what enters the layer, so
    that what comes out changes least. `compress --original WEIGHTS` holds an agreement with the
    network before it.

    \b
    Example:
      deepsz remove deploy.prototxt net.caffemodel pruned.caffemodel --images photos/ --keep 0.3
    """
    from deepsz_caffe.runtime.removal import remove as run

    opened = pictures.open(network, labelled=False)
    if opened is None:
        raise InputError("inputs of layers are measured on pictures", hint="--images FOLDER")
    print_line(f"{opened.total:,} pictures of {opened.source}, each as {opened.how}", err=True)
    with measure_progress() as show:
        found = run(network, weights, out, keep, opened, layers=layers, progress=show)
    if as_json:
        print_json(
            {
                "layers": {
                    name: {"nonzeros_before": before, "nonzeros_after": after}
                    for name, (before, after) in found.layers.items()
                },
                "images": found.images,
                "same_top1": found.same_top1,
                "divergence": found.divergence.mean,
            }
        )
        return
    rows = [
        (name, before, after, f"{after / before:.1%}" if before else "")
        for name, (before, after) in found.layers.items()
    ]
    print_table(("layer", "non-zeros", "kept", ""), rows)
    print_line(
        f"the same top-1 on {found.same_top1:,} of {found.images:,} pictures; divergence "
        f"{found.divergence.mean:.2g} nats"
    )
