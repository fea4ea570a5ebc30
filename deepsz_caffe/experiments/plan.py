"""What is to be run for a network, given what the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.networks import ROOT, Network

Protocol = Literal["validation", "paper"]

_HOW_TO_GET = (
    "weights: the Caffe Model Zoo's bvlc_alexnet.caffemodel or VGG_ILSVRC_16_layers.caffemodel; "
    "data: register at image-net.org, then Caffe's convert_imageset makes the LMDB; without them "
    "--generated measures sizes, times and memory at full size"
)


@dataclass(frozen=True)
class Task:
    """What to reproduce.

    Parameters
    ----------
    network
        Which network.
    out
        Folder of this run; is made.
    command
        The command to name in tables.
    seed
        Of training and pruning.
    dense
        A trained caffemodel; None trains one.
    pruned
        A pruned caffemodel; None prunes.
    data
        Evaluation data in place of the prototxt's source (an LMDB); there is no validation split
        then.
    max_loss
        Limit of the loss of top-1 against the unpruned network, a fraction.
    protocol
        Where bounds are chosen.
    confidence
        See `compress`: 0.5 holds the loss that was measured where bounds are chosen, without a
        statistical margin, as the paper does.
    retrain
        Also measure both baselines after their published retraining.
    baselines
        Also measure Deep Compression and Weightless, without retraining.
    workers
        Caffe processes for tests.
    iterations
        Of training and of each retraining, in place of the solver's: for trying things out.
    """

    network: Network
    out: Path
    command: str
    seed: int = 1
    dense: Path | None = None
    pruned: Path | None = None
    data: str | None = None
    max_loss: float = 0.002
    protocol: Protocol = "validation"
    confidence: float = 0.5
    retrain: bool = False
    baselines: bool = True
    workers: int = 1
    iterations: int | None = None


def plan(
    network: Network,
    out: Path,
    *,
    from_models: bool = False,
    seeds: int | None = None,
    weights: Path | None = None,
    pruned: Path | None = None,
    data: str | None = None,
    max_loss: float = 0.002,
    protocol: Protocol = "validation",
    confidence: float = 0.5,
    retrain: bool = False,
    baselines: bool = True,
    workers: int = 1,
) -> list[Task]:
    """Say what is to be run for a network with what the user has.

    Parameters
    ----------
    network
        Which network.
    out
        Folder of all results; each task gets a folder in it.
    from_models
        Start from the trained network in ``models/``.
    seeds
        Train with seeds 1 to `seeds`.
    weights, pruned, data, max_loss, protocol, confidence, retrain, baselines, workers
        As in `Task`.

    Raises
    ------
    InputError
        Something is missing: says what, how to get it, and what can be done without.
    """
    options = f" --max-loss {max_loss:g}" if max_loss != Task.max_loss else ""
    options += f" --protocol {protocol}" if protocol != Task.protocol else ""
    options += f" --confidence {confidence:g}" if confidence != Task.confidence else ""
    options += " --retrain" if retrain else ""
    options += "" if baselines else " --deepsz-only"
    begin = f"deepsz reproduce {network.id}"

    def task(folder: str, command: str, dense: Path | None, seed: int = 1) -> Task:
        return Task(
            network,
            out / folder,
            begin + command + options,
            seed,
            dense,
            pruned,
            data,
            max_loss,
            protocol,
            confidence,
            retrain,
            baselines,
            workers,
        )

    if network.data_set == "ImageNet":
        if weights is None or data is None:
            lacking = " and ".join(
                what
                for what, value in (
                    ("--weights (a trained caffemodel)", weights),
                    ("--data (an LMDB of the ImageNet validation set)", data),
                )
                if value is None
            )
            raise InputError(f"needs {lacking}", where=network.title, hint=_HOW_TO_GET)
        return [task(network.id, f" --weights {weights.name} --data {data}", weights)]
    check_data(network)
    if from_models:
        dense = ROOT / "models" / network.folder / "dense.caffemodel"
        if not dense.exists():
            raise InputError("the trained network is missing", where=dense)
        return [task(f"{network.id}-shipped", " --from-models", dense)]
    count = seeds or 1
    return [
        task(f"{network.id}-seed-{seed}", f" --seeds {count}", weights, seed)
        for seed in range(1, count + 1)
    ]


def check_data(network: Network) -> None:
    """See that a LeNet's prototxts are beside the package; fetch MNIST where it is missing.

    Raises
    ------
    InputError
        The package was installed without the rest of its repository.
    """
    from deepsz_caffe.experiments.mnist import prepare_mnist

    if not (ROOT / "prototxt" / network.folder).is_dir():
        raise InputError(
            "prototxt/ is missing",
            where=ROOT,
            hint="run this in a checkout of deepsz-caffe, installed with pip install -e .",
        )
    if not Path("data", "mnist", "test_lmdb").exists():
        prepare_mnist(Path("data/mnist"))
