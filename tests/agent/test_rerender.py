from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest

from agent.build import EnvConfig, PolicyConfig, make_env
from agent.collect import CollectConfig, collect
from agent.rerender import RerenderConfig, rerender, rerendered
from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from envs.types import Episode

LIFT = EnvConfig(
    name="lift", id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert", max_steps=10
)
FOLD = EnvConfig(
    name="fold_half", id="nextstate/FoldHalf-v0", split="train", expert="policies.scripted.fold_half:FoldExpert",
    max_steps=3,
)  # fmt: skip
NAME, FOLD_NAME = "lift-train-0000003", "fold_half-train-0000004"
DISTURBED = PolicyConfig(name="perturbed")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> EpisodeStore:
    """A folder of two short episodes, one of each task."""
    folder = tmp_path_factory.mktemp("recorded")
    for env, seed, states in ((LIFT, 3, "whole"), (FOLD, 4, "drawn")):
        part = str(folder / env.name)
        collect(CollectConfig(env=env, policy=DISTURBED, seed=seed, episodes=1, out=part, workers=0, states=states))
    store = EpisodeStore(folder / "both")
    for name, part in ((NAME, "lift"), (FOLD_NAME, "fold_half")):
        store.write(EpisodeStore(folder / part).read(name), name)
    return store


@pytest.fixture
def config(recorded, tmp_path) -> RerenderConfig:
    return RerenderConfig(data=str(recorded.root), out=str(tmp_path / "looks"), looks=2, views=("top", "left"))


def files(store: EpisodeStore) -> dict[str, bytes]:
    return {name: store.path(name).read_bytes() for name in store.names()}


def same(a: Episode, b: Episode, but: set[str]) -> None:
    for f in fields(Episode):
        if f.name not in but:
            one, other = getattr(a, f.name), getattr(b, f.name)
            equal = np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one == other
            assert equal, f.name


@pytest.mark.parametrize(("env", "name"), [(LIFT, NAME), (FOLD, FOLD_NAME)], ids=["lift", "fold"])
def test_the_recorded_look_again_is_the_recorded_pictures(recorded, env, name):
    """A state that is kept or restored incompletely, and a pose of a camera that is not the one that drew."""
    episode = recorded.read(name)
    with closing(make_env(env)) as world:
        again = rerendered(episode, world, look=0)
    assert again.poses.keys() == episode.poses.keys() == {"main", "wrist"}
    for camera in ("main", "wrist"):
        assert np.array_equal(again.images[camera], episode.images[camera]), camera
        assert np.array_equal(again.poses[camera], episode.poses[camera])
    assert np.isnan(episode.sim_state).any() == (env is FOLD), "a state that can be drawn needs no velocities"
    same(again, episode, but={"images", "poses"})


def test_other_looks_of_the_same_episodes(config, recorded):
    """Labels that no longer belong to the pictures; looks that are all the same; two looks of one seed that the split
    parts; a second run that draws everything again, or that trusts a damaged file."""
    assert rerender(config) == 4
    store, before = EpisodeStore(config.out), files(EpisodeStore(config.out))
    assert store.names() == [f"{name}-look{look}" for name in (FOLD_NAME, NAME) for look in (1, 2)]
    for name in (NAME, FOLD_NAME):
        episode, looks = recorded.read(name), [store.read(f"{name}-look{look}") for look in (1, 2)]
        for drawn in looks:
            same(drawn, episode, but={"images", "poses", "views", "sim_state"})
            assert drawn.sim_state.size == 0 and drawn.poses.keys() == {"main", "wrist", "top", "left"}
            assert drawn.views["top"].shape == (len(episode) + 1, 64, 64, 3) and drawn.views["top"].std() > 5
        pictures = [e.images["main"][0].astype(int) for e in (episode, *looks)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(pictures[a] - pictures[b]).mean() > 2
        assert not np.array_equal(looks[0].poses["top"], looks[1].poses["top"])
    for every in (2, 3, 5):
        train, held_out = store.split(every)
        assert not {name[:-6] for name in train} & {name[:-6] for name in held_out}

    kept, lost, broken = (store.path(name) for name in store.names()[:3])
    when = kept.stat().st_mtime_ns
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:-10])
    assert rerender(config) == 4
    assert files(store) == before and kept.stat().st_mtime_ns == when


