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
from envs.data.camera import Camera
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode
from world_model import train_tokenizer as verb
from world_model.tokens.images import FrameConfig, FrameTokenizer

STEPS = 12


def painted(seed: int) -> Episode:
    """13 frames of a square cube that slides, on a table whose tint differs between episodes."""
    rng = np.random.default_rng(seed)
    table = (rng.uniform(100, 160, 3) + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8)
    main, keypoints = np.stack([table] * (STEPS + 1)), np.full((STEPS + 1, 4, 3), np.nan, np.float32)
    for step in range(STEPS + 1):
        keypoints[step, 0] = 0.0, -0.05 + 0.008 * step, 0.82
        row, column = Camera().project(keypoints[step, 0]).round().astype(int)
        main[step, row - 2 : row + 3, column - 2 : column + 3] = 210, 40, 30
    return Episode(
        main=main, wrist=main[:, 16:48, 16:48].copy(), state=np.zeros((STEPS + 1, 7), np.float32),
        action=np.zeros((STEPS, 7), np.float32), expert=np.zeros((STEPS, 7), np.float32),
        reward=np.zeros(STEPS, np.float32), success=np.zeros(STEPS + 1, bool),
        progress=np.zeros(STEPS + 1, np.float32), keypoints=keypoints, held=np.full(STEPS + 1, -1, np.int8),
        subtask=np.zeros(STEPS, np.int16), subtask_names=("wait",), instruction="lift the cube",
        env_id="painted", seed=seed,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> verb.TrainConfig:
    store = EpisodeStore(tmp_path / "data")
    for seed in range(5):
        store.write(painted(seed), f"{seed:03d}")
    return verb.TrainConfig(
        data=(str(tmp_path / "data"),), out=str(tmp_path / "out"),
        tokenizer=FrameConfig(levels=(5, 4, 4), width=16, encoder_blocks=1, decoder_blocks=1), augment=Augmentation(),
        steps=8, batch=4, learning_rate=3e-3, warmup=2, frames_per_episode=6, held_out=5, motion_weight=3.0,
        object_weight=6.0, object_radius=4.5, measured_episodes=2,
        checkpoint_seconds=0.0, seed=0, threads=1,
        precision="fp32", device="auto", wandb="disabled",
    )  # fmt: skip


def test_it_learns_and_writes_what_it_promises(config: verb.TrainConfig):
    """Catches a training that does not train, and outputs that cannot be loaded again."""
    config = replace(config, steps=150, checkpoint_seconds=60.0)
    report = verb.run(config)
    out = Path(config.out)
    figures = report["figures"]["painted"]
    # the best single colour a patch reaches about 21 dB here; untrained it is under 10
    assert figures["psnr"] > 18 and figures["still_kept"] > 0.9 and figures["cube_lost_frames"] > 0
    assert json.loads((out / "report.json").read_text())["figures"] == report["figures"]
    assert (out / "reconstruction.png").stat().st_size > 1000
    assert FrameTokenizer.load(out).config == config.tokenizer
    verb.print_table(report)


def test_resuming_equals_never_having_stopped(config: verb.TrainConfig, tmp_path: Path):
    """Catches lost optimizer state or another order of the data after an interruption."""
    episodes, _ = verb.split_episodes(config)
    frames = verb.load_frames(config, episodes)

    def trained(where: str, stop_after: tuple[int, ...]) -> dict[str, torch.Tensor]:
        here = replace(config, out=str(tmp_path / where))
        Path(here.out).mkdir()
        for limit in stop_after:
            torch.manual_seed(limit)  # whatever a new process starts from must not matter
            tokenizer = FrameTokenizer(config.tokenizer)
            if where == "whole" or limit == stop_after[0]:
                torch.manual_seed(0)
                tokenizer = FrameTokenizer(config.tokenizer)
            for done, _ in verb.train(here, tokenizer, frames, torch.float32):
                if done == limit:
                    break
        return tokenizer.state_dict()

    whole, stopped = trained("whole", (8,)), trained("stopped", (3, 5, 8))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_other_settings_and_damage_are_refused(config: verb.TrainConfig):
    """Catches weights of one training going on under the settings of another."""
    verb.run(replace(config, steps=2))
    with pytest.raises(ValueError, match="other settings"):
        verb.run(replace(config, steps=2, learning_rate=1.0))
    progress = Path(config.out) / verb.PROGRESS
    progress.write_bytes(progress.read_bytes()[:-100])
    with pytest.raises(ValueError, match="training.safetensors is damaged"):
        verb.run(replace(config, steps=2))


def test_no_episodes_is_said_plainly(config: verb.TrainConfig, tmp_path: Path):
    """Catches a stack trace where the user only forgot to collect."""
    with pytest.raises(EpisodeError, match="agent.collect"):
        verb.run(replace(config, data=(str(tmp_path / "nothing"),)))


def test_held_out_episodes_are_not_trained_on(config: verb.TrainConfig):
    """Catches figures measured on frames that were learnt by heart."""
    train, held_out = verb.split_episodes(config)
    assert [name for _, name in held_out] == ["000"] and len(train) == 4
    assert not {name for _, name in train} & {name for _, name in held_out}


def test_weights_rest_on_what_moves_and_on_keypoints(config: verb.TrainConfig):
    """Catches a weight map that is transposed against the picture."""
    frames = torch.zeros(1, 64, 64, 3)
    mean = frames.clone()
    frames[0, 40, 5] = 1
    weight = verb.pixel_weights(config, frames, mean, torch.tensor([[[10.0, 50.0]]]))
    assert weight.mean().item() == pytest.approx(1, abs=1e-4)
    plain = weight[0, 0, 0]
    assert weight[0, 40, 5] == pytest.approx(4 * plain) and weight[0, 10, 50] == pytest.approx(7 * plain)
    assert weight[0, 50, 10] == plain == weight[0, 5, 40]


def test_the_command_line_reads_its_config(tmp_path: Path):
    """Catches a config file whose names have drifted from the dataclass, and a traceback shown to a user."""
    command = [sys.executable, "-m", "world_model.train_tokenizer", f"out={tmp_path}/out", f"data=[{tmp_path}/none]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "agent.collect" in done.stderr and "Traceback" not in done.stderr
