"""The oracle on a small world whose state can be saved: a point that should reach a goal."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.simulator import ORACLE_BUDGET, OraclePolicy, OracleState, SimulatorModel, Situation
from envs.types import ActionSpec, CameraSpec, Observation, Spec, StateSpec

SPEC = Spec(
    (CameraSpec("above", 8, 8),), (StateSpec("x"),),
    (ActionSpec("gripper", gripper=True), ActionSpec("dx"), ActionSpec("dy")), control_hz=20,
)  # fmt: skip
M, A, DX = 8, 3, 1


class Line(gym.Env):
    """A point on a line; progress is how near it is to 1. Stands for an environment that saves, loads and advances."""

    robot_spec = SPEC

    def __init__(self, x: float = 0.0) -> None:
        self.x, self.steps, self.simulated = x, 0, 0

    def save_state(self):
        return SimpleNamespace(x=self.x, steps=self.steps)

    def load_state(self, state):
        self.x, self.steps = state.x, state.steps

    def scene(self):
        return SimpleNamespace(x=self.x)

    def advance(self, action):
        self.x += 0.05 * float(action[DX])
        self.steps, self.simulated = self.steps + 1, self.simulated + 1
        success = self.x >= 1.0
        return 0.0, success, False, {"progress": 1 - abs(1 - self.x), "success": success, "scene": self.scene()}


class Slow:
    """An expert that moves at a quarter of what is possible."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state, scene):
        assert scene is not None
        return np.array([[-1.0, 0.25, 0]], np.float32), None


class Counting:
    """An expert whose motion depends on how often it was asked: its state is a list, which a careless caller shares."""

    execute = 1

    def init(self, instruction, seed=0):
        return [seed]

    def act(self, observation, state, scene):
        state.append(scene.x)
        return np.array([[-1.0, len(state) / 100, 0]], np.float32), state


def seen(*envs: Line) -> tuple[Observation, list]:
    """What the environments show."""
    images = {"above": np.zeros((len(envs), 8, 8, 3), np.uint8)}
    return Observation(images, np.array([[env.x] for env in envs], np.float32)), [env.scene() for env in envs]


def oracle(*envs: Line, expert=None, **changes) -> OraclePolicy:
    planner = Planner(PlannerConfig(**changes), Objective()) if changes else None
    return OraclePolicy.of(SimpleNamespace(envs=list(envs)), expert or Slow(), planner=planner)


def here(env: Line, expert_state=None) -> list[Situation]:
    return SimulatorModel((env,), Slow()).prefill(*seen(env), [expert_state])


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_planning_leaves_the_world_as_it_was():
    """Catches an oracle that moves the robot while it thinks."""
    env = Line()
    env.advance(np.full(A, 0.5, np.float32))
    before = env.save_state()
    policy = oracle(env)
    _, (state,) = policy.act(seen(env)[0], [policy.init("", 0)], seen(env)[1])
    assert env.save_state() == before
    assert state.decisions == 1 and env.simulated > 8


def test_the_world_is_put_back_after_an_error():
    """Catches a failed simulation that leaves the robot in an imagined place."""
    env = Line()
    model, cache = SimulatorModel((env,), Slow()), here(env)
    env.advance = lambda action: setattr(env, "x", 9.0) or (_ for _ in ()).throw(FloatingPointError())
    for simulate in (lambda: model.imagine(cache, torch.zeros(1, 1, 1, M, A)), lambda: model.advise(cache[0])):
        with pytest.raises(FloatingPointError):
            simulate()
        assert env.x == 0.0


def test_the_first_proposal_is_the_expert():
    """Catches noise on the one candidate that is known to be good, in the gripper, or where none is wanted."""
    env = Line()
    chunks = SimulatorModel((env,), Slow(), coefs=(4, 0)).propose(here(env), 4, 1.0, seeded(0))
    assert chunks.shape == (1, 4, M, A)
    torch.testing.assert_close(chunks[0, 0, :, DX], torch.full((M,), 0.25))
    assert not torch.equal(chunks[0, 1], chunks[0, 0])
    assert (chunks[..., 0] == -1).all() and not chunks[..., 2].any()


def test_what_is_simulated_is_true():
    """Catches futures that start from where the last candidate ended, or in the environment of another robot."""
    envs = Line(), Line(0.5)
    model = SimulatorModel(envs, Slow())
    actions = torch.zeros(2, 2, 2, M, A)
    actions[:, 0, ..., DX], actions[:, 1, 0, :, DX] = 0.5, 0.25
    future = model.imagine(model.prefill(*seen(*envs), [None, None]), actions)
    expected = torch.tensor([[[0.2, 0.4], [0.1, 0.1]], [[0.7, 0.9], [0.6, 0.6]]])
    torch.testing.assert_close(future.value, expected)
    torch.testing.assert_close(future[1].value, expected[1])


