"""Two versions of a network on the same images: run by Caffe, or by OpenCV where no Caffe is.

Images are read once: what the data layers of a network put out is fed to both versions. Runs in a
child process, as all that Caffe does; nothing but tallies and small pictures comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import CaffeError, DataError, InputError
from deepsz_caffe.network import graph
from deepsz_caffe.network.outline import Outline, read_outline
from deepsz_caffe.network.prototxt import phase, read_prototxt
from deepsz_caffe.network.weights import CaffeModel
from deepsz_caffe.running.opencv import dense_net, opencv_errors
from deepsz_caffe.runtime.data import Data, prepare_images
from deepsz_caffe.runtime.images import needed
from deepsz_caffe.runtime.net import build_net, load_weights, read_weights
from deepsz_caffe.runtime.pictures import Pictures
from deepsz_caffe.runtime.preprocess import picture_input
from deepsz_caffe.runtime.sources import PARAMETERS
from deepsz_caffe.runtime.worker import import_caffe, report
from deepsz_caffe.steps.compare import Comparison, Tally, compare_weights, tally_outputs

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

Array = NDArray[np.float32]
#: blob -> what is in it, for a whole batch
Blobs = dict[str, Array]

#: layers without bottoms that are part of the network, and not its data
_CONSTANT = frozenset({"DummyData", "Parameter"})
#: longest side of a small picture
_SIDE = 128


@dataclass(frozen=True)
class Feed:
    """What enters the networks.

    Attributes
    ----------
    total
        Images.
    batches
        Gives, for each batch, its number of images and the blobs.
    blobs
        Which are fed.
    crops
        Rows that follow each other and are one picture.
    colors
        Where blue, green and red are among the channels of pictures.
    """

    total: int
    batches: Callable[[], Iterator[tuple[int, Blobs]]]
    blobs: frozenset[str]
    crops: int = 1
    colors: tuple[int, ...] = (0, 1, 2)


class Network(Protocol):
    """A network that is built, in whatever runs it."""

    def run(self, given: Blobs) -> list[Array]:
        """Give the outputs for a batch."""


#: builds a network: weights, needed layers, what a batch of inputs is, outputs
Build = Callable[[CaffeModel, Sequence[int], Blobs, Sequence[graph.Version]], Network]


@dataclass(frozen=True)
class Job:
    """What is compared, as a child process is told.

    Attributes
    ----------
    network, weights
        The prototxt, and the two files.
    data
        In place of the prototxt's own source, see `deepsz_caffe.api.compare`.
    outputs
        Blobs to compare; none: the network's outputs.
    scores
        Those of them that hold scores of classes; None: as `graph.find_outputs` finds.
    opencv
        OpenCV runs the networks.
    pictures
        How many small pictures of images whose class changes are wanted.
    """

    network: str
    weights: tuple[str, str]
    data: Data | Pictures
    outputs: tuple[str, ...] = ()
    scores: tuple[str, ...] | None = None
    opencv: bool = False
    pictures: int = 0


def compare_networks(job: Job) -> Comparison:
    """Compare weights and outputs; runs in a child process.

    Raises
    ------
    DeepSZError
        As `deepsz_caffe.api.compare`.
    """
    if job.pictures:
        needed("cv2", "pictures of a page")
    caffe: ModuleType | None = None
    types: frozenset[str] = frozenset()
    build: Build
    if job.opencv:
        outline = read_outline(job.network)
        net, build = outline.net, partial(_OpencvNetwork, job.network, outline)
    else:
        caffe = _imported_caffe()
        net, types = phase(read_prototxt(job.network), "TEST"), frozenset(caffe.layer_type_list())
        build = partial(_in_caffe, caffe, net)
    found = graph.find_outputs(net, job.outputs)
    versions = [output.version for output in found]
    scoring = _scoring(found, job.scores)
    guessed = {each.version for each in found if not each.sure and job.scores is None}
    layers = graph.needed_layers(net, versions)
    feed = open_feed(net, layers, job.data, types, caffe)
    models = [read_weights(path) for path in job.weights]
    changes = compare_weights(*models)
    tallies: dict[graph.Version, Tally] = {}
    pictures: dict[int, bytes] = {}
    networks: list[Network] = []
    done = 0
    for rows, given in feed.batches():
        if not networks:
            networks = [build(model, layers, given, versions) for model in models]
        images = rows // feed.crops
        before, after = (network.run(given) for network in networks)
        for version, *pair in zip(versions, before, after, strict=True):
            a, b = (_averaged(array, feed.crops) for array in pair)
            scores = version in scoring and (version not in guessed or _of_whole_images(a))
            tally = tally_outputs(a, b, images, done, scores=scores)
            tallies[version] = tallies[version] + tally if version in tallies else tally
            for changed in tally.changed[: max(0, job.pictures - len(pictures))]:
                row = (changed.image - done) * feed.crops
                if small := _small(given, row, feed.colors):
                    pictures[changed.image] = small
        done += images
        report((done, feed.total))
    outputs = tuple(tallies[each].change(each.blob) for each in versions)
    how = str(job.data.how) if isinstance(job.data, Pictures) else ""
    named = next((x.blob for x, v in zip(outputs, versions, strict=True) if v in guessed), "")
    taken = any(x.classes for x in outputs if x.blob == named)
    return Comparison(done, changes, outputs, named if taken else "", how, pictures)


def _imported_caffe() -> ModuleType:
    try:
        return import_caffe()
    except CaffeError as error:
        hint = f"--opencv runs networks without it; {error.hint}"
        raise CaffeError(error.what, hint=hint) from error


def _scoring(
    found: Sequence[graph.Output], wanted: tuple[str, ...] | None
) -> frozenset[graph.Version]:
    if wanted is None:
        return frozenset(output.version for output in found if output.scores)
    known = {output.version.blob: output.version for output in found}
    for name in wanted:
        if name not in known:
            raise InputError(
                "is no output that is compared",
                where=f"scores {name}",
                hint=f"outputs: {', '.join(known)}",
            )
    return frozenset(known[name] for name in wanted)


def _of_whole_images(output: Array) -> bool:
    return output.ndim > 1 and output.size == output.shape[0] * output.shape[1]


def open_feed(
    net: NetParameter,
    layers: Sequence[int],
    data: Data | Pictures,
    layer_types: frozenset[str],
    caffe: ModuleType | None,
) -> Feed:
    """Find what enters a network.

    Parameters
    ----------
    net
        A network of one phase; it is not changed.
    layers
        Positions of the layers that are needed.
    data
        See `Job`.
    layer_types
        What this Caffe knows; nothing without it.
    caffe
        The library, if there is one.

    Raises
    ------
    ModelError, DataError
        The data can't be read, or don't fit.
    """
    used = _only(net, layers)
    if isinstance(data, Pictures):
        return _picture_feed(used, data)
    labels = ""  # no blob has this name: arrays need no labels
    images = prepare_images(used, data, layer_types, labels)
    sources = [layer for layer in used.layer if is_source(layer)]
    own = [layer for layer in sources if layer.type != "Input"]
    if own and caffe is None:
        raise DataError(
            f"only Caffe reads data of type {own[0].type}",
            where=f"layer {own[0].name}",
            hint="without --opencv, or give --data arrays.npz",
        )
    blobs = frozenset(top for layer in sources for top in layer.top)

    def batches() -> Iterator[tuple[int, Blobs]]:
        reading = _source_net(caffe, used, own) if own and caffe is not None else None
        for rows, given in images.batches():
            filled = {name: _filled(array, images.batch) for name, array in given.items()}
            if reading is not None:
                reading.forward()
                filled |= {n: blob.data.copy() for n, blob in reading.blobs.items() if n in blobs}
            yield rows, filled

    return Feed(images.total, batches, blobs)


def _source_net(caffe: ModuleType, net: NetParameter, own: Sequence[LayerParameter]) -> Net:
    reading = type(net)()
    reading.state.CopyFrom(net.state)
    reading.layer.extend(own)
    return build_net(caffe, reading)


def _only(net: NetParameter, layers: Sequence[int]) -> NetParameter:
    """Copy some layers; of those that read data, without tops at the end that nobody reads."""
    used = type(net)(name=net.name)
    used.state.CopyFrom(net.state)
    used.layer.extend(net.layer[place] for place in layers)
    read = {blob for layer in used.layer for blob in layer.bottom}
    for layer in used.layer:
        while layer.type in PARAMETERS and len(layer.top) > 1 and layer.top[-1] not in read:
            del layer.top[-1]
        for field in ("include", "exclude"):  # they have been applied
            layer.ClearField(field)
    return used


def is_source(layer: LayerParameter) -> bool:
    """Say whether a layer brings data."""
    return not layer.bottom and bool(layer.top) and layer.type not in _CONSTANT


def _picture_feed(net: NetParameter, pictures: Pictures) -> Feed:
    entry, how = picture_input(net), pictures.how
    blob = net.layer[entry.layer].top[0]
    if entry.how.shape != how.shape:
        raise DataError(
            f"pictures are made {list(how.shape)}, it takes {list(entry.how.shape)}",
            where=f"blob {blob}",
        )
    each = max(1, entry.batch // how.crops)

    def batches() -> Iterator[tuple[int, Blobs]]:
        waiting: list[Array] = []
        for number, array in enumerate(pictures.arrays(), 1):
            waiting.append(array)
            if len(waiting) == each or number == pictures.total:
                rows = np.concatenate(waiting)
                yield len(rows), {blob: _filled(rows, each * how.crops)}
                waiting = []

    # A color's place in the file's order, blue first, is 2 minus its place in red, green, blue.
    colors = tuple(how.channel_swap.index(2 - color) for color in range(3))
    return Feed(pictures.total, batches, frozenset({blob}), how.crops, colors)


def _filled(array: NDArray[np.generic], batch: int) -> Array:
    """Fill a batch up with zeros."""
    filled = np.zeros((max(batch, len(array)), *array.shape[1:]), np.float32)
    filled[: len(array)] = array
    return filled


def _averaged(output: Array, crops: int) -> Array:
    """Give each picture the mean of what its crops gave."""
    if crops == 1 or output.ndim == 0 or len(output) % crops:
        return output
    averaged: Array = output.reshape(-1, crops, *output.shape[1:]).mean(axis=1)
    return averaged


def _small(given: Blobs, row: int, colors: Sequence[int]) -> bytes:
    """Draw what entered a network as a PNG; b"" where it is no image."""
    for array in given.values():
        if array.ndim == 4 and array.shape[1] in (1, 3) and min(array.shape[2:]) > 1:
            break
    else:
        return b""
    cv2 = needed("cv2", "pictures of a page")
    image = array[row].transpose(1, 2, 0)
    image = image[:, :, list(colors)] if image.shape[2] == 3 else image
    low, high = float(image.min()), float(image.max())
    drawn = ((image - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    factor = _SIDE / max(drawn.shape[:2])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    drawn = cv2.resize(np.ascontiguousarray(drawn), None, fx=factor, fy=factor, interpolation=way)
    return bytes(cv2.imencode(".png", drawn)[1])


class _CaffeNetwork:
    def __init__(
        self,
        caffe: ModuleType,
        net: NetParameter,
        model: CaffeModel,
        versions: Sequence[graph.Version],
    ) -> None:
        self._net = build_net(caffe, net)
        load_weights(self._net, net, model)
        self._versions = versions

    def run(self, given: Blobs) -> list[Array]:
        for name, array in given.items():
            if name in self._net.blobs:
                self._net.blobs[name].data[...] = array
        self._net.forward()
        return [self._net.blobs[version.blob].data.copy() for version in self._versions]


def _in_caffe(
    caffe: ModuleType,
    net: NetParameter,
    model: CaffeModel,
    layers: Sequence[int],
    given: Blobs,
    versions: Sequence[graph.Version],
) -> Network:
    rest = [place for place in layers if not is_source(net.layer[place])]
    inputs = [(name, array.shape) for name, array in given.items()]
    return _CaffeNetwork(caffe, graph.subnet(net, rest, inputs), model, versions)


class _OpencvNetwork:
    def __init__(
        self,
        where: str,
        outline: Outline,
        model: CaffeModel,
        layers: Sequence[int],
        given: Blobs,
        versions: Sequence[graph.Version],
    ) -> None:
        self._where = where
        text = outline.fed({name: array.shape for name, array in given.items()}, layers)
        self._net = dense_net(outline, model, where, text)
        makers = [outline.net.layer[version.producer] for version in versions]
        self._names = list(dict.fromkeys(layer.name for layer in makers))
        self._places = [
            (self._names.index(layer.name), list(layer.top).index(version.blob))
            for layer, version in zip(makers, versions, strict=True)
        ]

    def run(self, given: Blobs) -> list[Array]:
        with opencv_errors(self._where):
            for name, array in given.items():
                self._net.setInput(array, name)
            outputs = self._net.forwardAndRetrieve(self._names)
        return [np.array(outputs[layer][top]) for layer, top in self._places]
