"""Episodes in other formats, by the command; and a training on somebody else's data set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from agent.convert import ConvertConfig, convert, summary
from agent.launch.command import RunError
from envs.data.formats.folder import open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeError, EpisodeStore
from tests.foreign import write_v3
from tests.robots import HANDS, made_up
from world_model import train, train_tokenizer


@pytest.fixture
def native(tmp_path) -> EpisodeStore:
    store = EpisodeStore(tmp_path / "native")
    for seed in range(3):
        store.write(made_up(HANDS, seed, steps=8, instruction="go"), f"e{seed}")
    return store


def read_config(**settings) -> ConvertConfig:
    return from_settings(ConvertConfig, {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()})


@pytest.mark.parametrize("to, file", [("lerobot", "le"), ("robomimic", "data.hdf5")])
def test_there_and_back_is_the_same_to_the_byte(native, tmp_path, to, file):
    """Catches whatever a format cannot hold: an episode's file is a function of all its fields."""
    there = read_config(data=native.root, to=to, out=tmp_path / file, images="png")
    assert convert(there) == (3, []) and "left 16 x 16, right 24 x 16; 6 state and 4 action" in summary(there, 3)
    assert convert(read_config(data=tmp_path / file, to="native", out=tmp_path / "back")) == (3, [])
    for name in native.names():
        assert EpisodeStore(tmp_path / "back").path(name).read_bytes() == native.path(name).read_bytes()


def test_the_same_command_again_goes_on(native, tmp_path):
    """Catches an episode that is written twice, and one that is left out."""
    config = read_config(data=native.root, to="lerobot", out=tmp_path / "le")
    convert(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "le").rglob("*.parquet")}
    native.write(made_up(HANDS, 5, steps=8, instruction="come"), "e5")
    assert convert(config) == (4, [])
    kept = [path for path in before if path.name != "tasks.parquet"]
    assert kept and all(path.stat().st_mtime_ns == before[path] for path in kept)
    assert [e.instruction for e in open_episodes(tmp_path / "le")] == ["go", "go", "go", "come"]


def test_what_cannot_be_read_is_named_and_left_out_only_if_asked(native, tmp_path):
    """Catches a conversion that drops episodes in silence, and one that stops for ever at a damaged file."""
    native.path("e1").write_bytes(native.path("e1").read_bytes()[:-5])
    config = read_config(data=native.root, to="lerobot", out=tmp_path / "le")
    with pytest.raises(EpisodeError, match="e1.npz is damaged"):
        convert(config)
    count, unread = convert(replace(config, skip=True))
    assert count == 2 and len(unread) == 1 and "e1.npz" in unread[0]
    for name in native.names():
        native.path(name).write_bytes(b"")
    with pytest.raises(RunError, match="no episode in .* can be read"):
        convert(replace(config, out=str(tmp_path / "none"), skip=True))


def test_formats_do_not_mix_and_nothing_is_overwritten(native, tmp_path):
    """Catches a folder that holds two formats, of which only one would ever be read."""
    with pytest.raises(ValueError, match="never overwritten"):
        read_config(data=native.root, to="lerobot", out=native.root)
    write_v3(tmp_path / "theirs", (5, 5))
    for data, to, out in ((tmp_path / "theirs", "lerobot", native.root), (native.root, "native", tmp_path / "theirs")):
        with pytest.raises(ValueError, match="holds episodes of the format"):
            convert(read_config(data=data, to=to, out=out))
    for setting in ({"images": "gif"}, {"crf": 60}, {"to": "zarr"}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}"):
            read_config(**{"data": native.root, "to": "lerobot", "out": tmp_path / "x", **setting})


def test_demonstrations_are_advice(tmp_path):
    """Catches demonstrations of a person that a model learns from but does not imitate."""
    write_v3(tmp_path / "theirs", (5, 7))
    config = read_config(data=tmp_path / "theirs", to="native", out=tmp_path / "n", demonstrations=True)
    convert(config)
    for episode in EpisodeStore(config.out):
        np.testing.assert_array_equal(episode.expert, episode.action)


def test_a_missing_package_is_named_with_what_installs_it(native, tmp_path, monkeypatch):
    """Catches a traceback where an installation has no pyarrow."""
    write_v3(tmp_path / "theirs", (5,))
    monkeypatch.setattr("envs.data.formats.extras.importlib.util.find_spec", lambda name: None)
    for data, to in ((native.root, "lerobot"), (native.root, "robomimic"), (tmp_path / "theirs", "native")):
        with pytest.raises(EpisodeError, match=r"needs the package \w+: pip install 'nextstate\[formats\]'"):
            convert(read_config(data=data, to=to, out=tmp_path / "out"))


def test_training_on_somebody_elses_data(tmp_path):
    """Catches anything below the tasks that assumes a robot of ours: two arms of 14 actions at 50 Hz, two cameras that
    are no squares, no keypoints, no expert, read as it was recorded; and a held-out side that is not measured. That no
    training imports a simulator, tests/test_house.py says."""
    write_v3(tmp_path / "theirs", (24, 30, 26, 25, 28, 24))
    data, small = f"data={tmp_path / 'theirs'}", ["tokenizer.width=16", "tokenizer.encoder_blocks=1"]
    with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base=None):
        made = compose("train_tokenizer", [
            data, f"out={tmp_path / 'tok'}", "held_out=3", "steps=4", "batch=2", "tokenizer.decoder_blocks=1",
            "frames_per_episode=8", *small,
        ])  # fmt: skip
        taught = compose("train", [
            data, f"tokenizer={tmp_path / 'tok'}", f"out={tmp_path / 'model'}", "model=debug", "held_out=3", "steps=3",
            "batch=2", "window=2", "measured_windows=4", "precision=fp32",
        ])  # fmt: skip
    tokens = train_tokenizer.run(train_tokenizer.to_config(made))["figures"]
    figures = train.run(train.to_config(taught))
    assert set(tokens["aloha"]) >= {"cam_high_psnr", "cam_low_psnr"} and np.isfinite(figures["next_image_nats"])
    assert figures["windows"] and np.isfinite(figures["state_error"]).all()
    spec = json.loads((tmp_path / "model/checkpoint/config.json").read_text())["spec"]
    assert len(spec["action"]) == 14 and spec["control_hz"] == 50 and spec["cameras"][0]["width"] == 128
