"""LMDBs that several runs want at once."""

import threading
import time
import warnings

import numpy as np

from deepsz_caffe.experiments.datasets.databases import records_of, write_splits


def test_of_runs_that_want_the_same_one_writes_and_the_others_wait(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), np.uint8)
    started, go_on, found = threading.Event(), threading.Event(), []

    def read(scratch):
        assert not started.is_set()
        started.set()
        assert go_on.wait(60)
        return {"some_lmdb": records_of(images, np.arange(5))}

    def write():
        found.append(write_splits(tmp_path / "data", {"some_lmdb": 5}, read, lambda text: None))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=write) for _ in range(2)]
        threads[0].start()
        assert started.wait(60)
        threads[1].start()
        while not said:
            time.sleep(0.01)
        go_on.set()
        for thread in threads:
            thread.join()
    assert "another run is writing" in str(said[0].message)
    assert found == [{str(tmp_path / "data" / "some_lmdb"): 5}] * 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["some_lmdb"]
    # A lock file is mapped: on a full disk it ended the process with a bus error.
    assert [path.name for path in (tmp_path / "data" / "some_lmdb").iterdir()] == ["data.mdb"]
