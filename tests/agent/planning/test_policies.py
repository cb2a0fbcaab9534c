"""Acting with and without search, with a small stand-in for the model that records what it is shown."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning import policies
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.policies import ModelPolicy, PlanningPolicy, decision_seed
from envs.types import ActionSpec, CameraSpec, Observation, Spec, StateSpec
from world_model.checkpoint import CheckpointError
from world_model.tokens.layout import Layout
from world_model.tokens.vocab import Vocab

M = 8
KNOWN = ("fold the cloth in half", "lift the cube")
ROBOT = Spec(
    cameras=(CameraSpec("above", 8, 16),),
    state=tuple(StateSpec(name, -1000.0, 1000.0) for name in ("clock", "robot", "opening")),
    action=(ActionSpec("dx"), ActionSpec("decisions"), ActionSpec("time"), ActionSpec("gripper", gripper=True)),
    control_hz=20,
)
A = len(ROBOT.action)


@dataclass(frozen=True)
class Imagined:
    """What an objective reads of an Imagination."""

    value: torch.Tensor

    @property
    def success(self):
        return torch.zeros_like(self.value)

    uncertainty = success

    def __getitem__(self, robot: int) -> Imagined:
        return Imagined(self.value[robot])


class Recorder:
    """Proposes a chunk that counts calls and control steps, and values futures that move right."""

    spec = ROBOT
    actions = SimpleNamespace(coefs=(4, 4, 4))
    imagines_without_images = False
    strides = (M,)
    layout = Layout(ROBOT, Vocab.native(256, 100, 1), (4, 4, 4), strides=(2,))

    def __init__(self) -> None:
        self.calls: list[list] = []

    def prefill(self, histories):
        self.calls.append(list(histories))
        return len(self.calls), len(histories)

    def propose(self, cache, n, temperature, generators, joint=False):
        calls, robots = cache
        assert len(generators) == robots
        chunks = torch.zeros(robots, n, M, A)
        chunks[..., 1] = calls / 100
        chunks[..., 2] = torch.arange(M) / 10
        chunks[..., -1] = -1.0
        return chunks

    def imagine(self, cache, actions, decode="parallel", follow=0, strides=None, images=True):
        return Imagined(actions[..., 0].mean(-1))


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]


def obs(*steps: int) -> Observation:
    """One observation of each robot, whose state says at which control step it is and which robot that is."""
    state = np.array([[step, robot, 0.08] for robot, step in enumerate(steps)], np.float32)
    return Observation({"above": np.zeros((len(steps), 8, 16, 3), np.uint8)}, state)


def acting(execute: int = 2) -> ModelPolicy:
    return ModelPolicy(Recorder(), Letters(), KNOWN, execute)


def planning(**changes) -> PlanningPolicy:
    return PlanningPolicy(acting(), Planner(PlannerConfig(**{"margin": 0.0, **changes}), Objective(0.997)))


def run(policy, decisions: int, seed: int = 0):
    """Act for one robot; the observation's state counts the control steps."""
    state, chunks = policy.init(KNOWN[0], seed), []
    for decision in range(decisions):
        (chunk,), (state,) = policy.act(obs(decision * policy.execute), [state])
        chunks.append(chunk)
    return chunks, state


@pytest.mark.parametrize("execute", [1, 2, 4, 8])
def test_history_is_one_chunk_ago_and_what_was_done_since(execute):
    """Catches a history that is off by one decision, or that holds actions which were never executed."""
    policy = acting(execute)
    decisions = 2 * M // execute + 1
    chunks, _ = run(policy, decisions)
    for decision, (history,) in enumerate(policy.model.calls):
        step = decision * execute
        assert history.instruction == tuple(Letters().encode(KNOWN[0]))
        assert history.steps[-1][0].state[0] == step and history.steps[-1][1] is None
        if step < M:
            assert len(history.steps) == 1
            continue
        (before, done), _ = history.steps
        assert before.state[0] == step - M and done.shape == (M, A)
        executed = np.concatenate([chunk[:execute] for chunk in chunks[:decision]])
        np.testing.assert_array_equal(done, executed[-M:])


