"""``deepsz encode``, ``deepsz expand``, ``deepsz inspect``: step 4 and its reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsz_caffe.cli.limits import check_limits, limit_options
from deepsz_caffe.cli.measuring import PROFILE_CHOICES
from deepsz_caffe.cli.output import (
    Function,
    json_option,
    print_file,
    print_json,
    print_line,
    print_table,
    whole_file,
)
from deepsz_caffe.cli.values import parse_numbers
from deepsz_caffe.errors import DataError, InputError
from deepsz_caffe.files import atomic_write, check_output

if TYPE_CHECKING:
    from deepsz_caffe.dsz.layout import Measured
    from deepsz_caffe.dsz.limits import Limits
    from deepsz_caffe.network.layers import ExtraBlobs, Selection

_PATH = click.Path(path_type=Path)


def extra_blobs_option(command: Function) -> Function:
    """Add ``--extra-blobs``."""
    return click.option(
        "--extra-blobs",
        type=click.Choice(["keep", "drop"]),
        default="keep",
        show_default=True,
        help="Blobs that NET's layers don't have, such as a fork's masks; Caffe refuses them.",
    )(command)


@click.command()
@click.argument("files", metavar="[NET] P.caffemodel OUT.dsz", nargs=-1, type=_PATH)
@click.option("--bounds", metavar="ip1=0.02,…", help="Error bound of each layer, or a JSON file.")
@click.option("--plan", metavar="PLAN.json", type=_PATH, help="Bounds as `optimize` chose them.")
@click.option(
    "--relative-bound",
    type=float,
    metavar="0.05",
    help="Bound every layer by this part of its weights' root mean square: unverified.",
)
@click.option("--profile", default="balanced", help=f"{PROFILE_CHOICES}; balanced.")
@click.option("--with-prototxt", metavar="DEPLOY", type=_PATH, help="Store this prototxt too.")
@extra_blobs_option
@json_option
def encode(
    files: tuple[Path, ...],
    bounds: str | None,
    plan: Path | None,
    relative_bound: float | None,
    profile: str,
    with_prototxt: Path | None,
    extra_blobs: ExtraBlobs,
    as_json: bool,
) -> None:
    """Do step 4: encode a pruned network at given error bounds.

    Bounds are for fc layers, convolutions, deconvolutions and Embed layers. Layers without a bound
    are stored as they are. Without NET the weights alone say what there is. With --relative-bound
    nothing has to be measured, and nothing is known of what the network loses.

    \b
    Example:
      deepsz encode prototxt/lenet_300_100/train_val.prototxt pruned.caffemodel out.dsz \\
        --bounds ip1=0.02,ip2=0.03,ip3=0.03
    """
    from deepsz_caffe.steps.encode import encode as encode_layers
    from deepsz_caffe.steps.encode import write_dsz

    if len(files) not in (2, 3):
        raise click.UsageError("give NET, P.caffemodel and OUT.dsz; NET may be left out")
    network, weights, output = (None, *files) if len(files) == 2 else files
    if [bounds, plan, relative_bound].count(None) != 2:
        raise InputError("give either --bounds or --plan, or --relative-bound")
    check_output(output, (network, weights, plan, with_prototxt))
    if relative_bound is not None:
        options = with_prototxt, extra_blobs, as_json
        encode_unmeasured(network, weights, output, relative_bound, "all", profile, *options)
        return
    chosen = (
        _read_plan(plan)
        if plan is not None
        else parse_numbers(bounds or "", "--bounds ip1=0.02,ip2=0.03")
    )
    contents = encode_layers(
        network,
        weights,
        chosen,
        profile,
        with_prototxt=with_prototxt,
        extra_blobs=extra_blobs,
    )
    write_dsz(output, contents)
    _show(output, as_json)


def encode_unmeasured(
    network: Path | None,
    weights: Path,
    output: Path,
    relative_bound: float,
    layers: Selection,
    profile: str,
    with_prototxt: Path | None,
    extra_blobs: ExtraBlobs,
    as_json: bool,
) -> None:
    """Encode layers at a part of their typical weight, and say that nothing was measured."""
    from deepsz_caffe.network.caffemodel import read_caffemodel
    from deepsz_caffe.steps.encode import encode as encode_layers
    from deepsz_caffe.steps.encode import write_dsz
    from deepsz_caffe.steps.relative import relative_bounds

    model = read_caffemodel(weights)
    bounds = relative_bounds(model, relative_bound, layers)
    contents = encode_layers(
        network, model, bounds, profile, with_prototxt=with_prototxt, extra_blobs=extra_blobs
    )
    write_dsz(output, contents)
    _show(output, as_json)
    print_line(
        "unverified: nothing was measured, so what the network's answers lose is not known; "
        "`deepsz compress --images PICTURES --agreement 0.99` measures",
        err=True,
    )


@click.command()
@click.argument("source", metavar="IN.dsz", type=_PATH)
@click.argument("output", metavar="OUT.caffemodel", type=_PATH)
@click.option("--prototxt", metavar="OUT", type=_PATH, help="Write the deploy prototxt in it too.")
@click.option("--isolated", is_flag=True, help="Decode in a process of its own: for strange files.")
@limit_options
@json_option
def expand(
    limits: Limits,
    source: Path,
    output: Path,
    prototxt: Path | None,
    isolated: bool,
    as_json: bool,
) -> None:
    """Write the caffemodel that a .dsz file holds.

    HDF5 where OUT ends in .h5. With - for OUT it goes to standard output.

    \b
    Example:
      deepsz expand lenet.dsz lenet.caffemodel
    """
    from deepsz_caffe.dsz.reader import DszFile
    from deepsz_caffe.steps.expand import expand as run

    to_output = str(output) == "-"
    if to_output and as_json:
        raise InputError("standard output can't take both the caffemodel and JSON")
    if prototxt is not None:
        check_output(prototxt, [source], [output])
    with DszFile(source, limits) as file:
        deploy = file.deploy()
        summary = file.summary()
    if prototxt is not None and deploy is None:
        raise InputError(
            "holds no prototxt", where=source, hint="encode puts one in with --with-prototxt"
        )
    if to_output:
        _expand_to_output(source, limits, isolated)
    else:
        run(source, output, limits=limits, isolated=isolated)
    if prototxt is not None:
        with atomic_write(prototxt) as written:
            written.write(deploy or b"")
    if as_json:
        paths = {"output": str(output), "prototxt": None if prototxt is None else str(prototxt)}
        print_json(paths | {"bytes": output.stat().st_size, "layers": summary["layers"]})


def _expand_to_output(source: Path, limits: Limits, isolated: bool) -> None:
    """Expand into a file first: what is on its way to another program can't be taken back."""
    from deepsz_caffe.folders import temporary_folder
    from deepsz_caffe.steps.expand import expand as run

    with temporary_folder() as folder:
        expanded = folder / "expanded.caffemodel"
        run(source, expanded, limits=limits, isolated=isolated)
        print_file(expanded)


