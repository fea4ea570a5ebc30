"""`compress --auto`: which densities are tried, with what time; what is kept, resumed and taken."""

import json
from dataclasses import asdict
from math import log
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepsz_caffe.auto import compress_auto
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.errors import InputError, TargetError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.steps.auto import STATE, Tools, Tradeoff, Trial, best_of, search
from deepsz_caffe.steps.evaluator import Score
from deepsz_caffe.steps.prune import Trained

SECONDS_EACH = 0.01


class Fake:
    """Networks that hold a loss down to some density, and hardly any below; keeps what was asked.

    Twice the loss holds at two thirds of the density, and so on. Files are as large as their
    density, or at `smallest_at` half of what they are twice as far from it, on a logarithmic scale.
    """

    def __init__(self, holds_at, smallest_at=0.0):
        self.holds_at = holds_at
        self.smallest_at = smallest_at
        self.trials = []
        self.starts = []

    def prune(self, trial, solver, start, out):
        assert f"max_iter: {trial.iterations}" in solver.read_text()
        if out.name != "speed.caffemodel":
            self.trials.append(trial)
            self.starts.append(start and start.name)
        out.write_bytes(b"weights")
        seconds = trial.iterations * SECONDS_EACH
        return Trained(trial.iterations, trial.iterations, 0, 0, 0, seconds)

    def compress(self, weights, out, allowed):
        keep = 1.0 if weights is None else float(weights.stem.split("-")[1])
        needed = 0.01 * (self.holds_at / keep) ** 2
        if needed > allowed:
            raise TargetError("no")
        out.write_bytes(b"file")
        layer = {"nonzeros": int(1000 * keep)}
        size = int(1e6 * (abs(log(keep / self.smallest_at)) if self.smallest_at else keep))
        sizes = {"file_bytes": size, "caffemodel_bytes": 4_000_000}
        summary = {"layers": [layer], **sizes, "fc_bytes": 9, "fc_dense_bytes": 90}
        return SimpleNamespace(
            summary=summary,
            path=out,
            chosen_before=Score(1000, 990, 0),
            chosen_after=Score(1000, 990 - int(1000 * needed), 0),
        )

    def search(self, folder, seconds=1000.0, max_loss=0.01, key="a"):
        tools = Tools(self.prune, self.compress)
        return search("net.prototxt", folder, tools, max_loss, seconds, {"weights": key})


@pytest.mark.parametrize("holds_at", [0.2, 0.04, 0.003])
def test_the_gap_around_the_last_density_that_holds_is_closed(tmp_path, holds_at):
    fake = Fake(holds_at)
    points = fake.search(tmp_path)
    held = min(point.keep for point in points if point.allowed <= 0.01)
    assert held == best_of(points, 0.01).keep
    assert holds_at - 1e-5 <= held <= 1.2 * holds_at
    # Each begins with the sparsest denser network that held, and all are still there.
    for trial, start in zip(fake.trials, fake.starts, strict=True):
        denser = [p for p in points if p.allowed <= 0.01 and trial.keep < p.keep < 1]
        known = [
            p
            for p in denser
            if p.weights
            in [f"keep-{t.keep:.5f}.caffemodel" for t in fake.trials[: fake.trials.index(trial)]]
        ]
        expected = min(known, key=lambda p: p.keep).weights if known else None
        own = f"keep-{trial.keep:.5f}.caffemodel"
        assert start == own if trial.start == own else start == expected
    for point in points:
        assert (tmp_path / point.file).exists()
        assert point.keep == 1 or (tmp_path / point.weights).exists()


def test_the_density_of_the_smallest_file_is_found_although_sparser_ones_hold(tmp_path):
    points = Fake(0.003, smallest_at=0.027).search(tmp_path)
    assert 0.027 / 1.2 < best_of(points, 0.01).keep < 0.027 * 1.2
    assert min(point.keep for point in points) > 0.01


def test_trainings_share_the_time(tmp_path):
    fake = Fake(0.04)
    fake.search(tmp_path, seconds=1000)
    spent = [trial.iterations * SECONDS_EACH for trial in fake.trials]
    assert 90 < spent[0] <= 100
    assert 850 < sum(spent) < 1000
    # Those between which the choice is, after the steps: none of them is short.
    assert min(spent[2:]) > 50
    (dense,) = Fake(0.001).search(tmp_path / "short", seconds=0.5)
    assert dense.keep == 1


def test_what_was_done_is_not_done_again(tmp_path):
    whole = Fake(0.04).search(tmp_path / "whole")

    class Interrupted(Fake):
        def compress(self, weights, out, allowed):
            if weights is not None and len(self.trials) == 3:
                raise KeyboardInterrupt
            return super().compress(weights, out, allowed)

    interrupted = Interrupted(0.04)
    with pytest.raises(KeyboardInterrupt):
        interrupted.search(tmp_path / "parts")
    state = json.loads((tmp_path / "parts" / STATE).read_bytes())
    assert Trial(**state["trial"]) == interrupted.trials[2]
    later = Fake(0.04)
    points = later.search(tmp_path / "parts")
    assert [point.keep for point in points] == [point.keep for point in whole]
    assert interrupted.trials[2] not in later.trials  # it was trained, only not compressed
    again = Fake(0.04)
    assert again.search(tmp_path / "parts") == points
    assert not again.trials
    with pytest.raises(InputError, match="a run with other weights"):
        Fake(0.04).search(tmp_path / "parts", key="b")


