"""Caffe processes: results, aborts with Caffe's words, deaths, progress, threads."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError, Executor, wait
from pathlib import Path

import pytest

from deepsz_caffe.errors import CaffeError, DeepSZError, DeepSZWarning, InputError
from deepsz_caffe.runtime import process, worker
from deepsz_caffe.runtime.pool import CaffePool, run_in_caffe, run_with_progress
from deepsz_caffe.runtime.process import WorkerDied
from deepsz_caffe.runtime.worker import import_caffe, report

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 2 } }
"""


def blob_shapes(prototxt):
    caffe = import_caffe()
    net = caffe.Net(prototxt, caffe.TEST)
    return {name: tuple(blob.data.shape) for name, blob in net.blobs.items()}


def environment(name):
    return os.environ[name]


def die(code):
    os.kill(os.getpid(), code)


def raise_error(error):
    raise error


def count_up(stop):
    for i in range(stop):
        report(i)
    return stop


def on_gpu():
    import_caffe(gpu=0)


def process_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def warn(text, category):
    warnings.warn(text, category, stacklevel=1)
    return text


def go_silent():
    """Close the way to the parent, and live on."""
    with socket.socket(fileno=os.dup(worker._line._pipe.fileno())) as line:
        line.shutdown(socket.SHUT_WR)
    time.sleep(600)


@pytest.fixture(scope="module")
def pool():
    with CaffePool(2) as executor:
        yield executor


def net_file(folder, text=NET):
    path = folder / "net.prototxt"
    path.write_text(text)
    return str(path)


def test_a_net_runs_in_its_own_process(tmp_path):
    assert run_in_caffe(blob_shapes, net_file(tmp_path)) == {"data": (1, 3), "ip": (1, 2)}
    assert run_in_caffe(os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer { name: 'x' type: 'NoSuchLayer' }", "Unknown layer type: NoSuchLayer"),
        ("layer { nonsense: 1 }", 'no field named "nonsense"'),
        (NET.replace('bottom: "data"', 'bottom: "dtaa"'), "Unknown bottom blob 'dtaa'"),
    ],
)
def test_an_abort_carries_caffes_own_message(pool, tmp_path, text, said):
    with pytest.raises(CaffeError) as caught:
        pool.submit(blob_shapes, net_file(tmp_path, text)).result()
    assert said in str(caught.value)
    assert not isinstance(caught.value, WorkerDied)
    assert "\n" not in str(caught.value)


def test_one_death_leaves_the_other_tasks_alone(pool):
    futures = [pool.submit(process_after, 0.01) for _ in range(4)]
    killed = pool.submit(die, signal.SIGKILL)
    futures += [pool.submit(process_after, 0.01) for _ in range(4)]
    with pytest.raises(CaffeError, match="the Caffe process died"):
        killed.result()
    assert isinstance(killed.exception(), WorkerDied)
    assert all(future.result() for future in futures)


def test_exceptions_arrive_with_the_childs_traceback(pool):
    with pytest.raises(InputError, match="x: no") as caught:
        pool.submit(raise_error, InputError("no", where="x")).result()
    assert "raise_error" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file", "/x/y"), "/x/y: No such file"),
        (OSError("odd"), "odd"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses_there_is_an_error_of_the_family(pool, error, said):
    with pytest.raises(DeepSZError, match=said) as caught:
        pool.submit(raise_error, error).result()
    assert type(error).__name__ in caught.value.__notes__[0]


def test_what_cannot_be_sent_is_said_and_the_worker_lives(pool):
    with pytest.raises((TypeError, AttributeError)):
        pool.submit(lambda: 1).result()
    with pytest.raises(TypeError, match="pickle"):
        pool.submit(threading.Lock).result()
    assert pool.submit(os.getcwd).result() == str(Path.cwd())


def test_progress_comes_in_order():
    seen = []
    assert run_with_progress(seen.append, count_up, 5) == 5
    assert seen == [0, 1, 2, 3, 4]


def test_blas_threads_are_divided():
    with CaffePool(2, blas_threads=1) as executor:
        assert executor.submit(environment, "OPENBLAS_NUM_THREADS").result() == "1"
    cores = len(os.sched_getaffinity(0))
    with CaffePool(cores) as executor:
        assert executor.submit(environment, "OPENBLAS_NUM_THREADS").result() == "1"


def test_a_gpu_is_refused_clearly_by_a_build_without_cuda(pool):
    with pytest.raises(CaffeError, match="built without CUDA"):
        pool.submit(on_gpu).result()


def test_the_pool_is_an_executor_and_map_keeps_order(pool):
    assert isinstance(pool, Executor)
    assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]


