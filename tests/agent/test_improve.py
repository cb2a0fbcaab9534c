"""A search that is distilled into its own model."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import hydra
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from agent.build import EnvConfig, make_envs, make_expert
from agent.improve import ImproveConfig, improve, table
from envs.data.store import EpisodeError, EpisodeStore
from policies.rollout import rollout
from tests.reach import OverTheTable
from world_model import checkpoint, train

TRAIN = ("steps=2", "batch=2", "window=2", "held_out=3", "measured_windows=4", "precision=fp32")
CONFIGS = str(Path(__file__).parents[2] / "configs")


class EverySecond(OverTheTable):
    """Whatever is done, it succeeds after 30 steps with even seeds, and never with others."""

    def reset(self, *, seed=None, options=None):
        self.lucky = seed is not None and seed % 2 == 0
        return super().reset(seed=seed)

    def _now(self):
        obs, info = super()._now()
        return obs, {**info, "success": self.lucky and self.steps >= 30}


@pytest.fixture
def config(untrained, tmp_path) -> ImproveConfig:
    name = "nextstate-test/EverySecond-v0"
    if name not in gym.registry:
        gym.register(name, EverySecond, max_episode_steps=36)
    env, store = EnvConfig(id=name, split="seen", expert="tests.reach:Ahead"), EpisodeStore(tmp_path / "shown")
    with closing(make_envs(env)) as envs:
        expert = make_expert(env, envs.get_attr("robot_spec")[0])
        for run in rollout(envs, expert, range(4), expert):
            store.write(run.episode, f"{run.episode.seed}")
    with initialize_config_dir(CONFIGS, version_base=None):
        raw = OmegaConf.to_container(
            hydra.compose("improve", [
                f"checkpoint={untrained}", f"data={store.root}", "rounds=2", "episodes=4", "value_attempts=0",
                "seed=10", "workers=0", f"out={tmp_path / 'out'}", "policy=model", "policy.execute=8",
                "judge.episodes=2", "judge.seed=50", *(f"++train.{each}" for each in TRAIN),
            ]), resolve=True,
        )  # fmt: skip
        raw["env"] = {"id": name, "name": "every_second", "expert": "tests.reach:Ahead"}
        return ImproveConfig.of({**raw, "split": "seen"})


def test_what_succeeds_is_taught_and_what_fails_is_told(config):
    """Catches labels of a demonstrator that nobody asked, failures that are imitated, a round that forgets the ones
    before it or begins again with the first checkpoint, and a second run that does it all anew."""
    assert not GlobalHydra.instance().is_initialized()
    report = improve(config, "c")
    rows = report["rounds"]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [(row["attempts"], row["succeed"]) for row in rows[1:]] == [(4, 2), (4, 2)]
    assert all(row["model"]["success_rate"] == 0.5 and row["model"]["episodes"] == 2 for row in rows)
    for number, seeds in ((1, {10, 12}), (2, {14, 16})):
        kept = list(EpisodeStore(config.folder(number) / "succeed"))
        assert {episode.seed for episode in kept} == seeds
        assert all(np.array_equal(episode.expert, episode.action) for episode in kept)
        failed = list(EpisodeStore(config.folder(number) / "fail"))
        assert {e.seed for e in failed} == {s + 1 for s in seeds} and np.isnan(failed[0].expert).all()
    last = checkpoint.load(config.folder(2) / "train" / "checkpoint")
    told = checkpoint.load_training(checkpoint.last(config.folder(2) / "train"))
    assert last.meta["training"]["step"] == 2 and told
    written = (Path(config.out) / "improve.json").read_bytes()
    improve(config, "c")
    assert (Path(config.out) / "improve.json").read_bytes() == written and "2 of 4" in table(report)
    assert (Path(config.out) / "improve.png").stat().st_size > 5_000


def test_the_value_is_fitted_on_attempts_that_are_not_trained_on(config, monkeypatch):
    """Catches a value that is judged by what it was trained on, a search that goes on with the one before it was
    fitted, a round that ends where no attempt fails, and attempts that were trained on and then judge."""
    starts, run = [], train.run
    monkeypatch.setattr(train, "run", lambda settings: [starts.append(settings.start), run(settings)][1])
    config = replace(config, episodes=6, value_attempts=2)
    rows = improve(config, "c")["rounds"]
    assert [(row["attempts"], row["succeed"], row["value"]["episodes"]) for row in rows[1:]] == [(6, 3, 2), (6, 3, 4)]
    for number, first in ((1, 10), (2, 16)):
        folder = config.folder(number)
        kept = {name: {e.seed for e in EpisodeStore(folder / name)} for name in ("value", "succeed", "fail")}
        assert kept == {"value": {first, first + 1}, "succeed": {first + 2, first + 4}, "fail": {first + 3, first + 5}}
        trained, ours = (checkpoint.load(folder / name) for name in ("train/checkpoint", "checkpoint"))
        block = ours.model.vocab.value
        assert not torch.equal(*(block.select(each.model.transformer.head, 0) for each in (trained, ours)))
    assert starts == [config.policy.checkpoint, str(config.folder(1) / "checkpoint")]
    for another in (1, 3):
        with pytest.raises(ValueError, match="another value_attempts"):
            improve(replace(config, value_attempts=another), "c")
    alike = replace(config, value_attempts=1, rounds=1, out=str(config.folder(1) / "alike"))
    assert improve(alike, "c")["rounds"][1]["value"] is None


def test_what_cannot_be_improved_is_said_before_anything_is_tried(config):
    """Catches an hour of attempts by somebody who has no checkpoint."""
    with pytest.raises(ValueError, match="nothing that could be improved"):
        replace(config, policy=replace(config.policy, name="random"))
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        replace(config, rounds=0)
    with pytest.raises(ValueError, match="fewer than all 4 attempts"):
        replace(config, value_attempts=4)
    with pytest.raises(EpisodeError, match="nowhere"):
        improve(replace(config, train=replace(config.train, data=("nowhere",))), "c")
