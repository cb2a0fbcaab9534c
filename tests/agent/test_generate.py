"""Dreams that become training data, and what the simulator says of them."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.build import PolicyConfig, make_envs, make_expert
from agent.collection.imagining import Dream, Keep
from agent.generate import GenerateConfig, generate, table
from envs.data.store import EpisodeStore
from policies.rollout import rollout

CONFIGS = str(Path(__file__).parents[2] / "configs")
ALL = Keep(success=False)


@pytest.fixture
def config(over_the_table, untrained, tmp_path) -> GenerateConfig:
    env = replace(over_the_table, expert="tests.reach:Ahead", max_steps=16)
    policy = PolicyConfig(name="random", execute=8, disturb={"noise": 0.3})
    return GenerateConfig(
        env=env, policy=policy, imagines=str(untrained), keep=ALL, seed=7, episodes=4, out=str(tmp_path / "out"),
        workers=0, robots=2,
    )  # fmt: skip


@pytest.fixture
def recorded(config, tmp_path) -> EpisodeStore:
    """Two real episodes, of seeds 3 and 4."""
    store = EpisodeStore(tmp_path / "recorded")
    with closing(make_envs(config.env)) as envs:
        expert = make_expert(config.env, envs.get_attr("robot_spec")[0])
        for run in rollout(envs, expert, [3, 4]):
            store.write(run.episode, f"{run.episode.seed}")
    return store


def test_dreams_become_episodes_that_say_what_they_are(config):
    """Catches dreams that pass for real ones, labels that are the disturbed command or another robot's, and a second
    run that dreams again."""
    report = generate(config, "c")
    episodes = {name: EpisodeStore(config.out).read(name) for name in EpisodeStore(config.out).names()}
    assert report["dreams"] == report["kept"] == len(episodes) == 4 and report["verified"]["asked"] == 0
    assert {episode.source for episode in episodes.values()} == {"imagined"}
    assert {episode.seed for episode in episodes.values()} == {7, 8, 9, 10}
    for episode in episodes.values():
        off = np.abs(episode.action - episode.expert)
        moves = [i for i, part in enumerate(episode.spec.action) if not part.gripper]
        assert 0.05 < off[:, moves].mean() < 0.5 and not off[:, list(episode.spec.grippers)].any()
    alone = generate(replace(config, robots=1, episodes=1, out=config.out + "_alone"), "c")
    (name,) = EpisodeStore(config.out + "_alone").names()
    assert np.array_equal(EpisodeStore(config.out + "_alone").read(name).expert, episodes[name].expert)
    assert alone["kept"] == 1
    written = Path(config.out, "generate.json").read_bytes()
    generate(config, "c")
    assert Path(config.out, "generate.json").read_bytes() == written, "the same, from what was kept"


@pytest.mark.parametrize("frames", ["imagined", "simulated"])
def test_the_simulator_has_the_last_word(config, recorded, frames):
    """Catches a replay of other actions or from another start, and what does not hold being kept."""
    config = replace(config, starts=(str(recorded.root),), verify="simulator", frames=frames)
    report = generate(config, "c")
    store = EpisodeStore(config.out)
    holding = [g for g in report["dreamt"] if g["holds"]]
    assert report["verified"] == {"asked": 4, "hold": len(holding), "ci95": report["verified"]["ci95"]}
    assert {g["seed"] for g in report["dreamt"]} == {3, 4} and len(store) == len(holding) == report["kept"] > 0
    for g in holding:
        episode = store.read(config.env.episode_name(g["number"]))
        assert episode.source == ("sim" if frames == "simulated" else "imagined")
        assert episode.success[-1] == g["success"] and episode.seed == g["seed"]
        assert np.array_equal(episode.state[0], recorded.read(str(g["seed"])).state[0])
        if frames == "simulated":  # x moves by a hundredth of the command
            assert np.allclose(np.diff(episode.state[:, 0]), 0.01 * episode.action[:, 0], atol=1e-5)
    assert "hold in the simulator" in table(report)


def test_a_start_that_the_simulator_does_not_know_is_named(config, recorded):
    """Catches actions that are replayed somewhere else and judged there."""
    moved = recorded.read("3")
    recorded.write(replace(moved, state=moved.state + np.float32(0.004)), "3")
    with pytest.raises(ValueError, match="does not begin with seed 3 where the dream did"):
        generate(replace(config, starts=(str(recorded.root),), verify="simulator"), "c")
    elsewhere = replace(config, env=replace(config.env, split="train"), out=config.out + "_train")
    with pytest.raises(ValueError, match="split=seen, and split=train is asked for"):
        generate(replace(elsewhere, starts=(str(recorded.root),)), "c")


def test_what_the_model_doubts_is_dropped():
    """Catches a threshold that is compared the wrong way round, and failures that are kept as successes."""
    made = {"number": 0, "start": None, "seconds": 0.0}

    class Ending:
        def __init__(self, success):
            self.success = np.array([False, success])

    sure = Dream(**made, episode=Ending(True), value=0.9, uncertainty=0.01)
    assert Keep()(sure) and not Keep()(replace(sure, episode=Ending(False)))
    assert Keep(success=False)(replace(sure, episode=Ending(False)))
    assert Keep(uncertainty=0.02)(sure) and not Keep(uncertainty=0.005)(sure)
    assert Keep(value=0.8)(sure) and not Keep(value=0.95)(sure)
    with pytest.raises(ValueError, match="keep.uncertainty must be positive"):
        Keep(uncertainty=0.0)


def test_folders_of_other_dreams_do_not_mix(config, recorded):
    """Catches a folder that is half of one policy and half of another."""
    generate(replace(config, episodes=1), "c")
    for other in (
        replace(config, policy=replace(config.policy, disturb={})), replace(config, keep=Keep()),
        replace(config, starts=(str(recorded.root),)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="choose another `out`"):
            generate(other, "c")
    with pytest.raises(ValueError, match="frames=simulated needs verify=simulator"):
        replace(config, frames="simulated")
    log = Path(config.out) / "generated.jsonl"
    assert json.loads(log.read_text())["number"] == 7


def test_the_command_reads_its_config():
    """Catches a setting that the dataclass does not know."""
    with initialize_config_dir(CONFIGS, version_base=None):
        raw = OmegaConf.to_container(
            compose("generate", ["starts=data/lift", "keep.uncertainty=0.1", "workers=1"]), resolve=True
        )
    config = GenerateConfig.of(raw)
    assert config.starts == ("data/lift",) and config.keep == Keep(uncertainty=0.1)
    assert config.imagines == config.policy.checkpoint == "checkpoints/nextstate-s" and config.policy.execute == 8