def test_a_young_episode_has_the_longest_history_that_the_model_knows():
    """Catches a history of a length that was never trained, or of actions that are not those in between, and robots
    that remember nothing in their first control steps though they could."""
    policy = acting(2)
    policy.model.strides = (1, 2, 4, M)
    chunks, _ = run(policy, 6)
    executed = np.concatenate([chunk[:2] for chunk in chunks])
    for (history,), ago in zip(policy.model.calls, (0, 2, 4, 4, 8, 8), strict=True):
        step = int(history.steps[-1][0].state[0])
        assert len(history.steps) == 1 + bool(ago)
        if ago:
            before, done = history.steps[0]
            assert before.state[0] == step - ago
            np.testing.assert_array_equal(done, executed[step - ago : step])


def test_the_planner_imagines_what_the_model_knows_and_all_that_is_executed():
    """Catches a search over model steps that were never trained, and one that is blind to a part of what is done."""
    planning(imagine=2)
    with pytest.raises(ValueError, match="2 control steps ahead, of 4 that are executed"):
        PlanningPolicy(acting(4), Planner(PlannerConfig(imagine=2), Objective(0.997)))
    with pytest.raises(ValueError, match="model steps of 2, 8 control steps, not of 3"):
        planning(imagine=3)


def test_robots_of_different_age_are_read_in_one_pass():
    """Catches a prefill a robot, and observations or histories that are handed to the wrong robot."""
    policy = acting()
    _, old = run(policy, 6)
    policy.model.calls.clear()
    chunks, states = policy.act(obs(12, 0), [old, policy.init(KNOWN[1])])
    ((first, second),) = policy.model.calls
    assert chunks.shape == (2, M, A) and [state.decisions for state in states] == [7, 1]
    assert len(first.steps) == 2 and len(second.steps) == 1
    assert [history.steps[-1][0].state[1] for history in (first, second)] == [0, 1]
    assert second.instruction == tuple(Letters().encode(KNOWN[1]))


def test_robots_together_decide_as_they_would_alone():
    """Catches a seed, a last plan or a chunk that goes to the robot beside."""
    policy = planning(iterations=2)
    alone = [run(policy, 3, seed) for seed in (1, 2)]
    states, chunks = [policy.init(KNOWN[0], seed) for seed in (1, 2)], []
    for decision in range(3):
        policy.acting.model.calls[:] = [None] * decision  # the proposals depend on how many calls came before
        chunk, states = policy.act(obs(2 * decision, 2 * decision), states)
        chunks.append(chunk)
    for robot, (expected, state) in enumerate(alone):
        assert state.plan.chosen == states[robot].plan.chosen
        np.testing.assert_array_equal(np.stack(expected)[:, :, 0], np.stack(chunks)[:, robot, :, 0])


def test_memory_does_not_grow():
    """Catches a state that keeps the whole episode."""
    _, state = run(acting(), 30)
    assert len(state.seen) == 5 and len(state.done) <= 5 and state.decisions == 30


def test_state_is_a_value():
    """Catches memory inside the policy: acting twice from one state must give the same."""
    policy = planning()
    _, state = run(policy, 6)
    first, (after,) = policy.act(obs(12), [state])
    run(policy, 3)
    again, (after_again,) = policy.act(obs(12), [state])
    assert first[0, 0, 1] != 0 and after.decisions == after_again.decisions == 7
    np.testing.assert_array_equal(first[..., 0], again[..., 0])


def test_search_finds_what_the_model_would_not_do():
    """Catches a planner whose result is not executed."""
    chunks, state = run(planning(), 2)
    assert chunks[0][:, 0].mean() > 0.01 and state.plan.chosen != 0
    np.testing.assert_array_equal(chunks[1], state.plan.chunk)
    assert not run(acting(), 1)[0][0][:, 0].any()


def test_late_decisions_are_counted():
    """Catches a deadline that nobody hears of."""
    ticks = iter(np.arange(0.0, 1000.0, 1.0))
    planner = Planner(PlannerConfig(deadline_s=0.5), Objective(0.997), clock=lambda: next(ticks))
    _, state = run(PlanningPolicy(acting(), planner), 3)
    assert state.late == state.decisions == 3


