"""Executors of a cluster: Dask, or MPI. The rest of the package sees `concurrent.futures` only."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from deepsz_caffe.errors import DeepSZError


@contextmanager
def cluster_executor(scheduler: str) -> Iterator[Executor]:
    """Open the executor of a running cluster.

    Parameters
    ----------
    scheduler
        Address of a Dask scheduler, e.g. ``tcp://10.0.0.1:8786``, or ``mpi``, for a program started
        with ``mpiexec -n N python -m mpi4py.futures``. Each worker needs Caffe, this package and
        the network's files; Dask workers should have one thread each.

    Raises
    ------
    DeepSZError
        The library is not installed, or the scheduler can't be reached.
    """
    if scheduler == "mpi":
        try:
            from mpi4py.futures import MPIPoolExecutor
        except ImportError as error:
            raise DeepSZError(
                "mpi4py is not installed", hint="pip install 'deepsz-caffe[mpi]'"
            ) from error
        with MPIPoolExecutor() as executor:
            yield executor
        return
    try:
        import distributed
    except ImportError as error:
        raise DeepSZError(
            "Dask is not installed", hint="pip install 'deepsz-caffe[cluster]'"
        ) from error
    try:
        connect: Any = distributed.Client  # ships no types
        client = connect(scheduler, set_as_default=False, timeout="20s")
    except (OSError, ValueError) as error:
        raise DeepSZError(f"can't reach the Dask scheduler: {error}", where=scheduler) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor
