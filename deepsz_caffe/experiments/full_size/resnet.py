"""ResNet-50 (He et al. 2015) as a Caffe prototxt, at its own width or narrower, written by NetSpec.

It has what the networks in ``prototxt/`` don't: residual sums, batch normalization, fifty layers.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import NetParameter

SIDE = 224
#: Stage -> channels inside it as parts of the width, and how many residual blocks it has.
_STAGES = {"2": (1, 3), "3": (2, 4), "4": (4, 6), "5": (8, 3)}


def resnet_50(
    caffe: ModuleType,
    *,
    width: int = 64,
    images: int = 1,
    classes: int = 1000,
    fraction: float = 0.999,
) -> NetParameter:
    """Write the network; runs in a Caffe process.

    Parameters
    ----------
    width
        Channels of the first convolution, 64 in the publication.
    images
        In a batch of the input ``data``.
    classes
        Of ``prob``; 0: the network ends with its features, ``pool5``.
    fraction
        Part that the statistics of batch normalization keep in a training pass.
    """
    layers, net = caffe.layers, caffe.NetSpec()

    def convolution(name: str, bottom: object, outputs: int, size: int, stride: int = 1) -> object:
        net[name] = layers.Convolution(
            bottom,
            num_output=outputs,
            kernel_size=size,
            stride=stride,
            pad=size // 2,
            bias_term=False,
            weight_filler={"type": "msra"},
        )
        net[f"{name}_bn"] = layers.BatchNorm(
            net[name], in_place=True, moving_average_fraction=fraction
        )
        net[f"{name}_scale"] = layers.Scale(net[f"{name}_bn"], bias_term=True, in_place=True)
        return net[f"{name}_scale"]

    def relu(name: str, bottom: object) -> object:
        net[name] = layers.ReLU(bottom, in_place=True)
        return net[name]

    net.data = layers.Input(input_param={"shape": {"dim": [images, 3, SIDE, SIDE]}})
    top = relu("conv1_relu", convolution("conv1", net.data, width, 7, 2))
    net.pool1 = layers.Pooling(top, kernel_size=3, stride=2)
    top = net.pool1
    for stage, (times, blocks) in _STAGES.items():
        channels = times * width
        for number in range(blocks):
            name = f"res{stage}{'abcdef'[number]}"
            stride = 2 if number == 0 and stage != "2" else 1
            shortcut = top
            if number == 0:
                shortcut = convolution(f"{name}_short", top, 4 * channels, 1, stride)
            inner = relu(f"{name}_r1", convolution(f"{name}_1", top, channels, 1, stride))
            inner = relu(f"{name}_r2", convolution(f"{name}_2", inner, channels, 3))
            net[name] = layers.Eltwise(shortcut, convolution(f"{name}_3", inner, 4 * channels, 1))
            top = relu(f"{name}_relu", net[name])
    net.pool5 = layers.Pooling(top, pool=1, global_pooling=True)
    if classes:
        filler = {"type": "msra"}
        net.fc1000 = layers.InnerProduct(net.pool5, num_output=classes, weight_filler=filler)
        net.prob = layers.Softmax(net.fc1000)
    network: NetParameter = net.to_proto()
    return network
