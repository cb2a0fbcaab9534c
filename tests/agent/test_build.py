"""Settings become objects: ours, and anybody's, by one door."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.build import (
    EnvConfig,
    PolicyConfig,
    RunConfig,
    load,
    make_env,
    make_envs,
    make_objective,
    make_policy,
    require_expert,
)
from agent.planning.objective import Objective
from agent.planning.planner import PlannerConfig
from envs.data.settings import from_settings
from envs.sim.table import SPEC
from policies.rollout import rollout

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "policy").glob("*.yaml") if path.stem != "plugin")
NEEDED = {"lerobot": ["policy.folder=outputs/act"]}
MARK = EnvConfig(id="tests.plugin.my_robot:Mark-v0", split="seen", expert="tests.plugin.my_robot:Straight")


def settings(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return RunConfig.of(OmegaConf.to_container(compose("evaluate", list(overrides)), resolve=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    """Catches a setting that was renamed in the code and not in its file."""
    policy = settings(f"policy={preset}", *NEEDED.get(preset, ())).policy
    assert policy.name in (preset, "planner")
    from_settings(PlannerConfig, policy.planner)
    objective = {name: value for name, value in policy.objective.items() if name != "target"}
    from_settings(Objective, {**objective, "measure": lambda keypoints, state, held: held})


def test_few_demonstrations_change_the_search_and_nothing_else():
    """Catches a preset that falls back to the planner's own settings, or forgets what it is built on."""
    few, planner = settings("policy=planner_low_data").policy, settings("policy=planner").policy
    assert few.objective["progress"] > 0 == planner.objective["progress"]
    assert few.planner.keys() == planner.planner.keys() and few.planner["margin"] > planner.planner["margin"]
    assert (few.execute, few.decode) == (planner.execute, planner.decode)


def test_the_words_of_a_plugin():
    """Catches a word of the README that no longer means anything: environment, policy, instruction, limits."""
    run = settings(
        "env=plugin", "env.id=my_robot.envs:Reach-v0", "policy=plugin", "policy.target=my_robot.policies:MyPolicy",
        "env.instruction=reach the mark", "env.image_size=96", "env.grippers=[3]", "+policy.options.gain=2", "out=x",
    )  # fmt: skip
    assert (run.env.id, run.env.label, run.env.adapter.image_size) == ("my_robot.envs:Reach-v0", "plugin", 96)
    assert run.env.grippers == (3,) and run.policy.options == {"gain": 2} and run.policy.label == run.policy.target


def test_a_foreign_environment_is_driven_by_a_foreign_policy():
    """Catches a door that opens for ours alone: eight robots of somebody else's, their policy, their expert."""
    policy = PolicyConfig(name="plugin", target="tests.plugin.my_robot:Straight")
    with closing(make_envs(MARK, robots=3)) as envs:
        expert = require_expert(MARK, envs.get_attr("robot_spec")[0])
        runs = list(rollout(envs, make_policy(policy, MARK, envs), range(5), expert))
    assert all(run.episode.success[-1] and run.episode.instruction == "mark" for run in runs)
    np.testing.assert_array_equal(runs[0].episode.action, runs[0].episode.expert)
    assert runs[0].episode.spec.control_hz == 10 and (runs[0].episode.held == -2).all()


def test_a_disturbed_foreign_expert():
    """Catches disturbances that are measured in our robot's units, or that leave another's range."""
    policy = PolicyConfig(name="perturbed", perturb={"noise": (0.3, 0.3)})
    with closing(make_envs(MARK)) as envs:
        expert = require_expert(MARK, envs.get_attr("robot_spec")[0])
        (run,) = rollout(envs, make_policy(policy, MARK, envs), [0], expert)
    off = np.abs(run.episode.action - run.episode.expert)
    assert 0.005 < off.mean() < 0.15 and np.abs(run.episode.action).max() <= 0.2 + 1e-6


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"id": "nextstate/Nothing-v0"}, "nextstate/Nothing"),
        ({"id": "no_such_module:Reach-v0"}, "no_such_module"),
        ({"id": "nextstate/Lift-v0", "options": {"wings": 2}}, "wings"),
        ({"id": "nextstate/Lift-v0", "split": "somewhere"}, "somewhere"),
        ({"id": "tests.plugin.my_robot:Mark-v0", "split": "unseen"}, "no split 'unseen'"),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(env, says):
    """Catches a traceback of gymnasium's where the user only mistyped."""
    with pytest.raises(ValueError, match="cannot make environment") as caught:
        make_env(EnvConfig(**{"split": "seen", **env}))
    assert says in str(caught.value) and "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("Straight", {}, "module:Name"),
        ("no_such_module:Policy", {}, "no_such_module"),
        ("tests.plugin.my_robot:Bent", {}, "Bent"),
        ("tests.plugin.my_robot:Straight", {"gain": 2}, "gain"),
        ("tests.plugin.my_robot:__doc__", {}, "a class"),
    ],
)
def test_a_policy_that_cannot_be_made_is_one_line(target, options, says):
    """Catches a traceback where the user only mistyped."""
    with pytest.raises(ValueError, match=says):
        load(target, options, SPEC)


class Takes:
    """A policy of somebody's who wants to know the robot."""

    def __init__(self, spec, gain=1):
        self.spec, self.gain = spec, gain


def test_who_asks_for_the_spec_is_given_it():
    """Catches policies that have to repeat what the environment says already."""
    made = load("tests.agent.test_build:Takes", {"gain": 2}, SPEC)
    assert made.spec is SPEC and made.gain == 2


def test_nobody_demonstrates():
    """Catches an AttributeError in a worker where an expert is needed and none is named."""
    with pytest.raises(ValueError, match="env.expert=module:Name"):
        require_expert(EnvConfig(id="tests.plugin.my_robot:Mark-v0", split="seen"), SPEC)


class Nearest:
    """Somebody's own objective: the state that comes nearest to a place."""

    def __init__(self, spec, place):
        self.spec, self.place = spec, place

    def __call__(self, imagined, chunk):
        return -(imagined.state[..., -1, 0] - self.place).abs()


def test_an_objective_of_somebodys_own():
    """Catches a search that can only seek what we thought of."""
    settings = {"target": "tests.agent.test_build:Nearest", "place": 2.0}
    with closing(make_envs(MARK)) as envs:
        objective = make_objective(settings, envs, SPEC)
        assert isinstance(make_objective({"uncertainty": 0.0}, envs, SPEC), Objective)
        with pytest.raises(ValueError, match="objective.progress=0"):
            make_objective({"progress": 1.0}, envs, SPEC)  # a foreign task says of no scene how far it has come
    imagined = SimpleNamespace(state=torch.tensor([[[[1.5]], [[4.0]]]]))  # (R, N, H, P)
    assert objective(imagined, 8).tolist() == [[-0.5, -2.0]] and objective.spec is SPEC
