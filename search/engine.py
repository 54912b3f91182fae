"""Where functions run: in this process, in worker processes, or on a dask or ray cluster; the results are the same.

Worker processes are joblib's (loky), in one pool for each: if one dies, only what it was doing is lost, and it is known what that
was. joblib.Parallel has one pool for all, in which a death takes along everything that runs and nothing says whose it was; and it
hands over nothing from ray before all is finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from search.clusters import DaskCluster, EngineError, Pool, RayCluster
from search.worker import Failure, add_note, error_line, follow, guarded, outcome_of, ready, run_here

Task = TypeVar("Task")
Result = TypeVar("Result")

FORMS = "in-process, joblib:N (N worker processes), dask:ADDRESS, dask:N, ray:ADDRESS or ray:N"
MAX_WORKERS = 1024
IDLE_S = 300.0  # after which an idle worker process ends; the next task starts another one
MAX_GROWTH_BYTES = 4 * 2**30  # of a worker process, before it is replaced by another one
# one thread a worker: workers share the cores, and sums that are split over threads differ in their last bits
WORKER_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Engine:
    """Runs a function on many tasks; made from a text such as "joblib:4", so that a command line can name it.

    In this process nothing can stop a function that hangs, and one that crashes takes everything along; so a call with a time
    limit runs in a process of its own even there. Workers live until `close`; they keep what they loaded for the next call.
    """

    def __init__(self, text: str | None = None) -> None:
        """Read which engine is meant; nothing is started yet.

        Raises:
            EngineError: listing the forms.
        """
        self.text = text or "in-process"
        kind, _, where = self.text.partition(":")
        self.kind, self._where = kind, where
        self._pool: Pool | None = None
        number = re.fullmatch(r"[0-9]+", where)
        named = kind in ("dask", "ray") and bool(re.fullmatch(r"[\w.:/\[\]-]+", where, re.ASCII))
        if not (self.text == "in-process" or (kind in ("joblib", "dask", "ray") and (number or named))):
            raise EngineError(f"engine {self.text!r}: expected {FORMS}")
        self._count = int(where) if number and len(where) < 5 else 0 if number else None
        if self._count is not None and not 1 <= self._count <= MAX_WORKERS:
            raise EngineError(f"engine {self.text!r}: {where} workers, expected 1 to {MAX_WORKERS}")

    @property
    def workers(self) -> int:
        """How many tasks run at a time; a cluster is asked, so this may start or connect to it."""
        return self._count or (1 if self.kind == "in-process" else self._connected().workers)

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        retries: int = 2,
        timeout_s: float | None = None,
        name: Callable[[Task], str] = repr,
    ) -> Generator[tuple[int, Result], None, None]:
        """Yield (index, result) of every task as they finish.

        Args:
            retries: how often a task is given to another worker after one died or took too long.
            timeout_s: for one task, without the start of its worker; None = as long as it takes.
            name: what to call a task in an error.
        Raises:
            EngineError: naming the task that ends its workers, after all others are finished.
            Exception: what the function raised, with the task in its notes; of another process, builtin kinds and OfaError as
                they were, others as RuntimeError.
        """
        lost: list[tuple[int, Failure]] = []
        attempts = self.attempt(function, tasks, retries=retries, timeout_s=timeout_s)
        with contextlib.closing(attempts):
            for index, outcome in attempts:
                if not isinstance(outcome, Failure):
                    yield index, outcome
                elif outcome.error is not None:
                    add_note(outcome.error, f"while working on task {index}: {name(tasks[index])[:500]}")
                    raise outcome.error
                else:
                    lost.append((index, outcome))
        if lost:
            index, failure = lost[0]
            also = f"; {len(lost) - 1} more like it" if len(lost) > 1 else ""
            raise EngineError(
                f"task {index} ({name(tasks[index])[:200]}): {failure.reason}, in each of {retries + 1} attempts{also}; "
                "what was finished is kept. It may need more memory than there is: try fewer workers"
            )

    def attempt(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        retries: int = 2,
        retry_errors: bool = False,
        timeout_s: float | None = None,
    ) -> Generator[tuple[int, Result | Failure], None, None]:
        """Yield (index, result or why there is none) of every task as they finish.

        Args:
            retry_errors: whether what the function raises counts like a worker that died: it is tried again.
        Raises:
            EngineError: if the function cannot be sent to workers at all.
        """
        if self.kind == "in-process" and timeout_s is None:
            for index, task in enumerate(tasks):
                yield index, run_here(function, task, retries if retry_errors else 0)
            return
        pool = self._connected()
        pool.prepare(function, len(tasks))
        waiting = deque((index, 0) for index in range(len(tasks)))
        running: dict[Future[Any], tuple[int, int, float]] = {}  # index, failures before, when it began
        try:
            while waiting or running:
                while waiting and len(running) < pool.workers:
                    index, failures = waiting.popleft()
                    future = pool.submit(function, tasks[index], timeout_s)
                    running[future] = (index, failures, time.monotonic())
                patience_s = None if timeout_s is None else timeout_s + pool.grace_s
                oldest = min(began for _, _, began in running.values())
                wait(running, None if patience_s is None else max(0.0, oldest + patience_s - time.monotonic()), FIRST_COMPLETED)
                for future, (index, failures, began) in list(running.items()):
                    elapsed_s = time.monotonic() - began
                    late = None if timeout_s is None or elapsed_s < timeout_s else f"did not finish within {timeout_s:g} s"
                    if future.done():
                        outcome = outcome_of(future, late)
                    elif late and patience_s is not None and elapsed_s >= patience_s:
                        pool.kill(future)
                        outcome = Failure(late)
                    else:
                        continue
                    del running[future]
                    failed = isinstance(outcome, Failure) and (retry_errors or outcome.error is None)
                    if failed and failures < retries:
                        waiting.appendleft((index, failures + 1))  # at once: who waits for news of it waits no longer than needed
                    else:
                        yield index, outcome
        finally:  # also when whoever asked lost interest, or Ctrl-C: nobody waits for these any more
            for future in running:
                pool.kill(future)

    def close(self) -> None:
        """End workers and connections; the next call starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Pool:
        if self._pool is None:
            if self.kind in ("in-process", "joblib"):
                self._pool = _Processes(self._count or 1)
            else:
                self._pool = (DaskCluster if self.kind == "dask" else RayCluster)(self.text, self._where, self._count)
        return self._pool


