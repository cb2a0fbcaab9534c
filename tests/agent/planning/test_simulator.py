"""The oracle on a small world whose state can be saved: a point that should reach a goal."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.simulator import ORACLE_BUDGET, OraclePolicy, SimulatorModel
from envs.types import Obs


class Line:
    """A point on a line; progress is how near it is to 1. Stands for an environment that saves, loads and advances."""

    def __init__(self) -> None:
        self.x, self.steps, self.simulated = 0.0, 0, 0

    @property
    def unwrapped(self):
        return self

    def save_state(self):
        return SimpleNamespace(x=self.x, steps=self.steps)

    def load_state(self, state):
        self.x, self.steps = state.x, state.steps

    def observe(self):
        state = np.array([self.x, 0, 0, 0, 0, 0, 0.08], np.float32)
        return {"main": np.zeros((64, 64, 3), np.uint8), "wrist": np.zeros((32, 32, 3), np.uint8), "state": state}

    def advance(self, action):
        self.x += 0.05 * float(action[0])
        self.steps, self.simulated = self.steps + 1, self.simulated + 1
        success = self.x >= 1.0
        info = {"progress": 1 - abs(1 - self.x), "success": success, "scene": scene(self.x)}
        return 0.0, success, False, info


class Slow:
    """An expert that moves at a quarter of what is possible, as a function of the scene."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, obs, state):
        assert obs.scene is not None
        return np.array([[0.25, 0, 0, 0, 0, 0, -1.0]], np.float32), None


def scene(x: float):
    """Stands for a Scene: the expert only asks whether there is one."""
    return SimpleNamespace(x=x)


def obs(env: Line) -> Obs:
    seen = env.observe()
    return Obs(seen["main"], seen["wrist"], seen["state"], scene(env.x))


def test_planning_leaves_the_world_as_it_was():
    """Catches an oracle that moves the robot while it thinks."""
    env = Line()
    env.advance(np.full(7, 0.5, np.float32))
    before = env.save_state()
    policy = OraclePolicy.of(env, Slow())
    _, state = policy.act(obs(env), policy.init("", 0))
    assert env.save_state() == before
    assert state.decisions == 1 and env.simulated > 8


def test_the_world_is_put_back_after_an_error():
    """Catches a failed simulation that leaves the robot in an imagined place."""
    env = Line()
    model = SimulatorModel(env, Slow())
    cache = model.prefill(obs(env))
    env.advance = lambda action: setattr(env, "x", 9.0) or (_ for _ in ()).throw(FloatingPointError())
    with pytest.raises(FloatingPointError):
        model.imagine(cache, torch.zeros(1, 1, 8, 7))
    assert env.x == 0.0


def test_the_first_proposal_is_the_expert():
    """Catches noise on the one candidate that is known to be good."""
    env = Line()
    model = SimulatorModel(env, Slow())
    chunks = model.propose(model.prefill(obs(env)), 4, 1.0, torch.Generator().manual_seed(0))
    assert chunks.shape == (4, 8, 7)
    torch.testing.assert_close(chunks[0, :, 0], torch.full((8,), 0.25))
    assert not torch.equal(chunks[1], chunks[0]) and torch.equal(chunks[1, :, -1], chunks[0, :, -1])


def test_what_is_simulated_is_true():
    """Catches futures that start from where the last candidate ended."""
    env = Line()
    model = SimulatorModel(env, Slow())
    actions = torch.zeros(2, 2, 8, 7)
    actions[0, ..., 0], actions[1, 0, :, 0] = 0.5, 0.25
    future = model.imagine(model.prefill(obs(env)), actions)
    torch.testing.assert_close(future.value, torch.tensor([[0.2, 0.4], [0.1, 0.1]]))


def test_a_true_model_beats_its_slow_expert():
    """Catches scores that are not used: with the truth as its model, search must gain."""
    env = Line()
    planner = Planner(PlannerConfig(candidates=8, iterations=2, margin=0.0, deadline_s=60), Objective())
    policy = OraclePolicy.of(env, Slow(), planner=planner)
    state = policy.init("", 0)
    for _ in range(10):
        chunk, state = policy.act(obs(env), state)
        for action in chunk[: policy.execute]:
            env.advance(action)
    assert env.x > 10 * policy.execute * 0.05 * 0.25 * 1.2
    assert ORACLE_BUDGET.candidates * ORACLE_BUDGET.iterations <= 4


def test_the_scene_is_needed():
    """Catches an oracle that is asked to act where there is no simulator."""
    env = Line()
    policy = OraclePolicy.of(env, Slow())
    seen = env.observe()
    with pytest.raises(ValueError, match="scene"):
        policy.act(Obs(seen["main"], seen["wrist"], seen["state"]), policy.init("", 0))
