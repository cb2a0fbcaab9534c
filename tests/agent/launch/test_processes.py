import os
import signal
from dataclasses import dataclass

import pytest

from agent.launch import processes
from agent.launch.command import RunError


@dataclass(frozen=True)
class Double:
    """Twice the seed; seed 3 does what `at_three` says."""

    at_three: str = ""

    def work(self, seeds):
        for seed in seeds:
            if seed == 3 and self.at_three == "known":
                raise ValueError("seed 3 is wrong")
            if seed == 3 and self.at_three == "unknown":
                raise ZeroDivisionError("a bug")
            if seed == 3 and self.at_three == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            yield 2 * seed


@pytest.mark.parametrize("workers", [0, 2])
def test_every_seed_once(workers):
    """A seed that is lost or done twice when processes share the work."""
    assert sorted(processes.run(Double(), range(5), workers)) == [0, 2, 4, 6, 8]


def test_errors_of_a_worker_reach_the_parent():
    """A worker that dies silently, and a parent that waits for it for ever."""
    with pytest.raises(RunError, match="^seed 3 is wrong$"):
        list(processes.run(Double("known"), range(5), 1))
    with pytest.raises(RunError, match=r"ZeroDivisionError: a bug"):
        list(processes.run(Double("unknown"), range(5), 1))


def test_a_killed_worker_is_noticed():
    """A worker killed for lack of memory: the parent must say so instead of waiting."""
    with pytest.raises(RunError, match="exit code -9.*[Rr]un the same command again"):
        list(processes.run(Double("killed"), range(5), 1))


def test_no_seeds():
    """Nothing left to do (a resumed run) must not start processes, nor wait for them."""
    assert list(processes.run(Double(), [], 2)) == []