def test_where_nothing_holds_the_loss_that_does_is_said(tmp_path):
    class Lossy(Fake):
        def compress(self, weights, out, allowed):
            if allowed < 0.03:
                raise TargetError("no")
            return super().compress(weights, out, allowed)

    points = Lossy(0.04).search(tmp_path)
    assert {point.allowed for point in points} >= {0.04}
    with pytest.raises(TargetError, match=r"at most 0\.01 \(a loss of 0\.04 holds: keep-.*dsz"):
        best_of(points, 0.01)
    with pytest.raises(TargetError, match="no network"):
        best_of([], 0.01)


def test_the_smallest_that_holds_is_taken():
    point = Tradeoff(1.0, 9, 0, "", "a", 0.01, 100, 1000, 90, 900, 1, 100)
    smaller = Tradeoff(**asdict(point) | {"bytes": 50, "allowed": 0.02})
    assert best_of([point, smaller], 0.01) == point
    assert best_of([point, smaller], 0.02) == smaller


def test_a_network_that_nearly_holds_is_trained_on_once(tmp_path):
    class Better(Fake):
        """Holds more where it was trained twice."""

        def compress(self, weights, out, allowed):
            twice = weights is not None and weights.stem.endswith("-2")
            self.holds_at = 0.03 if twice else 0.04
            return super().compress(weights, out, allowed)

    fake = Better(0.04)
    points = fake.search(tmp_path)
    keeps = [trial.keep for trial in fake.trials[:4]]
    assert keeps == pytest.approx([1 / 16, 0.5**0.5 / 16, 1 / 32, 1 / 32])
    assert fake.trials[3].start == "keep-0.03125.caffemodel"
    assert [p.allowed for p in points[2:4]] == [0.02, 0.01]
    assert best_of(points, 0.01).file == "keep-0.03125-2.dsz"
    assert all((tmp_path / point.file).exists() for point in points)
    assert len({point.file for point in points}) == len(points)


@pytest.mark.parametrize(("seconds", "max_loss"), [(0, 0.01), (float("nan"), 0.01), (1, -0.1)])
def test_nonsense_is_refused(tmp_path, seconds, max_loss):
    with pytest.raises(InputError):
        Fake(0.04).search(tmp_path, seconds=seconds, max_loss=max_loss)


def test_a_network_is_pruned_and_compressed(lenet, tmp_path):
    out = tmp_path / "out.dsz"
    told = []
    options = {"max_loss": 0.05, "layers": ["ip3"], "threads": 1}
    result = compress_auto(
        lenet.network, lenet.dense, out, seconds=1e-6, told=told.append, **options
    )
    (dense,) = result.points
    assert (dense.keep, dense.weights) == (1, "")
    state = json.loads((Path(f"{out}.auto") / STATE).read_bytes())
    time = state["spent"] + 1.1 * state["compressing"] + 110 * state["seconds_each"]
    more = compress_auto(lenet.network, lenet.dense, out, seconds=time, told=told.append, **options)
    assert more.points[0] == dense
    pruned = more.points[1]
    assert pruned.keep == 1 / 16
    assert pruned.layer_bytes < dense.layer_bytes
    folder = Path(f"{out}.auto")
    model = read_caffemodel(folder / pruned.weights)
    left = (model["ip3"].matrix != 0).sum()
    assert left == round(1_000 / 16)
    with DszFile(out) as file:
        assert file.summary()["file_bytes"] == more.taken.bytes == out.stat().st_size
    assert more.taken == best_of(more.points, 0.05)
    score = evaluate(lenet.network, folder / pruned.file, stages=["validation"])
    before = evaluate(lenet.network, lenet.dense, stages=["validation"])
    assert before.top1_correct - score.top1_correct == pruned.lost
    assert more.after == evaluate(lenet.network, out)
    document = json.loads((folder / "tradeoff.json").read_bytes())
    assert len(document["points"]) == len(more.points)
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_validation_split_nothing_is_decided(lenet, tmp_path):
    network = tmp_path / "n.prototxt"
    text = lenet.network.read_text()
    at = text.index("layer {", text.index('not_stage: "validation"'))
    end = text.index('name: "ip1"')
    network.write_text(text[:at] + text[text.rindex("layer {", at, end) :].replace("", "", 1))
    network.write_text(network.read_text().replace('not_stage: "validation"', ""))
    with pytest.raises(InputError, match="has no stage `validation`"):
        compress_auto(network, lenet.dense, tmp_path / "o.dsz", max_loss=0.01)
