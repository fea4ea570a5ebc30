"""Train bvlc_alexnet's convolutions on CIFAR-10 with PyTorch and export them for Caffe.

The network is AlexNet as Caffe has it (groups in conv2, conv4 and conv5; ReLU, LRN, pooling in
this order) on CIFAR-10 images that a bilinear deconvolution scales up by 7 to 227 x 227. Four
things make it affordable on a processor, and none of them is left in the exported weights:

- training sees random windows of the upscaled image instead of the whole of it, small and coarse
  ones first;
- the fc layers, to be trained by Caffe afterwards, are replaced by one linear layer;
- every convolution is followed by batch normalization, folded into its weights at the end with
  statistics of whole images;
- LRN, within 1e-3 of the identity at these activations, is left out of training (and is back in
  the exported network).

Needs PyTorch (tried with 2.13.0, CPU) in the project's environment, and CIFAR-10::

    deepsz cifar10 data/cifar10
    python models/alexnet_cifar10/train_body.py data/cifar10 body.caffemodel

At the end Caffe runs the exported network on ten images and must give PyTorch's features.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import caffe
import lmdb
import numpy as np
import torch
from caffe.proto.caffe_pb2 import Datum
from torch import nn
from torch.nn import functional

MEAN_BGR = (113.86538, 122.95039, 125.30692)  # the mean colour of the training images
SCALE = 7  # upscaling: 32 x 32 to 227 x 227
DEPLOY = Path(__file__).parents[2] / "prototxt/alexnet_cifar10/deploy.prototxt"
DEVIATION = 60.0  # divides the input in training; folded into conv1 at the end
CONVOLUTIONS = (  # in, out, kernel, stride, pad, groups, pooling afterwards
    (3, 96, 11, 4, 0, 1, True),
    (96, 256, 5, 1, 2, 2, True),
    (256, 384, 3, 1, 1, 1, False),
    (384, 384, 3, 1, 1, 2, False),
    (384, 256, 3, 1, 1, 2, True),
)
STAGES = (  # until this share of the training: window in pixels, smallest and largest scale
    (0.35, 83, 3.5, 5.0),
    (0.65, 99, 4.5, 6.5),
    (1.0, 115, 6.0, 7.2),
)


class Body(nn.Module):
    """conv1 to pool5 with batch normalization after every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, k, s, p, groups=g, bias=False) for i, o, k, s, p, g, _ in CONVOLUTIONS
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, *_ in CONVOLUTIONS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm, spec in zip(
            self.convolutions, self.norms, CONVOLUTIONS, strict=True
        ):
            x = functional.relu(norm(convolution(x)), inplace=True)
            if spec[-1]:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return x


def upscale(images: torch.Tensor) -> torch.Tensor:
    """Scale ``[n, 3, 32, 32]`` to ``[n, 3, 227, 227]`` as the prototxt's Deconvolution does."""
    ramp = 1 - (torch.arange(2 * SCALE) / SCALE - (2 * SCALE - 1) / (2 * SCALE)).abs()
    kernel = (ramp[:, None] * ramp[None, :]).expand(3, 1, -1, -1)
    return functional.conv_transpose2d(images, kernel, stride=SCALE, padding=2, groups=3)


