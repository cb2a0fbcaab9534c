"""Requests that arrive together are one call of the policy, in a thread of its own; a bad one spoils no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.types import Observation, Spec, check_action
from policies.base import Policy


@dataclass(frozen=True)
class Question:
    """One robot's. begins: an episode, with this instruction and seed. state: the policy's, where none begins."""

    observation: Observation
    instruction: str
    seed: int
    begins: bool
    state: Any = None


@dataclass(frozen=True)
class Decision:
    """chunk: (M, A) f32 within the robot's range. state: the policy's, after it. seconds: the call took. batch: robots
    that took part in it."""

    chunk: np.ndarray
    state: Any
    seconds: float
    batch: int


def decide(policy: Policy, spec: Spec, questions: Sequence[Question]) -> list[Decision | Exception]:
    """What the policy says to each, or why it says nothing.

    Where a call for several robots fails, each is asked for alone, so that only those who cause it go without.
    """
    found: dict[int, Decision | Exception] = {}
    states: dict[int, Any] = {}
    for i, question in enumerate(questions):
        try:
            states[i] = policy.init(question.instruction, question.seed) if question.begins else question.state
        except Exception as error:  # a policy is anybody's code, and its error is this robot's alone
            found[i] = error
    asked = list(states)
    if not asked:
        return [found[i] for i in range(len(questions))]
    began = time.perf_counter()
    try:
        observations = Observation.stack([questions[i].observation for i in asked])
        chunks, after = policy.act(observations, [states[i] for i in asked])
        if len(chunks) != len(asked) or len(after) != len(asked):
            raise ValueError(f"the policy gave {len(chunks)} chunks and {len(after)} states for {len(asked)} robots")
        seconds = time.perf_counter() - began
        for i, chunk, state in zip(asked, chunks, after, strict=True):
            found[i] = Decision(check_action(chunk, spec), state, seconds, len(asked))
    except Exception as error:
        if len(questions) == 1:
            found[0] = error
        else:
            found |= {i: decide(policy, spec, [questions[i]])[0] for i in asked}
    return [found[i] for i in range(len(questions))]


class Batcher:
    """Asks the policy for the questions of many connections. `run` beside them; one policy call at a time."""

    def __init__(self, policy: Policy, spec: Spec, most: int, wait_s: float) -> None:
        """most: robots of one call. wait_s: how long the first question waits for others."""
        self.policy, self.spec, self.most, self.wait_s = policy, spec, most, wait_s
        self.waiting: asyncio.Queue[tuple[Question, asyncio.Future[Decision]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, question: Question) -> Decision:
        """The decision; whoever stops waiting for it is no longer asked for. Raises what the policy raised."""
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((question, answer))
        return await answer

    async def run(self, robots: Callable[[], int]) -> None:
        """Decide, until cancelled. robots(): how many there are now; where there is one it waits for nobody."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._gather(robots)
                if not batch:
                    continue
                questions = [question for question, _ in batch]
                outcomes = await loop.run_in_executor(self.thread, decide, self.policy, self.spec, questions)
                for (_, answer), outcome in zip(batch, outcomes, strict=True):
                    if answer.done():
                        continue  # it was late
                    if isinstance(outcome, Exception):
                        answer.set_exception(outcome)
                    else:
                        answer.set_result(outcome)
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self, robots: Callable[[], int]) -> list[tuple[Question, asyncio.Future[Decision]]]:
        """Those that are waiting, and those that come within `wait_s` of the first; without who has given up."""
        batch = [await self.waiting.get()]
        until = asyncio.get_running_loop().time() + self.wait_s
        while len(batch) < min(self.most, robots()):
            try:
                async with asyncio.timeout_at(until):
                    batch.append(await self.waiting.get())
            except TimeoutError:
                break
        while len(batch) < self.most and not self.waiting.empty():
            batch.append(self.waiting.get_nowait())
        return [(question, answer) for question, answer in batch if not answer.done()]
