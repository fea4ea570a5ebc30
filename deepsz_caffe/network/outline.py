"""A network's definition where no Caffe is: its layers and how they are connected.

What OpenCV runs is the definition's own text, in which nothing is lost: parameters of forks' layers
too. Only what a phase leaves out, and what reads data, is taken out of it.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from google.protobuf import text_encoding, text_format

from deepsz_caffe.errors import ModelError
from deepsz_caffe.files import read_input
from deepsz_caffe.network import outline_pb2
from deepsz_caffe.network.legacy import V0_TYPES, V1_TYPES
from deepsz_caffe.network.prototxt import phase as in_phase
from deepsz_caffe.network.text import known_part

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

Path_ = str | os.PathLike[str]

#: dimensions of an input that the oldest definitions give
_DIMENSIONS: Final = 4


@dataclass(frozen=True)
class Outline:
    """A definition in one phase.

    Attributes
    ----------
    net
        As much of it as `outline.proto` names, in today's form: a NetParameter for `graph` and
        `prototxt.phase`.
    text
        All of it, as it is written.
    spans
        For each layer of `net`, where it stands in the text; None for one that stands for the old
        ``input`` fields.
    left_out
        Where layers of other phases stand.
    """

    net: NetParameter
    text: str
    spans: tuple[tuple[int, int] | None, ...]
    left_out: tuple[tuple[int, int], ...]

    @property
    def transposed(self) -> frozenset[str]:
        """Names of the fc layers whose weights are stored as inputs × outputs."""
        layers = (layer for layer in self.net.layer if layer.inner_product_param.transpose)
        return frozenset(layer.name for layer in layers)

    def fed(self, shapes: Mapping[str, Sequence[int]], needed: Collection[int]) -> str:
        """Write the definition with blobs that are fed in the place of what makes them.

        Parameters
        ----------
        shapes
            Blob -> its shape, of the blobs that are fed.
        needed
            Positions in ``net.layer`` of the layers to keep; those whose tops are fed go anyway.
        """
        gone = list(self.left_out)
        for place, (layer, span) in enumerate(zip(self.net.layer, self.spans, strict=True)):
            source = bool(layer.top) and not layer.bottom and set(layer.top) & set(shapes)
            if span is not None and (source or place not in needed):
                gone.append(span)
        pieces, after = [], 0
        for start, end in sorted(gone):
            pieces += [self.text[after:start], "\n" * self.text.count("\n", start, end)]
            after = end
        inputs = []
        if self.spans[:1] != (None,):  # old fields, if there are any, say it
            inputs = [_input(blob, shape) for blob, shape in shapes.items()]
        return "".join([*inputs, *pieces, self.text[after:]])


def read_outline(path: Path_, phase: Literal["TRAIN", "TEST"] = "TEST") -> Outline:
    """Read a network definition of any age and fork, as one phase has it, without Caffe.

    Raises
    ------
    ModelError
        The file can't be read or is no network definition.
    """
    content = read_input(path, ModelError).removeprefix(codecs.BOM_UTF8)
    definition = known_part(content, outline_pb2.NetParameter.DESCRIPTOR, path)
    try:
        net = text_format.Parse(definition.text, outline_pb2.NetParameter())
    except text_format.ParseError as error:
        raise ModelError(f"not a prototxt: {error}", where=path) from error
    if not (net.layer or net.layers):
        raise ModelError(
            "no layer in it",
            where=path,
            hint="a network definition is wanted, such as deploy.prototxt",
        )
    spans: list[tuple[int, int] | None] = list(definition.layers)
    if len(spans) != len(net.layer) + len(net.layers) or (net.layer and net.layers):
        raise ModelError("its layers are written in more than one way", where=path)
    _upgrade(net, definition.types)
    if net.input:
        _upgrade_inputs(net, path)
        spans.insert(0, None)
    every, kept = list(net.layer), in_phase(net, phase)
    places, after = [], 0
    for layer in kept.layer:  # in order; of equal layers a phase has all or none
        after = every.index(layer, after) + 1
        places.append(after - 1)
    rest = [spans[place] for place in range(len(spans)) if place not in places]
    return Outline(
        kept,
        content.decode("utf-8", "backslashreplace"),
        tuple(spans[place] for place in places),
        tuple(span for span in rest if span is not None),
    )


def _upgrade(net: NetParameter, types: Mapping[str, str]) -> None:
    """Write layers of 2014 and before as today's."""
    for old in net.layers:
        name = old.name or old.layer.name
        layer = net.layer.add(name=name, bottom=old.bottom, top=old.top)
        layer.include.extend(old.include)
        layer.exclude.extend(old.exclude)
        layer.accuracy_param.CopyFrom(old.accuracy_param)
        known = V1_TYPES.get(old.type) or V0_TYPES.get(old.layer.type)
        layer.type = known or types.get(name, "")
    del net.layers[:]


def _upgrade_inputs(net: NetParameter, path: Path_) -> None:
    """Write the ``input`` fields as an Input layer, as Caffe does."""
    inputs = list(net.input)
    shapes = [list(shape.dim) for shape in net.input_shape]
    sizes = list(net.input_dim)
    shapes = shapes or [sizes[i : i + _DIMENSIONS] for i in range(0, len(sizes), _DIMENSIONS)]
    if len(shapes) != len(inputs):
        raise ModelError(f"{len(inputs)} inputs, but shapes for {len(shapes)}", where=path)
    layers = [type(layer)() for layer in net.layer]
    for copy, layer in zip(layers, net.layer, strict=True):
        copy.CopyFrom(layer)
    del net.layer[:]
    first = net.layer.add(name="input", type="Input", top=inputs)
    for shape in shapes:
        first.input_param.shape.add(dim=shape)
    net.layer.extend(layers)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)


def _input(blob: str, shape: Sequence[int]) -> str:
    # Not an Input layer, which could not stand beside layers in the form of 2014.
    sizes = " ".join(f"dim: {size}" for size in shape)
    name = text_encoding.CEscape(blob, as_utf8=True)
    return f'input: "{name}" input_shape {{ {sizes} }}\n'