class _Processes:
    """Worker processes of this machine, each a pool of one."""

    grace_s = 0.0

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[Any] = []  # executors
        self._busy: dict[Future[Any], Any] = {}

    def prepare(self, function: Callable[..., object], tasks: int) -> None:
        """Start workers side by side and let them import what the function needs: that is no part of a task's time."""
        self._reclaim()
        while len(self._idle) < min(self.workers, tasks):
            self._idle.append(_one_process())
        asked = []
        for executor in self._idle:
            with contextlib.suppress(RuntimeError):  # it was killed while it had nothing to do: `submit` takes another one
                asked.append(executor.submit(ready, function))
        wait(asked)

    def submit(self, function: Callable[[Task], Result], task: Task, timeout_s: float | None) -> Future[Any]:
        self._reclaim()
        executor = self._idle.pop() if self._idle else _one_process()
        try:
            executor.submit(ready, function).result()
        except Exception:
            executor.shutdown(wait=True, kill_workers=True)
            executor = self._fresh(function)
        future: Future[Any] = executor.submit(guarded, function, task, None)  # no time limit of its own: `kill` ends anything
        self._busy[future] = executor
        return future

    def _fresh(self, function: Callable[..., object]) -> Any:
        executor = _one_process()
        try:
            executor.submit(ready, function).result()
        except Exception as error:
            executor.shutdown(wait=True, kill_workers=True)
            raise EngineError(
                f"{getattr(function, '__name__', type(function).__name__)}: cannot be sent to a worker process "
                f"({error_line(error)}); define it in a module that can be imported, and let it hold only what can be pickled"
            ) from None
        return executor

    def _reclaim(self) -> None:
        """Take back the workers that are done; those that died are gone."""
        for future in [future for future in self._busy if future.done()]:
            executor = self._busy.pop(future)
            if future.cancelled() or future.exception() is not None:
                executor.shutdown(wait=True, kill_workers=True)
            else:
                self._idle.append(executor)

    def kill(self, future: Future[Any]) -> None:
        executor = self._busy.pop(future, None)
        if executor is None:
            return
        # loky stumbles over a task that is neither with its worker nor done; it is there within a millisecond
        until = time.monotonic() + 1.0
        while not (future.running() or future.done()) and time.monotonic() < until:
            time.sleep(0.0005)
        executor.shutdown(wait=True, kill_workers=True)

    def close(self) -> None:
        for future in list(self._busy):
            self.kill(future)
        for executor in self._idle:
            executor.shutdown(wait=True, kill_workers=True)
        self._idle = []


def _one_process() -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(
        max_workers=1, timeout=IDLE_S, initializer=_start_worker, initargs=(os.getpid(),), env=WORKER_THREADS
    )


def _start_worker(parent: int) -> None:
    from joblib.externals.loky import process_executor

    # loky takes a worker that grew by 300 MB for one that leaks, and ends it; ours hold a supernet and its images
    process_executor._MAX_MEMORY_LEAK_SIZE = MAX_GROWTH_BYTES
    follow(parent)
