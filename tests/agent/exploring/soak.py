"""How much memory the page's server takes over a long use; run by hand, because it takes as long as it says.

    python -m tests.agent.exploring.soak minutes=60 checkpoint=checkpoints/nextstate-s env=fold_half

Starts `agent.explore` with the settings that follow `minutes`, and uses it as a person does, who drives, goes back and
branches, lets the planner act, looks at its candidates and plays one, resets, and comes back by new connections. Prints
the server's resident memory once a minute.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from websockets.sync.client import connect

from tests.agent.exploring.conftest import Client

PAUSE_S = 0.5  # between two commands of a person
CONNECTION_S = 60.0  # then he reloads the page


def use(host: str, rng: random.Random, until: float) -> int:
    """What he does with one connection; how many commands that were."""
    commands = 0
    with connect(f"ws://{host}/socket", max_size=None) as socket:
        client = Client(socket)
        hello, _ = client.receive()
        at = moments = 0
        while time.monotonic() < until:
            commands += 1
            if not moments or moments > 300:
                at = client.start(seed=rng.randrange(1000, 2000), split=hello["split"])["id"]
                moments = 1
            kind = rng.random()
            if kind < 0.6:
                step = [[rng.uniform(-0.4, 0.4) if i < 3 else rest for i, rest in enumerate(hello["rest"])]] * 4
                told = client.moments("act", at=at, actions=step)
            elif kind < 0.85:
                told = client.moments("let", at=at, who="planner", candidates=True)
            elif kind < 0.95:
                told = client.moments("let", at=at, who="planner", candidates=True)
                told = client.moments("play", at=at, candidate=0)
            else:
                at, told = rng.randrange(moments), []
            moments += len(told)
            at = told[-1][0]["id"] if told else at
            time.sleep(PAUSE_S)
    return commands


def resident(pid: int) -> float:
    """MiB of a process, as Linux tells it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main(minutes: float, *settings: str) -> None:
    command = [sys.executable, "-m", "agent.explore", "port=0", *settings]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        host = next(line.split("http://")[1].split("/")[0] for line in server.stdout if "explore at" in line)
        rng, commands, begin = random.Random(0), 0, time.monotonic()
        told = begin
        while (now := time.monotonic()) < begin + 60 * minutes:
            commands += use(host, rng, min(now + CONNECTION_S, begin + 60 * minutes))
            if time.monotonic() - told >= 60 or now == begin:
                told = time.monotonic()
                minute, used = (told - begin) / 60, resident(server.pid)
                print(f"{minute:5.1f} min {commands:6d} commands {used:7.0f} MiB", flush=True)
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main(float(sys.argv[1].removeprefix("minutes=")), *sys.argv[2:])
