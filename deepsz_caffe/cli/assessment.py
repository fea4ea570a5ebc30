"""``deepsz eval``, ``assess``, ``optimize``, ``compress`` and ``report``: steps 2 and 3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Unpack

import click

from deepsz_caffe.cli.auto import AutoOptions, auto_options, check_auto, check_no_auto, smallest
from deepsz_caffe.cli.compression import encode_unmeasured, extra_blobs_option
from deepsz_caffe.cli.limits import check_limits, limit_options
from deepsz_caffe.cli.measuring import (
    PATH,
    CompressOptions,
    MeasureOptions,
    measure_options,
    measure_progress,
    numbers,
    passed_on,
)
from deepsz_caffe.cli.output import (
    json_option,
    print_json,
    print_line,
    print_table,
    whole_file,
)
from deepsz_caffe.cli.pictures import PictureOptions, check_source, picture_options
from deepsz_caffe.cli.values import format_numbers, parse_names
from deepsz_caffe.errors import InputError
from deepsz_caffe.files import check_output

if TYPE_CHECKING:
    from deepsz_caffe.dsz.limits import Limits
    from deepsz_caffe.steps.agreement import Agreement, MaxChange
    from deepsz_caffe.steps.compress import CompressResult
    from deepsz_caffe.steps.divergence import Divergence
    from deepsz_caffe.steps.evaluator import Score


#: of more layers only the number is shown
_NAMED = 6


@click.command(name="eval")
@click.argument("network", metavar="NET", type=PATH)
@click.argument("weights", metavar="WEIGHTS", type=PATH)
@click.option("--data", metavar="SOURCE", help="LMDB, list or .npz in place of the TEST phase's.")
@picture_options
@click.option("--stage", "stages", multiple=True, help="A Caffe stage, e.g. validation.")
@click.option("--gpu", type=int, help="Run on this GPU.")
@click.option("--compressed", is_flag=True, help="Run fc layers from their compressed form.")
@limit_options
@json_option
def eval(
    limits: Limits,
    pictures: PictureOptions,
    network: Path,
    weights: Path,
    data: str | None,
    stages: tuple[str, ...],
    gpu: int | None,
    compressed: bool,
    as_json: bool,
) -> None:
    """Count what a network gets right, top-1 and top-5.

    WEIGHTS is a caffemodel or a .dsz file. Every image of the TEST phase of NET counts once; or of
    --images, with labels, where NET may be a deploy prototxt.

    \b
    Example:
      deepsz eval prototxt/lenet_5/train_val.prototxt models/lenet_5/paper.dsz
    """
    from deepsz_caffe.runtime.evaluate import evaluate

    check_limits(weights, limits)
    opened = pictures.open(network, labelled=True, recorded=(weights,))
    if opened is not None and data is not None:
        raise InputError("give either --images or --data")
    with measure_progress() as show:
        score = evaluate(
            network,
            weights,
            stages=stages,
            data=data if opened is None else opened,
            gpu=gpu,
            compressed=compressed,
            progress=lambda done, total: show(("body", done, total)),
        )
    if as_json:
        print_json(score.__dict__)
    else:
        rows = [
            (name, correct, score.total, f"{correct / score.total:.2%}")
            for name, correct in (("top-1", score.top1_correct), ("top-5", score.top5_correct))
        ]
        print_table(("", "correct", "images", "accuracy"), rows)


@click.command()
@click.argument("network", metavar="NET", type=PATH)
@click.argument("weights", metavar="WEIGHTS", type=PATH)
@click.option("--out", required=True, metavar="A.json", type=PATH, help="The assessment.")
@click.option(
    "--max-loss", default=0.002, show_default=True, help="The loss that bounds are sought for."
)
@click.option("--bounds", metavar="B,B", callback=numbers(float), help="Test exactly these bounds.")
@click.option("--journal", type=PATH, metavar="FILE", help="Finished tests [A.json.journal].")
@measure_options
@json_option
def assess(
    network: Path,
    weights: Path,
    out: Path,
    max_loss: float,
    bounds: tuple[float, ...] | None,
    journal: Path | None,
    as_json: bool,
    **options: Unpack[MeasureOptions],
) -> None:
    """Do step 2: measure size and loss of layers at several bounds.

    Every finished test is written to a journal at once: the same command, started again after an
    interruption, goes on where it was.

    \b
    Example:
      deepsz assess prototxt/lenet_5/train_val.prototxt pruned.caffemodel --out A.json
    """
    import shutil

    from deepsz_caffe.api import assess as run
    from deepsz_caffe.folders import exclusive

    check_output(out, (network, weights, options["data"]), [journal])
    kept = options["features"]
    features = options["features"] = kept or out.with_name(f"{out.name}.features")
    with exclusive(out), passed_on(options) as asked:
        assessment = run(
            network,
            weights,
            max_loss=max_loss,
            bounds=bounds,
            journal=journal or out.with_name(f"{out.name}.journal"),
            **asked,
        )
        assessment.save(out)
        if kept is None:
            shutil.rmtree(features, ignore_errors=True)
    if as_json:
        print_json(assessment.to_json())
        return
    rows = [
        (
            layer.name,
            f"{point.bound:g}",
            point.bytes,
            point.lost - point.gained,
            "stopped" if point.stopped else "",
        )
        for layer in assessment.layers
        for point in layer.points
    ]
    data = "validation" if assessment.stages else "test"
    title = f"{assessment.tests} tests on {assessment.total:,} images of the {data} data"
    print_table(("layer", "error bound", "bytes", "images lost", ""), rows, title)


@click.command()
@click.argument("assessment", metavar="A.json", type=PATH)
@click.option("--max-loss", type=float, help="Largest loss of top-1, e.g. 0.002.")
@click.option("--target-ratio", type=float, help="Least compression ratio of these layers.")
@click.option("--out", metavar="PLAN.json", type=PATH, help="Write the bounds, for encode --plan.")
@json_option
def optimize(
    assessment: Path,
    max_loss: float | None,
    target_ratio: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Do step 3: choose each layer's bound, for a loss or a ratio.

    The expected loss is the sum over the layers. Where `compress --journal A.json.journal` has
    measured the choice as a whole, that is said, too.

    \b
    Example:
      deepsz optimize A.json --max-loss 0.002 --out plan.json
    """
    import json
    from dataclasses import asdict

    from deepsz_caffe.files import atomic_write
    from deepsz_caffe.steps.assess.result import Assessment
    from deepsz_caffe.steps.optimize import measured_loss
    from deepsz_caffe.steps.optimize import optimize as run

    if out is not None:
        check_output(out, [assessment])
    assessed = Assessment.load(assessment)
    plan = run(assessed, max_loss=max_loss, target_ratio=target_ratio)
    if assessed.search == "default" and max_loss not in (None, assessed.max_loss):
        print_line(
            f"note: the bounds were sought for a loss of {assessed.max_loss:g}; `deepsz assess "
            f"--max-loss {max_loss:g}` finds better ones, and reuses finished tests",
            err=True,
        )
    measured = measured_loss(assessed, plan, assessment.with_name(f"{assessment.name}.journal"))
    document = asdict(plan) | {"ratio": plan.ratio}
    if measured is not None:
        document["measured_loss"] = measured
    if out is not None:
        with atomic_write(out) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())
    if as_json:
        print_json(document)
        return
    print_table(("layer", "error bound"), [(k, f"{v:g}") for k, v in plan.bounds.items()])
    print_line(
        f"expected: {_named(plan.bounds)} in {plan.bytes:,} bytes, {plan.ratio:.1f}×, "
        f"{plan.loss:,} of {plan.total:,} images lost"
    )
    if measured is not None:
        print_line(
            f"measured as a whole: {measured:,} images lost, {_off(measured - plan.loss)} expected"
        )
    # To be copied into a shell, which must not run a layer's name.
    print_line("deepsz encode NET WEIGHTS OUT.dsz --bounds " + quote(format_numbers(plan.bounds)))


