"""Many episodes in parallel: one process a core, one thread each, each with an environment of its own."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from agent.launch.command import RunError, expected_errors

ONE_THREAD = ("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Job(Protocol):
    """What a worker does. It is sent to another process, so it holds only settings."""

    def work(self, seeds: Iterator[int]) -> Iterator[Any]:
        """One result a seed, in their order; what it opens before the first it closes after the last."""


@dataclass(frozen=True)
class _Failure:
    message: str


def run(job: Job, seeds: Iterable[int], workers: int) -> Iterator[Any]:
    """Results of `job` over the seeds, in the order in which they are done.

    workers: number of processes; 0 works in this one. Raises RunError where a worker fails; the others are stopped.
    """
    seeds = list(seeds)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if workers == 0 or not seeds:
        yield from job.work(iter(seeds))
        return
    for name in ONE_THREAD:  # inherited by the workers; more threads than cores collapse
        os.environ[name] = "1"
    context = multiprocessing.get_context("spawn")  # a forked process would share the rendering context
    todo, done = context.Queue(), context.Queue()
    workers = min(workers, len(seeds))
    for item in [*seeds, *[None] * workers]:
        todo.put(item)
    processes = [context.Process(target=_worker, args=(job, todo, done), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for _ in seeds:
            result = _next(done, processes)
            if isinstance(result, _Failure):
                raise RunError(result.message)
            yield result
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()  # an episode is written whole or not at all, so this loses only what is under way
        todo.cancel_join_thread()


def _next(done: multiprocessing.Queue, processes: list[multiprocessing.Process]) -> Any:
    while True:
        try:
            return done.get(timeout=2.0)
        except queue.Empty:
            killed = [process.exitcode for process in processes if process.exitcode]
            if killed:
                raise RunError(
                    f"a worker was ended from outside (exit code {killed[0]}), perhaps for lack of memory. "
                    "Run the same command again to go on, with fewer workers if it happens again."
                ) from None


def _worker(job: Job, todo: multiprocessing.Queue, done: multiprocessing.Queue) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends this process
    parent = multiprocessing.parent_process()

    def seeds() -> Iterator[int]:
        while parent.is_alive():  # a worker whose parent was killed must not go on alone
            seed = todo.get()
            if seed is None:
                return
            yield seed

    try:
        for result in job.work(seeds()):
            done.put(result)
    except Exception as error:  # everything goes to the parent, which raises it
        known = isinstance(error, expected_errors())
        done.put(_Failure(str(error) if known else f"a worker failed:\n{traceback.format_exc()}"))

available_cores = os.cpu_count
