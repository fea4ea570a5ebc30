"""LeNet-300-100 on a small part of real MNIST, for tests of training and pruning."""

from dataclasses import dataclass
from pathlib import Path

import lmdb

IMAGES = {"train": 2_000, "validation": 500, "test": 500}
FC_LAYERS = ("ip1", "ip2", "ip3")

SOLVER = """
net: "{net}"
test_state {{ stage: "validation" }}
test_iter: 5
test_interval: 20
base_lr: 0.1
lr_policy: "poly"
power: 1
momentum: 0.9
weight_decay: 0.0001
max_iter: 100
snapshot: 20
random_seed: 1
"""


@dataclass(frozen=True)
class Lenet:
    """The network with its data in `folder`; `dense` is the trained network of the checkout."""

    folder: Path
    network: Path
    dense: Path

    def solver(self, path, more="", without=(), net=None):
        """Write a solver: `SOLVER` less the lines that begin as in `without`, and `more`."""
        lines = SOLVER.format(net=net or self.network).splitlines()
        kept = [line for line in lines if not line.startswith(tuple(without))]
        path.write_text("\n".join(kept) + "\n" + more)
        return path


def make(folder, repository):
    """Copy the first images of each LMDB and point the network's definition at them.

    They are below `folder` as in a checkout: what works there finds few images.
    """
    definition = (repository / "prototxt/lenet_300_100/train_val.prototxt").read_text()
    (folder / "data" / "mnist").mkdir(parents=True)
    for name, count in IMAGES.items():
        source = f"data/mnist/{name}_lmdb"
        with (
            lmdb.open(str(repository / source), readonly=True, lock=False) as whole,
            lmdb.open(str(folder / source), map_size=2**28) as part,
            whole.begin() as read,
            part.begin(write=True) as write,
        ):
            for (key, value), _ in zip(read.cursor(), range(count), strict=False):
                write.put(key, value, append=True)
        definition = definition.replace(f'"{source}"', f'"{folder / source}"')
    network = folder / "train_val.prototxt"
    network.write_text(definition)
    return Lenet(folder, network, repository / "models/lenet_300_100/dense.caffemodel")
