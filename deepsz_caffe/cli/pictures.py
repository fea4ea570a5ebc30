"""What the commands share that take pictures: where they are, and what is done with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

import click

from deepsz_caffe.errors import InputError

if TYPE_CHECKING:
    from deepsz_caffe.cli.measuring import MeasureOptions
    from deepsz_caffe.runtime.pictures import Pictures

Value = TypeVar("Value")
Given = ParamSpec("Given")


def _sizes(context: object, parameter: object, text: str | None) -> tuple[int, int] | None:
    sizes = _several(int, text)
    if sizes is not None and len(sizes) > 2:
        raise click.BadParameter(f"{text!r} is neither a size nor height,width")
    return None if sizes is None else (sizes[0], sizes[-1])


def _channels(context: object, parameter: object, text: str | None) -> tuple[int, ...] | None:
    return _several(int, text)


def _mean(context: object, parameter: object, text: str | None) -> tuple[float, ...] | str | None:
    try:
        return _several(float, text)
    except click.BadParameter:
        if text and Path(text).is_file():
            return text
        raise click.BadParameter(f"{text!r} is neither values nor a .binaryproto file") from None


def _several(kind: Callable[[str], Value], text: str | None) -> tuple[Value, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} are not numbers such as 1,2,3") from error


@dataclass(frozen=True)
class PictureOptions:
    """What `picture_options` adds to a command."""

    images: str | None
    labels: Path | None
    mean: tuple[float, ...] | str | None
    scale: float | None
    channel_swap: tuple[int, ...] | None
    resize: tuple[int, int] | None
    crop: Literal["center", "10"] | None

    def open(
        self, network: Path, *, labelled: bool, recorded: Sequence[Path] = ()
    ) -> Pictures | None:
        """Find the pictures and see that they are some; None where none are given.

        Parameters
        ----------
        network
            The prototxt that they are for.
        labelled
            Find their labels, too, wherever the source has them.
        recorded
            Files that may say how their pictures were prepared; options come before them.

        Raises
        ------
        DeepSZError
            As `preprocessing_of` and `open_pictures`.
        """
        if self.images is None:
            given = [name for name in _WITH_IMAGES if getattr(self, name) is not None]
            if given:
                raise InputError("is for pictures", where=_option(given[0]), hint="give --images")
            return None
        if self.labels is not None and not labelled:
            raise InputError(
                "labels are for a loss, not for an agreement", hint="--max-loss or --agreement"
            )
        from deepsz_caffe.runtime.pictures import open_pictures
        from deepsz_caffe.runtime.preprocess import preprocessing_of

        how = preprocessing_of(
            network,
            recorded=recorded,
            mean=self.mean,
            scale=self.scale,
            channel_swap=self.channel_swap,
            resize=self.resize,
            crop=self.crop,
        )
        return open_pictures(self.images, how, labelled=labelled, labels=self.labels)


_WITH_IMAGES = ("labels", "mean", "scale", "channel_swap", "resize", "crop")


_OPTIONS = (
    click.option(
        "--images", metavar="SOURCE", help="Pictures: a folder, list, pattern, .npz or LMDB."
    ),
    click.option(
        "--labels",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Their labels, lines FILE LABEL [folders, or as the source has them].",
    ),
    click.option(
        "--mean",
        metavar="104,117,123",
        callback=_mean,
        help="Subtract these values, or a .binaryproto [a .dsz file's, or the prototxt's].",
    ),
    click.option("--scale", type=float, help="Multiply by this [the prototxt's, or 1]."),
    click.option(
        "--channel-swap",
        metavar="2,1,0",
        callback=_channels,
        help="Where each of its channels is in red, green, blue [2,1,0].",
    ),
    click.option(
        "--resize",
        metavar="SIZE|H,W",
        callback=_sizes,
        help="Scale pictures to this [the input's size, if no --crop].",
    ),
    click.option(
        "--crop",
        type=click.Choice(["center", "10"]),
        help="Take the middle, or ten crops whose scores are averaged.",
    ),
)


def picture_options(
    command: Callable[Concatenate[PictureOptions, Given], None],
) -> Callable[..., None]:
    """Add the options that say which pictures; the command gets them first."""

    @wraps(command)
    def run(
        images: str | None,
        labels: Path | None,
        mean: tuple[float, ...] | str | None,
        scale: float | None,
        channel_swap: tuple[int, ...] | None,
        resize: tuple[int, int] | None,
        crop: Literal["center", "10"] | None,
        *args: Given.args,
        **options: Given.kwargs,
    ) -> None:
        pictures = PictureOptions(images, labels, mean, scale, channel_swap, resize, crop)
        command(pictures, *args, **options)

    decorated: Callable[..., None] = run
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def check_source(options: MeasureOptions) -> None:
    """See that nothing else is to be measured on than pictures.

    Raises
    ------
    InputError
        There is.
    """
    if options["data"] is not None:
        raise InputError("give either --images or --data")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
