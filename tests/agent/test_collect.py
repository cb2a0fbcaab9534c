from dataclasses import replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig
from agent.collect import CollectConfig, collect, summary
from envs.data.store import EpisodeStore

DISTURBED = PolicyConfig(name="perturbed", perturb={"noise": [0.1, 0.3], "failures": 0.0})


@pytest.fixture
def config(reach, tmp_path) -> CollectConfig:
    return CollectConfig(env=reach, policy=DISTURBED, seed=5, episodes=3, out=str(tmp_path / "data"), workers=0)


def files(config: CollectConfig) -> dict[str, bytes]:
    return {name: EpisodeStore(config.out).path(name).read_bytes() for name in EpisodeStore(config.out).names()}


def test_same_command_same_data(config, tmp_path):
    """Anything that leaks into an episode beside its seed: a clock, the episodes before it, who collected it."""
    collect(config)
    backwards = replace(config, out=str(tmp_path / "again"))
    for seed in (7, 6, 5):
        collect(replace(backwards, seed=seed, episodes=1))
    assert files(config) == files(backwards) and len(files(config)) == 3


def test_resume_keeps_what_is_there(config):
    """A second run that collects everything again, or that trusts a damaged file."""
    collect(config)
    before = files(config)
    kept, lost, broken = (EpisodeStore(config.out).path(name) for name in before)
    when = kept.stat().st_mtime_ns
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:-10])
    (kept.parent / ".reach-train-0000009.npz.left.tmp").write_bytes(b"left by a kill")
    recorded = collect(config)
    assert files(config) == before and kept.stat().st_mtime_ns == when
    assert [r.seed for r in recorded] == [5, 6, 7]
    assert not list(kept.parent.glob(".*.tmp"))


def test_clean_label_beside_the_disturbed_action(config):
    """The label must be what the expert would do, the action what was really done."""
    collect(config)
    episode = EpisodeStore(config.out).read("reach-train-0000005")
    np.testing.assert_array_equal(episode.expert[:, 0], np.ones(len(episode), np.float32))
    assert np.abs(episode.action - episode.expert).max() > 0.01
    assert set(episode.versions) == {"mujoco", "robosuite", "numpy", "gymnasium"}


def test_folder_of_other_settings(config):
    """Two recipes mixed in one folder: nobody could say any more what the data is."""
    collect(config)
    with pytest.raises(ValueError, match=r"collect\.json.*other settings"):
        collect(replace(config, policy=PolicyConfig(name="random")))


def test_wrong_settings_do_not_claim_the_folder(config):
    """After a typo, the corrected command must work in the same folder."""
    with pytest.raises(ValueError, match="split must be one of"):
        collect(replace(config, env=replace(config.env, split="tarin")))
    assert len(collect(config)) == 3


def test_summary(config):
    """Figures of the closing line that do not fit the files."""
    line = summary(config, collect(config))
    assert "3 episodes of reach" in line and "seeds 5 to 7" in line


def test_bad_settings(config):
    """Zero episodes and negative seeds fail deep inside the simulator otherwise."""
    for wrong in ({"episodes": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(config, **wrong)
    with pytest.raises(ValueError, match="policy must be one of"):
        PolicyConfig(name="rnadom")
    with pytest.raises(ValueError, match="Perturbed has no setting `nois`"):
        collect(replace(config, policy=PolicyConfig(name="perturbed", perturb={"nois": 1})))


def test_wild_scenes_are_not_recorded(config):
    """Episodes of the split that no training may see, in a folder from which somebody trains."""
    with pytest.raises(ValueError, match="split=wild is for evaluation alone"):
        replace(config, env=replace(config.env, split="wild"))


def test_simulator_repeats_itself(tmp_path):
    """An episode that depends on those simulated before it or beside it in the same process, or on the process."""
    lift = EnvConfig(name="lift", id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert")
    disturbed = PolicyConfig(name="perturbed")
    first = CollectConfig(env=lift, policy=disturbed, seed=0, episodes=2, out=str(tmp_path / "a"), workers=1, robots=2)
    second = replace(first, seed=1, episodes=1, out=str(tmp_path / "b"), workers=0, robots=1)
    collect(first)
    collect(second)
    assert files(first)["lift-train-0000001"] == files(second)["lift-train-0000001"]


def test_nobody_needs_to_demonstrate(config):
    """Catches data that cannot be collected where nobody wrote an expert, and labels that come from nowhere."""
    alone = replace(config, env=replace(config.env, expert=None), policy=PolicyConfig(name="random"))
    collect(alone)
    assert all(np.isnan(episode.expert).all() for episode in EpisodeStore(config.out))


def test_a_retrained_checkpoint_does_not_mix_with_the_old_one(config, tmp_path, monkeypatch):
    """Catches episodes of two checkpoints in one folder, because both had lain at one path."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    first = replace(config, policy=PolicyConfig(name="model", checkpoint=str(folder)))
    before, slashed = first.fingerprint(), replace(first, policy=PolicyConfig(name="model", checkpoint=f"{folder}/"))
    assert slashed.fingerprint() == before, "the same checkpoint, written with a slash"
    (folder / "manifest.json").write_text("{ }")
    assert first.fingerprint() != before
