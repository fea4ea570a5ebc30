"""A ResNet-50 of half the width and pictures, both generated: no download, no training.

5.9 million weights, with the shapes, the batch normalization and the residual sums of ResNet-50
(He et al. 2015). Weights are drawn from Student's t with 5 degrees of freedom, which has about the
tails of trained weights, and the means and variances of the BatchNorm layers are those of generated
pictures, so that activations are of a trained network's size in every layer. Trained weights are
correlated and many of them small, so they compress better at the same error.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.experiments.full_size.resnet import SIDE, resnet_50
from deepsz_caffe.runtime.worker import import_caffe

WIDTH = 32


def make(folder: Path, seed: int, images: int = 16) -> tuple[Path, Path]:
    """Write ``net.prototxt`` and ``net.caffemodel`` into a folder; in a Caffe process."""
    caffe = import_caffe()
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    network, weights = folder / "net.prototxt", folder / "net.caffemodel"
    network.write_text(str(_network(caffe, 1)), encoding="utf-8")
    measured = folder / "measured.prototxt"
    measured.write_text(str(_network(caffe, images)), encoding="utf-8")
    # In training these layers measure, and a fraction of 0 forgets what was before.
    net = caffe.Net(str(measured), caffe.TRAIN)
    for name, layer in zip(net._layer_names, net.layers, strict=True):
        if layer.type == "Convolution":
            values = layer.blobs[0].data
            fan_in = values[0].size
            drawn = random.standard_t(5, values.shape) * (0.6 * 2 / fan_in) ** 0.5
            values[...] = drawn
        elif layer.type == "Scale":
            # The last of a residual block adds less than what it is added to.
            usual = 0.4 if name.endswith("_3_scale") else 1.0
            net.params[name][0].data[...] = usual * random.uniform(0.5, 1.5, layer.blobs[0].count)
            net.params[name][1].data[...] = random.normal(0, 0.2, layer.blobs[1].count)
    net.blobs["data"].data[...] = pictures(images, seed + 1).astype(np.float32) - 127.5
    net.forward()
    net.save(str(weights))
    return network, weights


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Draw pictures whose spectrum falls as photographs' do, uint8[count, 3, 224, 224]."""
    random = np.random.default_rng(seed)
    across = np.fft.fftfreq(SIDE)
    radius = np.hypot(across[:, None], np.fft.rfftfreq(SIDE)[None])
    radius[0, 0] = 1 / SIDE
    found = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for picture in found:
        noise = np.fft.rfft2(random.standard_normal((4, SIDE, SIDE)))
        planes = np.fft.irfft2(noise / radius ** random.uniform(0.8, 1.4), (SIDE, SIDE))
        planes /= planes.std(axis=(1, 2), keepdims=True)
        colours = planes[0] + 0.4 * planes[1:]  # mostly grey, as photographs are
        picture[...] = np.clip(127.5 + random.uniform(30, 60) * colours, 0, 255)
    return found


def _network(caffe: ModuleType, images: int) -> object:
    return resnet_50(caffe, width=WIDTH, images=images, classes=0, fraction=0.0)
