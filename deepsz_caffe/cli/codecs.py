"""``deepsz bench``: what codecs make of a network's fc layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from deepsz_caffe.cli.output import json_option, print_json, print_table
from deepsz_caffe.cli.values import parse_numbers

_BOUND = 0.01


@click.group()
def bench() -> None:
    """Measure parts of deepsz on a network of yours."""


@bench.command()
@click.argument("weights", metavar="NET.caffemodel", type=click.Path(path_type=Path))
@click.option(
    "--bounds", metavar="ip1=0.02,…", help=f"Layers and their error bounds; all at {_BOUND}."
)
@click.option("--slow", is_flag=True, help="Context mixing of layers over a million weights too.")
@json_option
def codecs(weights: Path, bounds: str | None, slow: bool, as_json: bool) -> None:
    """Encode and decode fc layers, or those named, with every codec.

    For each codec the bytes a non-zero weight, and the speed in MB of plain arrays a second; beside
    them the entropy: of quantized values without any context for data, of independent positions
    for the index, both together for codecs of whole matrices.

    \b
    Example:
      deepsz bench codecs models/lenet_300_100/pruned.caffemodel --bounds ip1=0.02,ip2=0.03
    """
    from deepsz_caffe.codecs.compare import compare
    from deepsz_caffe.errors import InputError
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.network.layers import stored_layers

    model = read_caffemodel(weights)
    if bounds is not None:
        chosen = parse_numbers(bounds, "--bounds ip1=0.02,ip2=0.03")
    else:
        chosen = dict.fromkeys(stored_layers(model), _BOUND)
    if not chosen:
        raise InputError("there is no fc layer", where=weights, hint="name layers by --bounds")
    layers = []
    for name in stored_layers(model, tuple(chosen)):
        matrix = model[name].matrix
        figures = list(compare(matrix, chosen[name], slow=slow or None))
        layers.append(
            {
                "name": name,
                "shape": list(matrix.shape),
                "nonzeros": int((matrix != 0).sum()),
                "error_bound": chosen[name],
                "figures": [dataclasses.asdict(figure) for figure in figures],
            }
        )
        if not as_json:
            rows, columns, *_ = matrix.shape
            title = f"{name}, {rows}×{columns}, {layers[-1]['nonzeros']:,} non-zeros"
            print_table(
                ("array", "codec", "bytes", "bytes a non-zero", "encode MB/s", "decode MB/s"),
                [
                    [
                        figure.array,
                        figure.codec,
                        figure.bytes,
                        f"{figure.bytes_per_nonzero:.3f}",
                        _speed(figure.encode_mb_s),
                        _speed(figure.decode_mb_s),
                    ]
                    for figure in figures
                ],
                f"{title}, bound {chosen[name]:g}",
            )
    if as_json:
        print_json({"layers": layers})


def _speed(speed: float | None) -> str:
    return "" if speed is None else f"{speed:.3g}"