@click.command()
@click.argument("source", metavar="IN.dsz", type=_PATH)
@limit_options
@json_option
def inspect(limits: Limits, source: Path, as_json: bool) -> None:
    """Say what a .dsz file holds, without decoding it.

    Fails where decoding would meet a limit that is given.

    \b
    Example:
      deepsz inspect lenet.dsz
    """
    if limits != type(limits)():
        check_limits(source, limits)
    _show(source, as_json)


def _read_plan(path: Path) -> dict[str, float]:
    from deepsz_caffe.documents import convert_document, read_document

    try:
        document = read_document(path, dict[str, object], what="a plan")
        return convert_document(document.get("bounds"), dict[str, float], what="a plan")
    except DataError as error:
        raise InputError(error.what, where=path, hint="deepsz optimize makes one") from error


def _bounds_of(blobs: Sequence[Mapping[str, object]]) -> str:
    return ", ".join(f"{blob['layer']} {blob['error_bound']:.3g}" for blob in blobs)


def _measured_line(measured: Measured) -> str:
    line = f"measured on {measured.total:,} images ({measured.data})"
    if not measured.top1_before:  # it was how far outputs change, not top-1
        return line
    return f"{line}: top-1 {measured.top1_before:,} → {measured.top1_after:,}"


def _show(path: Path, as_json: bool) -> None:
    from deepsz_caffe.dsz.reader import DszFile

    with DszFile(path) as file:
        summary, measured = file.summary(), file.origin.measured
    if as_json:
        print_json(summary)
        return
    columns = ("layer", "shape", "non-zeros", "bound", "data", "index", "bytes", "ratio")
    rows = []
    for layer in summary["layers"]:
        dense = 4 * layer["shape"][0] * layer["shape"][1]
        row = [layer["name"], "{}×{}".format(*layer["shape"]), layer["nonzeros"]]
        row += [f"{layer['error_bound']:g}", layer["data_codec"], layer["index_codec"]]
        rows.append([*row, layer["bytes"], f"{dense / layer['bytes']:.1f}×"])
    print_table(columns, rows)
    if summary["rest_bounds"]:
        print_line(f"bounds of biases: {_bounds_of(summary['rest_bounds'])}; all else is exact")
    if measured is not None:
        print_line(_measured_line(measured))
    if summary["deploy_bytes"] is not None:
        print_line(f"a deploy prototxt of {summary['deploy_bytes']:,} bytes: expand --prototxt OUT")
    if not rows:
        print_line(f"no compressed layer; {whole_file(summary)}")
        return
    print_line(
        f"these layers: {summary['fc_dense_bytes']:,} bytes in {summary['fc_bytes']:,}, "
        f"{summary['ratio']:.1f}×; {whole_file(summary)}"
    )
