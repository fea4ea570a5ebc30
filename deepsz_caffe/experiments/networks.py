"""The paper's four networks: shapes, densities, and the figures to reproduce, one entry each.

Everything that an experiment must know about a network is in its `Network` entry; a new network is
a new entry and a folder under ``prototxt/``. Figures are those of the authors' HPDC 2019 talk;
accuracies and losses are fractions, sizes are bytes (the talk's KB and MB counted as 10³ and 10⁶).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from deepsz_caffe.errors import InputError

#: the techniques that the paper compares, in the order of its tables
TECHNIQUES = ("deep-compression", "weightless", "deepsz")

#: where ``prototxt/`` and ``models/`` stand: the checkout
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FcShape:
    """One fully connected layer.

    Parameters
    ----------
    name
        The layer's name in the prototxt.
    shape
        (outputs, inputs), as Caffe stores the weights.
    keep
        Fraction of weights kept by pruning in the paper.
    threshold, spread
        Shape of generated weights: no kept weight is under `threshold` in magnitude; above it they
        follow a Gamma distribution of shape 2 and scale `spread` (see `generated`).
    """

    name: str
    shape: tuple[int, int]
    keep: float
    threshold: float
    spread: float

    @property
    def dense_bytes(self) -> int:
        """Bytes of the layer's weights as float32."""
        return 4 * prod(self.shape)


@dataclass(frozen=True)
class PaperFigures:
    """A network's rows in the paper's tables; None where the paper gives no figure."""

    top1_before: float
    top1_after: float
    top5_before: float | None
    top5_after: float | None
    fc_bytes_before: int
    fc_bytes_after: int
    ratio: float
    #: technique -> loss of top-1 at a comparable ratio, before retraining
    losses: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """One network of the paper.

    `conv` maps each convolution to its weights' shape; with `fc` it gives every parameter but the
    biases, of which each layer has one an output.
    """

    id: str
    title: str
    #: an id of `deepsz_caffe.experiments.datasets.DATA_SETS`
    data_set: str
    image: tuple[int, int, int]
    conv: dict[str, tuple[int, int, int, int]]
    fc: tuple[FcShape, ...]
    #: None for a network that the paper does not have
    paper: PaperFigures | None
    folder: str
    #: how `prune` goes about it: a name in `deepsz_caffe.steps.prune.SCHEDULES`
    schedule: str = "gradual"
    #: the published caffemodel is in the old V1 format
    v1: bool = False
    #: where trained weights come from; empty for a network that `reproduce` trains
    weights: str = ""
    #: error bounds by layer for measuring it with generated weights; empty where that isn't done
    generated_bounds: dict[str, float] = field(default_factory=dict)

    @property
    def keep(self) -> dict[str, float]:
        """Fraction of weights kept, by layer."""
        return {layer.name: layer.keep for layer in self.fc}

    @property
    def fc_dense_bytes(self) -> int:
        """Bytes of all fc weights as float32, biases not counted."""
        return sum(layer.dense_bytes for layer in self.fc)

    @property
    def parameters(self) -> int:
        """Number of weights and biases of the whole network."""
        shapes = [*self.conv.values(), *(layer.shape for layer in self.fc)]
        return sum(prod(shape) + shape[0] for shape in shapes)

    def path(self, name: str) -> Path:
        """Path of one of the network's files, e.g. ``train_val.prototxt``."""
        return ROOT / "prototxt" / self.folder / name


_LENET_300_100 = Network(
    id="lenet-300-100",
    title="LeNet-300-100",
    data_set="mnist",
    image=(1, 28, 28),
    conv={},
    fc=(
        FcShape("ip1", (300, 784), 0.08, 0.05, 0.03),
        FcShape("ip2", (100, 300), 0.09, 0.08, 0.03),
        FcShape("ip3", (10, 100), 0.26, 0.10, 0.06),
    ),
    paper=PaperFigures(
        0.9835, 0.9831, None, None, 1_056_000, 19_100, 55.8,
        {"deep-compression": 0.0022, "weightless": None, "deepsz": 0.0012},
    ),
    folder="lenet_300_100",
)  # fmt: skip