def test_states_can_be_kept(config, recorded):
    """A setting that is accepted and not used."""
    small = EpisodeStore(config.out + "_data")
    small.write(recorded.read(NAME), NAME)
    kept = replace(config, data=str(small.root), states=True, looks=1, views=())
    rerender(kept)
    drawn = EpisodeStore(config.out).read(f"{NAME}-look1")
    assert np.array_equal(drawn.sim_state, recorded.read(NAME).sim_state) and not drawn.views
    with pytest.raises(ValueError, match=r"rerender\.json.*other settings \(states: true against false"):
        rerender(replace(kept, states=False))


def refused(config: RerenderConfig, tmp_path, episode: Episode, message: str) -> None:
    """That such an episode is refused in one line, and that nothing is left of it."""
    store = EpisodeStore(tmp_path / "bad")
    store.write(episode, NAME)
    with pytest.raises(ValueError, match=message) as caught:
        rerender(replace(config, data=str(store.root)))
    assert "\n" not in str(caught.value)
    left = [path.name for path in EpisodeStore(config.out).root.glob("*")]
    assert not left


def test_episodes_that_cannot_be_drawn_again(config, recorded, tmp_path, reach):
    """Pictures of a state that never was, or a traceback from the depths of the simulator."""
    episode = recorded.read(NAME)
    refused(config, tmp_path, replace(episode, sim_state=np.zeros((0, 0))), "no simulator states.*states=drawn")
    older = {**episode.versions, "mujoco": "2.3.0"}
    refused(config, tmp_path, replace(episode, versions=older), "states of mujoco 2.3.0, and mujoco .* is installed")
    foreign = replace(episode, env_id=reach.id)
    refused(config, tmp_path, foreign, f"{reach.id} is none of our environments")
    longer = np.pad(episode.sim_state, ((0, 0), (0, 1)))
    refused(config, tmp_path, replace(episode, sim_state=longer), f"{NAME}.*another version of the model")
    refused(config, tmp_path, replace(episode, seed=5), f"{NAME}.*do not give the recorded|{NAME}.*another version")


def test_a_missing_texture_is_one_line(config, recorded, tmp_path, monkeypatch):
    """A half-made episode, or an error that does not name the file."""
    monkeypatch.setattr("envs.sim.looks.xml_path_completion", lambda name: f"/nowhere/{name}")
    plain = replace(config, options={"looks": "plain"})  # which draws no texture of its own
    refused(plain, tmp_path, recorded.read(NAME), f"{NAME}.*no texture")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"looks": 0}, "looks must be at least 1"), ({"workers": -1}, "workers"), ({"views": ("tpo",)}, "no view tpo")],
)
def test_bad_settings(config, wrong, message):
    """Wrong settings that claim the folder, or do nothing and say nothing."""
    with pytest.raises(ValueError, match=message):
        rerender(replace(config, **wrong))
    with pytest.raises(ValueError, match="never overwritten"):
        replace(config, out=config.data)
    assert not EpisodeStore(config.out).root.exists()


def test_a_look_of_an_episode_that_was_collected_anew(config, recorded, tmp_path):
    """Pictures of one motion beside another's, because both had one name."""
    store, episode = EpisodeStore(tmp_path / "data"), recorded.read(NAME)
    store.write(episode, NAME)
    only = replace(config, data=str(store.root), looks=1, views=())
    rerender(only)
    store.write(replace(episode, action=-episode.action), NAME)
    with pytest.raises(ValueError, match="look1.npz is a look of another episode.*choose another `out`"):
        rerender(only)


def test_only_what_is_asked_for_tells_states(recorded, reach, tmp_path):
    """Files three times as large without a use, and a foreign environment that fails for what it cannot tell."""
    out = str(tmp_path / "plain")
    plain = CollectConfig(env=replace(LIFT, max_steps=2), policy=DISTURBED, seed=0, episodes=1, out=out, workers=0)
    collect(replace(plain, states="none"))
    assert all(episode.sim_state.size == 0 for episode in EpisodeStore(out))
    with pytest.raises(ValueError, match="other settings"):
        collect(plain)
    foreign = replace(plain, env=reach, out=str(tmp_path / "reach"))
    collect(foreign)
    assert all(episode.sim_state.size == 0 and not episode.poses for episode in EpisodeStore(foreign.out))
    episode = recorded.read(NAME)
    assert episode.sim_state.shape[0] == len(episode) + 1 and episode.spec.cameras == SPEC.cameras
