"""GoogLeNet (Szegedy et al. 2014) as a Caffe prototxt, and weights for it and for ResNet-50.

Written from the paper's table with pycaffe's NetSpec. It holds what the networks in `prototxt/`
don't: concatenations, branches.
"""

from pathlib import Path

import numpy as np

from deepsz_caffe.experiments.full_size.resnet import resnet_50
from deepsz_caffe.runtime.worker import import_caffe

#: One row an inception module: 1×1, 3×3 reduced, 3×3, 5×5 reduced, 5×5, behind the pooling.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def make(architecture: str, folder: Path, seed: int) -> None:
    """Write ``deploy.prototxt`` and ``dense.caffemodel`` with weights that Caffe's fillers drew."""
    caffe = import_caffe()
    prototxt = folder / "deploy.prototxt"
    prototxt.write_text(str({"googlenet": googlenet, "resnet_50": resnet_50}[architecture](caffe)))
    caffe.set_random_seed(seed)
    net = caffe.Net(str(prototxt), caffe.TEST)
    for name, layer in zip(net._layer_names, net.layers, strict=True):
        if layer.type == "BatchNorm":  # Caffe draws its statistics as 0; as if of one normal image
            net.params[name][1].data[...] = net.params[name][2].data[...] = 1
    net.save(str(folder / "dense.caffemodel"))


def scores(deploy: str, weights: str, replaced: dict[str, np.ndarray]) -> np.ndarray:
    """Run one generated image, with `replaced` written into the blobs by hand."""
    caffe = import_caffe()
    net = caffe.Net(deploy, weights, caffe.TEST)
    for name, matrix in replaced.items():
        blob = net.params[name][0].data
        blob[...] = matrix.reshape(blob.shape)
    shape = net.blobs["data"].data.shape
    net.blobs["data"].data[...] = np.random.default_rng(0).standard_normal(shape, np.float32)
    return next(iter(net.forward().values())).copy()


def googlenet(caffe):
    layers, net = caffe.layers, caffe.NetSpec()

    def convolution(name, bottom, outputs, size, stride=1):
        net[name] = layers.Convolution(
            bottom,
            num_output=outputs,
            kernel_size=size,
            stride=stride,
            pad=size // 2,
            weight_filler={"type": "xavier"},
            bias_filler={"type": "constant", "value": 0.2},
        )
        net[f"{name}/relu"] = layers.ReLU(net[name], in_place=True)
        return net[f"{name}/relu"]

    def pooling(name, bottom, stride=2, pad=0):
        net[name] = layers.Pooling(bottom, kernel_size=3, stride=stride, pad=pad)
        return net[name]

    net.data = layers.Input(input_param={"shape": {"dim": [1, 3, 224, 224]}})
    top = pooling("pool1", convolution("conv1", net.data, 64, 7, 2))
    net.norm1 = layers.LRN(top, local_size=5, alpha=1e-4, beta=0.75)
    top = convolution("conv2", convolution("conv2_reduce", net.norm1, 64, 1), 192, 3)
    net.norm2 = layers.LRN(top, local_size=5, alpha=1e-4, beta=0.75)
    top = pooling("pool2", net.norm2)
    for name, (one, reduce3, three, reduce5, five, behind) in INCEPTION.items():
        parts = (
            convolution(f"{name}/1x1", top, one, 1),
            convolution(f"{name}/3x3", convolution(f"{name}/r3", top, reduce3, 1), three, 3),
            convolution(f"{name}/5x5", convolution(f"{name}/r5", top, reduce5, 1), five, 5),
            convolution(f"{name}/proj", pooling(f"{name}/pool", top, 1, 1), behind, 1),
        )
        net[f"{name}/output"] = layers.Concat(*parts)
        top = net[f"{name}/output"]
        if name in ("3b", "4e"):
            top = pooling(f"pool{name}", top)
    net.pool5 = layers.Pooling(top, pool=1, global_pooling=True)
    net.drop = layers.Dropout(net.pool5, dropout_ratio=0.4, in_place=True)
    net.classifier = layers.InnerProduct(
        net.drop, num_output=1000, weight_filler={"type": "xavier"}
    )
    net.prob = layers.Softmax(net.classifier)
    return net.to_proto()
