"""Executors of a cluster: Dask, or MPI. The rest of the package sees `concurrent.futures` only."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from deepsz_caffe.errors import DeepSZError, InputError, needs_extra


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
    InputError
        It is neither ``mpi`` nor an address.
    DeepSZError
        The library is not installed, or the scheduler can't be reached.
    """
    if scheduler == "mpi":
        with needs_extra("mpi"):
            from mpi4py.futures import MPIPoolExecutor
        with MPIPoolExecutor() as executor:
            yield executor
        return
    with needs_extra("cluster"):
        import distributed
    _check_address(scheduler)
    try:
        connect: Any = distributed.Client  # ships no types
        client = connect(scheduler, set_as_default=False, timeout="20s")
    except (OSError, ValueError) as error:
        raise DeepSZError(f"can't reach the Dask scheduler: {error}", where=scheduler) from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def _check_address(scheduler: str) -> None:
    """See that Dask knows the protocol and finds host and port; otherwise it waits for nothing."""
    from distributed.comm.addressing import parse_address, parse_host_port
    from distributed.comm.registry import get_backend

    try:
        protocol, place = parse_address(scheduler, strict=True)
        get_backend(protocol)
        parse_host_port(place)
    except ValueError as error:
        raise InputError(
            f"{scheduler!r} is no address of a scheduler: {error}",
            where="--scheduler",
            hint="write mpi, or an address such as tcp://10.0.0.1:8786",
        ) from error
