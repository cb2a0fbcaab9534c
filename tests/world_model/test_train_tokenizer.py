"""A few seconds of training on painted episodes: a square that slides over a speckled table."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.data.augmentation import Augmentation
from envs.data.camera import CameraPose, project
from envs.data.split import is_held_out
from envs.data.store import EpisodeError, EpisodeStore
from envs.sim.table import SPEC, TABLE_HEIGHT
from envs.types import Episode
from tests.robots import ARM, HANDS, made_up
from tests.viewed import viewed
from world_model import train_tokenizer as command
from world_model.tokens.images import ImageTokenizer
from world_model.training.sources import open_sources

STEPS = 12
POSE = CameraPose((0.50, 0.0, 1.42), (0.03, 0.0, 0.83), 38.0)
AUGMENT = Augmentation(shift=0.04, poses={"main": POSE}, attached=("wrist",), ground=TABLE_HEIGHT)
SEEDS = range(6)
HELD = [seed for seed in SEEDS if is_held_out(seed, 3)]
NOTHING = {"settings": {}, "files": {}, "folders": []}


def painted(seed: int) -> Episode:
    """13 frames of a square cube that slides, on a table whose tint differs between episodes."""
    rng = np.random.default_rng(seed)
    table = (rng.uniform(100, 160, 3) + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8)
    main, keypoints = np.stack([table] * (STEPS + 1)), np.full((STEPS + 1, 4, 3), np.nan, np.float32)
    for step in range(STEPS + 1):
        keypoints[step, 0] = 0.0, -0.05 + 0.008 * step, 0.82
        row, column = project(POSE.pose, keypoints[step, :1], 64, 64)[0].round().astype(int)
        main[step, row - 2 : row + 3, column - 2 : column + 3] = 210, 40, 30
    return Episode(
        images={"main": main, "wrist": main[:, 16:48, 16:48].copy()}, state=np.zeros((STEPS + 1, 7), np.float32),
        action=np.zeros((STEPS, 7), np.float32), expert=np.zeros((STEPS, 7), np.float32),
        reward=np.zeros(STEPS, np.float32), success=np.zeros(STEPS + 1, bool),
        progress=np.zeros(STEPS + 1, np.float32), keypoints=keypoints, held=np.full(STEPS + 1, -1, np.int8),
        subtask=np.zeros(STEPS, np.int16), subtask_names=("wait",), instruction="lift the cube",
        env_id="painted", seed=seed, spec=SPEC,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> command.TrainConfig:
    store = EpisodeStore(tmp_path / "data")
    for seed in SEEDS:
        store.write(painted(seed), f"{seed:03d}")
    return command.TrainConfig(
        data=(str(tmp_path / "data"),), start=None, out=str(tmp_path / "out"),
        tokenizer=command.TokenizerSettings((5, 4, 4), 16, 1, 1), augment=AUGMENT,
        steps=8, batch=4, learning_rate=3e-3, warmup=2, frames_per_episode=6, frames_per_view=0, held_out=3,
        motion_weight=3.0, object_weight=6.0, object_radius=4.5, measured_episodes=2,
        checkpoint_seconds=0.0, seed=0, threads=1,
        precision="fp32", device="auto", wandb="disabled",
    )  # fmt: skip


def test_it_learns_and_writes_what_it_promises(config: command.TrainConfig):
    """Catches a training that does not train, and outputs that cannot be loaded again."""
    config = replace(config, steps=150, checkpoint_seconds=60.0)
    report = command.run(config)
    out = Path(config.out)
    figures = report["figures"]["painted"]
    # the best single colour a patch reaches about 21 dB here; untrained it is under 10
    assert figures["main_psnr"] > 18 and figures["main_still_kept"] > 0.9 and figures["main_object_lost_images"] > 0
    assert json.loads((out / "report.json").read_text())["figures"] == report["figures"]
    assert (out / "reconstruction.png").stat().st_size > 1000
    loaded = ImageTokenizer.load(out).config
    assert loaded.cameras == SPEC.cameras and (loaded.levels, loaded.width) == ((5, 4, 4), 16)
    shown = command.table(report["figures"], AUGMENT.attached).splitlines()
    lines = {line.split()[0]: line for line in shown if line.startswith("  ")}
    assert "MISSED" in lines["main_psnr"] and "kept" in lines["main_object_lost"] + lines["main_still_kept"]
    assert "bound" not in lines["wrist_still_kept"], "a camera that moves with the hand"
    assert report["episodes"] == {"train": len(SEEDS) - len(HELD), "held_out": len(HELD)}


def test_resuming_equals_never_having_stopped(config: command.TrainConfig, tmp_path: Path):
    """Catches lost optimizer state or another order of the data after an interruption."""
    frames = command.load_frames(config, open_sources({"data": config.data}, config.held_out))

    def fresh() -> ImageTokenizer:
        return ImageTokenizer(command.ImageConfig(SPEC.cameras, (5, 4, 4), 16, 1, 1))

    def trained(where: str, stop_after: tuple[int, ...]) -> dict[str, torch.Tensor]:
        here = replace(config, out=str(tmp_path / where))
        Path(here.out).mkdir()
        for limit in stop_after:
            torch.manual_seed(limit)  # whatever a new process starts from must not matter
            tokenizer = fresh()
            if where == "whole" or limit == stop_after[0]:
                torch.manual_seed(0)
                tokenizer = fresh()
            for done, _ in command.train(here, tokenizer, frames, torch.float32, NOTHING):
                if done == limit:
                    break
        return tokenizer.state_dict()

    whole, stopped = trained("whole", (8,)), trained("stopped", (3, 5, 8))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_other_settings_and_damage_are_refused(config: command.TrainConfig, tmp_path: Path):
    """Catches weights of one training going on under the settings or with the data of another."""
    command.run(replace(config, steps=2))
    with pytest.raises(ValueError, match="`learning_rate` was 0.003 and is 1.0.*Choose another `out`"):
        command.run(replace(config, steps=2, learning_rate=1.0))
    added = EpisodeStore(tmp_path / "data").write(painted(40), "040")
    with pytest.raises(ValueError, match=r"data: 1 episode \(040\) added"):
        command.run(replace(config, steps=2))
    added.unlink()
    progress = Path(config.out) / command.PROGRESS
    progress.write_bytes(progress.read_bytes()[:-100])
    with pytest.raises(ValueError, match="training.safetensors is damaged"):
        command.run(replace(config, steps=2))


def test_going_on_from_a_tokenizer(config: command.TrainConfig, tmp_path: Path):
    """Catches a `start` that is not taken, whose replacement is not noticed, or whose network is another."""
    command.run(config)
    first = ImageTokenizer.load(config.out)
    on = replace(config, start=config.out, out=str(tmp_path / "on"), steps=1, warmup=0, learning_rate=1e-9)
    command.run(on)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(first.parameters(), ImageTokenizer.load(on.out).parameters(), strict=True)
    )
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    first.save(config.out)
    with pytest.raises(ValueError, match="what `start` names is not what it was"):
        command.run(on)
    with pytest.raises(ValueError, match="are read by"):
        command.run(replace(on, out=str(tmp_path / "other"), tokenizer=replace(config.tokenizer, width=32)))


def test_data_that_are_not_there_are_named(config: command.TrainConfig, tmp_path: Path):
    """Catches a stack trace where the user only forgot to collect, and one of several folders being skipped."""
    with pytest.raises(EpisodeError, match="nothing .*agent.collect"):
        command.run(replace(config, data=(*config.data, str(tmp_path / "nothing"))))


def test_few_seeds(config: command.TrainConfig, tmp_path: Path, capsys):
    """Catches a traceback where no episode is held out, and `no two episodes` where all are of one seed."""
    for folder, seed in (("held", HELD[0]), ("kept", 1)):
        for i in range(3):
            EpisodeStore(tmp_path / folder).write(painted(seed), f"{i}")
    with pytest.raises(EpisodeError, match="all 3 episodes"):
        command.run(replace(config, data=(str(tmp_path / "held"),)))
    report = command.run(replace(config, data=(str(tmp_path / "kept"),), steps=1))
    assert report["figures"] == {} and "none of the 3 episodes is held out" in capsys.readouterr().err
    ImageTokenizer.load(config.out)


@pytest.mark.parametrize("spec", [ARM, HANDS])
def test_any_cameras(config: command.TrainConfig, tmp_path: Path, spec):
    """Catches a camera or a size that is taken for granted, and two robots in one training."""
    store = EpisodeStore(tmp_path / "other")
    for seed in SEEDS:
        store.write(made_up(spec, seed, steps=12), f"{seed}")
    report = command.run(replace(config, data=(str(store.root),), steps=2))
    assert {f"{camera.name}_psnr" for camera in spec.cameras} <= report["figures"]["made-up"].keys()
    assert ImageTokenizer.load(config.out).config.cameras == spec.cameras
    assert (Path(config.out) / "reconstruction.png").stat().st_size > 100
    with pytest.raises(ValueError, match="different robots"):
        command.run(replace(config, data=(str(store.root), *config.data)))


def test_held_out_episodes_are_not_trained_on(config: command.TrainConfig):
    """Catches figures measured on images that were learnt by heart."""
    found = open_sources({"data": config.data}, config.held_out)
    frames = command.load_frames(config, found)
    assert [name for _, name in command.held_out_names(found)] == [f"{seed:03d}" for seed in HELD]
    first = {seed: painted(seed).images["main"][:, 0, 0].astype(int).mean(0) for seed in SEEDS}
    seen = frames.images["main"][:, 0, 0].numpy().astype(int)  # a corner that nothing covers tells the episode
    assert {seed for seed in SEEDS if (seen == first[seed]).all(1).any()} == set(SEEDS) - set(HELD)


def test_weights_rest_on_what_moves_and_on_keypoints(config: command.TrainConfig):
    """Catches a weight map that is transposed against the picture."""
    images = torch.zeros(1, 64, 96, 3)
    mean = images.clone()
    images[0, 40, 5] = 1
    weight = command.pixel_weights(config, images, mean, torch.tensor([[[10.0, 50.0]]]))
    assert weight.mean().item() == pytest.approx(1, abs=1e-4)
    plain = weight[0, 0, 0]
    assert weight[0, 40, 5] == pytest.approx(4 * plain) and weight[0, 10, 50] == pytest.approx(7 * plain)
    assert weight[0, 50, 10] == plain == weight[0, 5, 40]


def test_keypoints_count_where_the_pose_is_known(config: command.TrainConfig):
    """Catches keypoints that are looked for where they are not, and a NaN that reaches the loss."""
    change = AUGMENT.draw(2, torch.Generator().manual_seed(0))
    points = torch.full((2, 4, 3), torch.nan)
    points[:, 0] = torch.tensor([0.03, 0.0, 0.83])
    main, wrist = (command.keypoint_places(AUGMENT, camera, change, points) for camera in SPEC.cameras)
    assert wrist.shape == (2, 0, 2) and main.shape == (2, 4, 2) and torch.isfinite(main).all()
    expected = project(POSE.pose, change.points(points)[:, 0].numpy(), 64, 64)
    np.testing.assert_allclose(main[:, 0].numpy(), expected, atol=1e-3)
    assert (main[:, 1:] < -100).all()


def test_views_are_read_in_the_place_of_their_camera(config: command.TrainConfig, tmp_path: Path):
    """Catches views that the tokenizer never sees, that are compared with another place's mean, or whose keypoints are
    looked for where another camera sees them."""
    store = EpisodeStore(tmp_path / "viewed")
    for seed in range(2):
        store.write(viewed(seed), f"episode-{seed}")
    config = replace(config, frames_per_episode=5, frames_per_view=3, data=(str(store.root),))
    found = open_sources({"data": config.data})
    frames = command.load_frames(config, found)
    assert len(frames) == 2 * (5 + 2 * 3) and len(frames.means["front"]) == 2 * 3
    own, left, top = (frames.episode == number for number in range(3))
    first = viewed(0)
    for rows, images, name in ((own, first.images["front"], "front"), (top, first.views["top"], "top")):
        assert (frames.images["front"][rows] == torch.from_numpy(images[:1])).all()
        np.testing.assert_array_equal(frames.poses["front"][rows.numpy()][0], first.poses[name][0])
    assert torch.equal(frames.means["hand"][0], frames.means["hand"][2]) and left.sum() == 3
    augment = replace(AUGMENT, shift=0.0, poses={"front": POSE})
    change = augment.draw(3, torch.Generator().manual_seed(0))
    places = command.keypoint_places(
        augment, first.spec.cameras[0], change, frames.keypoints[top], frames.poses["front"][top.numpy()]
    )
    bright = np.argwhere(frames.images["front"][top][0, ..., 0].numpy() > 150).mean(0)
    np.testing.assert_allclose(places[0, 0].numpy(), bright, atol=1.0)
    assert len(command.load_frames(replace(config, frames_per_view=0), found)) == 2 * 5


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"held_out": 1}, {"learning_rate": 0.0}, {"object_radius": -1.0}])
def test_wrong_settings_fail_at_once(config: command.TrainConfig, wrong):
    """Catches a setting that fails after the last step."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(config, **wrong)


def test_the_command_line_reads_its_config(tmp_path: Path):
    """Catches a config file whose names have drifted from the dataclass, and a traceback shown to a user."""
    command = [sys.executable, "-m", "world_model.train_tokenizer", f"out={tmp_path}/out", f"data=[{tmp_path}/none]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "agent.collect" in done.stderr and "Traceback" not in done.stderr
