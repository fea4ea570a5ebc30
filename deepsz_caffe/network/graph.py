"""The network as a graph of blobs: where the scores are, and what lies below and above a layer.

Works on a `NetParameter` of one phase (`prototxt.phase`) and needs no Caffe. Layers are named by
their position in ``net.layer``. A blob that a layer computes in place has the same name before and
after it, so blobs are told apart by their producer: a `Version`.

When the weights of some layers change, only the layers downstream of them compute anything new.
`cut` finds these (the tail) and the blob versions that enter them from the body, which stay the
same in every test and are computed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepsz_caffe.errors import DeepSZWarning, ModelError
from deepsz_caffe.network.layers import is_compressible

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

#: Layers whose bottoms are (scores, labels), surest evidence first.
_JUDGES = (
    "Accuracy",
    "SoftmaxWithLoss",
    "HingeLoss",
    "MultinomialLogisticLoss",
    "InfogainLoss",
)

#: Layers that end a classifier without Softmax.
_SCORING = frozenset({"Convolution", "Dropout", "Flatten", "InnerProduct", "Pooling", "Reshape"})

#: Layers that treat every image of a batch by itself, whatever the size of the batch.
_ROW_WISE = frozenset(
    {
        "AbsVal", "BNLL", "BatchNorm", "Bias", "Clip", "Concat", "Convolution", "Dropout", "ELU",
        "Eltwise", "Exp", "Flatten", "InnerProduct", "LRN", "Log", "PReLU", "Pooling", "Power",
        "ReLU", "Scale", "Sigmoid", "Softmax", "Split", "Swish", "TanH", "Threshold",
    }
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Version:
    """A blob as the layer at position `producer` leaves it; −1: an input of the network."""

    producer: int
    blob: str


@dataclass(frozen=True)
class Judged:
    """The blobs that accuracy is computed from, and the label that does not count, if any."""

    scores: Version
    labels: Version | None
    ignore_label: int | None = None


@dataclass(frozen=True)
class Cut:
    """The tail of a network: its layers' positions, in order, and the versions that enter it."""

    layers: tuple[int, ...]
    inputs: tuple[Version, ...]


def find_judged(net: NetParameter) -> Judged:
    """Find the scores and labels that a network's top-1 is judged by: the one rule for all steps.

    They are the bottoms of the last Accuracy layer whose ``top_k`` is 1; without one, of the last
    Accuracy layer; without one, of the last loss layer; without one, the scores are the only output
    that no layer consumes (the input of a final Softmax is as good and is not looked for), with no
    labels; an ArgMax layer is passed over. Networks with side classifiers put the one that counts
    last; where there are several, a warning says which was taken.

    Raises
    ------
    ModelError
        Several outputs could be the scores.
    """
    bottoms = _bottoms(net)
    for kind in _JUDGES:
        judges = [i for i, layer in enumerate(net.layer) if layer.type == kind]
        if kind == "Accuracy":
            first = [i for i in judges if net.layer[i].accuracy_param.top_k == 1]
            judges = first or judges
        if judges:
            chosen = judges[-1]
            scores, labels = bottoms[chosen][:2]
            _warn_of_others(net, scores, {bottoms[i][0] for i in judges})
            parameters = net.layer[chosen]
            parameters = parameters.accuracy_param if kind == "Accuracy" else parameters.loss_param
            ignored = parameters.ignore_label if parameters.HasField("ignore_label") else None
            return Judged(scores, labels, ignored)
    # What an ArgMax layer gives are classes; the scores are before it.
    others = {i for i, layer in enumerate(net.layer) if not layer.bottom or layer.type == "ArgMax"}
    consumed = {
        version for i, versions in enumerate(bottoms) if i not in others for version in versions
    }
    outputs = [
        version
        for version in _last_versions(net)
        if version not in consumed and version.producer >= 0 and version.producer not in others
    ]
    if len(outputs) != 1:
        names = ", ".join(version.blob for version in outputs) or "none"
        raise ModelError(
            f"can't tell which output holds the class scores: {names}",
            where=net.name or None,
            hint="give the network an Accuracy or SoftmaxWithLoss layer in its TEST phase; "
            "compress --max-change needs no scores",
        )
    return Judged(outputs[0], None)


def _warn_of_others(net: NetParameter, scores: Version, all_scores: Collection[Version]) -> None:
    others = sorted({version.blob for version in all_scores} - {scores.blob})
    if others:
        warnings.warn(
            DeepSZWarning(
                f"several blobs are judged: {', '.join(others)} and {scores.blob}; top-1 is that "
                f"of {scores.blob}, which is judged last"
            ),
            stacklevel=3,
        )


@dataclass(frozen=True)
class Output:
    """A blob that a network is there for.

    Attributes
    ----------
    version
        The blob.
    scores
        It holds scores of classes, along its second axis.
    sure
        Its layers say so; otherwise it is what `find_judged` would take.
    """

    version: Version
    scores: bool
    sure: bool = True


