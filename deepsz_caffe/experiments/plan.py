"""What is to be run for a network, given what the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.networks import ROOT, Network

Protocol = Literal["validation", "paper"]

#: data set -> what to do where weights or data are missing
_HOW_TO_GET = {
    "ImageNet": (
        "weights: the Caffe Model Zoo's bvlc_alexnet.caffemodel or "
        "VGG_ILSVRC_16_layers.caffemodel; data: register at image-net.org, then Caffe's "
        "convert_imageset makes the LMDB; without them --generated measures sizes, times and "
        "memory at full size"
    ),
    "CIFAR-10": (
        "weights: see models/ for how this network is trained; data: deepsz cifar10 data/cifar10"
    ),
}


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
    freeze_body
        Folder for the features that `prune` retrains the fc layers on; None retrains the whole
        network.
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
        Also measure both baselines after their published retraining (`plan`: of the first seed).
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
    freeze_body: Path | None = None
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
    freeze_body: Path | None = None,
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
    weights, pruned, freeze_body, data, max_loss, protocol, confidence, retrain, baselines, workers
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

    if data is not None:
        protocol = "paper"  # one LMDB: there is no validation split

    def task(folder: str, command: str, dense: Path | None, seed: int = 1) -> Task:
        return Task(
            network,
            out / folder,
            begin + command + options,
            seed,
            dense,
            pruned,
            freeze_body,
            data,
            max_loss,
            protocol,
            confidence,
            retrain and seed == 1,
            baselines,
            workers,
        )

    if network.data_set != "MNIST":
        _check_given(network, weights, pruned, data)
        assert weights is not None
        given = f" --weights {weights.name}"
        given += f" --pruned {pruned.name}" if pruned is not None else ""
        given += f" --freeze-body {freeze_body}" if freeze_body is not None else ""
        given += f" --data {data}" if data is not None else ""
        return [task(network.id, given, weights)]
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


def _check_given(
    network: Network, weights: Path | None, pruned: Path | None, data: str | None
) -> None:
    """See that there are weights, data to evaluate on, and data to retrain on or pruned weights.

    Raises
    ------
    InputError
        Something is missing; says all of it.
    """
    from deepsz_caffe.network.prototxt import phase, read_prototxt

    net = read_prototxt(network.path("train_val.prototxt"))

    def sources(name: Literal["TRAIN", "TEST"]) -> list[str]:
        layers = [layer for layer in phase(net, name).layer if layer.type == "Data"]
        return [layer.data_param.source for layer in layers]

    lacking = []
    if weights is None:
        lacking.append("--weights (a trained caffemodel)")
    if data is None:
        lacking += [
            f"--data (an LMDB of the {network.data_set} validation set), or {source}"
            for source in sources("TEST")
            if not Path(source).exists()
        ]
    if pruned is None:
        lacking += [
            f"--pruned (a pruned caffemodel), or {source} to retrain on"
            for source in sources("TRAIN")
            if not Path(source).exists()
        ]
    if lacking:
        raise InputError(
            "needs " + "; ".join(lacking), where=network.title, hint=_HOW_TO_GET[network.data_set]
        )
    for path in (weights, pruned, None if data is None else Path(data)):
        if path is not None and not path.exists():
            raise InputError("no such file", where=path)


def check_data(network: Network) -> None:
    """See that a LeNet's prototxts are beside the package; fetch MNIST where it is missing.

    Raises
    ------
    InputError
        The package was installed without the rest of its repository.
    """
    from deepsz_caffe.experiments.datasets.mnist import prepare_mnist

    if not (ROOT / "prototxt" / network.folder).is_dir():
        raise InputError(
            "prototxt/ is missing",
            where=ROOT,
            hint="run this in a checkout of deepsz-caffe, installed with pip install -e .",
        )
    if not Path("data", "mnist", "test_lmdb").exists():
        prepare_mnist(Path("data/mnist"))