def test_a_true_model_beats_its_slow_expert():
    """Catches scores that are not used: with the truth as its model, search must gain."""
    env = Line()
    policy = oracle(env, candidates=8, iterations=2, margin=0.0, coefs=4)
    states = [policy.init("", 0)]
    for _ in range(10):
        (chunk,), states = policy.act(seen(env)[0], states, seen(env)[1])
        for action in chunk[: policy.execute]:
            env.advance(action)
    assert env.x > 10 * policy.execute * 0.05 * 0.25 * 1.2
    assert ORACLE_BUDGET.candidates * ORACLE_BUDGET.iterations <= 4


def test_robots_together_decide_as_they_would_alone():
    """Catches robots that plan in each other's world, also where the loop asks for some of them in another order."""
    envs = Line(), Line(0.9), Line(0.4)
    policy = oracle(*envs)
    states = [policy.init("", seed) for seed in (5, 6)]
    chunks, _ = policy.act(seen(envs[2], envs[1])[0], states, seen(envs[2], envs[1])[1])
    for env, chunk, state in zip((envs[2], envs[1]), chunks, states, strict=True):
        (alone,), _ = oracle(env).act(seen(env)[0], [state], seen(env)[1])
        np.testing.assert_array_equal(chunk, alone)


def test_the_experts_state_follows_what_is_done_and_nothing_else():
    """Catches an expert that remembers what was only thought of, that forgets what was done, or that is begun anew at
    every decision."""
    env = Line()
    policy = oracle(env, expert=Counting())
    states = [policy.init("", 7)]
    for decision in range(3):
        chunks, after = policy.act(seen(env)[0], states, seen(env)[1])
        assert len(states[0].expert) == 1 + 2 * decision and len(after[0].expert) == 3 + 2 * decision
        advised = policy.model.advise(Situation(env.save_state(), seen(env)[0][0], env.scene(), states[0].expert))
        expected = (np.arange(M) + len(states[0].expert) + 1) / 100
        np.testing.assert_allclose(advised[:, DX], expected, rtol=1e-6)
        for x, action in zip(after[0].expert[-2:], chunks[0, : policy.execute], strict=True):
            assert env.x == pytest.approx(x)
            env.advance(action)
        states = after


def test_an_expert_that_plans_ahead_is_asked_when_the_loop_would_ask():
    """Catches a chunk of the expert that is done to its end where it wants to look again."""

    class Ahead(Counting):
        execute = 2

        def act(self, observation, state, scene):
            chunk, state = super().act(observation, state, scene)
            return np.repeat(chunk, 5, axis=0), state

    env = Line()
    model = SimulatorModel((env,), Ahead())
    np.testing.assert_allclose(model.advise(here(env, [0])[0])[:, DX], np.repeat([2, 3, 4, 5], 2) / 100, rtol=1e-6)


def test_only_what_a_model_step_covers_is_done():
    """Catches a future that goes further than the world model's of the same settings."""
    env = Line()
    model, actions = SimulatorModel((env,), Slow()), torch.zeros(1, 1, 2, M, A)
    actions[..., :2, DX], actions[..., 2:, DX] = 0.1, 1.0
    paced = model.imagine(here(env), actions, strides=2)
    alone = [model.imagine(here(env), actions[:, :, :1].clone(), strides=n).value for n in (2, None)]
    assert torch.equal(paced.value[..., :1], alone[0]) and not torch.equal(alone[0], alone[1])


def test_what_the_oracle_needs_is_named():
    """Catches an oracle where there is no simulator, that simulates in somebody else's, or that guesses what noise may
    do."""
    env, other = Line(), Line(0.3)
    with pytest.raises(ValueError, match="scene"):
        oracle(env).act(seen(env)[0], [OracleState(0, None)], [None])
    with pytest.raises(ValueError, match="none of the oracle's environments"):
        oracle(env, Line(0.1)).act(seen(other)[0], [OracleState(0, None)], seen(other)[1])
    with pytest.raises(ValueError, match="in this process"):
        OraclePolicy.of(SimpleNamespace(), Slow())
    with pytest.raises(ValueError, match=r"planner\.coefs"):
        oracle(env, candidates=2)
    with pytest.raises(ValueError, match=r"planner\.follow=0"):
        SimulatorModel((env,), Slow()).imagine(here(env), torch.zeros(1, 1, 1, M, A), follow=1)
