"""One call for all who ask together, and nobody pays for another's mistake."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")

from agent.serving.batching import Batcher, Decision, Question, decide
from tests.robots import HANDS
from tests.served import FAULT, POISON, Remembers, seen, told


def question(seed: int = 0, first: float = 0.0, instruction: str = "tidy up") -> Question:
    return Question(seen(first=first), instruction, seed, begins=True)


def test_one_call_for_all():
    """Catches a server that asks for each robot alone, and one that mixes up whose chunk is whose."""
    policy = Remembers()
    found = decide(policy, HANDS, [question(seed) for seed in range(5)])
    assert policy.batches == [5] and [told(each.chunk) for each in found] == [(0, seed, 7) for seed in range(5)]
    again = [Question(seen(), "", 0, False, each.state) for each in found]
    assert [told(each.chunk) for each in decide(policy, HANDS, again)] == [(1, seed, 7) for seed in range(5)]


@pytest.mark.parametrize("first", [POISON, FAULT])
def test_a_robot_that_makes_the_policy_fail_fails_alone(first):
    """Catches a batch that is lost because of one observation in it."""
    asked = [question(1), question(2, first), question(3, instruction="juggle"), question(4)]
    one, two, three, four = decide(Remembers(), HANDS, asked)
    assert told(one.chunk) == (0, 1, 7) and told(four.chunk) == (0, 4, 7)
    assert isinstance(two, ValueError if first == POISON else ZeroDivisionError)
    assert isinstance(three, ValueError) and "juggle" in str(three)


class Wild(Remembers):
    """Its commands are of no robot's range."""

    def act(self, observations, states):
        chunks, states = super().act(observations, states)
        chunks[:, 0] = np.nan if np.isclose(observations.state[:, 0], 0.3).any() else 99
        return chunks, states


def test_commands_are_checked_before_they_leave():
    """Catches a robot elsewhere that is sent what no robot can do."""
    wild, fine = decide(Wild(), HANDS, [question(0, 0.3), question(1)])
    assert isinstance(wild, ValueError) and "not finite" in str(wild)
    assert (fine.chunk <= HANDS.action_high).all() and fine.chunk.dtype == np.float32


def test_a_policy_that_counts_wrongly():
    """Catches robots that are left without an answer for ever."""

    class Short(Remembers):
        def act(self, observations, states):
            chunks, states = super().act(observations, states)
            return chunks[:1], states[:1]

    found = decide(Short(), HANDS, [question(0), question(1)])
    assert [told(each.chunk) for each in found] == [(0, 0, 7), (0, 1, 7)], "alone it counts right"


def test_who_gives_up_is_not_asked_for():
    """Catches a policy that falls ever further behind with decisions that nobody waits for, and calls of more robots
    than it may be given."""
    policy = Remembers(slow_s=0.2)

    async def ask(batcher: Batcher, seconds: float | None) -> Decision | None:
        try:
            async with asyncio.timeout(seconds):
                return await batcher.ask(question())
        except TimeoutError:
            return None

    async def work() -> list[Decision | None]:
        batcher = Batcher(policy, HANDS, most=3, wait_s=0.05)
        running = asyncio.create_task(batcher.run(lambda: 9))
        first = asyncio.create_task(ask(batcher, None))
        await asyncio.sleep(0.1)  # now the policy is at work on it
        late = [asyncio.create_task(ask(batcher, 0.01)) for _ in range(4)]
        rest = [asyncio.create_task(ask(batcher, None)) for _ in range(4)]
        found = [await task for task in (first, *late, *rest)]
        running.cancel()
        return found

    found = asyncio.run(work())
    assert [each is None for each in found] == [False] + [True] * 4 + [False] * 4
    assert policy.batches[0] == 1 and sum(policy.batches) == 5 and max(policy.batches) <= 3
