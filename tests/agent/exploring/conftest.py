"""A server with an untrained checkpoint and a world without a simulator, and a client of its socket."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("uvicorn", reason="needs the optional packages of nextstate[explore]")

import uvicorn
from websockets.sync.client import ClientConnection, connect

from agent.build import EnvConfig, PolicyConfig
from agent.explore import listen
from agent.exploring.messages import Head, unpack
from agent.exploring.server import Door, application
from agent.exploring.studio import ExploreConfig, Studios
from tests.reach import MAX_STEPS, OverTheTable

ANSWER_S = 60


class Kept(OverTheTable):
    """One that can be put back and forth, and draws only when asked, as our tasks do."""

    loads = 0

    def __init__(self, split: str = "seen", instruction: str = "lift the cube") -> None:
        super().__init__(split)
        self.instruction = instruction

    def advance(self, action):
        if action[1] == -1:  # what the tests ask for where something should break
            raise RuntimeError("broken")
        _, *told = self.step(action)
        return told

    def observe(self):
        return self._now()[0]

    def save_state(self):
        return self.x, self.steps

    def load_state(self, state):
        type(self).loads += 1
        self.x, self.steps = state


@dataclass
class Client:
    """A page, as far as the socket knows."""

    socket: ClientConnection
    hello: Head = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def receive(self) -> tuple[Head, list[bytes]]:
        return unpack(self.socket.recv(timeout=ANSWER_S))

    def tell(self, **command: Any) -> int:
        number = next(self.numbers)
        self.socket.send(json.dumps({**command, "n": number}))
        return number

    def until_done(self, number: int) -> list[tuple[Head, list[bytes]]]:
        found = []
        while True:
            head, files = self.receive()
            if head["tell"] == "done" and head["n"] == number:
                return found
            found.append((head, files))

    def ask(self, do: str, **command: Any) -> list[tuple[Head, list[bytes]]]:
        """What the server tells until it is done."""
        return self.until_done(self.tell(do=do, **command))

    def moments(self, do: str, **command: Any) -> list[tuple[Head, list[bytes]]]:
        """Only the moments of it, with what was thought of them later. There must be no complaint."""
        told = self.ask(do, **command)
        complaints = [head["text"] for head, _ in told if head["tell"] == "error"]
        assert not complaints, complaints
        thoughts = {head["id"]: {n: head[n] for n in ("seen", "points")} for head, _ in told if head["tell"] == "seen"}
        return [({**head, **thoughts.get(head["id"], {})}, files) for head, files in told if head["tell"] == "moment"]

    def start(self, **command: Any) -> Head:
        return self.moments("start", **{"seed": 3, "split": "seen", "instruction": "", **command})[-1][0]

    def complaint(self, do: str, **command: Any) -> str:
        (head,) = [head for head, _ in self.ask(do, **command) if head["tell"] == "error"]
        return head["text"]


@dataclass
class Server:
    """One on a free port of this machine."""

    port: int
    config: ExploreConfig

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def client(self, query: str = "", **options: Any) -> Iterator[Client]:
        with connect(f"ws://{self.host}/socket{query}", max_size=None, **options) as socket:
            client = Client(socket)
            client.hello, _ = client.receive()
            yield client


@contextmanager
def serving(config: ExploreConfig, key: str = "") -> Iterator[Server]:
    opened = listen("127.0.0.1", 0)
    studios = Studios(config)
    server = uvicorn.Server(uvicorn.Config(
        application(studios, Door("127.0.0.1", key)), log_level="warning", ws="websockets-sansio", ws_max_size=2**20,
        timeout_graceful_shutdown=2,
    ))  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Server(opened.getsockname()[1], config)
    finally:
        server.should_exit = True
        thread.join(20)
        studios.close()
        opened.close()


def settings(untrained: Path, out: Path, **changed: Any) -> ExploreConfig:
    name = "nextstate-test/Kept-v0"
    if name not in gym.registry:
        gym.register(name, Kept, max_episode_steps=MAX_STEPS)
    planner = {"candidates": 3, "iterations": 1, "images": True}
    policy = PolicyConfig(name="planner", checkpoint=str(untrained), execute=2, device="cpu", planner=planner)
    given = {"env": EnvConfig(id=name, split="seen"), "policy": policy, "checkpoint": str(untrained), "seed": 3}
    return ExploreConfig(**{**given, "out": str(out), "size": 64, **changed})


@pytest.fixture(scope="module")
def server(untrained, tmp_path_factory):
    """One for all tests of a file: they only share its worlds, as several viewers do."""
    with serving(settings(untrained, tmp_path_factory.mktemp("saved"))) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def push(x: float = 0.5, steps: int = 1) -> list[list[float]]:
    """Actions that go ahead."""
    return [[x, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]] * steps

