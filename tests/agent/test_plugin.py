"""Somebody else's robot, from their own folder, by the commands of the README: nothing of this project is edited."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, load, make_envs, make_policy, require_expert
from policies.rollout import rollout

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "plugin"
FETCH = {
    "FetchReach": EnvConfig(
        id="tests.plugin.fetch:NearFetchReach-v4", split="seen", expert="tests.plugin.fetch:ReachExpert",
        state=("observation[0:3]", "desired_goal"),
    ),
    "FetchPush": EnvConfig(
        id="tests.plugin.fetch:NearFetchPush-v4", split="seen", expert="tests.plugin.fetch:PushExpert",
        state=("observation[0:6]", "desired_goal[0:2]"),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A user's folder that holds their robot and nothing of ours."""
    shutil.copy(PLUGIN / "my_robot.py", tmp_path)
    return tmp_path


def run(folder: Path, command: str, *settings: str) -> str:
    """What a command prints, run from a user's folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", command, *settings], cwd=folder, env=env, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_words_of_the_readme(folder):
    """Catches a plug-in that works only from this repository's folder, or only in this process."""
    printed = run(
        folder, "agent.evaluate", "env=plugin", "env.id=my_robot:Mark-v0", "policy=plugin",
        "policy.target=my_robot:Straight", "seed=0", "episodes=6", "robots=3", "workers=2", "out=mine",
    )  # fmt: skip
    report = json.loads((folder / "mine" / "report.json").read_text())
    assert report["success_rate"] == 1.0 and report["policy"] == "my_robot:Straight" and "6 of 6" in printed
    assert report["env"]["id"] == "my_robot:Mark-v0" and report["instruction"] == "mark"


def test_collecting_needs_no_expert_and_takes_one(folder):
    """Catches data of a foreign robot that cannot be recorded, or labels where nobody demonstrates."""
    for expert, labelled in ((), False), (("env.expert=my_robot:Straight",), True):
        out = f"data_{labelled}"
        policy = "scripted" if labelled else "random"
        run(folder, "agent.collect", "env=plugin", "env.id=my_robot:Mark-v0", f"policy={policy}", *expert,
            "episodes=2", "workers=0", f"out={out}")  # fmt: skip
        for path in (folder / out).glob("*.npz"):
            assert np.isfinite(np.load(path)["expert"]).all() == labelled


@pytest.mark.parametrize("task", FETCH)
def test_fetch_by_a_file_of_forty_lines(task):
    """Catches a door too narrow for robots that nobody here wrote: another arm, four actions, 25 Hz, no picture."""
    pytest.importorskip("gymnasium_robotics", reason="pip install 'nextstate[robotics]'")
    assert len((PLUGIN / "fetch.py").read_text().splitlines()) <= 40
    config = FETCH[task]
    with closing(make_envs(config, robots=2)) as envs:
        spec = envs.get_attr("robot_spec")[0]
        expert = require_expert(config, spec)
        demonstrated = list(rollout(envs, expert, range(6), expert))
        disturbed = make_policy(PolicyConfig(name="perturbed"), config, envs)
        (shaken,) = rollout(envs, disturbed, [3], expert)
    assert (len(spec.action), spec.control_hz, spec.cameras[0].height) == (4, 25, 64) and not spec.keypoints
    assert all(run.episode.success[-1] for run in demonstrated)
    assert not np.array_equal(shaken.episode.action, shaken.episode.expert)
    frames = demonstrated[0].episode.images["render"].astype(int)
    assert np.ptp(frames[0]) > 100 and np.abs(frames[1] - frames[0]).max() > 50, "the picture shows no motion"


def test_the_readme_shows_the_file_that_is_tested():
    """Catches an example in the README that no longer runs."""
    assert (PLUGIN / "fetch.py").read_text().rstrip() in (ROOT / "README.md").read_text()


def test_pictures_of_several_worlds_in_one_process():
    """Catches gymnasium's renderer drawing into another environment's context, and freeing another's pictures."""
    pytest.importorskip("gymnasium_robotics", reason="pip install 'nextstate[robotics]'")

    def first_frame(config: EnvConfig) -> np.ndarray:
        with closing(make_envs(config)) as envs:
            return envs.reset(seed=[0])[0]["render"][0]

    alone = {task: first_frame(config) for task, config in FETCH.items()}
    with closing(make_envs(FETCH["FetchReach"])) as reach, closing(make_envs(FETCH["FetchPush"])) as push:
        both = {"FetchReach": reach, "FetchPush": push}
        seen = {task: envs.reset(seed=[0])[0]["render"][0] for task, envs in both.items()}
        reach.reset(seed=[1])
        again = push.reset(seed=[0])[0]["render"][0]
    for task, frame in alone.items():
        np.testing.assert_array_equal(seen[task], frame)
    np.testing.assert_array_equal(again, alone["FetchPush"])


def test_robosuites_door_by_a_file_of_forty_lines():
    """Catches a door too narrow for a simulator that is no gymnasium environment: robosuite's own Door."""
    assert len((PLUGIN / "door.py").read_text().splitlines()) <= 40
    config = EnvConfig(id="tests.plugin.door:Door-v0", split="seen", grippers=(6,), criterion="open by 0.3 rad")
    expert = load("tests.plugin.door_expert:DoorExpert", {}, None)
    with closing(make_envs(config)) as envs:
        (spec,) = envs.get_attr("robot_spec")
        first, again = (envs.reset(seed=[4])[0] for _ in range(2))
        (run,) = rollout(envs, expert, [4], expert)
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_array_equal(first["render"], again["render"])
    assert run.episode.success[-1] and len(run.episode) < 100 and spec.grippers == (6,) and len(spec.state) == 8
