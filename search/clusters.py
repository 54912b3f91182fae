"""Dask and Ray clusters, and what every kind of workers offers.

Both packages are optional and imported only when they are asked for. A task that crashes or takes too long ends the worker that
it runs in; the cluster starts another one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar

from ofa.errors import OfaError
from search.worker import error_line, guarded

Task = TypeVar("Task")
Result = TypeVar("Result")

CONNECT_S = 20.0


class EngineError(OfaError):
    """An engine cannot be had, or a task cannot be done with it."""


class Pool(Protocol):
    """Workers of some kind."""

    workers: int
    grace_s: float  # to wait for a task beyond its time before `kill`: workers that end themselves are given a chance to

    def prepare(self, function: Callable[..., object], tasks: int) -> None:
        """Get workers ready for up to that many tasks."""
        ...

    def submit(self, function: Callable[[Task], Result], task: Task, timeout_s: float | None) -> Future[Any]:
        """Start a task; the future holds what search.worker.guarded returns."""
        ...

    def kill(self, future: Future[Any]) -> None:
        """End what computes a future."""
        ...

    def close(self) -> None: ...


class DaskCluster:
    """Workers of a dask scheduler at an address, or of one that is started here."""

    grace_s = 3.0

    def __init__(self, text: str, address: str, count: int | None) -> None:
        dask, distributed = (_optional(name, text, "dask[distributed]") for name in ("dask", "distributed"))
        self._stack = contextlib.ExitStack()
        try:
            if count is None:
                self._client = self._stack.enter_context(distributed.Client(address, timeout=CONNECT_S))
            else:
                # dask blames a death on everything the worker was given, so a task may see one that is not its fault; not three,
                # as by default, since the engine tries again as well
                dask.config.set({"distributed.scheduler.allowed-failures": 1})
                cluster = distributed.LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
                self._client = self._stack.enter_context(distributed.Client(self._stack.enter_context(cluster)))
                # another one that was closed meanwhile let it speak again
                self._stack.callback(logging.getLogger("distributed").setLevel, logging.CRITICAL)
            self.workers = max(1, sum(self._client.nthreads().values()))
        except (OSError, ValueError, RuntimeError) as error:
            self._stack.close()
            advice = "start one: dask scheduler" if count is None else 'a script must start it under if __name__ == "__main__":'
            raise EngineError(f"engine {text!r}: no dask cluster ({error_line(error)}); {advice}") from None
        self._executor = self._client.get_executor(pure=False)

    def prepare(self, function: Callable[..., object], tasks: int) -> None:
        """Do nothing: the cluster has its workers."""

    def submit(self, function: Callable[[Task], Result], task: Task, timeout_s: float | None) -> Future[Any]:
        future: Future[Any] = self._executor.submit(guarded, function, task, timeout_s)
        return future

    def kill(self, future: Future[Any]) -> None:
        future.cancel()

    def close(self) -> None:
        self._stack.close()


class RayCluster:
    """Workers of a Ray cluster at an address ("auto" = the one that runs here), or of one that is started here.

    A process has one connection to Ray. Engines share it, and the last one ends it; one that somebody else made is used as it is.
    """

    grace_s = 3.0
    _sharing: ClassVar[set[RayCluster]] = set()

    def __init__(self, text: str, address: str, count: int | None) -> None:
        self._ray = _optional("ray", text, "ray")
        self._refs: dict[Future[Any], Any] = {}
        # workers find modules where this process does
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}}
        where = {"address": address} if count is None else {"num_cpus": count, "include_dashboard": False}
        connected = self._ray.is_initialized()
        try:
            if not connected:
                self._sharing.clear()  # somebody else may have ended ours
                self._ray.init(**where, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
            elif count is None and address not in ("auto", there := self._ray.get_runtime_context().gcs_address):
                raise EngineError(
                    f"engine {text!r}: this process has a connection to the Ray cluster at {there} already, and can have one; "
                    "end that one first: close the engine, or ray.shutdown()"
                )
            cpus = int(self._ray.cluster_resources().get("CPU", 1))
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"engine {text!r}: no Ray cluster ({error_line(error)}); start one: ray start --head") from None
        self.workers = max(1, cpus if count is None else min(cpus, count))
        own = not connected or bool(self._sharing)
        if own:
            self._sharing.add(self)
        self._run = self._ray.remote(max_retries=0, num_cpus=1, **({} if own else {"runtime_env": environment}))(guarded)

    def prepare(self, function: Callable[..., object], tasks: int) -> None:
        """Do nothing: the cluster has its workers."""

    def submit(self, function: Callable[[Task], Result], task: Task, timeout_s: float | None) -> Future[Any]:
        ref = self._run.remote(function, task, timeout_s)
        future: Future[Any] = ref.future()
        self._refs = {known: r for known, r in self._refs.items() if not known.done()} | {future: ref}
        return future

    def kill(self, future: Future[Any]) -> None:
        self._ray.cancel(self._refs.pop(future), force=True)

    def close(self) -> None:
        if self in self._sharing:
            self._sharing.remove(self)
            if not self._sharing:
                self._ray.shutdown()


def _optional(name: str, text: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EngineError(f'engine {text!r}: {name} is not installed; install it: pip install "{package}"') from None