def find_outputs(net: NetParameter, names: Collection[str] = ()) -> tuple[Output, ...]:
    """Find the blobs that no layer consumes; in place of an accuracy or a loss, what it judges.

    Scores of classes are what Softmax gives, what Accuracy and losses of classes judge, and, as in
    `find_judged`, the only output there is, where its layer may give scores.

    Parameters
    ----------
    net
        A network of one phase.
    names
        Blobs to take instead.

    Raises
    ------
    ModelError
        There is none of that name, or no output.
    """
    bottoms = _bottoms(net)
    sources = {i for i, layer in enumerate(net.layer) if not layer.bottom}
    judges = {i for i, layer in enumerate(net.layer) if _judges(layer.type)}
    # Of what is judged, labels come from a source, too.
    judged = {
        version
        for i in judges
        for version in bottoms[i]
        if version.producer not in sources | judges and version.producer >= 0
    }
    unseen = sources | judges | {i for i, layer in enumerate(net.layer) if layer.type == "Silence"}
    consumed = {version for i, read in enumerate(bottoms) if i not in unseen for version in read}
    last = {version.blob: version for version in _last_versions(net)}
    found = [
        version
        for version in (*judged, *last.values())
        if version not in consumed and version.producer not in unseen and version.producer >= 0
    ]
    if names:
        missing = [name for name in names if name not in last]
        if missing:
            raise ModelError("the network has no such blob", where=f"blob {missing[0]}")
        found = [last[name] for name in names]
    if not found:
        raise ModelError("the network has no output", where=net.name or None)
    certain = {
        version for i in judges if net.layer[i].type in _JUDGES for version in bottoms[i][:1]
    }
    outputs = []
    for version in sorted(set(found)):
        layer = net.layer[version.producer]
        sure = version in certain or (layer.type == "Softmax" and layer.softmax_param.axis == 1)
        alone = len(set(found)) == 1 and layer.type in _SCORING and version not in judged
        outputs.append(Output(version, sure or alone, sure or not alone))
    return tuple(outputs)


def _judges(layer_type: str) -> bool:
    return layer_type == "Accuracy" or layer_type.endswith("Loss")


def cut(net: NetParameter, changed: Collection[str], *wanted: Version) -> Cut:
    """Cut the network below the layers whose weights change.

    Parameters
    ----------
    changed
        Names of the layers; layers that share their weights by name (``param { name }``) change
        with them.
    wanted
        What is wanted; layers that none of it depends on are left out.

    Raises
    ------
    ModelError
        A layer is not in the network, or the scores do not depend on any of them.
    """
    names = [layer.name for layer in net.layer]
    for name in changed:
        if name not in names:
            raise ModelError("no such layer in the network", where=f"layer {name}")
    changed = _with_sharers(net, changed)
    bottoms = _bottoms(net)
    needed = set().union(*(_ancestors(bottoms, version) for version in wanted))
    tail: list[int] = []
    produced: set[int] = set()
    for i, layer in enumerate(net.layer):
        if i not in needed:
            continue
        if layer.name in changed or any(version.producer in produced for version in bottoms[i]):
            tail.append(i)
            produced.add(i)
    if not tail:
        where = ", ".join(sorted(changed))
        raise ModelError("the scores do not depend on this layer", where=f"layer {where}")
    inputs = {v for i in tail for v in bottoms[i] if v.producer not in produced}
    return Cut(tuple(tail), tuple(sorted(inputs)))


def begun_at(net: NetParameter, cut: Cut, stored: Collection[Version]) -> Cut:
    """Let a tail begin further down, with blobs that are stored.

    Parameters
    ----------
    net
        The network.
    cut
        A tail of it.
    stored
        Those that may enter; all that enters the tail must depend on some of them alone.

    Raises
    ------
    ModelError
        Something that enters depends on a source of data that is not stored.
    """
    bottoms = _bottoms(net)
    usable = set(stored)
    while True:
        layers, inputs, waiting = set(cut.layers), set(), list(cut.inputs)
        while waiting:
            version = waiting.pop()
            if version in usable:
                inputs.add(version)
            elif version.producer not in layers:
                if version.producer < 0 or not bottoms[version.producer]:
                    raise ModelError("is not stored", where=f"blob {version.blob}")
                layers.add(version.producer)
                waiting.extend(bottoms[version.producer])
        # A blob can't be given and computed: neither by its own layer nor by one before it.
        given = {v for v in inputs if v.producer not in layers}
        clashing = {
            v for v in given if any(v.blob in net.layer[i].top for i in layers if i < v.producer)
        }
        if not clashing:
            return Cut(tuple(sorted(layers)), tuple(sorted(given)))
        usable -= clashing


