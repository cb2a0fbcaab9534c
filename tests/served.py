"""A policy server in a thread, and a small policy for it, for the tests of both ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent.serving.server import PolicyServer, Service
from envs.types import Observation, Spec
from policies.base import Policy
from tests.robots import HANDS, made_up

POISON, FAULT = 0.44, 0.45  # values of a state that the policy refuses, and that it breaks at
WAIT_S = 20.0  # after which a test gives up


@dataclass(frozen=True)
class Memory:
    instruction: str
    seed: int
    asked: int = 0
    late: int = 0


@dataclass
class Remembers:
    """Tells in its actions what it remembers: (decisions before this one, seed, length of the instruction) / 100.

    batches: how many robots took part in each call. slow_s: what a call takes.
    """

    execute: int = 2
    slow_s: float = 0.0
    batched: bool = True
    batches: list[int] = field(default_factory=list)

    def init(self, instruction: str, seed: int = 0) -> Memory:
        if instruction == "juggle":
            raise ValueError("the policy was never trained on 'juggle'")
        return Memory(instruction, seed)

    def act(self, observations, states):
        self.batches.append(len(states))
        time.sleep(self.slow_s)
        if np.isclose(observations.state[:, 0], POISON).any():
            raise ValueError("the policy will not look at this")
        if np.isclose(observations.state[:, 0], FAULT).any():
            raise ZeroDivisionError("secret of the server's")
        chunks = np.zeros((len(states), 4, len(HANDS.action)), np.float32)
        for chunk, state in zip(chunks, states, strict=True):
            chunk[:, :3] = state.asked / 100, state.seed / 100, len(state.instruction) / 100
        return chunks, [replace(state, asked=state.asked + 1, late=state.late + 2) for state in states]


def told(answer: Any) -> tuple[int, int, int]:
    """What `Remembers` said: decisions before, seed, length of the instruction."""
    actions = answer["actions"] if isinstance(answer, dict) else answer
    return tuple(np.round(100 * actions[0, :3]).astype(int).tolist())


def seen(spec: Spec = HANDS, step: int = 0, first: float | None = None) -> Observation:
    """What a robot sees. first: the value of its state's first dimension."""
    observation = made_up(spec).obs(step)
    if first is not None:
        observation.state[0] = first
    return observation


def request(spec: Spec = HANDS, first: float | None = None, **more: Any) -> dict[str, Any]:
    """The same as openpi's clients send it."""
    observation = seen(spec, first=first)
    images = {f"observation/{name}": image for name, image in observation.images.items()}
    return {**images, "observation/state": observation.state, "prompt": "tidy up", **more}


@contextmanager
def serving(policy: Policy, spec: Spec = HANDS, **settings: Any) -> Iterator[tuple[str, PolicyServer]]:
    """Its address, and the server itself, which ends with the block."""
    server = PolicyServer(policy, spec, Service(port=0, **settings))
    ready, ports, loop = threading.Event(), [], asyncio.new_event_loop()

    def listens(port: int) -> None:
        ports.append(port)
        ready.set()

    task = loop.create_task(server.run(listens))

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        assert ready.wait(WAIT_S), "the server does not listen"
        yield f"ws://127.0.0.1:{ports[0]}", server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(WAIT_S)
    assert not thread.is_alive(), "the server does not stop"


def until(holds: Any) -> None:
    """Wait for it."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)
