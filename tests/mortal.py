"""Jobs whose workers die, fail or wait; a module of their own, for a worker that needs no more starts sooner."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mortal:
    """Twice the seed. Each start of a seed is written down; seed 3 does what `at_three` says, `once` or always."""

    log: Path
    at_three: str = ""
    once: bool = True

    def work(self, seeds):
        for seed in seeds:
            before = started(self.log)
            with open(self.log, "a") as file:
                file.write(f"{seed}\n")
            if seed == 3 and not (self.once and seed in before):
                match self.at_three:
                    case "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "known":
                        raise ValueError("seed 3 is wrong")
                    case "unknown":
                        raise ZeroDivisionError("a bug")
                    case "skip":
                        continue
                    case "unsendable":
                        yield (each for each in ())
            yield 2 * seed


def started(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@dataclass(frozen=True)
class Waiting:
    """A worker that waits for something else than a core."""

    seconds: float

    def work(self, seeds):
        for seed in seeds:
            time.sleep(self.seconds)
            yield seed


@dataclass(frozen=True)
class Stuck:
    """Twice the seed; on the node `victim` a seed is begun and never ends, and the others wait until it has begun."""

    log: Path
    victim: str

    def work(self, seeds):
        import ray

        here = ray.get_runtime_context().get_node_id()
        for seed in seeds:
            if here == self.victim:
                self.log.write_text(f"{seed}\n")
                time.sleep(600)
            while not started(self.log):
                time.sleep(0.05)
            yield 2 * seed
