"""Many episodes in parallel: one process a core, one thread each, each with environments of its own.

The processes are of this machine, or with `launcher=ray` of a cluster (agent.launch.cluster).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from agent.launch.command import RunError, expected_errors, one_line

ONE_THREAD = ("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
GRACE_S = 5.0  # how long a worker may take to end when it is told to
Launcher = Literal["local", "ray"]


class Job(Protocol):
    """What a worker does. It is sent to another process, perhaps on another machine, so it holds only settings."""

    def work(self, seeds: Iterator[int]) -> Iterator[Any]:
        """One result a seed, in any order.

        What is to be kept is part of a result, and the process that asked for it writes: so a seed whose worker dies
        leaves nothing behind and can be done again. It may take several seeds before the first result, to drive several
        robots in one process. What it opens before the first it closes after the last.
        """


@dataclass(frozen=True)
class _Result:
    """What a seed gave."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """Why a worker stopped."""

    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """One line for what a user can mend, the traceback for anything else."""
        if isinstance(error, expected_errors()):
            return cls(one_line(error))
        return cls("a worker failed:\n" + "".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class _Finished:
    """A worker's last word."""


def run(job: Job, seeds: Iterable[int], workers: int, launcher: Launcher = "local") -> Iterator[Any]:
    """Results of `job` over the seeds, in the order in which they are done.

    workers: number of processes; 0 works in this one. launcher: whose processes, this machine's or a Ray cluster's.
    Raises RunError where a worker fails or leaves a seed without its result, or is ended from outside, which a cluster
    bears a few times; the others are stopped then, as they are when this process ends.
    """
    seeds = list(seeds)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if not seeds:
        return
    given = 0
    for result in job.work(iter(seeds)) if workers == 0 else _spreads(launcher)(job, seeds, workers):
        given += 1
        yield result
    if given != len(seeds):
        raise RunError(f"{len(seeds)} seeds gave {given} results: a job must give one for each")


def _spreads(launcher: Launcher) -> Callable[[Job, list[int], int], Iterator[Any]]:
    """What spreads work over processes. RunError where Ray is asked for and missing."""
    if launcher == "local":
        return _spread
    from agent.launch import cluster  # needs the extra `ray`, and says so

    return cluster.spread


def _spread(job: Job, seeds: list[int], workers: int) -> Iterator[Any]:
    """Results of worker processes, which end with this generator."""
    for name in ONE_THREAD:  # inherited by the workers; more threads than cores collapse
        os.environ[name] = "1"
    context = multiprocessing.get_context("spawn")  # a forked process would share the rendering context
    workers = min(workers, len(seeds))
    todo = context.Queue()
    for item in [*seeds, *[None] * workers]:
        todo.put(item)
    running: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(workers):
            results, sender = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(job, todo, sender), daemon=True)
            with _interrupts_held_back():
                process.start()
            sender.close()  # the worker alone holds this end, so that its death is seen here as the end of the pipe
            running[results] = process
        yield from _gather(running)
        for process in running.values():
            process.join(GRACE_S)
    finally:
        for process in running.values():
            process.terminate()  # an episode is written whole or not at all, so this loses only what is under way
        for process in running.values():
            process.join(GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()
        todo.close()
        todo.cancel_join_thread()


def _gather(running: dict[Connection, BaseProcess]) -> Iterator[Any]:
    """What the workers send, until each has finished. RunError where one does not."""
    unfinished = set(running)
    while unfinished:
        for pipe in wait(list(unfinished)):
            try:
                said = pipe.recv()
            except (EOFError, OSError):  # it is gone without its last word, perhaps in the middle of a result
                process = running[pipe]
                process.join(GRACE_S)
                raise RunError(_why_it_ended(process.exitcode)) from None
            match said:
                case _Result(value):
                    yield value
                case Failure(message):
                    raise RunError(message)
                case _Finished():
                    unfinished.remove(pipe)


def _why_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            code = signal.Signals(-code).name
        return (
            f"a worker was ended from outside ({code}), perhaps for lack of memory. "
            "Run the same command again to go on, with fewer workers if it happens again."
        )
    return (
        f"a worker ended early (exit code {code}) and did not say why; what it wrote to the terminal may. "
        "Run the same command again to go on, with workers=0 to see where it ends."
    )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and a process that is started inherits that it never hears it: the parent ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker(job: Job, todo: multiprocessing.Queue, results: Connection) -> None:
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        for result in job.work(iter(todo.get, None)):
            results.send(_Result(result))
        results.send(_Finished())
    except Exception as error:  # everything goes to the parent, which raises it
        with suppress(OSError):  # the parent is gone
            results.send(Failure.of(error))


def _end_with(parent: BaseProcess) -> None:
    """A worker whose parent was killed must not go on alone, not even to the end of its episode."""
    wait([parent.sentinel])
    os._exit(1)


# -------------------------------------------------------------------------------------------------- cores


def default_workers(launcher: str) -> int:
    """One a core of this machine, or of the cluster."""
    if launcher != "ray":
        return available_cores()
    from agent.launch import cluster  # needs the extra `ray`, and says so

    return cluster.cores()


def available_cores(listing: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes can compute at once: the cores that this process may use, less where its container's share
    of time is smaller.

    listing, root: where Linux says which control groups this process is in, and what they may take (versions 1 and 2).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *_cgroup_shares(listing, root)])))


def _cgroup_shares(listing: Path, root: Path) -> Iterator[float]:
    """The limits in cores, of this process's control groups and all above them."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:  # not Linux, or hidden
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for mount in mounts:
            # In a container the path may be the host's while only the group itself is mounted: then `depth` 0 finds it.
            for depth in range(len(parts) + 1):
                yield from _share(mount.joinpath(*parts[:depth]))


def _share(group: Path) -> Iterator[float]:
    """What one control group may take, in cores; nothing where it has no limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((group / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            yield quota / int((group / "cpu.cfs_period_us").read_text())