def test_seeds_decide():
    """Catches decisions that repeat one noise, or that depend on the global generator."""
    one, _ = run(planning(), 3, seed=1)
    torch.randn(3)
    same, _ = run(planning(), 3, seed=1)
    other, _ = run(planning(), 3, seed=2)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    states = [acting().init(KNOWN[0], seed) for seed in (0, 1)]
    assert len({decision_seed(state).initial_seed() for state in states}) == 2


def test_nan_is_refused():
    """Catches a broken sensor that becomes a motion."""
    policy = acting()
    broken = obs(0)
    broken.state[0, 2] = np.nan
    with pytest.raises(ValueError, match="observation `state` is not finite at index \\(0, 2\\)"):
        policy.act(broken, [policy.init(KNOWN[0])])


def test_nan_from_the_model_is_refused():
    """Catches damaged weights that become a motion."""
    policy = acting()
    policy.model.propose = lambda *args: torch.full((1, 1, M, A), float("nan"))
    with pytest.raises(ValueError, match="action is not finite"):
        policy.act(obs(0), [policy.init(KNOWN[0])])


@pytest.mark.parametrize("observations", [obs(0)[0], obs(0, 0)], ids=["no robots in front", "two robots"])
def test_observations_must_be_as_many_as_states(observations):
    """Catches a robot that is dropped in silence, and an image that is taken for many robots."""
    policy = acting()
    with pytest.raises(ValueError, match="B robots"):
        policy.act(observations, [policy.init(KNOWN[0])])


def test_another_robots_observation_is_refused():
    """Catches a camera that the model never saw."""
    policy = acting()
    other = Observation({"front": np.zeros((1, 8, 16, 3), np.uint8)}, obs(0).state)
    with pytest.raises(ValueError, match="cameras above, got front"):
        policy.act(other, [policy.init(KNOWN[0])])


def test_an_unknown_instruction_warns():
    """Catches both silence and a crash."""
    with pytest.warns(UserWarning, match="never trained on 'make tea'.*'lift the cube'"):
        state = acting().init("make tea")
    assert acting().act(obs(0), [state])[0].shape == (1, M, A)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acting().init(KNOWN[1])


@pytest.mark.parametrize("execute", [0, 3, 16])
def test_execute_must_divide_the_chunk(execute):
    """Catches a rate at which no observation is one chunk old."""
    with pytest.raises(ValueError, match="divide"):
        acting(execute)


@pytest.mark.parametrize("kind", [ModelPolicy, PlanningPolicy])
def test_a_missing_checkpoint_is_named(kind, tmp_path):
    """Catches a traceback where a file name would do."""
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere"):
        kind.load(tmp_path / "nowhere", device="cpu")


@pytest.fixture
def somewhere(monkeypatch):
    """A checkpoint that loads."""
    loaded = SimpleNamespace(
        model=Recorder(), text=Letters(), meta={"instructions": KNOWN, "discount": 0.99},
        actions=SimpleNamespace(chunk=M), spec=ROBOT,
    )  # fmt: skip
    monkeypatch.setattr(policies.checkpoint, "load", lambda folder, device: loaded)
    return "somewhere"


@pytest.mark.parametrize("kind", [ModelPolicy, PlanningPolicy])
def test_a_checkpoint_of_another_robot_is_refused(kind, somewhere):
    """Catches a policy that drives an arm it was not trained for."""
    assert kind.load(somewhere, device="cpu", spec=ROBOT).execute == 2
    with pytest.raises(ValueError, match="checkpoint somewhere and the environment .* control_hz 20 against 10"):
        kind.load(somewhere, device="cpu", spec=replace(ROBOT, control_hz=10))


def test_the_objective_has_the_checkpoints_discount(somewhere):
    """Catches a score that is discounted otherwise than the value in it, and another's objective that is meddled
    with."""

    def load(objective):
        return PlanningPolicy.load(somewhere, device="cpu", planner=Planner(PlannerConfig(), objective))

    assert load(Objective()).planner.objective.discount == load(Objective(0.99)).planner.objective.discount == 0.99
    assert PlanningPolicy.load(somewhere, device="cpu").planner.objective.discount == 0.99
    with pytest.raises(ValueError, match=r"objective\.discount=0\.9, .*checkpoint somewhere .* 0\.99: .*null"):
        load(Objective(0.9))
    assert load(len).planner.objective is len