@click.command()
@click.argument("network", metavar="NET", type=PATH)
@click.argument("weights", metavar="WEIGHTS", type=PATH)
@click.argument("out", metavar="OUT.dsz", type=PATH)
@click.option("--max-loss", type=float, help="Largest loss of top-1, e.g. 0.002.")
@click.option("--target-ratio", type=float, help="Least compression ratio of these layers.")
@click.option(
    "--agreement",
    type=float,
    help="Without labels: least share of --images whose top-1 stays the same, e.g. 0.99.",
)
@click.option(
    "--max-change",
    type=float,
    help="For networks that are no classifiers: largest relative change of each output, e.g. 0.05.",
)
@click.option(
    "--outputs",
    metavar="A,B",
    callback=lambda context, parameter, text: () if text is None else parse_names(text),
    help="With --max-change: the blobs that count [all outputs].",
)
@click.option(
    "--relative-bound",
    type=float,
    help="Without anything to measure on: bound every layer by this part of its weights' root "
    "mean square, e.g. 0.05. Unverified.",
)
@click.option(
    "--original", metavar="FILE", type=PATH, help="Count the loss against this unpruned network."
)
@click.option(
    "--confidence",
    type=float,
    help="Keep the margin that the loss holds with so much certainty on other images "
    "[0.9; 0.5, none, with --protocol paper].",
)
@click.option(
    "--biases",
    type=click.Choice(["exact", "corrected"]),
    default="exact",
    show_default=True,
    help="Keep biases, or let them make good mean errors, within a bound that the file declares.",
)
@click.option("--journal", type=PATH, metavar="FILE", help="Keep finished tests here.")
@click.option(
    "--with-prototxt", type=PATH, metavar="DEPLOY", help="Store this deploy prototxt too."
)
@extra_blobs_option
@auto_options
@picture_options
@measure_options
@json_option
def compress(
    pictures: PictureOptions,
    network: Path,
    weights: Path,
    out: Path,
    relative_bound: float | None,
    as_json: bool,
    **options: Unpack[AutoOptions],
) -> None:
    """Do steps 2 to 4: assess, optimize, measure the whole, encode.

    Where the whole configuration loses more than asked, smaller bounds are tried until it holds;
    where none does, nothing is written.

    With --images NET may be a deploy prototxt, and no labels are needed: --agreement is the share
    of pictures of which the network says the same as before. All layers are compressed then. Nor
    are pictures needed with --relative-bound, but then nobody knows what the network loses.

    With --auto, WEIGHTS is not pruned, and step 1 is done, too, ever further, for as long as --time
    says. The smallest file that holds becomes OUT.dsz; every network that was tried stays in --run,
    with its file. An interrupted run goes on.

    \b
    Example:
      deepsz compress prototxt/lenet_5/train_val.prototxt pruned.caffemodel OUT.dsz --max-loss 0.002
      deepsz compress deploy.prototxt net.caffemodel OUT.dsz --images photos/ --agreement 0.99
      deepsz compress prototxt/lenet_5/train_val.prototxt dense.caffemodel OUT.dsz --auto \\
        --max-loss 0.002 --time 30m
    """
    if options["auto"]:
        check_auto(relative_bound, pictures, options)
        smallest(network, weights, out, options, as_json)
        return
    check_no_auto()
    from deepsz_caffe.api import compress as run
    from deepsz_caffe.folders import exclusive, temporary_folder

    check_output(out, (network, weights, options["original"]), [options["journal"]])
    if relative_bound is not None:
        _check_alone(pictures, options)
        layers, deploy = options["layers"] or "all", options["with_prototxt"]
        files, rest = (network, weights, out), (deploy, options["extra_blobs"], as_json)
        encode_unmeasured(*files, relative_bound, layers, options["profile"], *rest)
        return
    with ExitStack() as stack:
        data = pictures.open(network, labelled=_labelled(options))
        if data is not None:
            check_source(options)
            print_line(f"{data.total:,} pictures of {data.source}, each as {data.how}", err=True)
        stack.enter_context(exclusive(out))
        if options["scheduler"] is not None and options["features"] is None:
            # The workers may be other machines; what they see of this one is where OUT goes.
            options["features"] = stack.enter_context(temporary_folder(beside=out))
        result = run(
            network,
            weights,
            out,
            max_loss=options["max_loss"],
            target_ratio=options["target_ratio"],
            agreement=options["agreement"],
            max_change=options["max_change"],
            outputs=options["outputs"],
            original=options["original"],
            confidence=options["confidence"],
            biases=options["biases"],
            journal=options["journal"],
            with_prototxt=options["with_prototxt"],
            extra_blobs=options["extra_blobs"],
            **stack.enter_context(passed_on(options, data)),
        )
    if as_json:
        print_json(result.to_json())
    else:
        _show_result(result)


