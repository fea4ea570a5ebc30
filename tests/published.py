"""Networks as people have published them, small: their layers and connections, with few channels.

`NETWORKS` maps a name to a function that builds one. A `Definition` writes the prototxt as text,
layer by layer, and makes weights of the shapes that follow, so that layers of forks, which pycaffe
does not know, are no different from others.
"""

import math
import re
from itertools import count

import numpy as np

from deepsz_caffe.network import schema_pb2

#: types in the spelling of 2014
_V1 = {
    "Convolution": "CONVOLUTION",
    "Dropout": "DROPOUT",
    "InnerProduct": "INNER_PRODUCT",
    "Pooling": "POOLING",
    "ReLU": "RELU",
    "Softmax": "SOFTMAX",
}


class Definition:
    """A network in the making; each method adds a layer and gives its top."""

    def __init__(self, seed, **inputs):
        self.text, self.inputs = "", inputs
        self.shapes = dict(inputs)
        self.model = schema_pb2.NetParameter()
        self._random = np.random.default_rng(seed)
        self._numbers = count(1)
        for blob, shape in inputs.items():
            sizes = " ".join(f"dim: {size}" for size in shape)
            self.add("Input", (), shape, f"input_param {{ shape {{ {sizes} }} }}", name=blob)

    def add(self, kind, bottoms, shape, params="", blobs=(), name=None, tops=None):
        bottoms = (bottoms,) if isinstance(bottoms, str) else bottoms
        name = name or f"{kind.lower()}{next(self._numbers)}"
        tops = tops or (name,)
        shapes = shape if isinstance(shape, list) else [shape]
        self.shapes |= dict(zip(tops, shapes, strict=True))
        places = "".join(f' bottom: "{b}"' for b in bottoms) + "".join(f' top: "{t}"' for t in tops)
        self.text += f'layer {{ name: "{name}" type: "{kind}"{places} {params} }}\n'
        entry = self.model.layer.add(name=name.encode(), type=kind.encode())
        for blob in blobs:
            stored = entry.blobs.add(data=np.asarray(blob, "<f4").tobytes())
            stored.shape.dim.extend(np.shape(blob))
        return tops[0] if len(tops) == 1 else tops

    def _weights(self, *shape):
        return self._random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))

    def _bias(self, size, biased=True):
        return [self._random.normal(0, 0.1, size)] if biased else []

    def conv(self, x, outputs, k, s=1, p=0, group=1, dilation=1, bias=True, name=None, param=""):
        n, channels, *sizes = self.shapes[x]
        high, wide = ((size + 2 * p - dilation * (k - 1) - 1) // s + 1 for size in sizes)
        params = f"num_output: {outputs} kernel_size: {k} stride: {s} pad: {p}"
        params += f" group: {group}" if group > 1 else ""
        params += f" dilation: {dilation}" if dilation > 1 else ""
        params += "" if bias else " bias_term: false"
        blobs = [self._weights(outputs, channels // group, k, k), *self._bias(outputs, bias)]
        shape = (n, outputs, high, wide)
        text = f"{param} convolution_param {{ {params} }}"
        return self.add("Convolution", x, shape, text, blobs, name)

    def deconv(self, x, outputs, k, s, p=0, group=1, name=None):
        n, channels, *sizes = self.shapes[x]
        shape = (n, outputs, *(s * (size - 1) + k - 2 * p for size in sizes))
        params = f"num_output: {outputs} kernel_size: {k} stride: {s} pad: {p} group: {group}"
        params = f"convolution_param {{ {params} bias_term: false }}"
        blobs = [self._weights(channels, outputs // group, k, k)]
        return self.add("Deconvolution", x, shape, params, blobs, name)

    def fc(self, x, outputs, name=None, param="", axis=1):
        shape = self.shapes[x]
        blobs = [self._weights(outputs, math.prod(shape[axis:])), *self._bias(outputs)]
        params = f"num_output: {outputs}" + (f" axis: {axis}" if axis != 1 else "")
        params = f"{param} inner_product_param {{ {params} }}"
        return self.add("InnerProduct", x, (*shape[:axis], outputs), params, blobs, name)

    def pool(self, x, k=2, s=2, p=0, how="MAX", whole=False):
        n, channels, *sizes = self.shapes[x]
        if whole:
            params = f"pooling_param {{ pool: {how} global_pooling: true }}"
            return self.add("Pooling", x, (n, channels, 1, 1), params)
        outs = [math.ceil((size + 2 * p - k) / s) + 1 for size in sizes]
        if p:
            outs = [
                out - ((out - 1) * s >= size + p) for out, size in zip(outs, sizes, strict=True)
            ]
        params = f"pooling_param {{ pool: {how} kernel_size: {k} stride: {s} pad: {p} }}"
        return self.add("Pooling", x, (n, channels, *outs), params)

    def same(self, kind, x, params="", blobs=(), *, place=False, name=None):
        """Add a layer that leaves the shape; in place where asked for."""
        tops = (x,) if place else None
        bottoms = (x,) if isinstance(x, str) else x
        return self.add(kind, bottoms, self.shapes[bottoms[0]], params, blobs, name, tops)

    def relu(self, x):
        return self.same("ReLU", x, place=True)

    def prelu(self, x):
        return self.same("PReLU", x, "", [self._random.random(self.shapes[x][1])], place=True)

    def dropout(self, x):
        return self.same("Dropout", x, place=True)

    def lrn(self, x, size=5):
        return self.same("LRN", x, f"lrn_param {{ local_size: {size} alpha: 0.0001 beta: 0.75 }}")

    def norm(self, x):
        """BatchNorm and Scale in place, as converted networks have them."""
        channels = self.shapes[x][1]
        blobs = [self._random.normal(0, 0.1, channels), self._random.random(channels) + 0.5, [1.0]]
        self.same("BatchNorm", x, "batch_norm_param { use_global_stats: true }", blobs, place=True)
        scale = [self._random.random(channels) + 0.5, self._random.normal(0, 0.1, channels)]
        return self.same("Scale", x, "scale_param { bias_term: true }", scale, place=True)

    def concat(self, *xs, axis=1):
        shape = list(self.shapes[xs[0]])
        shape[axis] = sum(self.shapes[x][axis] for x in xs)
        return self.add("Concat", xs, tuple(shape), f"concat_param {{ axis: {axis} }}")

    def eltwise(self, *xs):
        return self.same("Eltwise", xs)

    def softmax(self, x, axis=1):
        return self.same("Softmax", x, f"softmax_param {{ axis: {axis} }}" if axis != 1 else "")

    def crop(self, x, like, offset):
        shape = (*self.shapes[x][:2], *self.shapes[like][2:])
        return self.add("Crop", (x, like), shape, f"crop_param {{ axis: 2 offset: {offset} }}")

    def flatten(self, x):
        n, *sizes = self.shapes[x]
        return self.add("Flatten", x, (n, math.prod(sizes)), "flatten_param { axis: 1 }")

    def convs(self, x, *widths, k=3, p=1):
        for width in widths:
            x = self.relu(self.conv(x, width, k, p=p))
        return x

    def as_of_2014(self):
        """Write layers and inputs as published networks of 2014 have them."""
        text = self.text
        for blob, shape in self.inputs.items():
            sizes = "".join(f" input_dim: {size}" for size in shape)
            pattern = rf'layer {{ name: "{blob}" type: "Input".*\n'
            text = re.sub(pattern, f'input: "{blob}"{sizes}\n', text)
        for today, then in _V1.items():
            text = text.replace(f'type: "{today}"', f"type: {then}")
        return text.replace("layer {", "layers {")


def image(seed, size=32, channels=3):
    return Definition(seed, data=(2, channels, size, size))


def cifar10_quick(net):
    x = net.relu(net.pool(net.conv("data", 8, 5, p=2), 3))
    x = net.pool(net.relu(net.conv(x, 8, 5, p=2)), 3, how="AVE")
    x = net.pool(net.relu(net.conv(x, 16, 5, p=2)), 3, how="AVE")
    net.softmax(net.fc(net.fc(x, 16), 10))


def lenet(net):
    x = net.pool(net.conv(net.pool(net.conv("data", 6, 5)), 10, 5))
    net.softmax(net.fc(net.relu(net.fc(x, 24)), 10))


def alexnet(net, pool_first=False):
    def normalized(x):
        return net.lrn(net.pool(x, 3)) if pool_first else net.pool(net.lrn(x), 3)

    x = normalized(net.relu(net.conv("data", 12, 7, s=2)))
    x = normalized(net.relu(net.conv(x, 16, 5, p=2, group=2)))
    x = net.relu(net.conv(x, 16, 3, p=1))
    x = net.relu(net.conv(x, 16, 3, p=1, group=2))
    x = net.pool(net.relu(net.conv(x, 12, 3, p=1, group=2)), 3)
    for _ in range(2):
        x = net.dropout(net.relu(net.fc(x, 24)))
    net.softmax(net.fc(x, 20))


def caffenet(net):
    alexnet(net, pool_first=True)


def zfnet(net):
    x = net.lrn(net.pool(net.relu(net.conv("data", 8, 7, s=2, p=1)), 3), 3)
    x = net.lrn(net.pool(net.relu(net.conv(x, 12, 5, s=2, p=2)), 3), 3)
    x = net.pool(net.convs(x, 16, 16, 12), 2)
    net.softmax(net.fc(net.relu(net.fc(x, 24)), 20))


def vgg_16(net):
    x = "data"
    for widths in ((4, 4), (6, 6), (8, 8, 8), (12, 12, 12), (12, 12, 12)):
        x = net.pool(net.convs(x, *widths))
    for _ in range(2):
        x = net.dropout(net.relu(net.fc(x, 24)))
    net.softmax(net.fc(x, 20))


def network_in_network(net):
    x = "data"
    for widths, size in (((12, 10, 8), 5), ((12, 12, 12), 5), ((12, 12, 10), 3)):
        x = net.relu(net.conv(x, widths[0], size, p=size // 2))
        x = net.convs(x, *widths[1:], k=1, p=0)
        x = net.dropout(net.pool(x, 3)) if size == 5 else x
    net.softmax(net.pool(x, how="AVE", whole=True))


def inception(net, x, widths, conv):
    one, reduce3, three, reduce5, five, behind = widths
    return net.concat(
        conv(x, one, 1),
        conv(conv(x, reduce3, 1), three, 3),
        conv(conv(x, reduce5, 1), five, 5),
        conv(net.pool(x, 3, 1, 1), behind, 1),
    )


def googlenet(net):
    def conv(x, outputs, k, s=1):
        return net.relu(net.conv(x, outputs, k, s, p=k // 2))

    x = net.lrn(net.pool(conv("data", 8, 7, 2), 3))
    x = net.pool(net.lrn(conv(conv(x, 8, 1), 12, 3)), 3)
    for widths in ((4, 4, 8, 2, 4, 4), (6, 4, 8, 2, 4, 4)):
        x = inception(net, x, widths, conv)
    x = net.dropout(net.pool(x, how="AVE", whole=True))
    net.softmax(net.fc(x, 20))


def inception_bn(net):
    def conv(x, outputs, k, s=1):
        return net.relu(net.norm(net.conv(x, outputs, k, s, p=k // 2, bias=False)))

    x = net.pool(conv("data", 8, 7, 2), 3)
    x = inception(net, x, (4, 4, 8, 2, 4, 4), conv)
    net.softmax(net.fc(net.pool(x, how="AVE", whole=True), 20))


def residual(net, groups=1, gate=False):
    def conv(x, outputs, k, s=1, group=1):
        return net.norm(net.conv(x, outputs, k, s, p=k // 2, group=group, bias=False))

    x = net.pool(net.relu(conv("data", 8, 7, 2)), 3)
    for channels, stride in ((8, 1), (8, 1), (12, 2)):
        shortcut = x
        if stride > 1 or net.shapes[x][1] != 2 * channels:
            shortcut = conv(x, 2 * channels, 1, stride)
        inner = net.relu(conv(x, channels, 1, stride))
        inner = net.relu(conv(inner, channels, 3, group=groups))
        inner = conv(inner, 2 * channels, 1)
        if gate:
            squeezed = net.pool(inner, how="AVE", whole=True)
            squeezed = net.relu(net.conv(squeezed, 4, 1))
            weights = net.same("Sigmoid", net.conv(squeezed, 2 * channels, 1))
            flat = net.add("Reshape", weights, (2, 2 * channels), RESHAPE_FLAT)
            inner = net.same("Scale", (inner, flat), "scale_param { axis: 0 }")
        x = net.relu(net.eltwise(shortcut, inner))
    net.softmax(net.fc(net.pool(x, how="AVE", whole=True), 20))


RESHAPE_FLAT = "reshape_param { shape { dim: 0 dim: -1 } }"


def resnet(net):
    residual(net)


def resnext(net):
    residual(net, groups=4)


def se_resnet(net):
    residual(net, gate=True)


def densenet(net):
    def block(x):
        scaled = net.same("BatchNorm", x, "", bn_blobs(net, x))
        return net.relu(net.same("Scale", scaled, SCALED, scale_blobs(net, x)))

    x = net.conv("data", 8, 3, p=1, bias=False)
    for _ in range(2):
        for _ in range(2):
            grown = net.conv(block(x), 4, 3, p=1, bias=False)
            x = net.concat(x, net.dropout(grown))
        x = net.pool(net.conv(block(x), 8, 1, bias=False), how="AVE")
    net.softmax(net.fc(net.pool(block(x), how="AVE", whole=True), 10))


SCALED = "scale_param { filler { value: 1 } bias_term: true }"


def bn_blobs(net, x):
    channels = net.shapes[x][1]
    return [np.zeros(channels), np.linspace(0.5, 1.5, channels), [1.0]]


def scale_blobs(net, x):
    channels = net.shapes[x][1]
    return [np.linspace(0.5, 1.5, channels), np.linspace(-0.1, 0.1, channels)]


def separable(net, x, outputs, stride=1):
    channels = net.shapes[x][1]
    x = net.relu(net.norm(net.conv(x, channels, 3, stride, 1, group=channels, bias=False)))
    return net.relu(net.norm(net.conv(x, outputs, 1, bias=False)))


def mobilenet(net):
    x = net.relu(net.norm(net.conv("data", 8, 3, 2, 1, bias=False)))
    for outputs, stride in ((12, 1), (16, 2), (16, 1), (24, 2)):
        x = separable(net, x, outputs, stride)
    net.softmax(net.conv(net.pool(x, how="AVE", whole=True), 20, 1))


def mobilenet_v2(net):
    x = net.relu(net.norm(net.conv("data", 8, 3, 2, 1, bias=False)))
    for outputs, stride in ((8, 1), (12, 2), (12, 1)):
        channels = net.shapes[x][1]
        inner = net.relu(net.norm(net.conv(x, 3 * channels, 1, bias=False)))
        width = 3 * channels
        inner = net.conv(inner, width, 3, stride, 1, group=width, bias=False)
        inner = net.norm(net.conv(net.relu(net.norm(inner)), outputs, 1, bias=False))
        x = net.eltwise(x, inner) if stride == 1 and channels == outputs else inner
    net.softmax(net.fc(net.pool(x, how="AVE", whole=True), 20))


def shufflenet(net):
    x = net.pool(net.relu(net.norm(net.conv("data", 12, 3, 2, 1, bias=False))), 3)
    for _ in range(2):
        inner = net.relu(net.norm(net.conv(x, 12, 1, group=3, bias=False)))
        inner = net.same("ShuffleChannel", inner, "shuffle_channel_param { group: 3 }")
        inner = net.norm(net.conv(inner, 12, 3, p=1, group=12, bias=False))
        x = net.relu(net.eltwise(x, net.norm(net.conv(inner, 12, 1, group=3, bias=False))))
    net.softmax(net.fc(net.pool(x, how="AVE", whole=True), 20))


def squeezenet(net):
    x = net.pool(net.relu(net.conv("data", 12, 7, 2)), 3)
    for squeezed, expanded in ((4, 8), (4, 8), (6, 12)):
        small = net.relu(net.conv(x, squeezed, 1))
        x = net.concat(
            net.relu(net.conv(small, expanded, 1)), net.relu(net.conv(small, expanded, 3, p=1))
        )
    x = net.relu(net.conv(net.dropout(x), 20, 1))
    net.softmax(net.pool(x, how="AVE", whole=True))


def age_net(net):
    x = net.lrn(net.pool(net.relu(net.conv("data", 12, 7, 2)), 3))
    x = net.lrn(net.pool(net.relu(net.conv(x, 16, 5, p=2)), 3))
    x = net.relu(net.conv(x, 16, 3, p=1))
    for _ in range(2):
        x = net.dropout(net.relu(net.fc(x, 24)))
    net.softmax(net.fc(x, 8))


def pnet(net):
    x = net.pool(net.prelu(net.conv("data", 10, 3)))
    x = net.prelu(net.conv(net.prelu(net.conv(x, 16, 3)), 24, 3))
    net.softmax(net.conv(x, 2, 1, name="conv4-1"))
    net.conv(x, 4, 1, name="conv4-2")


def rnet(net):
    x = net.pool(net.prelu(net.conv("data", 12, 3)), 3)
    x = net.pool(net.prelu(net.conv(x, 16, 3)), 3)
    x = net.prelu(net.fc(net.prelu(net.conv(x, 16, 2)), 32, name="conv4"))
    net.softmax(net.fc(x, 2, name="conv5-1"))
    net.fc(x, 4, name="conv5-2")


def onet(net):
    x = net.pool(net.prelu(net.conv("data", 8, 3)), 3)
    x = net.pool(net.prelu(net.conv(x, 12, 3)), 3)
    x = net.pool(net.prelu(net.conv(x, 12, 3)))
    x = net.prelu(net.dropout(net.fc(net.prelu(net.conv(x, 16, 2)), 32, name="conv5")))
    net.softmax(net.fc(x, 2, name="conv6-1"))
    net.fc(x, 4, name="conv6-2")
    net.fc(x, 10, name="conv6-3")


def landmarks(net):
    x = "data"
    for width, k in ((8, 5), (12, 3), (16, 3)):
        x = net.pool(net.same("AbsVal", net.same("TanH", net.conv(x, width, k))))
    x = net.same("TanH", net.fc(x, 24))
    net.same("TanH", net.fc(x, 10, name="points"))


def sphereface(net):
    x = "data"
    for width in (8, 12, 16):
        x = net.prelu(net.conv(x, width, 3, 2, 1))
        inner = net.prelu(net.conv(x, width, 3, p=1))
        x = net.eltwise(x, net.prelu(net.conv(inner, width, 3, p=1)))
    net.fc(x, 32, name="fc5")


def siamese(net):
    for side in ("", "_p"):
        x = f"data{side}"
        for layer, (width, k) in enumerate(((6, 5), (10, 5)), 1):
            param = f'param {{ name: "conv{layer}_w" }} param {{ name: "conv{layer}_b" }}'
            x = net.pool(net.conv(x, width, k, name=f"conv{layer}{side}", param=param))
        for layer, width in ((1, 24), (2, 10)):
            param = f'param {{ name: "ip{layer}_w" }} param {{ name: "ip{layer}_b" }}'
            x = net.fc(x, width, name=f"ip{layer}{side}", param=param)
            x = net.relu(x) if layer == 1 else x
        param = 'param { name: "feat_w" } param { name: "feat_b" }'
        net.fc(x, 2, name=f"feat{side}", param=param)
    for one in net.model.layer:  # both sides have the same weights, as Caffe writes them
        if one.name.endswith(b"_p"):
            twin = next(x for x in net.model.layer if x.name == one.name.removesuffix(b"_p"))
            one.ClearField("blobs")
            one.blobs.extend(twin.blobs)


def fcn_8s(net):
    x = net.pool(net.convs("data", 6, p=20))
    pool3 = net.pool(net.convs(x, 8))
    pool4 = net.pool(net.convs(pool3, 12))
    x = net.dropout(net.relu(net.conv(net.pool(net.convs(pool4, 12)), 16, 3)))
    x = net.conv(x, 5, 1, name="score_fr")
    for pooled in (pool4, pool3):
        x = net.deconv(x, 5, 4, 2)
        x = net.eltwise(x, net.crop(net.conv(pooled, 5, 1), x, 0))
    net.crop(net.deconv(x, 5, 16, 8), "data", 31)


def u_net(net):
    one = net.convs("data", 6, 6)
    two = net.convs(net.pool(one), 8, 8)
    x = net.convs(net.pool(two), 12, 12)
    for skipped, width in ((two, 8), (one, 6)):
        up = net.relu(net.deconv(x, width, 2, 2))
        x = net.convs(net.concat(up, net.crop(skipped, up, 0)), width)
    net.softmax(net.conv(x, 3, 1))


def hed(net):
    sides = []
    x = "data"
    for stage, width in enumerate((6, 8, 10)):
        x = net.convs(x if stage == 0 else net.pool(x), width, p=3 if stage == 0 else 1)
        side = net.conv(x, 1, 1)
        if stage:
            side = net.deconv(side, 1, 2 * 2**stage, 2**stage)
        sides.append(net.crop(side, "data", 1))
        net.same("Sigmoid", sides[-1])
    net.same("Sigmoid", net.conv(net.concat(*sides), 1, 1))


def deeplab(net):
    x = net.pool(net.convs("data", 6), 3, 2, 1)
    x = net.relu(net.conv(x, 8, 3, p=2, dilation=2))
    x = net.eltwise(*(net.conv(x, 5, 3, p=rate, dilation=rate) for rate in (2, 4, 6)))
    params = "interp_param { height: 32 width: 32 }"
    net.add("Interp", x, (2, 5, 32, 32), params)


def colorization(net):
    x = net.convs("data", 6)
    x = net.norm(net.relu(net.conv(x, 8, 3, 2, 1)))
    x = net.norm(net.relu(net.conv(x, 8, 3, p=2, dilation=2)))
    x = net.relu(net.deconv(x, 8, 4, 2, 1))
    x = net.same(
        "Scale", net.conv(x, 13, 1), "scale_param { bias_term: false }", [np.full(13, 2.6)]
    )
    net.conv(net.softmax(x), 2, 1, name="class8_ab")


def fsrcnn(net):
    x = net.prelu(net.conv("data", 8, 5, p=2))
    x = net.prelu(net.conv(net.prelu(net.conv(x, 4, 1)), 4, 3, p=1))
    net.deconv(net.prelu(net.conv(x, 8, 1)), 1, 9, 2, 4)


def dcgan(net):
    x = net.relu(net.norm(net.deconv("z", 12, 4, 1)))
    x = net.relu(net.norm(net.deconv(x, 8, 4, 2, 1)))
    net.same("TanH", net.deconv(x, 3, 4, 2, 1))


def autoencoder(net):
    x = net.flatten("data")
    for width in (64, 24, 8, 24, 64):
        x = net.fc(x, width)
        x = x if width == 8 else net.same("Sigmoid", x)
    net.same("Sigmoid", net.fc(x, 784, name="decode1"))


def lrcn(net):
    x = net.relu(net.fc("data", 16, axis=2))
    x = lstm(net, x, "cont", 12)
    net.softmax(net.fc(net.dropout(x), 8, axis=2, name="predict"), axis=2)


def lstm(net, x, cont, width):
    steps, batch, size = net.shapes[x]
    blobs = [net._weights(4 * width, size), np.zeros(4 * width), net._weights(4 * width, width)]
    params = f"recurrent_param {{ num_output: {width} }}"
    return net.add("LSTM", (x, cont), (steps, batch, width), params, blobs)


def captioner(net):
    steps, batch = net.inputs["words"]
    blobs = [net._weights(30, 12)]
    params = "embed_param { input_dim: 30 num_output: 12 bias_term: false }"
    x = net.add("Embed", "words", (steps, batch, 12), params, blobs, name="embedding")
    x = lstm(net, x, "cont", 12)
    net.softmax(net.fc(x, 30, axis=2, name="predict"), axis=2)


def openpose(net):
    features = net.convs(net.pool(net.convs("data", 6)), 8, 8)
    x = features
    for stage in range(2):
        k = 3 if stage == 0 else 7
        tops = []
        for branch, outputs in ((1, 6), (2, 4)):
            y = net.convs(x, 8, k=k, p=k // 2)
            tops.append(net.conv(y, outputs, 1, name=f"stage{stage + 1}_L{branch}"))
        x = net.concat(*reversed(tops), features) if stage == 0 else net.concat(*reversed(tops))


def detector(net, sources):
    """The heads of SSD on feature maps: boxes, classes, priors, and their detections."""
    classes, found = 4, {"loc": [], "conf": [], "prior": []}
    for number, x in enumerate(sources):
        _, _, high, wide = net.shapes[x]
        for kind, values in (("loc", 4), ("conf", classes)):
            y = net.conv(x, 3 * values, 3, p=1, name=f"map{number}_{kind}")
            shape = (1, high, wide, 3 * values)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            found[kind].append(net.flatten(net.add("Permute", y, shape, order)))
        params = f"prior_box_param {{ min_size: {10 + 8 * number} max_size: {18 + 8 * number} "
        params += "aspect_ratio: 2 flip: false clip: false "
        params += "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 }"
        shape = (1, 2, high * wide * 3 * 4)
        found["prior"].append(net.add("PriorBox", (x, "data"), shape, params))
    loc, conf = (net.concat(*found[kind]) for kind in ("loc", "conf"))
    priors = net.concat(*found["prior"], axis=2)
    boxes = net.shapes[loc][1] // 4
    shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}"
    conf = net.add("Reshape", conf, (1, boxes, classes), shape)
    conf = net.flatten(net.softmax(conf, axis=2))
    params = "detection_output_param { num_classes: 4 share_location: true background_label_id: 0 "
    params += "nms_param { nms_threshold: 0.45 top_k: 50 } code_type: CENTER_SIZE keep_top_k: 20 "
    params += "confidence_threshold: 0.01 }"
    net.add("DetectionOutput", (loc, conf, priors), (1, 1, 20, 7), params, name="detection_out")


def ssd(net):
    x = net.convs(net.pool(net.convs("data", 6)), 8)
    params = "norm_param { across_spatial: false channel_shared: false }"
    first = net.same("Normalize", x, params, [np.full(8, 20.0)], name="conv4_3_norm")
    x = net.relu(net.conv(net.pool(x), 12, 3, p=2, dilation=2))
    second = net.relu(net.conv(x, 12, 1))
    third = net.relu(net.conv(net.relu(net.conv(second, 6, 1)), 8, 3, 2, 1))
    detector(net, (first, second, third))


def mobilenet_ssd(net):
    x = net.relu(net.norm(net.conv("data", 8, 3, 2, 1, bias=False)))
    first = separable(net, separable(net, x, 12, 2), 12)
    detector(net, (first, separable(net, first, 16, 2)))


def fast_rcnn(net):
    x = net.convs(net.pool(net.convs("data", 6)), 8)
    params = "roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.5 }"
    x = net.add("ROIPooling", (x, "rois"), (1, 8, 3, 3), params, name="roi_pool5")
    x = net.dropout(net.relu(net.fc(x, 24)))
    net.softmax(net.fc(x, 4, name="cls_score"))
    net.fc(x, 16, name="bbox_pred")


IMAGES = {
    "alexnet": alexnet,
    "caffenet": caffenet,
    "zfnet": zfnet,
    "vgg_16": vgg_16,
    "cifar10_quick": cifar10_quick,
    "network_in_network": network_in_network,
    "googlenet": googlenet,
    "inception_bn": inception_bn,
    "resnet": resnet,
    "resnext": resnext,
    "se_resnet": se_resnet,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet": shufflenet,
    "squeezenet": squeezenet,
    "age_net": age_net,
    "sphereface": sphereface,
    "fcn_8s": fcn_8s,
    "u_net": u_net,
    "hed": hed,
    "deeplab": deeplab,
    "openpose": openpose,
}
#: those that take other things than colour images of 32 × 32
OTHERS = {
    "lenet": (lenet, {"data": (2, 1, 28, 28)}),
    "pnet": (pnet, {"data": (2, 3, 12, 12)}),
    "rnet": (rnet, {"data": (2, 3, 24, 24)}),
    "onet": (onet, {"data": (2, 3, 48, 48)}),
    "landmarks": (landmarks, {"data": (2, 1, 39, 39)}),
    "siamese": (siamese, {"data": (2, 1, 28, 28), "data_p": (2, 1, 28, 28)}),
    "colorization": (colorization, {"data": (2, 1, 16, 16)}),
    "fsrcnn": (fsrcnn, {"data": (2, 1, 12, 12)}),
    "dcgan": (dcgan, {"z": (2, 16, 1, 1)}),
    "autoencoder": (autoencoder, {"data": (2, 1, 28, 28)}),
    "lrcn": (lrcn, {"data": (4, 2, 20), "cont": (4, 2)}),
    "captioner": (captioner, {"words": (4, 2), "cont": (4, 2)}),
    "ssd": (ssd, {"data": (1, 3, 32, 32)}),
    "mobilenet_ssd": (mobilenet_ssd, {"data": (1, 3, 32, 32)}),
    "fast_rcnn": (fast_rcnn, {"data": (1, 3, 24, 24), "rois": (1, 5)}),
}
NETWORKS = {name: (make, {"data": (2, 3, 32, 32)}) for name, make in IMAGES.items()} | OTHERS


def published(name):
    """Build one of `NETWORKS`."""
    make, inputs = NETWORKS[name]
    net = Definition(sorted(NETWORKS).index(name), **inputs)
    make(net)
    return net


def inputs_of(net, seed=1):
    """Make something to feed a network with: blob -> two batches."""
    random = np.random.default_rng(seed)
    found = {}
    for blob, (first, *rest) in net.inputs.items():
        shape = (2 * first, *rest)
        if blob == "cont":
            array = np.ones(shape)
            array[::first] = 0  # a sequence begins
        elif blob == "words":
            array = random.integers(0, 30, shape)
        elif blob == "rois":
            corners = random.integers(0, 10, (2 * first, 2))
            array = np.column_stack([np.zeros(2 * first), corners, corners + 12])
        else:
            array = random.random(shape)
        found[blob] = array.astype(np.float32)
    return found
