"""Step 2 on a real network: counts, searches, resuming, deaths of workers, clusters."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor
from pathlib import Path

import psutil
import pytest
import toy as toys

from deepsz_caffe.api import assess
from deepsz_caffe.errors import CaffeError, DataError, InputError, ModelError
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime import evaluator as evaluator_module
from deepsz_caffe.runtime import features
from deepsz_caffe.runtime.evaluate import evaluate
from deepsz_caffe.runtime.evaluator import CaffeEvaluator
from deepsz_caffe.runtime.pool import CaffePool
from deepsz_caffe.runtime.tail import measure_weights
from deepsz_caffe.steps.assess.result import Assessment
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.encode import encode_layer
from deepsz_caffe.steps.optimize import optimize

BOUNDS = (0.02, 0.1, 0.4)


@pytest.fixture(scope="module")
def pool():
    with CaffePool(2, blas_threads=1) as executor:
        yield executor


@pytest.fixture(scope="module")
def whole_grid(toy, pool):
    return assess(toy.network, toy.weights, bounds=BOUNDS, profile="paper", executor=pool)


def test_points_are_what_the_whole_network_and_the_file_give(toy, pool, whole_grid):
    model = read_caffemodel(toy.weights)
    before = evaluate(toy.network, toy.weights, stages=["validation"], executor=pool)
    assert whole_grid.stages == ("validation",)
    assert (whole_grid.total, whole_grid.top1_correct) == (before.total, before.top1_correct)
    assert [layer.name for layer in whole_grid.layers] == list(toys.FC_LAYERS)
    for layer in whole_grid.layers:
        assert [point.bound for point in layer.points] == list(BOUNDS)
        point = layer.points[2]
        encoded = encode_layer(layer.name, model[layer.name].matrix, point.bound, "paper")
        assert point.bytes == encoded.bytes
        after = evaluate(
            toy.network,
            toy.weights,
            stages=["validation"],
            replace={layer.name: encoded},
            executor=pool,
        )
        assert (point.images, point.top1_correct) == (after.total, after.top1_correct)
        assert point.lost - point.gained == before.top1_correct - after.top1_correct
        assert layer.dense_bytes == 4 * model[layer.name].matrix.size


@pytest.fixture
def deep(monkeypatch):
    """Count the toy network as one whose tests take long, and give the rows of its parts."""
    monkeypatch.setattr(features, "_DEEP", 0)
    monkeypatch.setattr(evaluator_module, "_PART", 700 * 720)  # 720 bytes enter its layers


def test_all_workers_share_a_test_of_a_deep_network(toy, pool, deep):
    setup = read_setup(toy.network, toy.weights, protocol="paper")
    model = read_caffemodel(toy.weights)
    layers = {n: encode_layer(n, model[n].matrix, 0.3, "balanced") for n in toys.FC_LAYERS}
    with CaffeEvaluator(setup, executor=pool) as evaluator:
        assert len(evaluator.features.parts(evaluator_module._PART)) == 3
        whole = pool.submit(measure_weights, evaluator.features.folder, layers).result()
        assert evaluator.measure(layers) == whole
        assert whole.lost > whole.gained
        net = whole.lost - whole.gained
        assert evaluator.measure(layers, net) == whole
        assert evaluator.measure(layers, 1).images < whole.images
        assert evaluator.measure({}).score == evaluator.score


def test_of_deep_networks_tests_run_on_all_cores(toy, deep, monkeypatch):
    monkeypatch.setattr(evaluator_module, "processes_for", lambda weights: 2)
    with CaffeEvaluator(read_setup(toy.network, toy.weights)) as evaluator:
        assert evaluator.workers == 2
        assert evaluator.measure({}).score == evaluator.score


def test_the_papers_protocol_measures_on_the_test_data(toy, pool):
    found = assess(
        toy.network, toy.weights, protocol="paper", bounds=[0.1], profile="paper", executor=pool
    )
    assert found.stages == ()
    assert found.total == 2030


def test_json_and_back(whole_grid, tmp_path):
    whole_grid.save(tmp_path / "A.json")
    assert Assessment.load(tmp_path / "A.json") == whole_grid
    (tmp_path / "B.json").write_text("{}")
    with pytest.raises(DataError, match=r"B\.json: not an assessment"):
        Assessment.load(tmp_path / "B.json")
    with pytest.raises(DataError, match="can't read"):
        Assessment.load(tmp_path / "C.json")


def test_searches_find_feasible_points(toy, pool):
    for search in ("default", "paper"):
        found = assess(
            toy.network, toy.weights, max_loss=0.02, search=search, profile="paper", executor=pool
        )
        plan = optimize(found, max_loss=0.02)
        assert plan.loss <= 0.02 * found.total
        assert plan.ratio > 6
        assert set(plan.bounds) == set(toys.FC_LAYERS)


def test_layers_can_be_chosen_and_are_checked(toy, pool):
    found = assess(
        toy.network, toy.weights, layers=["ip"], bounds=[0.1], profile="paper", executor=pool
    )
    assert [layer.name for layer in found.layers] == ["ip"]
    with pytest.raises(ModelError, match="layer relu: the network has no such layer that can"):
        assess(toy.network, toy.weights, layers=["relu"], executor=pool)
    with pytest.raises(InputError, match="no selection of layers 'ip'"):
        assess(toy.network, toy.weights, layers="ip", executor=pool)
    for bound in (0, -1, float("nan")):
        with pytest.raises(InputError, match="error bound"):
            assess(toy.network, toy.weights, bounds=[bound], executor=pool)
    with pytest.raises(InputError, match="fraction"):
        assess(toy.network, toy.weights, max_loss=-0.1, executor=pool)


def test_a_network_without_fc_layers_is_refused(toy, pool, tmp_path):
    path = tmp_path / "no_fc.prototxt"
    data = toys.DATA.format(rule="", source=toy.folder / "test_lmdb")
    path.write_text(
        data
        + 'layer { name: "conv" type: "Convolution" bottom: "data" top: "ip" '
        + "convolution_param { num_output: 4 kernel_size: 11 } }"
        + toys.JUDGES
    )
    with pytest.raises(ModelError, match="no fc layer"):
        assess(path, toy.weights, executor=pool)


class Counting(Executor):
    """The pool, counting tests; may kill the worker under one of them."""

    workers = 2

    def __init__(self, pool, deaths=()):
        self.pool, self.calls, self.deaths = pool, 0, list(deaths)
        self.lock = threading.Lock()

    def submit(self, fn, /, *args, **kwargs):
        if fn.__name__ != "measure_weights":
            return self.pool.submit(fn, *args, **kwargs)
        with self.lock:
            self.calls += 1
            deadly = self.calls in self.deaths
        if deadly:
            return self.pool.submit(os._exit, 9)
        return self.pool.submit(fn, *args, **kwargs)


def ask(toy, executor, **options):
    return assess(
        toy.network, toy.weights, bounds=BOUNDS, profile="paper", executor=executor, **options
    )


def test_nothing_is_measured_twice(toy, pool, whole_grid, tmp_path):
    first, second, third = Counting(pool), Counting(pool), Counting(pool)
    journal = {"journal": tmp_path / "j", "features": tmp_path / "f"}
    assert ask(toy, first, **journal) == whole_grid
    assert first.calls == 9
    assert ask(toy, second, **journal) == whole_grid
    assert second.calls == 0
    more = assess(
        toy.network,
        toy.weights,
        bounds=[*BOUNDS, 0.2],
        layers=["left", "ip"],
        profile="paper",
        executor=third,
        journal=tmp_path / "j",
    )
    assert third.calls == 2
    assert more.layers[0].points[0] == whole_grid.layers[0].points[0]


def test_a_changed_network_is_measured_again(toy, pool, tmp_path):
    import numpy as np

    from deepsz_caffe.network.writer import write_caffemodel

    ask(toy, pool, journal=tmp_path / "j")
    model = read_caffemodel(toy.weights)
    changed = np.array(model["ip"].matrix) * np.float32(0.5)
    write_caffemodel(tmp_path / "w.caffemodel", model, {"ip": changed})
    counting = Counting(pool)
    assess(
        toy.network,
        tmp_path / "w.caffemodel",
        bounds=BOUNDS,
        profile="paper",
        executor=counting,
        journal=tmp_path / "j",
    )
    assert counting.calls == 9


def test_a_worker_that_dies_costs_its_test_only(toy, pool, whole_grid):
    counting = Counting(pool, deaths=[1, 5, 6])
    assert ask(toy, counting) == whole_grid
    assert counting.calls == 12


class Deadly(Counting):
    """Every test of one layer kills its worker."""

    def submit(self, fn, /, *args, **kwargs):
        if fn.__name__ == "measure_weights" and "right" in args[1]:
            return self.pool.submit(os._exit, 9)
        return self.pool.submit(fn, *args, **kwargs)


def test_three_deaths_of_one_test_are_an_error_that_names_it(toy, pool):
    with pytest.raises(CaffeError, match=r"layer right at 0\.\d+: .* ended its process 3 times"):
        ask(toy, Deadly(pool))


def test_killed_in_the_middle_it_goes_on_where_it_was(toy, whole_grid, tmp_path):
    program = f"""
