"""Acting with and without search, with a small stand-in for the model that records what it is shown."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning.agent import ModelPolicy, PlanningPolicy, decision_seed
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from envs.types import Obs
from world_model.checkpoint import CheckpointError

M, A = 8, 7
KNOWN = ("fold the cloth in half", "lift the cube")


class Recorder:
    """Proposes a chunk that counts decisions, and values futures that move right."""

    def __init__(self) -> None:
        self.histories = []

    def prefill(self, history):
        self.histories.append(history)
        return len(self.histories)

    def propose(self, cache, n, temperature, generator=None):
        chunks = torch.zeros(n, M, A)
        chunks[..., 1] = cache / 100
        chunks[..., 2] = torch.arange(M) / 10
        chunks[..., -1] = -1.0
        return chunks

    def imagine(self, cache, actions, decode="parallel", follow=0):
        value = actions[..., 0].mean(-1)
        return SimpleNamespace(value=value, success=torch.zeros_like(value), uncertainty=torch.zeros_like(value))


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]


def obs(step: int = 0) -> Obs:
    state = np.array([step, 0, 0, 0, 0, 0, 0.08], np.float32)
    return Obs(np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8), state, scene="truth")


def acting(execute: int = 2) -> ModelPolicy:
    return ModelPolicy(Recorder(), Letters(), KNOWN, execute)


def planning(**changes) -> PlanningPolicy:
    config = PlannerConfig(**{"margin": 0.0, "deadline_s": 60.0, **changes})
    return PlanningPolicy(acting(), Planner(config, Objective()))


def run(policy, decisions: int, seed: int = 0):
    """Act; the observation's state counts the control steps."""
    state, chunks = policy.init(KNOWN[0], seed), []
    for decision in range(decisions):
        chunk, state = policy.act(obs(decision * policy.execute), state)
        chunks.append(chunk)
    return chunks, state


@pytest.mark.parametrize("execute", [1, 2, 4, 8])
def test_history_is_one_chunk_ago_and_what_was_done_since(execute):
    """Catches a history that is off by one decision, or that holds actions which were never executed."""
    policy = acting(execute)
    decisions = 2 * M // execute + 1
    chunks, _ = run(policy, decisions)
    for decision, history in enumerate(policy.model.histories):
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


def test_memory_does_not_grow():
    """Catches a state that keeps the whole episode."""
    _, state = run(acting(), 30)
    assert len(state.seen) == 5 and len(state.done) <= 5 and state.decisions == 30


def test_state_is_a_value():
    """Catches memory inside the policy: acting twice from one state must give the same."""
    policy = planning()
    _, state = run(policy, 6)
    first, after = policy.act(obs(12), state)
    run(policy, 3)
    again, after_again = policy.act(obs(12), state)
    assert first[0, 1] != 0 and after.decisions == after_again.decisions == 7
    np.testing.assert_array_equal(first[:, 0], again[:, 0])


def test_nothing_privileged_is_remembered():
    """Catches a model that could read the simulator's truth."""
    policy = acting()
    run(policy, 1)
    assert policy.model.histories[0].steps[-1][0].scene is None


def test_search_finds_what_the_model_would_not_do():
    """Catches a planner whose result is not executed."""
    chunks, state = run(planning(), 2)
    assert chunks[0][:, 0].mean() > 0.01 and state.plan.chosen != 0
    np.testing.assert_array_equal(chunks[1], state.plan.chunk)
    assert not run(acting(), 1)[0][0][:, 0].any()


def test_late_decisions_are_counted():
    """Catches a deadline that nobody hears of."""
    ticks = iter(np.arange(0.0, 1000.0, 1.0))
    planner = Planner(PlannerConfig(deadline_s=0.5), Objective(), clock=lambda: next(ticks))
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
    broken = obs()
    broken.state[2] = np.nan
    with pytest.raises(ValueError, match="observation `state` is not finite at index \\(2,\\)"):
        policy.act(broken, policy.init(KNOWN[0]))


def test_nan_from_the_model_is_refused():
    """Catches damaged weights that become a motion."""
    policy = acting()
    policy.model.propose = lambda *args: torch.full((1, M, A), float("nan"))
    with pytest.raises(ValueError, match="action is not finite"):
        policy.act(obs(), policy.init(KNOWN[0]))


def test_a_batch_is_refused():
    """Catches several robots handed to a policy of one."""
    policy = acting()
    batch = Obs(np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 7), np.float32))
    with pytest.raises(ValueError, match="one robot"):
        policy.act(batch, policy.init(KNOWN[0]))


def test_an_unknown_instruction_warns():
    """Catches both silence and a crash."""
    with pytest.warns(UserWarning, match="never trained on 'make tea'.*'lift the cube'"):
        state = acting().init("make tea")
    assert acting().act(obs(), state)[0].shape == (M, A)
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
