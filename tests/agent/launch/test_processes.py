import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import pytest

from agent.launch import processes
from agent.launch.command import RunError
from agent.launch.processes import available_cores

ROOT = Path(__file__).parents[3]


def send_half(pipe, content) -> None:
    """In place of `Connection._send_bytes`: killed in the middle of a message."""
    pipe._send(struct.pack("!i", len(content)) + bytes(content)[:3])
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Double:
    """Twice the seed; seed 3 does what `at_three` says."""

    at_three: str = ""

    def work(self, seeds):
        for seed in seeds:
            if seed == 3:
                match self.at_three:
                    case "known":
                        raise ValueError("seed 3 is wrong")
                    case "unknown":
                        raise ZeroDivisionError("a bug")
                    case "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "exit":
                        sys.exit(0)
                    case "vanish":
                        os._exit(0)
                    case "stop":
                        return
                    case "skip":
                        continue
                    case "unsendable":
                        yield lambda: None
                    case "half":
                        connection.Connection._send_bytes = send_half
                    case "interrupt":
                        os.kill(os.getpid(), signal.SIGINT)
            yield 2 * seed


@dataclass(frozen=True)
class Together:
    """Drives several robots at once: it takes `robots` seeds before it gives the first result, the last one first."""

    robots: int

    def work(self, seeds):
        driven = []
        for seed in seeds:
            driven.append(seed)
            if len(driven) == self.robots:
                yield 2 * driven.pop()
        yield from (2 * seed for seed in reversed(driven))


@pytest.mark.parametrize("job", [Double(), Together(3)])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_seed_once(job, workers):
    """Catches a seed that is lost or done twice when processes, or robots of one process, share the work."""
    assert sorted(processes.run(job, range(8), workers)) == [2 * seed for seed in range(8)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("known", "^seed 3 is wrong$"),
        ("unknown", "ZeroDivisionError: a bug"),
        ("killed", r"ended from outside \(SIGKILL\).*[Rr]un the same command again"),
        ("half", r"ended from outside \(SIGKILL\)"),
        ("exit", r"ended early \(exit code 0\)"),
        ("vanish", r"ended early \(exit code 0\)"),
        ("stop", "5 seeds gave 3 results: a job must give one for each"),
        ("skip", "5 seeds gave 4 results: a job must give one for each"),
        ("unsendable", "(?s)a worker failed:.*[Pp]ickle"),
    ],
)
def test_a_worker_that_gives_no_result(what, message):
    """Catches a parent that waits for ever for a worker that failed, was killed, exited, or left a seed out."""
    with pytest.raises(RunError, match=message):
        list(processes.run(Double(what), range(5), 1))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_seed_without_a_result_in_this_process(what):
    """Catches a seed that is lost without a word when no workers are used."""
    with pytest.raises(RunError, match="a job must give one for each"):
        list(processes.run(Double(what), range(5), 0))


def test_ctrl_c_is_for_the_parent():
    """Catches a traceback of every worker for one Ctrl-C, which the terminal sends to all of them."""
    assert sorted(processes.run(Double("interrupt"), range(5), 1)) == [0, 2, 4, 6, 8]


PARENT = """
import sys, time
from dataclasses import dataclass
from agent.launch import processes

@dataclass(frozen=True)
class Slow:
    def work(self, seeds):
        import os
        for seed in seeds:
            print(os.getpid(), flush=True)
            time.sleep(600)
            yield seed

if __name__ == "__main__":
    list(processes.run(Slow(), range(4), 2))
"""


def test_workers_end_with_their_parent(tmp_path):
    """Catches workers that go on alone, to the end of their episode or for ever, when the parent is killed."""
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "parent.py"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_no_seeds():
    """Catches processes that are started, or waited for, when nothing is left to do (a resumed run)."""
    assert list(processes.run(Double(), [], 2)) == []
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        list(processes.run(Double(), [1], -1))


MANY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("listing", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, MANY),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/docker/1234\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000"}, MANY),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, MANY),
        ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100", "cpuset/cpu.cfs_period_us": "100000"}, MANY),
        ("0::/\n", {"cpu.max": "nonsense"}, MANY),
        (None, {}, MANY),
    ],
)
def test_available_cores(tmp_path, listing, files, cores):
    """Catches more workers than the container may use: 64 processes that share the time of two cores."""
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content + "\n")
    if listing is not None:
        (tmp_path / "listing").write_text(listing)
    assert available_cores(tmp_path / "listing", tmp_path / "cgroup") == cores


def test_affinity_is_kept():
    """Catches the count of the machine where this process may use fewer cores (taskset, a batch system)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