def windows(images: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """Random windows of ``size`` x ``size`` pixels, half of them mirrored, at a given scale."""
    n = len(images)
    half = size / scale / 32  # half the window, in units of half the image
    reach = 1 - half + 1 / 16  # one pixel of the original may be lost at each edge
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = half * (torch.randint(0, 2, (n,)) * 2 - 1)
    theta[:, 1, 1] = half
    theta[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * reach
    grid = functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", align_corners=False)


def read_lmdb(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read float32 images ``[n, 3, 32, 32]`` (BGR, mean subtracted, scaled) and int64 labels."""
    images, labels = [], []
    with lmdb.open(str(path), readonly=True, lock=False) as base, base.begin() as transaction:
        for _, value in transaction.cursor():
            datum = Datum.FromString(value)
            images.append(np.frombuffer(datum.data, np.uint8).reshape(3, 32, 32))
            labels.append(datum.label)
    bgr = torch.from_numpy(np.stack(images)).float()
    mean = torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    return (bgr - mean) / DEVIATION, torch.tensor(labels)


def export(body: Body) -> dict[str, np.ndarray]:
    """Fold batch normalization and the input's scale into weights and biases."""
    blobs = {}
    for number, (convolution, norm) in enumerate(
        zip(body.convolutions, body.norms, strict=True), start=1
    ):
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = convolution.weight * gain.view(-1, 1, 1, 1)
        if number == 1:
            weight = weight / DEVIATION
        blobs[f"conv{number}.weight"] = weight.detach().contiguous().numpy()
        blobs[f"conv{number}.bias"] = (norm.bias - norm.running_mean * gain).detach().numpy()
    return blobs


def folded_forward(blobs: dict[str, np.ndarray], images: torch.Tensor) -> torch.Tensor:
    """Compute pool5 of whole images from exported blobs, LRN included: the truth for Caffe."""
    x = upscale(images * DEVIATION)
    for number, (_, _, _, stride, pad, groups, pooled) in enumerate(CONVOLUTIONS, start=1):
        weight = torch.from_numpy(blobs[f"conv{number}.weight"])
        bias = torch.from_numpy(blobs[f"conv{number}.bias"])
        x = functional.relu(functional.conv2d(x, weight, bias, stride, pad, groups=groups))
        if number <= 2:
            x = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1)
        if pooled:
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    return x


def write_body(blobs: dict[str, np.ndarray], images: torch.Tensor, out: Path) -> float:
    """Write the body as a caffemodel; gives Caffe's largest difference from `folded_forward`.

    The difference is relative to the largest feature.
    """
    text = DEPLOY.read_text()
    body = text[: text.rindex("layer", 0, text.index('name: "fc6"'))]
    with tempfile.TemporaryDirectory() as folder:
        prototxt = Path(folder, "body.prototxt")
        prototxt.write_text(body)
        net = caffe.Net(str(prototxt), caffe.TEST)
    for number in range(1, 1 + len(CONVOLUTIONS)):
        weights, biases = net.params[f"conv{number}"]
        weights.data[...] = blobs[f"conv{number}.weight"]
        biases.data[...] = blobs[f"conv{number}.bias"]
    net.save(str(out))
    net.blobs["data"].reshape(*images.shape)
    net.blobs["data"].data[...] = images.numpy() * DEVIATION
    net.forward()
    with torch.no_grad():
        expected = folded_forward(blobs, images).numpy()
    return float(np.abs(net.blobs["pool5"].data - expected).max() / np.abs(expected).max())


def calibrate(body: Body, images: torch.Tensor, batch: int) -> None:
    """Measure the statistics of batch normalization on whole images."""
    for norm in body.norms:
        norm.reset_running_stats()
        norm.momentum = None
    body.train()
    with torch.no_grad():
        for start in range(0, len(images), batch):
            body(upscale(images[start : start + batch]))
    body.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of `deepsz cifar10`")
    parser.add_argument("out", type=Path, help="caffemodel to write")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--minutes", type=float, help="stop at this time instead of --epochs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="convolve in bfloat16: 1.8 times as fast where the processor has AVX512-BF16",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, labels = read_lmdb(options.data / "train_lmdb")
    held, held_labels = read_lmdb(options.data / "validation_lmdb")

    body = Body().to(memory_format=torch.channels_last)
    head = nn.Linear(256 * 2 * 2, 10)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps_an_epoch = len(train) // options.batch
    total = int(options.epochs * steps_an_epoch)
    started = time.monotonic()
    step, running, correct = 0, 0.0, 0.0
    while True:
        order = torch.randperm(len(train))
        for chosen in order.split(options.batch)[:steps_an_epoch]:
            elapsed = time.monotonic() - started
            done = elapsed / 60 / options.minutes if options.minutes else step / total
            if done >= 1:
                break
            rate = options.rate * min(done / 0.1 + 0.05, (1.0 - done) / 0.9 + 1e-3)
            for group in optimizer.param_groups:
                group["lr"] = rate
            size, smallest, largest = next(stage[1:] for stage in STAGES if done < stage[0])
            scale = smallest + (largest - smallest) * float(torch.rand(()))
            x = windows(train[chosen], size, scale)
            y = labels[chosen]
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                x = body(x.contiguous(memory_format=torch.channels_last))
            scores = head(functional.adaptive_avg_pool2d(x.float(), 2).flatten(1))
            loss = functional.cross_entropy(scores, y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 2.0)
            optimizer.step()
            step += 1
            running += (loss.item() - running) / min(step, 100)
            hit = (scores.argmax(1) == y).float().mean().item()
            correct += (hit - correct) / min(step, 100)
            if step % 50 == 0:
                pace = step * options.batch / (time.monotonic() - started)
                print(
                    f"step {step} {done:6.1%} rate {rate:.4f} loss {running:.3f} "
                    f"windows right {correct:.3f} {pace:.0f} images/s",
                    flush=True,
                )
        else:
            continue
        break

    body.eval()
    with torch.no_grad():
        right = 0
        for start in range(0, len(held), 500):
            x = upscale(held[start : start + 500])[:, :, 32:195, 32:195]
            scores = head(functional.adaptive_avg_pool2d(body(x), 2).flatten(1))
            right += int((scores.argmax(1) == held_labels[start : start + 500]).sum())
        print(f"middles of the validation images right: {right} of {len(held)}", flush=True)
    calibrate(body, train[torch.randperm(len(train))[:1000]], 100)
    blobs = export(body)
    difference = write_body(blobs, held[::500], options.out)
    print(f"Caffe's features against PyTorch's, relative to the largest: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("the exported network is not the trained one")
    print(f"{step} steps of {options.batch}, {time.monotonic() - started:.0f} s, {options.out}")


if __name__ == "__main__":
    main()
