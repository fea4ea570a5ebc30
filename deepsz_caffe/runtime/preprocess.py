"""What is done with a picture before a network sees it, as Caffe's own tools have it.

A picture is scaled, its channels put in order, cropped, the mean subtracted, and the result
multiplied. `preprocess` is a pure function of a picture and a `Preprocessing`; it needs OpenCV
where pictures are scaled, and no Caffe.

>>> how = Preprocessing((3, 2, 2), mean=(104, 117, 123))
>>> preprocess(np.full((4, 6, 3), 120, np.uint8), how)[0, :, 0, 0].tolist()  # blue, green, red
[16.0, 3.0, -3.0]
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import DataError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.network.kind import weights_kind
from deepsz_caffe.network.outline import read_outline
from deepsz_caffe.runtime.images import needed, read_mean
from deepsz_caffe.runtime.sources import PARAMETERS, open_source

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

Path_ = str | os.PathLike[str]
Array = NDArray[np.generic]
#: "center": the middle of a picture; "10": its corners and its middle, and all five mirrored
Crop = Literal["center", "10"]
Number = TypeVar("Number", int, float)

_BGR = (2, 1, 0)
#: of a channel_swap that is written as the order of channels
_NAMES: dict[tuple[int, ...], str] = {_BGR: "BGR", (0, 1, 2): "RGB"}
_TEXT = re.compile(
    r"(?P<shape>\d+x\d+x\d+)(; resize (?P<resize>\d+x\d+))?; crop (?P<crop>center|10)"
    r"(; mean (?P<mean>\S+)|; mean file (?P<file>.+?))?(; scale (?P<scale>\S+))?"
    r"(; channels (?P<channels>\S+))?"
)

#: how a file's origin says that it was measured on pictures; what was done with them follows
_RECORDED = "pictures: "
#: to which a stranger's file may have pictures scaled
_MOST_PIXELS = 1 << 24


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network takes; values are from 0 to 255 before it.

    Attributes
    ----------
    shape
        Channels, height and width of the network's input.
    resize
        Height and width that every picture is scaled to first, whatever its own are; None: none.
    crop
        The part of the height and width of `shape` that is taken, see `Crop`.
    mean
        What is subtracted, in the order of the network's channels: a value for each of them, or
        one for all; () for none.
    mean_file
        Instead: a mean image (``.binaryproto``) of the size of scaled pictures or of the input.
    scale
        What the result is multiplied by.
    channel_swap
        Where each channel of the network is in red, green, blue: (2, 1, 0), blue first, is usual.
        Only for three channels.

    Raises
    ------
    InputError
        Something is out of range, or two things contradict each other.
    """

    shape: tuple[int, int, int]
    resize: tuple[int, int] | None = None
    crop: Crop = "center"
    mean: tuple[float, ...] = ()
    mean_file: str | None = None
    scale: float = 1.0
    channel_swap: tuple[int, ...] = _BGR

    def __post_init__(self) -> None:
        channels, height, width = self.shape
        if min(self.shape) < 1:
            raise InputError(f"an input of {_times(self.shape)} takes no pictures")
        if self.crop not in get_args(Crop):
            raise InputError(f"no crop {self.crop!r}", hint="center or 10")
        if self.resize is not None and (self.resize[0] < height or self.resize[1] < width):
            raise InputError(
                f"pictures scaled to {_times(self.resize)} are smaller than the input, "
                f"{_times((height, width))}",
                where="resize",
            )
        if self.mean and self.mean_file is not None:
            raise InputError("a mean is either values or a file")
        if not all(map(isfinite, self.mean)):
            raise InputError(f"{','.join(map(str, self.mean))} is not finite", where="mean")
        if len(self.mean) not in (0, 1, channels):
            raise InputError(
                f"{len(self.mean)} values for the {channels} channels of the input", where="mean"
            )
        if not (isfinite(self.scale) and self.scale):
            raise InputError(f"{self.scale} is no scale", where="scale")
        if sorted(self.channel_swap) != [0, 1, 2]:
            raise InputError(
                f"{','.join(map(str, self.channel_swap))} is no order of three channels",
                where="channel swap",
                hint="2,1,0 for a network that takes blue, green, red",
            )
        if channels != 3 and self.channel_swap != _BGR:
            raise InputError(f"the input has {channels} channels, not three", where="channel swap")

    @property
    def crops(self) -> int:
        """How many inputs of the network a picture becomes."""
        return 10 if self.crop == "10" else 1

    def __str__(self) -> str:
        """Write it as `parse_preprocessing` reads it and people can."""
        parts = ["x".join(map(str, self.shape))]
        if self.resize is not None:
            parts.append("resize {}x{}".format(*self.resize))
        parts.append(f"crop {self.crop}")
        if self.mean:
            parts.append("mean " + ",".join(f"{value:.9g}" for value in self.mean))
        if self.mean_file is not None:
            parts.append(f"mean file {self.mean_file}")
        if self.scale != 1:
            parts.append(f"scale {self.scale:.9g}")
        if self.shape[0] == 3:
            order = _NAMES.get(self.channel_swap) or ",".join(map(str, self.channel_swap))
            parts.append(f"channels {order}")
        return "; ".join(parts)