def _labelled(options: CompressOptions) -> bool:
    return options["agreement"] is None and options["max_change"] is None


def _check_alone(pictures: PictureOptions, options: CompressOptions) -> None:
    """Check that nothing that is measured is asked for beside bounds that are not."""
    given = {
        "--images": pictures.images,
        "--data": options["data"],
        "--max-loss": options["max_loss"],
        "--target-ratio": options["target_ratio"],
        "--agreement": options["agreement"],
        "--max-change": options["max_change"],
        "--outputs": options["outputs"] or None,
        "--original": options["original"],
        "--confidence": options["confidence"],
        "--journal": options["journal"],
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(
                "nothing is measured with a relative bound",
                where=name,
                hint="leave it out",
            )


def _show_result(result: CompressResult) -> None:
    from deepsz_caffe.steps.agreement import Agreement

    summary = result.summary
    rows = [
        (x["name"], f"{x['error_bound']:g}", x["nonzeros"], x["data_bytes"], x["index_bytes"])
        for x in summary["layers"]
    ]
    print_table(("layer", "error bound", "non-zeros", "data, bytes", "index, bytes"), rows)
    if isinstance(result.asked, Agreement):
        _show_agreement(result.after, result.asked)
    elif result.asked is not None:
        _show_changes(result.changes or {}, result.asked)
    else:
        _show_losses(result)
    print_line(
        f"{_named(result.layers)}: {summary['fc_dense_bytes']:,} → {summary['fc_bytes']:,} bytes, "
        f"{summary['ratio']:.1f}×; {whole_file(summary)}; {result.tests} tests"
    )


def _show_losses(result: CompressResult) -> None:
    places = {result.chosen_on: (result.chosen_before, result.chosen_after)}
    places[result.measured_on] = (result.before, result.after)
    for place, (before, after) in places.items():
        loss = (before.top1_correct - after.top1_correct) / after.total
        print_line(
            f"top-1 on the {place} data: {before.top1_correct:,} → {after.top1_correct:,} of "
            f"{after.total:,} images, loss {loss:.2%}"
        )
    if result.chosen_on == "test":
        print_line("the bounds were chosen on the test data: its figures are not independent")


def _show_changes(changes: Mapping[str, Divergence], asked: MaxChange) -> None:
    for name, change in changes.items():
        print_line(
            f"{name} changes by {change.mean**0.5:.2%} over {change.images:,} pictures; over "
            f"others by at most {asked.at_most(change):.2%}, with confidence {asked.confidence:g}"
        )


def _show_agreement(score: Score, agreement: Agreement) -> None:
    share, least = score.top1_correct / score.total, agreement.at_least(score)
    print_line(
        f"the same top-1 as before on {score.top1_correct:,} of {score.total:,} pictures, "
        f"{share:.2%}; on others at least {least:.2%}, with confidence {agreement.confidence:g}"
    )
    print_line("no labels: whether the answers are right is not known")


@click.command()
@click.argument("assessment", metavar="A.json", type=PATH)
@click.option("--out", metavar="DIR", type=PATH, help="Folder of the report [beside A.json].")
@click.option("--max-loss", type=float, help="Mark the choice for this loss.")
@click.option("--target-ratio", type=float, help="Mark the choice for this ratio.")
@json_option
def report(
    assessment: Path,
    out: Path | None,
    max_loss: float | None,
    target_ratio: float | None,
    as_json: bool,
) -> None:
    """Draw accuracy and size of each layer against its bound.

    Gives a PNG and one HTML page.

    \b
    Example:
      deepsz report A.json --max-loss 0.002
    """
    from deepsz_caffe.steps.assess.report import write_report

    files = write_report(assessment, out, max_loss=max_loss, target_ratio=target_ratio)
    if as_json:
        print_json([str(path) for path in files])
    else:
        for path in files:
            print_line(path)


def _named(layers: Collection[str]) -> str:
    """Name the layers that a figure is of, or count them where they are many."""
    if len(layers) > _NAMED:
        return f"{len(layers)} layers"
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(layers)


def _off(images: int) -> str:
    return "as" if images == 0 else f"{abs(images):,} {'more' if images > 0 else 'fewer'} than"