def test_leaving_by_an_error_kills_what_runs():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), CaffePool(1) as executor:
        future = executor.submit(process_after, 600)
        while not executor.processes():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert isinstance(future.exception(), WorkerDied)
    assert time.monotonic() - started < 60
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(os.getpid)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = (
        "import sys, time; from deepsz_caffe.runtime.pool import CaffePool\n"
        "pool = CaffePool(1); pool.submit(time.sleep, 600)\n"
        "while not pool.processes(): time.sleep(0.01)\n"
        "print(pool.processes()[0], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(1000):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the orphan lives")


@pytest.mark.parametrize("error", [ValueError, BrokenPipeError, EOFError, KeyboardInterrupt])
def test_a_progress_callback_that_raises_ends_its_task_and_no_other(error):
    def progress(message):
        if message == 100:
            raise error("enough")

    with CaffePool(1, progress=progress) as executor:
        before = executor.submit(os.getpid).result()
        first = executor.submit(count_up, 200)
        others = [executor.submit(count_up, stop) for stop in (3, 2, 1)]
        with pytest.raises(error, match="enough"):
            first.result(60)
        assert [other.result(60) for other in others] == [3, 2, 1]
        assert executor.submit(os.getpid).result() != before


def test_an_answer_to_another_call_is_not_taken():
    child = process.CaffeProcess(1, None)
    try:
        for number in (0, 7):  # one that was given up, and one that never was
            call = pickle.dumps((count_up, (3,), {}))
            child._pipe.send_bytes(pickle.dumps((number, call)))
        seen = []
        assert child.call((count_up, (2,), {}), seen.append) == 2
        assert seen == [0, 1]
        assert child.call((abs, (-5,), {}), None) == 5
    finally:
        child.end()


def test_a_process_that_can_not_be_heard_any_more_is_ended(monkeypatch):
    monkeypatch.setattr(process, "_GRACE", 0.1)
    with CaffePool(1) as executor:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            executor.submit(go_silent).result(60)
        assert executor.submit(abs, -1).result(60) == 1


def test_a_stopped_process_is_killed_at_once():
    executor = CaffePool(1)
    future = executor.submit(die, signal.SIGSTOP)
    while not future.running():
        time.sleep(0.01)
    time.sleep(0.3)
    executor.kill()
    assert isinstance(future.exception(60), WorkerDied)
    executor.shutdown()


def test_callbacks_of_what_is_cancelled_may_use_the_pool():
    executor = CaffePool(1)
    running = executor.submit(process_after, 600)
    while not executor.processes():
        time.sleep(0.01)
    waiting = [executor.submit(abs, -1) for _ in range(20)]
    seen = []
    for future in waiting:
        future.add_done_callback(lambda _: seen.append(executor.processes()))
    killer = threading.Thread(target=executor.kill, daemon=True)
    killer.start()
    killer.join(60)
    assert not killer.is_alive()
    _, pending = wait([running, *waiting], timeout=60)
    assert not pending
    assert len(seen) == 20
    assert isinstance(running.exception(), WorkerDied)
    with pytest.raises(CancelledError):
        waiting[-1].result()


def test_killed_while_its_workers_take_tasks_every_task_ends():
    """Tasks are taken, dropped and started at the same time, again and again."""
    for pause in (0, 0, 0.001, 0.03, 0.1):
        executor = CaffePool(4)
        futures = [executor.submit(abs, -1) for _ in range(100)]
        time.sleep(pause)
        executor.kill()
        executor.shutdown()
        _, pending = wait(futures, timeout=60)
        assert not pending
        errors = (future.exception() for future in futures if not future.cancelled())
        assert {type(error) for error in errors} <= {type(None), WorkerDied}
        assert not executor.processes()


def test_warnings_of_the_package_arrive_each_time(pool):
    for _ in range(2):
        with pytest.warns(DeepSZWarning, match="odd"):
            assert pool.submit(warn, "odd", DeepSZWarning).result() == "odd"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool.submit(warn, "not ours", RuntimeWarning).result() == "not ours"
