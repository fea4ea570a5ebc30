"""A small classification problem with known difficulty, made in seconds, for tests of accuracy.

The labels are what a pruned network with random weights says, with noise; so that network is right
on about 95 % of the images, and every change of its weights shows as lost images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepsz_caffe.runtime.worker import import_caffe

IMAGES = {"test": 2_030, "validation": 1_510}  # no multiples of the batch
BATCH = 100

DATA = """
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST {rule} }}
  transform_param {{ scale: 0.00390625 }}
  data_param {{ source: "{source}" backend: LMDB batch_size: 100 }} }}
"""

# Two fc layers share an input, and one works on both of their outputs.
BODY = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "left" type: "InnerProduct" bottom: "conv" top: "left"
  inner_product_param { num_output: 24 weight_filler { type: "xavier" } } }
layer { name: "relu_left" type: "ReLU" bottom: "left" top: "left" }
layer { name: "right" type: "InnerProduct" bottom: "conv" top: "right"
  inner_product_param { num_output: 16 transpose: true bias_term: false
    weight_filler { type: "xavier" } } }
layer { name: "tanh_right" type: "TanH" bottom: "right" top: "right_tanh" }
layer { name: "both" type: "Concat" bottom: "left" bottom: "right_tanh" top: "both" }
layer { name: "ip" type: "InnerProduct" bottom: "both" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
"""

JUDGES = """
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy"
  include { phase: TEST } }
layer { name: "top5" type: "Accuracy" bottom: "ip" bottom: "label" top: "top5"
  include { phase: TEST } accuracy_param { top_k: 5 } }
"""

FC_LAYERS = ("left", "right", "ip")


@dataclass(frozen=True)
class Toy:
    folder: Path
    network: Path
    weights: Path
    deploy: Path

    def arrays(self, which="test"):
        with np.load(self.folder / f"{which}.npz") as archive:
            return dict(archive)


def make(folder):
    """Write LMDBs, arrays, prototxts and weights; runs in a Caffe process."""
    caffe = import_caffe()
    caffe.set_random_seed(3)
    folder = Path(folder)
    deploy = folder / "deploy.prototxt"
    shape = f"input_param {{ shape {{ dim: {BATCH} dim: 1 dim: 11 dim: 11 }} }}"
    deploy.write_text(f'layer {{ name: "data" type: "Input" top: "data" {shape} }}{BODY}')
    net = caffe.Net(str(deploy), caffe.TEST)
    random = np.random.default_rng(5)
    for name in ("left", "right", "ip"):
        weights = net.params[name][0].data
        weights[random.random(weights.shape) < 0.7] = 0
    net.save(str(folder / "pruned.caffemodel"))
    for which, count in IMAGES.items():
        pixels = random.integers(0, 256, (count, 1, 11, 11), np.uint8)
        scores = []
        for start in range(0, count, BATCH):
            batch = pixels[start : start + BATCH]
            net.blobs["data"].data[: len(batch)] = batch / 256
            net.forward()
            scores.append(net.blobs["ip"].data[: len(batch)].copy())
        scores = np.concatenate(scores)
        # Centred, so that every class occurs; a bias carries it.
        if which == "test":
            net.params["ip"][1].data[...] -= scores.mean(axis=0)
            net.save(str(folder / "pruned.caffemodel"))
            scores -= scores.mean(axis=0)
        labels = scores.argmax(axis=1)
        noisy = random.random(count) < 0.05
        labels[noisy] = random.integers(0, 10, noisy.sum())
        _write_lmdb(folder / f"{which}_lmdb", pixels, labels)
        np.savez(folder / f"{which}.npz", data=pixels / np.float32(256), label=labels)
    rules = {"test": 'not_stage: "validation"', "validation": 'stage: "validation"'}
    data = "".join(
        DATA.format(rule=rules[which], source=folder / f"{which}_lmdb") for which in IMAGES
    )
    (folder / "train_val.prototxt").write_text(data + BODY + JUDGES)


def load(folder):
    folder = Path(folder)
    return Toy(
        folder,
        folder / "train_val.prototxt",
        folder / "pruned.caffemodel",
        folder / "deploy.prototxt",
    )


def _write_lmdb(path, pixels, labels):
    import lmdb
    from caffe.proto import caffe_pb2

    with lmdb.open(str(path), map_size=1 << 27) as environment, environment.begin(write=True) as t:
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            datum = caffe_pb2.Datum(channels=1, height=11, width=11, label=int(label))
            datum.data = image.tobytes()
            t.put(f"{number:08d}".encode(), datum.SerializeToString())