def fc_tail(net: NetParameter) -> Cut:
    """Cut the network below its fc layers: all that depends on one of them is the tail.

    Dropout that only fc layers read is in the tail, too: what is random must happen anew in every
    iteration of a training.

    Raises
    ------
    ModelError
        There is no fc layer, or two states of one blob enter the tail.
    """
    bottoms = _bottoms(net)
    readers: dict[Version, set[str]] = {}
    for layer, read in zip(net.layer, bottoms, strict=True):
        for version in read:
            readers.setdefault(version, set()).add(layer.type)
    tail: set[int] = set()
    for i, layer in enumerate(net.layer):
        dropout = layer.type == "Dropout" and all(
            all(map(is_compressible, readers.get(Version(i, blob), ("",)))) for blob in layer.top
        )
        above = any(version.producer in tail for version in bottoms[i])
        if is_compressible(layer.type) or dropout or above:
            tail.add(i)
    if not tail:
        raise ModelError("the network has no fc layer (InnerProduct)", where=net.name or None)
    inputs = sorted({v for i in tail for v in bottoms[i] if v.producer not in tail})
    names = [version.blob for version in inputs]
    for name in names:
        if names.count(name) > 1:
            raise ModelError("two states of it enter the fc layers", where=f"blob {name}")
    return Cut(tuple(sorted(tail)), tuple(inputs))


def needed_layers(net: NetParameter, versions: Iterable[Version]) -> tuple[int, ...]:
    """Return the positions of the layers that the given versions depend on, in order."""
    bottoms = _bottoms(net)
    return tuple(sorted(set().union(*(_ancestors(bottoms, version) for version in versions))))


def subnet(
    net: NetParameter, layers: Iterable[int], inputs: Iterable[tuple[str, tuple[int, ...]]]
) -> NetParameter:
    """Build a network of some of the layers, fed by Input layers.

    Phase rules are dropped (they have been applied) and so are weight fillers: the weights are
    loaded, and drawing millions of random numbers takes seconds.

    Parameters
    ----------
    layers
        Positions in ``net.layer``, in order.
    inputs
        Blob names and shapes.
    """
    result = type(net)(name=net.name)
    for blob, shape in inputs:
        entry = result.layer.add(name=f"{blob} (given)", type="Input", top=[blob])
        entry.input_param.shape.add(dim=shape)
    for i in layers:
        layer = result.layer.add()
        layer.CopyFrom(net.layer[i])
        for field in ("include", "exclude"):
            layer.ClearField(field)
        for parameters in (layer.inner_product_param, layer.convolution_param):
            for field in ("weight_filler", "bias_filler"):
                if parameters.HasField(field):
                    parameters.ClearField(field)
    return result


def is_row_wise(net: NetParameter, layers: Iterable[int]) -> bool:
    """Say whether the layers can run on batches of another size than the prototxt's."""
    for layer in (net.layer[i] for i in layers):
        if layer.type not in _ROW_WISE:
            return False
        if layer.type == "InnerProduct" and layer.inner_product_param.axis == 0:
            return False
        if layer.type in ("Concat", "Softmax", "Flatten"):
            field = {"Concat": "concat", "Softmax": "softmax", "Flatten": "flatten"}[layer.type]
            if getattr(layer, f"{field}_param").axis == 0:
                return False
    return True


def shared_weights(net: NetParameter) -> dict[str, tuple[str, ...]]:
    """Map each layer whose first blob is shared by name to all the layers that share it."""
    groups: dict[str, list[str]] = {}
    for layer in net.layer:
        if layer.param and layer.param[0].name:
            groups.setdefault(layer.param[0].name, []).append(layer.name)
    return {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}


def _with_sharers(net: NetParameter, changed: Collection[str]) -> set[str]:
    sharers = shared_weights(net)
    return {other for name in changed for other in sharers.get(name, (name,))}


def _bottoms(net: NetParameter) -> list[list[Version]]:
    """Return, for each layer, the versions that it reads."""
    return [read for read, _ in _walk(net)]


def _last_versions(net: NetParameter) -> list[Version]:
    current: dict[str, Version] = {}
    for _, current in _walk(net):  # noqa: B007 - the last one is wanted
        pass
    return list(current.values())


def _walk(net: NetParameter) -> Iterator[tuple[list[Version], dict[str, Version]]]:
    current = {blob: Version(-1, blob) for blob in net.input}
    for i, layer in enumerate(net.layer):
        for blob in layer.bottom:
            if blob not in current:
                raise ModelError(f"nothing produces blob {blob}", where=f"layer {layer.name}")
        read = [current[blob] for blob in layer.bottom]
        current |= {blob: Version(i, blob) for blob in layer.top}
        yield read, current


def _ancestors(bottoms: list[list[Version]], version: Version) -> set[int]:
    found: set[int] = set()
    waiting = [version.producer]
    while waiting:
        layer = waiting.pop()
        if layer >= 0 and layer not in found:
            found.add(layer)
            waiting.extend(read.producer for read in bottoms[layer])
    return found
