"""What is to be run for a network, given what the user has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.datasets import DATA_SETS, prepare_of
from deepsz_caffe.experiments.networks import ROOT, Network

Protocol = Literal["validation", "paper"]


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
    whole
        Also compress and measure the whole network, convolutions and all.
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
    whole: bool = False
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
    whole: bool = False,
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
    weights, pruned, freeze_body, data, max_loss, protocol, confidence, retrain, baselines, whole, \
    workers
        As in `Task`.

    Raises
    ------
    InputError
        Something is missing: says what, how to get it, and what can be done without.
    """
    task = Task(
        network,
        out / network.id,
        "",
        dense=weights,
        pruned=pruned,
        freeze_body=freeze_body,
        data=data,
        max_loss=max_loss,
        protocol=protocol if data is None else "paper",  # one LMDB: there is no validation split
        confidence=confidence,
        retrain=retrain,
        baselines=baselines,
        whole=whole,
        workers=workers,
    )
    if network.weights:
        _check_given(task)
        return [replace(task, command=_command(task, _given(task), protocol))]
    check_data(network)
    if from_models:
        dense = ROOT / "models" / network.folder / "dense.caffemodel"
        if not dense.exists():
            raise InputError("the trained network is missing", where=dense)
        command = _command(task, " --from-models", protocol)
        return [replace(task, out=out / f"{network.id}-from-models", command=command, dense=dense)]
    count = seeds or 1
    command = _command(task, f" --seeds {count}", protocol)
    return [
        replace(
            task,
            out=out / f"{network.id}-seed-{seed}",
            command=command,
            seed=seed,
            retrain=retrain and seed == 1,
        )
        for seed in range(1, count + 1)
    ]


def _command(task: Task, given: str, protocol: Protocol) -> str:
    """Write the command that does a task, options that are the default left out."""
    options = f" --max-loss {task.max_loss:g}" if task.max_loss != Task.max_loss else ""
    options += f" --protocol {protocol}" if protocol != Task.protocol else ""
    options += f" --confidence {task.confidence:g}" if task.confidence != Task.confidence else ""
    options += " --retrain" if task.retrain else ""
    options += "" if task.baselines else " --deepsz-only"
    options += " --whole" if task.whole else ""
    return f"deepsz reproduce {task.network.id}{given}{options}"


def _given(task: Task) -> str:
    """Write the options that give files."""
    given = f" --weights {task.dense.name}" if task.dense is not None else ""
    given += f" --pruned {task.pruned.name}" if task.pruned is not None else ""
    given += f" --freeze-body {task.freeze_body}" if task.freeze_body is not None else ""
    return given + (f" --data {task.data}" if task.data is not None else "")


def _check_given(task: Task) -> None:
    """See that there are weights, data to evaluate on, and data to retrain on or pruned weights.

    Raises
    ------
    InputError
        Something is missing; says all of it.
    """
    from deepsz_caffe.network.prototxt import phase, read_prototxt

    network, data_set = task.network, DATA_SETS[task.network.data_set]
    net = read_prototxt(network.path("train_val.prototxt"))

    def sources(name: Literal["TRAIN", "TEST"]) -> list[str]:
        layers = [layer for layer in phase(net, name).layer if layer.type == "Data"]
        return [layer.data_param.source for layer in layers]

    lacking = []
    if task.dense is None:
        lacking.append("--weights (a trained caffemodel)")
    if task.data is None:
        lacking += [
            f"--data (an LMDB of the {data_set.title} validation set), or {source}"
            for source in sources("TEST")
            if not Path(source).exists()
        ]
    if task.pruned is None:
        lacking += [
            f"--pruned (a pruned caffemodel), or {source} to retrain on"
            for source in sources("TRAIN")
            if not Path(source).exists()
        ]
    if lacking:
        hint = f"weights: {network.weights}; data: {data_set.how_to_get}"
        if network.generated_bounds:
            hint += "; without them --generated measures sizes, times and memory at full size"
        raise InputError("needs " + "; ".join(lacking), where=network.title, hint=hint)
    for path in (task.dense, task.pruned, None if task.data is None else Path(task.data)):
        if path is not None and not path.exists():
            raise InputError("no such file", where=path)


def check_data(network: Network) -> None:
    """See that a network's prototxts are beside the package; fetch its data where they are missing.

    Raises
    ------
    InputError
        The package was installed without the rest of its repository.
    """
    if not (ROOT / "prototxt" / network.folder).is_dir():
        raise InputError(
            "prototxt/ is missing",
            where=ROOT,
            hint="run this in a checkout of deepsz-caffe, installed with pip install -e .",
        )
    folder = Path("data", network.data_set)
    if not (folder / "test_lmdb").exists():
        prepare_of(network.data_set)(folder)
