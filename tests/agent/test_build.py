"""Settings become objects: every preset of a policy builds what it names."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.build import PolicyConfig, RunConfig, from_settings
from agent.planning.objective import Objective
from agent.planning.planner import PlannerConfig

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "policy").glob("*.yaml"))


def settings(preset: str) -> PolicyConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return RunConfig.of(OmegaConf.to_container(compose("evaluate", [f"policy={preset}"]), resolve=True)).policy


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    """Catches a setting that was renamed in the code and not in its file."""
    policy = settings(preset)
    assert policy.name in (preset, "planner")
    from_settings(PlannerConfig, policy.planner)
    from_settings(Objective, {**policy.objective, "measure": lambda keypoints, gripper, opening, holding: holding})


def test_few_demonstrations_change_the_search_and_nothing_else():
    """Catches a preset that falls back to the planner's own settings, or forgets what it is built on."""
    few, planner = settings("planner_few"), settings("planner")
    assert few.objective["progress"] > 0 == planner.objective["progress"]
    assert few.planner.keys() == planner.planner.keys() and few.planner["margin"] > planner.planner["margin"]
    assert (few.execute, few.decode) == (planner.execute, planner.decode)
