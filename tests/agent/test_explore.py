"""The command: its settings, and what it says where it cannot begin."""

import sys
from contextlib import closing
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent import explore
from agent.exploring.controls import bind
from agent.launch.command import RunError
from envs.sim.table import SPEC

CONFIGS = str(Path(__file__).parents[2] / "configs")


def settings(*overrides: str):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return OmegaConf.to_container(compose("explore", list(overrides)), resolve=True)


@pytest.mark.parametrize("task", ["lift", "fold_half"])
def test_the_settings_fit_our_robot(task):
    """Catches a key without a command on the robot that ships, and a default that no checkpoint has."""
    config = explore.from_hydra(settings(f"env={task}"))
    assert (config.env.split, config.policy.planner["images"], config.look) == ("seen", True, None)
    bound = bind(config.controls, SPEC)
    assert {control.index for control in bound} == {0, 1, 2, 5} and len(bound) == 8
    keys = [key for control in bound for key in control.keys]
    assert len(keys) == len(set(keys)) == 10


def test_the_page_can_change_to_what_ships(tmp_path):
    """Catches a menu without what else there is, and one that offers ours for a foreign robot."""
    config = explore.from_hydra(settings("env=fold_half", "split=unseen"))
    assert [(env.name, env.id, env.split) for env in config.tasks] == [("lift", "nextstate/Lift-v0", "unseen")]
    assert "checkpoints/nextstate-few" in config.checkpoints
    assert explore.from_hydra(settings("open=data/lift")).open == ("data/lift",)
    foreign = settings("env=plugin", "env.id=nextstate/Lift-v0", f"checkpoint={tmp_path / 'mine' / 'policy'}")
    assert (explore.from_hydra(foreign).tasks, explore.from_hydra(foreign).checkpoints) == ((), ())
    with pytest.raises(ValueError, match="there is no task '../lift': fold_half, imagined, lift, plugin"):
        explore.from_hydra(settings("tasks=[../lift]"))


@pytest.mark.parametrize(
    "override, error",
    [
        ("policy=random", "a person hands over to policy=planner or policy=model"),
        ("size=2000", "size must be from 32 to 512"),
        ("speed=0", "speed in"),
        ("seed=-1", "seed must be 0 or more"),
        ("viewers=none", "`viewers` must be a whole number"),
    ],
)
def test_wrong_settings_are_named(override, error):
    """Catches a mistyped setting that is only found when a person presses a key."""
    with pytest.raises(ValueError, match=error):
        explore.from_hydra(settings(override))


def test_it_listens_on_this_machine_alone():
    """Catches a default that lets others in."""
    raw = settings()
    assert (raw["host"], raw["key"]) == ("127.0.0.1", None)


def test_a_port_that_is_taken():
    """Catches a traceback where another server is running."""
    with closing(explore.listen("127.0.0.1", 0)) as first:
        with pytest.raises(OSError, match="cannot listen on 127.0.0.1, port .*set another host or port"):
            explore.listen("127.0.0.1", first.getsockname()[1])


def test_without_the_optional_packages(monkeypatch):
    """Catches a missing package that is named by a traceback alone."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RunError, match=r"the page needs uvicorn: pip install 'nextstate\[explore\]'"):
        explore.run(explore.from_hydra(settings()), "127.0.0.1", 0, "")
