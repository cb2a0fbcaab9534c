"""robomimic's HDF5 files, read and written."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.data.formats.folder import open_episodes
from envs.data.formats.robomimic import RobomimicFile, from_normalized, to_normalized
from envs.data.formats.robomimic_writer import RobomimicWriter, Simulation
from envs.data.split import is_held_out
from envs.data.store import EpisodeError
from tests.envs.data.formats.test_lerobot import require_equal
from tests.robots import ARM, HANDS, UNEVEN, made_up
from tests.viewed import viewed


def write(path: Path, *episodes, **settings) -> Path:
    writer = RobomimicWriter(path, **settings)
    with writer.claimed():
        for i, episode in enumerate(episodes):
            if str(i) not in writer.names():
                writer.write(episode, str(i))
    return path


def theirs(path: Path, demos: int = 11, rows: int = 6, next_obs: bool = True, arms: int = 1, **kwargs) -> Path:
    """A file as robomimic's own scripts leave it: robosuite's Lift, or with two arms, drawn by two cameras."""
    rng = np.random.default_rng(0)
    robots = ["Panda"] * arms
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({
            "env_name": "Lift", "env_version": "1.5.1", "type": 1,
            "env_kwargs": {"robots": robots, "control_freq": 20, "reward_shaping": False, **kwargs},
        })  # fmt: skip
        data.attrs["total"] = demos * rows
        for i in range(demos):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = rows, "<mujoco/>"
            actions = rng.uniform(-1, 1, (rows, 7 * arms))
            actions[:, 6::7] = np.where(np.arange(rows) < 3, -1, 1)[:, None]
            demo["actions"], demo["states"] = actions, rng.normal(size=(rows, 32))
            demo["rewards"], demo["dones"] = (np.arange(rows) == rows - 1) * 1.0, np.arange(rows) == rows - 1
            for key in ("obs", "next_obs") if next_obs else ("obs",):
                shift = key == "next_obs"
                obs = demo.create_group(key)
                obs["agentview_image"] = np.full((rows, 16, 24, 3), 10 * i % 250, np.uint8) + np.arange(
                    shift, rows + shift, dtype=np.uint8)[:, None, None, None]  # fmt: skip
                obs["robot0_eye_in_hand_image"] = np.zeros((rows, 8, 8, 3), np.uint8)
                obs["agentview_depth"] = np.zeros((rows, 16, 24, 1), np.float32)
                obs["robot0_eef_pos"] = np.arange(shift, rows + shift)[:, None] * np.ones((1, 3))
                obs["robot0_gripper_qpos"], obs["object"] = np.zeros((rows, 2)), np.ones((rows, 10))
        file["mask/train"] = np.array([f"demo_{i}" for i in range(demos) if i != 3], dtype="S")
        file["mask/valid"] = np.array(["demo_3"], dtype="S")
    return path


def test_what_is_written_comes_back(tmp_path):
    """Catches a field that is lost, and an action whose range is not undone."""
    episodes = [replace(made_up(HANDS, 1, steps=5, expert=True, instruction="gö"), sim_state=np.ones((6, 3))),
                made_up(HANDS, 2, steps=3)]  # fmt: skip
    found = open_episodes(write(tmp_path / "a b.hdf5", *episodes))
    assert found.names() == ["0", "1"]
    for ours, other in zip(found, episodes, strict=True):
        require_equal(ours, other)
    require_equal(open_episodes(write(tmp_path / "v.hdf5", viewed(1))).read("0"), viewed(1))
    require_equal(open_episodes(write(tmp_path / "arm.hdf5", made_up(ARM, 0))).read("0"), made_up(ARM, 0))
    with pytest.raises(ValueError, match="different robots"):
        write(tmp_path / "v.hdf5", viewed(1), made_up(ARM, 0))


@pytest.mark.parametrize("spec", [ARM, HANDS, UNEVEN])
def test_actions_and_grippers_are_converted(spec):
    """Catches a jaw that closes where it should open, and actions that robomimic refuses as not normalized."""
    action = made_up(spec, 0, steps=6).action
    normal = to_normalized(action, spec)
    assert np.abs(normal).max() <= 1 + 1e-6
    low, high = spec.action_low, spec.action_high
    np.testing.assert_allclose(to_normalized(np.stack([low, high]), spec), [[-1] * len(low), [1] * len(low)], atol=1e-6)
    assert (to_normalized(spec.rest, spec)[list(spec.grippers)] == -1).all(), "at rest a gripper is open"
    np.testing.assert_array_equal(from_normalized(normal, spec), action)


def test_robomimics_own_is_read(tmp_path):
    """Catches demo_10 before demo_2, what no robot senses in its state, a gripper that is not one, the last frame."""
    found = open_episodes(theirs(tmp_path / "lift.hdf5"))
    spec = found.spec
    assert found.names() == [f"demo_{i}" for i in range(11)] and spec.control_hz == 20
    assert [(c.name, c.height, c.width) for c in spec.cameras] == [("agentview", 16, 24), ("robot0_eye_in_hand", 8, 8)]
    assert [p.name for p in spec.state] == [f"robot0_eef_pos.{a}" for a in "xyz"] + [
        "robot0_gripper_qpos.0", "robot0_gripper_qpos.1"]  # fmt: skip
    assert spec.positions == ((0, 1, 2),) and spec.grippers == (6,) and spec.action[0].name == "dx"
    episode = found.read("demo_2")
    assert len(episode) == 6 and episode.seed == 2 and episode.instruction == "Lift" and episode.success[-1]
    assert not episode.success[:-1].any() and episode.images["agentview"][:, 0, 0, 0].tolist() == list(range(20, 27))
    assert episode.state[:, 0].tolist() == list(range(7)) and np.isnan(episode.expert).all()
    assert found.split(2) == ([n for n in found.names() if n != "demo_3"], ["demo_3"])


def test_without_what_followed_the_last_action_is_left_out(tmp_path):
    """Catches an observation that is invented."""
    episode = open_episodes(theirs(tmp_path / "a.hdf5", next_obs=False)).read("demo_0")
    assert len(episode) == 5 and len(episode.state) == 6 and episode.sim_state.shape == (6, 32)
    assert not episode.success.any()


def test_two_arms_have_two_grippers_and_others_none(tmp_path):
    """Catches a convention that is assumed where the file does not say whose it is."""
    assert open_episodes(theirs(tmp_path / "two.hdf5", arms=2)).spec.grippers == (6, 13)
    path = theirs(tmp_path / "other.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "x", "type": 2, "env_kwargs": {"control_freq": 10}})
    assert open_episodes(path).spec.grippers == () and open_episodes(path).spec.control_hz == 10


def test_masks_are_this_projects_split(tmp_path):
    """Catches a mask that says otherwise than what a training holds out."""
    path = write(tmp_path / "a.hdf5", *(made_up(ARM, seed, steps=3) for seed in range(30)))
    with h5py.File(path) as file:
        valid = {text.decode() for text in file["mask/valid"][:]}
        assert valid == {f"demo_{seed}" for seed in range(30) if is_held_out(seed, 10)} and valid
        assert set(file["mask/train"][:].astype(str)) == {f"demo_{i}" for i in range(30)} - valid
        assert file["data"].attrs["total"] == 90 and file["data/demo_0/actions"].dtype == np.float64
    assert sorted(open_episodes(path).split(10)[1]) == sorted(key.removeprefix("demo_") for key in valid)


def test_the_simulator_is_kept_where_it_is_known(tmp_path):
    """Catches a file from which robomimic could draw nothing."""
    args = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
    known = Simulation(args, "<mujoco/>", np.ones((4, 9)))
    path = write(tmp_path / "a.hdf5", made_up(HANDS, 0, steps=3), simulation=lambda episode: known)
    with h5py.File(path) as file:
        assert file["data/demo_0"].attrs["model_file"] == "<mujoco/>" and file["data/demo_0/states"].shape == (3, 9)
        assert json.loads(file["data"].attrs["env_args"])["type"] == 1


def test_a_stop_leaves_the_old_file_or_none(tmp_path):
    """Catches half a file, which HDF5 cannot open."""
    path = tmp_path / "a.hdf5"
    writer = RobomimicWriter(path)
    with pytest.raises(KeyboardInterrupt), writer.claimed():
        writer.write(made_up(ARM, 0, steps=3), "0")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    before = write(path, made_up(ARM, 0, steps=3)).read_bytes()
    writer = RobomimicWriter(path)
    with pytest.raises(KeyboardInterrupt), writer.claimed():
        writer.write(made_up(ARM, 1, steps=3), "1")
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write(path, made_up(ARM, 0, steps=3), made_up(ARM, 1, steps=3))
    assert RobomimicFile(path).names() == ["0", "1"]


def test_content_is_told(tmp_path):
    """Catches a changed episode that goes unnoticed."""
    path = theirs(tmp_path / "a.hdf5")
    before = open_episodes(path).digests()
    with h5py.File(path, "a") as file:
        file["data/demo_4/actions"][0, 0] = 0.25
    after = open_episodes(path).digests()
    assert {name for name in before if before[name] != after[name]} == {"demo_4"}


def change(path: Path, how: str) -> None:
    with h5py.File(path, "a") as file:
        demo = file["data/demo_1"]
        if how in ("actions", "obs"):
            del demo[how]
        elif how == "texts":
            del demo["actions"]
            demo["actions"] = np.array([b"a"] * 6)
        elif how == "fewer":
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = np.zeros((4, 16, 24, 3), np.uint8)
        elif how == "other size":
            for key in ("obs", "next_obs"):
                del demo[f"{key}/agentview_image"]
                demo[f"{key}/agentview_image"] = np.zeros((6, 8, 24, 3), np.uint8)
        elif how == "samples":
            demo.attrs["num_samples"] = 5
        elif how == "nan":
            demo["obs/robot0_eef_pos"][2] = np.nan
        elif how == "args":
            file["data"].attrs["env_args"] = "{"
        elif how == "hz":
            file["data"].attrs["env_args"] = json.dumps({"env_name": "x", "type": 2, "env_kwargs": {}})


@pytest.mark.parametrize("how, why", [
    ("actions", "demo_1 has no data set `actions`"), ("obs", "demo_1 has no group `obs`"),
    ("texts", "demo_1/actions is of type .*not of numbers"), ("fewer", "obs/agentview_image has 4 rows"),
    ("other size", "demo_1 is not sound: image `agentview` must be"), ("samples", "`num_samples` is 5"),
    ("nan", "demo_1 is not sound: .*not finite"), ("args", "`env_args` of `data` is no JSON"),
    ("hz", "`env_kwargs.control_freq` is None"),
])  # fmt: skip
def test_bad_input_is_named(tmp_path, how, why):
    """Catches what is wrong in a file being taken for data, or told in ten lines of somebody else's."""
    path = theirs(tmp_path / "lift.hdf5", demos=3)
    change(path, how)
    with pytest.raises(EpisodeError, match=why) as error:
        open_episodes(path).read("demo_1")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["empty", "cut", "text", "several", "none of theirs"])
def test_a_file_that_is_none_is_named(tmp_path, how):
    """Catches a file that is cut off being read as a shorter one."""
    path = theirs(tmp_path / "lift.hdf5", demos=2)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}.get(how, content))
    if how == "several":
        theirs(tmp_path / "other.h5")
    if how == "none of theirs":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["x"] = 1
    with pytest.raises(EpisodeError, match="lift.hdf5") as error:
        open_episodes(tmp_path).read("demo_0")
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found(tmp_path):
    """Catches a picture or a number that changed on the disk."""
    path = write(tmp_path / "a.hdf5", made_up(ARM, 0, steps=3))
    with h5py.File(path) as file:
        places = [file[f"data/demo_0/{key}"].id.get_chunk_info(0).byte_offset for key in ("actions", "obs/side_image")]
    content = path.read_bytes()
    for place in places:
        path.write_bytes(content[: place + 8] + bytes([content[place + 8] ^ 4]) + content[place + 9 :])
        with pytest.raises(EpisodeError, match="demo_0/.* is damaged"):
            open_episodes(path).read("0")
