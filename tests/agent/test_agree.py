import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent import agree as command
from agent.agree import AgreeConfig, agree
from agent.build import PolicyConfig
from agent.evaluation import agreement
from envs.data.store import EpisodeStore

CONFIGS = str(Path(__file__).parents[2] / "configs")


@pytest.fixture
def config(over_the_table, untrained, tmp_path, monkeypatch) -> AgreeConfig:
    monkeypatch.setattr(agreement, "RESAMPLES", 20)
    policies = {
        "random": PolicyConfig(name="random", execute=8),
        "slow": PolicyConfig(name="random", execute=8, disturb={"speed": 0.5}),
    }
    return AgreeConfig(
        env=over_the_table, policies=policies, checkpoint=str(untrained), seed=3, episodes=3, out=str(tmp_path / "run"),
        workers=0, robots=2,
    )  # fmt: skip


def test_both_worlds_begin_alike_and_are_compared(config):
    """Catches a dream that begins elsewhere, pairs of different seeds, and figures without their files."""
    report = agree(config, "c")
    out = Path(config.out)
    assert json.loads((out / "agree.json").read_text())["policies"].keys() == config.policies.keys()
    assert (out / "agree.png").stat().st_size > 10_000
    for label in config.policies:
        stores = (EpisodeStore(out / where / label / "episodes") for where in ("real", "dream"))
        real, dream = ({episode.seed: episode for episode in store} for store in stores)
        assert real.keys() == dream.keys() == {3, 4, 5}
        assert all(np.array_equal(real[seed].state[0], dream[seed].state[0]) for seed in real)
        assert {e.source for e in dream.values()} == {"imagined"} and {e.source for e in real.values()} == {"sim"}
    assert report["drift"]["gripper"][0] == [0, 0.0] and [step for step, _ in report["drift"]["gripper"]] == [0, 8]
    assert set(report["figures"]) == set(command.NAMES) and "Pearson r" in command.table(report)
    written = (out / "agree.json").read_bytes()
    agree(config, "c")
    assert (out / "agree.json").read_bytes() == written, "the same, from what was kept"


def test_one_policy_is_nothing_to_compare(config):
    """Catches an r of one point."""
    with pytest.raises(ValueError, match="two policies or more"):
        replace(config, policies={"random": config.policies["random"]})


def test_the_command_reads_its_config():
    """Catches a setting that the dataclass does not know, and a policy that cannot be left out."""
    with initialize_config_dir(CONFIGS, version_base=None):
        raw = OmegaConf.to_container(compose("agree", ["~policies.random", "workers=1"]), resolve=True)
    config = AgreeConfig.of(raw)
    assert "random" not in config.policies and config.policies["noise_30"].disturb == {"noise": 0.3}
    assert config.run("noise_30", imagined=True).env.options["look"] == config.policies["noise_30"].execute
