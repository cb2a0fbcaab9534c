"""The same work on a Ray cluster: a task does a few seeds, and is done again where its worker or its node dies.

The cluster is the one at RAY_ADDRESS, or else one of this machine alone, which starts with the first task, ends with
this process and listens to this machine only. This project, checkpoints and data must lie at the same paths on every
node; nothing is written there. Results equal those of local workers where the nodes compute alike.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator
from typing import Any

from agent.launch.command import RunError
from agent.launch.processes import ONE_THREAD, Failure, Job, available_cores

ADDRESS = "RAY_ADDRESS"
RETRIES = 3  # of a task; a seed that ends every worker it is given to must end the command too
TASKS = 4  # a worker at least: the fewer, the longer all wait for the last one
ANSWER_S = 10.0  # for a cluster to answer; Ray itself tries for twelve minutes
MAX_SEEDS = 16  # of a task: what its worker made is lost with it, and is kept in memory until it is written

os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # of what ran out of memory; for ever otherwise
if not os.environ.get(ADDRESS):  # a cluster of this machine alone; Ray reads what it may do when it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing asks the network untold
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # it then listens to 127.0.0.1, as it does there
    if "RAY_AUTH_MODE" not in os.environ:  # not even this machine's other users reach it; no file keeps the token
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
try:
    import ray
except ImportError as error:
    raise RunError("launcher=ray needs Ray: pip install 'nextstate[ray]'") from error


def spread(job: Job, seeds: list[int], workers: int) -> Iterator[Any]:
    """Results of tasks on the cluster, as many at a time as there are workers, which are cancelled with this generator.

    A task's results arrive together or not at all, so that a seed that is done again gives one result. RunError where
    a job fails, or a task has lost its worker more than `RETRIES` times.
    """
    _connect(workers)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
    size = max(1, min(MAX_SEEDS, math.ceil(len(seeds) / (TASKS * workers))))
    todo = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    todo.reverse()  # taken from its end
    running: list[ray.ObjectRef] = []
    try:
        while todo or running:
            while todo and len(running) < workers:
                running.append(task.remote(job, todo.pop(), os.getcwd()))
            (done,), running = ray.wait(running)
            yield from _results(done)
    finally:
        for unfinished in running:
            ray.cancel(unfinished, force=True)


def cores() -> int:
    """Of the cluster at RAY_ADDRESS; where none is named, those that one of this machine alone would have."""
    if not os.environ.get(ADDRESS):
        return available_cores()
    _connect(1)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _connect(workers: int) -> None:
    """Join the cluster, or start one for so many workers. RunError or OSError where it cannot be joined."""
    if ray.is_initialized():
        return
    settings = {"runtime_env": {"env_vars": dict.fromkeys(ONE_THREAD, "1")}, "logging_level": logging.ERROR}
    address = os.environ.get(ADDRESS)
    if not address:
        settings |= {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        _require_answer(address)
    try:
        ray.init(address=address or "local", **settings)
    except RuntimeError as error:  # such as another version of Ray or Python
        raise RunError(f"cannot join the Ray cluster {address or 'of this machine'}: {error}") from error


def _require_answer(address: str) -> None:
    """RunError where nobody listens at HOST:PORT or ray://HOST:PORT; other addresses are for Ray to find."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        except OSError as error:
            raise RunError(f"no Ray cluster answers at {ADDRESS}={address} ({error})") from error


def _work(job: Job, seeds: list[int], folder: str) -> list[Any] | Failure:
    """A task's part, on some node. folder: that the command runs in, which relative paths begin at."""
    try:
        os.chdir(folder)
        return list(job.work(iter(seeds)))
    except Exception as error:  # everything goes to the command, which raises it
        return Failure.of(error)


def _results(done: ray.ObjectRef) -> list[Any]:
    """What a task that has ended gave."""
    try:
        given = ray.get(done)
    except ray.exceptions.RayTaskError as error:  # outside the job: what cannot be sent, a project that is not there
        raise RunError(f"a worker failed:\n{error}") from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"a task lost its worker or its node more than {RETRIES} times ({' '.join(str(error).split())}). "
            "Run the same command again to go on, with workers=0 to see where it ends."
        ) from error
    if isinstance(given, Failure):
        raise RunError(given.message)
    return given