import time
from deepsz_caffe import assess
assess({str(toy.network)!r}, {str(toy.weights)!r}, profile="paper", bounds={BOUNDS!r},
       journal={str(tmp_path / "j")!r}, features={str(tmp_path / "f")!r},
       progress=lambda message: time.sleep(0.3))
"""
    journal = tmp_path / "j"
    child = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert child.poll() is None, "finished or failed before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = journal.read_bytes().count(b"\n")
    with CaffePool(1) as pool:
        counting = Counting(pool)
        assert ask(toy, counting, journal=journal, features=tmp_path / "f") == whole_grid
    assert counting.calls == 9 - done


def test_interrupted_it_ends_at_once_and_leaves_no_process(toy, tmp_path):
    bounds = ",".join(f"{number / 1000}" for number in range(1, 1000))
    command = [Path(sys.executable).with_name("deepsz"), "assess", toy.network, toy.weights]
    command += ["--out", tmp_path / "a.json", "--bounds", bounds]
    child = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "a.json.journal"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert child.poll() is None
        time.sleep(0.02)
    processes = psutil.Process(child.pid).children(recursive=True)
    assert processes
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert said.rstrip().endswith("interrupted")
    assert not psutil.wait_procs(processes, timeout=60)[1]
    assert journal.read_bytes().count(b"\n") < 500  # of 2,997


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_in_the_middle_it_leaves_no_files(toy, tmp_path, how):
    out, temporary = tmp_path / "out" / "x.dsz", tmp_path / "temporary"
    out.parent.mkdir()
    temporary.mkdir()
    deepsz = "env", "--default-signal", Path(sys.executable).with_name("deepsz")  # under nohup, too
    command = [*deepsz, "compress", toy.network, toy.weights, out, "--max-loss", 0.01]
    child = subprocess.Popen(
        [*map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    while not list(tmp_path.rglob("body.npy")) and not list(tmp_path.rglob("*.lock")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(how)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said.rstrip().rsplit("\n", 1)[-1]) == (1, "deepsz: interrupted")
    assert not [*temporary.iterdir(), *out.parent.iterdir()]


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same(toy, whole_grid):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor(pure=False) as executor,
    ):
        assert ask(toy, executor) == whole_grid


def test_what_was_computed_is_kept_where_asked(toy, pool, tmp_path):
    seen = []
    for _ in range(2):
        ask(toy, pool, features=tmp_path / "f", progress=seen.append)
    assert [message[0] for message in seen].count("bytes") == 1
    assert [message[0] for message in seen].count("test") == 18
