"""Imagined environments that begin where a real one does."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, make_envs
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation.starts import scene_in
from envs.data.store import EpisodeStore
from envs.tasks.lift import Lift

IMAGINED = "world_model:nextstate/Imagined-v0"


@pytest.fixture
def imagined(over_the_table, untrained) -> EnvConfig:
    options, starts = {"checkpoint": str(untrained)}, over_the_table.id
    return EnvConfig(id=IMAGINED, split="seen", name="imagined", starts=starts, max_steps=16, options=options)


def test_starts_are_the_resets_of_the_real_environment(over_the_table, imagined):
    """Catches a dream that begins elsewhere than the episode that it is compared with, or with another sentence."""
    with closing(make_envs(over_the_table)) as world, closing(make_envs(imagined, 2)) as dream:
        for seed in (3, 8):
            there, told = world.reset(seed=[seed])
            here, said = dream.reset(seed=[seed, seed])
            assert all((here[name] == there[name][0]).all() for name in ("main", "wrist", "state"))
            assert list(said["instruction"]) == [told["instruction"][0]] * 2
        assert dream.get_attr("split")[0] == "seen" and dream.get_attr("max_steps")[0] == 16


def test_a_policy_is_evaluated_in_the_dream_as_in_the_simulator(imagined, tmp_path):
    """Catches a command that works in MuJoCo alone, and imagined episodes that pass for real ones."""
    config = EvaluateConfig(
        env=imagined, policy=PolicyConfig(name="random", execute=8), seed=0, episodes=3, out=str(tmp_path / "run"),
        workers=0, robots=2, keep=True,
    )  # fmt: skip
    report = evaluate(config, "c")
    assert [o["steps"] for o in report["outcomes"]] == [16] * 3 or report["success_rate"] > 0
    assert {episode.source for episode in config.kept} == {"imagined"}
    again = replace(config, env=replace(imagined, starts=str(config.kept.root)), out=str(tmp_path / "again"))
    assert evaluate(again, "c")["seeds"] == [0, 1, 2]
    first, second = (next(iter(EpisodeStore(each.kept.root))) for each in (config, again))
    assert np.array_equal(first.state[0], second.state[0])


def test_our_tasks_tell_their_experts_what_is_believed():
    """Catches an expert that is lost in the dream, and an environment of which nobody knows anything."""
    assert scene_in("nextstate/Lift-v0") is Lift.scene_in and scene_in("nobody/Nothing-v0") is None


def test_what_is_no_start_is_named(reach, imagined):
    """Catches a traceback for a misspelt folder or id, and a checkpoint's option that nobody knows."""
    for wrong, message in (
        (replace(imagined, starts="data/nowhere"), "data/nowhere"),
        (replace(imagined, starts="nobody:Nothing-v0"), "nobody"),
        (replace(imagined, starts=reach.id), "leaves the range .* gripper.z"),
        (replace(imagined, options={"depth": 3}), "depth"),
    ):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError), match=message):
            make_envs(wrong)