_LENET_5 = Network(
    id="lenet-5",
    title="LeNet-5",
    data_set="mnist",
    image=(1, 28, 28),
    conv={"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5)},
    fc=(
        FcShape("ip1", (500, 800), 0.08, 0.03, 0.01),
        FcShape("ip2", (10, 500), 0.19, 0.08, 0.03),
    ),
    paper=PaperFigures(
        0.9913, 0.9916, None, None, 1_620_000, 28_300, 57.3,
        {"deep-compression": 0.0030, "weightless": None, "deepsz": -0.0003},
    ),
    folder="lenet_5",
)  # fmt: skip

_ALEXNET = Network(
    id="alexnet",
    title="AlexNet",
    data_set="imagenet",
    image=(3, 227, 227),
    conv={
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
    },
    fc=(
        FcShape("fc6", (4096, 9216), 0.09, 0.014, 0.0035),
        FcShape("fc7", (4096, 4096), 0.09, 0.016, 0.004),
        FcShape("fc8", (1000, 4096), 0.25, 0.018, 0.005),
    ),
    paper=PaperFigures(
        0.5741, 0.5728, 0.8040, 0.8058, 234_500_000, 5_150_000, 45.5,
        {"deep-compression": 0.0156, "weightless": None, "deepsz": 0.0013},
    ),
    folder="alexnet",
    schedule="one-shot",
    weights="the Caffe Model Zoo's bvlc_alexnet.caffemodel",
    generated_bounds={"fc6": 7e-3, "fc7": 7e-3, "fc8": 5e-3},
)  # fmt: skip

# Not the paper's: ImageNet can't be shipped, so accuracy at AlexNet's size is measured on this one.
_ALEXNET_CIFAR10 = replace(
    _ALEXNET,
    id="alexnet-cifar10",
    title="AlexNet/CIFAR-10",
    data_set="cifar10",
    fc=(*_ALEXNET.fc[:2], replace(_ALEXNET.fc[2], shape=(10, 4096))),
    paper=None,
    folder="alexnet_cifar10",
    weights="see models/alexnet_cifar10/ for how this network is trained",
    generated_bounds={},
)

_VGG_16 = Network(
    id="vgg-16",
    title="VGG-16",
    data_set="imagenet",
    image=(3, 224, 224),
    conv={
        "conv1_1": (64, 3, 3, 3),
        "conv1_2": (64, 64, 3, 3),
        "conv2_1": (128, 64, 3, 3),
        "conv2_2": (128, 128, 3, 3),
        "conv3_1": (256, 128, 3, 3),
        "conv3_2": (256, 256, 3, 3),
        "conv3_3": (256, 256, 3, 3),
        "conv4_1": (512, 256, 3, 3),
        "conv4_2": (512, 512, 3, 3),
        "conv4_3": (512, 512, 3, 3),
        "conv5_1": (512, 512, 3, 3),
        "conv5_2": (512, 512, 3, 3),
        "conv5_3": (512, 512, 3, 3),
    },
    fc=(
        FcShape("fc6", (4096, 25088), 0.03, 0.011, 0.002),
        FcShape("fc7", (4096, 4096), 0.04, 0.012, 0.003),
        FcShape("fc8", (1000, 4096), 0.24, 0.016, 0.004),
    ),
    # The paper gives Weightless's loss on VGG-16 only as "more than 3 %".
    paper=PaperFigures(
        0.6805, 0.6780, 0.8834, 0.8820, 494_500_000, 4_277_000, 115.6,
        {"deep-compression": 0.0281, "weightless": 0.03, "deepsz": 0.0025},
    ),
    folder="vgg_16",
    schedule="one-shot",
    v1=True,
    weights="the Caffe Model Zoo's VGG_ILSVRC_16_layers.caffemodel",
    generated_bounds={"fc6": 5e-3, "fc7": 5e-3, "fc8": 5e-3},
)  # fmt: skip

#: id -> network, in the paper's order, AlexNet/CIFAR-10 beside AlexNet
NETWORKS: dict[str, Network] = {
    network.id: network
    for network in (_LENET_300_100, _LENET_5, _ALEXNET, _ALEXNET_CIFAR10, _VGG_16)
}


def network(name: str) -> Network:
    """Look a network up by its id, e.g. ``lenet-5``.

    Raises
    ------
    InputError
        There is no such network.
    """
    try:
        return NETWORKS[name]
    except KeyError:
        raise InputError(
            f"no network is called {name!r}", hint="one of " + ", ".join(NETWORKS)
        ) from None
