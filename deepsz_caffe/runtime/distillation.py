"""Distillation: the network that is trained is told all scores of another one, its teacher.

The teacher is a copy of the network's own layers inside it, with weights that stay as they are and
names that begin with `TEACHER`; both see the same images, whatever the data layer does to them. The
loss is a sum of the network's own and of the cross-entropy to the teacher's probabilities, both
softened by a temperature (Hinton et al., 2015). It is made of Caffe's own layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import graph
from deepsz_caffe.network.layers import KINDS

if TYPE_CHECKING:
    from caffe import Net
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter

#: what the names of the teacher's layers and blobs begin with, as no network calls its own
TEACHER = "teacher of deepsz, "
_STUDENT = "student of deepsz, "
#: part of the loss that comes from the teacher, and the temperature: as Hinton et al. use them
_SHARE = 0.7
_TEMPERATURE = 3.0
#: added to probabilities before their logarithm is taken
_LEAST = 1e-6


def with_teacher(net: NetParameter) -> NetParameter:
    """Add a teacher and its loss to a network as it is trained.

    Raises
    ------
    ModelError
        The loss is not SoftmaxWithLoss: there are no class scores to learn from.
    """
    losses = [i for i, layer in enumerate(net.layer) if layer.type == "SoftmaxWithLoss"]
    if not losses:
        raise ModelError(
            "the network has no SoftmaxWithLoss layer, and no class scores to learn from",
            where=net.name or None,
            hint="train without distillation",
        )
    # The last counts, as in `find_judged`.
    loss = losses[-1]
    scores = net.layer[loss].bottom[0]
    needed = graph.needed_layers(net, [graph.Version(loss, scores)])
    sources = {i for i, layer in enumerate(net.layer) if not layer.bottom}
    result = type(net)()
    result.CopyFrom(net)
    del result.layer[:]
    # The teacher's layers come first: layers that work in place would change what it reads.
    result.layer.extend(net.layer[i] for i in sorted(sources))
    given = {top for i in sources for top in net.layer[i].top}
    for i in needed:
        if i not in sources and i != loss:
            given = _add_teacher_layer(result, net.layer[i], given)
    result.layer.extend(net.layer[i] for i in range(len(net.layer)) if i not in sources)
    for i in losses:
        layer = next(x for x in result.layer if x.name == net.layer[i].name)
        weight = layer.loss_weight[0] if layer.loss_weight else 1.0
        layer.loss_weight[:] = [weight * (1 - _SHARE)]
    _add_loss(result, scores)
    return result


def copy_to_teacher(caffe_net: Net) -> None:
    """Give the teacher the weights that the network has now."""
    for name, blobs in caffe_net.params.items():
        if name.startswith(TEACHER):
            own = caffe_net.params[name.removeprefix(TEACHER)]
            for blob, source in zip(blobs, own, strict=True):
                blob.data[...] = source.data


def without_teacher(saved: NetParameter, definition: NetParameter) -> None:
    """Take out of a network that was saved what is not its own.

    That are the teacher's layers, and those by which Caffe feeds them.
    """
    own = {x.name for x in definition.layer if not x.name.startswith((TEACHER, _STUDENT))}
    kept = type(saved)()
    kept.layer.extend(layer for layer in saved.layer if layer.name in own)
    del saved.layer[:]
    saved.layer.extend(kept.layer)


def _add_teacher_layer(result: NetParameter, layer: LayerParameter, given: set[str]) -> set[str]:
    """Copy a layer for the teacher; gives the names that are still those of the data's blobs."""
    if layer.type == "Dropout" and layer.bottom[0] == layer.top[0]:
        return given  # a teacher drops nothing
    own = result.layer.add()
    own.CopyFrom(layer)
    own.name = TEACHER + layer.name
    own.bottom[:] = [blob if blob in given else TEACHER + blob for blob in layer.bottom]
    own.top[:] = [TEACHER + blob for blob in layer.top]
    own.ClearField("loss_weight")
    if layer.type == "Dropout":
        own.type = "Split"
        own.ClearField("dropout_param")
    if layer.type == "BatchNorm":
        own.batch_norm_param.use_global_stats = True
    for _ in range(len(own.param), _blobs(layer)):
        own.param.add()
    for param in own.param:
        param.lr_mult = param.decay_mult = 0
        if param.name:
            param.name = TEACHER + param.name
    own.propagate_down[:] = [False] * len(own.bottom)
    return given - set(layer.top)


def _blobs(layer: LayerParameter) -> int:
    """Count the blobs of a layer: each must be told to stay as it is."""
    if layer.type in KINDS:
        return 1 + int(getattr(layer, KINDS[layer.type].parameters).bias_term)
    if layer.type == "Scale":
        return int(len(layer.bottom) == 1) + int(layer.scale_param.bias_term)
    if layer.type == "Bias":
        return int(len(layer.bottom) == 1)
    known = {"BatchNorm": 3, "PReLU": 1}
    if layer.type in ("LSTM", "RNN", "Parameter", "Python"):
        raise ModelError(
            f"distillation does not know the weights of {layer.type} layers",
            where=f"layer {layer.name}",
            hint="train without distillation",
        )
    return known.get(layer.type, 0)


def _add_loss(net: NetParameter, scores: str) -> None:
    """Add the cross-entropy of softened probabilities, a mean over the images."""

    def add(name: str, layer_type: str, *bottoms: str) -> LayerParameter:
        layer: LayerParameter = net.layer.add(
            name=_STUDENT + name, type=layer_type, bottom=bottoms, top=[_STUDENT + name]
        )
        return layer

    for name, blob in (("", scores), ("teacher's ", TEACHER + scores)):
        add(f"{name}softer scores", "Power", blob).power_param.scale = 1 / _TEMPERATURE
        add(f"{name}probabilities", "Softmax", f"{_STUDENT}{name}softer scores")
    add("least", "Power", f"{_STUDENT}probabilities").power_param.shift = _LEAST
    add("logarithms", "Log", f"{_STUDENT}least")
    product = add(
        "products", "Eltwise", f"{_STUDENT}teacher's probabilities", f"{_STUDENT}logarithms"
    )
    product.eltwise_param.operation = product.eltwise_param.PROD
    sums = add("sums", "Reduction", f"{_STUDENT}products").reduction_param
    sums.operation, sums.axis = sums.SUM, 1
    loss = add("loss", "Reduction", f"{_STUDENT}sums")
    loss.reduction_param.operation = loss.reduction_param.MEAN
    loss.reduction_param.coeff = -(_TEMPERATURE**2)
    loss.loss_weight.append(_SHARE)