def parse_preprocessing(text: str) -> Preprocessing:
    """Read what ``str`` of a `Preprocessing` gave.

    Raises
    ------
    InputError
        It has another form.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InputError(f"no preprocessing of pictures: {text!r}")
    names = {name: order for order, name in _NAMES.items()}
    try:
        channels, height, width = _numbers(found["shape"], int, "x")
        resize = found["resize"] and _numbers(found["resize"], int, "x")
        swap = names.get(found["channels"] or "BGR") or _numbers(found["channels"], int)
        return Preprocessing(
            (channels, height, width),
            (resize[0], resize[1]) if resize else None,
            "10" if found["crop"] == "10" else "center",
            _numbers(found["mean"], float) if found["mean"] else (),
            found["file"],
            float(found["scale"] or 1),
            swap,
        )
    except ValueError as error:
        raise InputError(f"no preprocessing of pictures: {text!r}") from error


def preprocess(picture: Array, how: Preprocessing) -> NDArray[np.float32]:
    """Turn a picture into what the network takes.

    Parameters
    ----------
    picture : [height, width, channels]
        Values from 0 to 255, channels in OpenCV's order: blue, green, red.
    how
        What is done.

    Returns
    -------
    float32[n, channels, height, width]
        n is 1, or 10 where `how` takes ten crops, in the order of ``caffe.io.oversample``.

    Raises
    ------
    DataError
        The picture has another number of channels or is too small, the mean file doesn't fit, or
        OpenCV is missing.
    """
    channels, height, width = how.shape
    if picture.ndim != 3 or picture.shape[2] != channels:
        raise DataError(f"a picture of {_times(picture.shape)} for an input of {channels} channels")
    if how.resize is not None and picture.shape[:2] != how.resize:
        cv2 = needed("cv2", "resize")
        scaled = cv2.resize(np.ascontiguousarray(picture), how.resize[::-1])
        picture = scaled.reshape(*how.resize, channels)
    if picture.shape[0] < height or picture.shape[1] < width:
        raise DataError(
            f"a picture of {_times(picture.shape[:2])} is smaller than the input, "
            f"{_times((height, width))}",
            hint=f"--resize {height},{width} scales pictures",
        )
    if how.channel_swap != _BGR:
        picture = picture[:, :, [2 - channel for channel in how.channel_swap]]
    values = picture.astype(np.float32).transpose(2, 0, 1)
    late = None
    if how.mean_file is not None:
        mean = read_mean(how.mean_file).transpose(2, 0, 1)
        if mean.shape == values.shape:
            values -= mean
        elif mean.shape == how.shape:
            late = mean
        else:
            raise DataError(
                f"a mean of {_times(mean.shape)} for pictures of {_times(values.shape)}",
                where=how.mean_file,
            )
    elif how.mean:
        values -= np.asarray(how.mean, np.float32)[:, None, None]
    taken = _cropped(values, how)
    if late is not None:
        taken -= late
    return taken * np.float32(how.scale)


def _cropped(values: NDArray[np.float32], how: Preprocessing) -> NDArray[np.float32]:
    """Take parts of a picture [channels, height, width]; a copy."""
    _, height, width = how.shape
    down, right = values.shape[1] - height, values.shape[2] - width
    places = [(down // 2, right // 2)]
    if how.crop == "10":
        places = [(0, 0), (0, right), (down, 0), (down, right), *places]
    taken = np.stack([values[:, top : top + height, left : left + width] for top, left in places])
    return np.concatenate((taken, taken[..., ::-1])) if how.crop == "10" else taken


@dataclass(frozen=True)
class PictureInput:
    """Where a network takes pictures.

    Attributes
    ----------
    layer
        Position of the layer in ``net.layer``; its first top takes pictures.
    batch
        How many at a time.
    how
        What the network's definition says of their preprocessing; of an Input layer it says
        nothing but the shape.
    """

    layer: int
    batch: int
    how: Preprocessing


def preprocessing_of(
    network: Path_,
    *,
    recorded: Sequence[Path_] = (),
    mean: Sequence[float] | Path_ | None = None,
    scale: float | None = None,
    channel_swap: Sequence[int] | None = None,
    resize: tuple[int, int] | None = None,
    crop: Crop | None = None,
) -> Preprocessing:
    """Say how pictures are prepared for a network: as its definition has it, but for what is given.

    Parameters
    ----------
    network
        A prototxt, see `picture_input`.
    recorded
        Weights. What the first ``.dsz`` file among them records of its pictures takes the place of
        what the definition has; each that records something else than what comes out is warned
        of.
    mean
        Values, or the path of a mean image.
    scale, channel_swap, resize, crop
        See `Preprocessing`. With a crop and no size to scale to, pictures are cropped as they are;
        without either they are scaled to the input's size.

    Raises
    ------
    InputError
        Something is out of range.
    DeepSZError
        The prototxt or the mean can't be read, or the network takes no pictures.
    """
    how = picture_input(read_outline(network).net).how
    records = {
        path: found for path in recorded if (found := recorded_preprocessing(path)) is not None
    }
    how = next((record for record in records.values() if record.shape == how.shape), how)
    if resize is None:
        resize = None if crop is not None and how.resize == how.shape[1:] else how.resize
    values, file = how.mean, how.mean_file
    if isinstance(mean, str | os.PathLike):
        values, file = (), os.fspath(mean)
    elif mean is not None:
        values, file = tuple(mean), None
    if file is not None:
        read_mean(file)
    used = Preprocessing(
        how.shape,
        resize,
        how.crop if crop is None else crop,
        values,
        file,
        how.scale if scale is None else scale,
        how.channel_swap if channel_swap is None else tuple(channel_swap),
    )
    for path, record in records.items():
        if str(record) != str(used):
            warnings.warn(
                DeepSZWarning(
                    f"{path}: was measured on pictures prepared as {record}; these: {used}"
                ),
                stacklevel=2,
            )
    return used


def recorded_preprocessing(weights: Path_) -> Preprocessing | None:
    """Give how the pictures were prepared on which a file was measured.

    None for what is no ``.dsz`` file, for a file that was not measured on pictures, and with a
    warning for a record that makes no sense: files may come from strangers.

    Raises
    ------
    DeepSZError
        The file can't be read.
    """
    if weights_kind(weights) != "dsz":
        return None
    with DszFile(weights) as file:
        measured = file.origin.measured
    if measured is None or not measured.data.startswith(_RECORDED):
        return None
    try:
        how = parse_preprocessing(measured.data.removeprefix(_RECORDED))
        if how.resize is not None and prod(how.resize) > _MOST_PIXELS:
            raise InputError(f"no preprocessing of pictures: resize {_times(how.resize)}")
    except InputError as error:
        warnings.warn(DeepSZWarning(f"{weights}: {error.what}"), stacklevel=2)
        return None
    return how


def picture_input(net: NetParameter) -> PictureInput:
    """Find where a network of one phase takes pictures.

    A deploy prototxt has one Input layer of four dimensions. A train_val prototxt has one layer
    that reads images, whose ``transform_param`` (and ``new_height``, ``new_width`` of ImageData)
    say how; without a ``crop_size`` there, the source must be at hand to tell the size.

    Raises
    ------
    ModelError
        There is none, or more than one thing to fill.
    DataError
        The size of its images is not known.
    """
    found = [
        place
        for place, layer in enumerate(net.layer)
        if not layer.bottom and layer.top and layer.type not in ("DummyData", "Parameter")
    ]
    if len(found) != 1:
        names = ", ".join(top for place in found for top in net.layer[place].top)
        raise ModelError(
            f"pictures fill one input, but the network has {len(found)}: {names or 'none'}",
            where=net.name or None,
        )
    layer = net.layer[found[0]]
    shape: tuple[int, ...]
    if layer.type == "Input":
        shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
        if len(layer.top) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
            raise ModelError(
                f"takes {', '.join(layer.top)} of {' and '.join(map(_times, shapes)) or 'no shape'}"
                ", not one batch of pictures (n × channels × height × width)",
                where=f"layer {layer.name}",
            )
        batch, shape = shapes[0][0], shapes[0][1:]
    elif layer.type == "MemoryData":
        p = layer.memory_data_param
        batch, shape = p.batch_size, (p.channels, p.height, p.width)
    elif layer.type in PARAMETERS:
        batch, shape = getattr(layer, PARAMETERS[layer.type]).batch_size, _read_shape(layer)
    else:
        raise ModelError(f"a layer of type {layer.type} takes no pictures", where=layer.name)
    channels, height, width = map(int, shape)
    how = Preprocessing((channels, height, width), resize=(height, width))
    return PictureInput(found[0], int(batch), _told(layer, how))


def _told(layer: LayerParameter, how: Preprocessing) -> Preprocessing:
    """Add what a layer's own parameters say; a crop is made of pictures as they are."""
    transform = layer.transform_param
    size = layer.image_data_param.new_height, layer.image_data_param.new_width
    resize = size if all(size) else (None if transform.crop_size else how.resize)
    return replace(
        how,
        resize=resize,
        mean=tuple(transform.mean_value),
        mean_file=transform.mean_file or None,
        scale=transform.scale,
    )


def _read_shape(layer: LayerParameter) -> tuple[int, ...]:
    """Give channels, height and width of what a layer reads, from its parameters if these do."""
    transform, images = layer.transform_param, layer.image_data_param
    crop = transform.crop_size
    size = (crop, crop) if crop else (images.new_height, images.new_width)
    channels = None
    if layer.type == "ImageData":
        channels = 3 if images.is_color else 1
    elif transform.force_color or transform.force_gray:
        channels = 3 if transform.force_color else 1
    elif len(transform.mean_value) > 1:
        channels = len(transform.mean_value)
    if channels and all(size):
        return channels, *size
    try:
        shape = open_source(layer, frozenset(PARAMETERS)).shapes[0]
    except DataError as error:
        raise DataError(
            f"the size of its images is not known: {error.what}",
            where=f"layer {layer.name}",
            hint="take the deploy prototxt",
        ) from error
    if len(shape) != 3:
        raise ModelError(f"takes {_times(shape)}, not pictures", where=f"layer {layer.name}")
    return shape


def _numbers(text: str, kind: Callable[[str], Number], between: str = ",") -> tuple[Number, ...]:
    return tuple(kind(part) for part in text.split(between))


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
