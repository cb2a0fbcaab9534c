"""The command on made-up episodes with a model that was hardly trained: what it prints cannot be good, but must be
true."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agent import views
from agent.launch.command import RunError
from agent.views import ViewsConfig
from envs.data.settings import from_settings
from envs.data.split import is_held_out
from envs.data.store import EpisodeStore
from tests.viewed import ROBOT, viewed
from world_model import checkpoint
from world_model.metrics.images import psnr
from world_model.metrics.views import Nearest, draw_views, summarize
from world_model.model import ModelConfig, WorldModel
from world_model.nn.transformer import TransformerConfig
from world_model.tokens.actions import ActionTokenizer
from world_model.tokens.images import ImageConfig, ImageTokenizer
from world_model.tokens.poses import fit_poses
from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Vocab

ROOT = Path(__file__).parents[2]
PUSH = "push the block"
SEEDS = range(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`data`, four episodes; `checkpoint`, of an untrained model that says it was taught views; `mute`, one that was
    not."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("views")
    episodes = [viewed(seed, instruction=PUSH) for seed in SEEDS]
    store = EpisodeStore(root / "data")
    for episode in episodes:
        store.write(episode, f"episode-{episode.seed}")
    text = TextTokenizer.train([PUSH])
    frames = ImageTokenizer(ImageConfig(ROBOT.cameras, (5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)).eval()
    vocab = Vocab.native(text.size, frames.vision_size, len(ROBOT.cameras))
    sizes = ModelConfig(TransformerConfig(width=48, num_layers=1, num_heads=4, num_kv_heads=2, hidden=96))
    actions = ActionTokenizer.create(ROBOT, (3, 3))
    model = WorldModel(sizes, ROBOT, vocab, frames, actions, fit_poses(ROBOT.cameras, episodes))
    meta = {"instructions": [PUSH], "discount": 0.9}
    checkpoint.save(root / "checkpoint", model, text.within(vocab.text), {**meta, "views": ["left", "top"]})
    checkpoint.save(root / "mute", model, text.within(vocab.text), meta)
    return root


def config(folder: Path, **other) -> ViewsConfig:
    raw = {
        "checkpoint": str(folder / "checkpoint"), "data": [str(folder / "data")], "train": [], "held_out": None,
        "episodes": 20, "moments": 3, "recalled": 100, "rows": 2, "out": "nowhere", "device": "cpu",
    }  # fmt: skip
    return from_settings(ViewsConfig, {**raw, **other})


def test_the_whole_command(folder, tmp_path):
    """Catches a setting that the command does not take, a picture without its columns, and figures that JSON cannot
    hold."""
    held = [seed for seed in SEEDS if is_held_out(seed, 2)]
    assert 0 < len(held) < len(SEEDS)
    command = [
        sys.executable, "-m", "agent.views", f"checkpoint={folder / 'checkpoint'}", f"data={folder / 'data'}",
        f"train={folder / 'data'}", "held_out=2", "moments=3", "rows=2", f"out={tmp_path / 'out'}", "device=cpu",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "push the block, left" in ended.stdout and "nearest" in ended.stdout and "drawing" in ended.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["tasks"][PUSH]) == {"left", "top"} and report["camera"] == "front"
    figures = report["tasks"][PUSH]["top"]
    assert figures["moments"] == 3 * len(held) and figures["psnr_recalled_db"] <= figures["psnr_nearest_db"]
    assert {f"keypoint_{name}_cm" for name in ("given", "drawn", "true", "other")} <= figures.keys()
    picture = Image.open(tmp_path / "out" / "views.png")
    assert picture.size == (3 * (5 * 32 + 3 * 4), 3 * 2 * 34)


def test_figures_are_those_of_the_pictures(folder):
    """Catches a true picture of another step or view, and a baseline that looks at other pictures."""
    loaded = checkpoint.load(folder / "checkpoint", torch.device("cpu"))
    episode, steps = viewed(0, instruction=PUSH), np.array([0, 8, 24])
    left, top = draw_views(loaded.model, loaded.text, episode, steps)
    assert (left.view, top.view) == ("left", "top") and np.array_equal(top.true, episode.views["top"][steps])
    assert np.array_equal(top.given, episode.images["front"][steps]) and top.drawn.shape == top.true.shape
    assert top.errors["drawn"].shape == (3, 1) and not np.array_equal(top.errors["drawn"], top.errors["true"])
    assert np.array_equal(top.errors["given"], left.errors["given"])
    others = [viewed(1), viewed(2)]
    nearest = Nearest([left, top]).look(others, "front")
    assert nearest.found
    most = max(psnr(top.true[:1], frame[None])[0] for e in others for frame in e.views["top"])
    found = summarize([left, top], nearest, ROBOT.keypoints)[PUSH]["top"]
    assert psnr(top.true, nearest.nearest[1])[0] == pytest.approx(most)
    assert found["psnr_nearest_db"] == pytest.approx(psnr(top.true, nearest.nearest[1]).mean(), abs=1e-3)
    assert found["keypoint_true_cm"] == pytest.approx(100 * top.errors["true"].mean(), abs=1e-3)
    itself = Nearest([top]).look([episode], "front")
    assert np.array_equal(itself.nearest[0], top.true) and np.array_equal(itself.recalled[0], top.true)


def test_what_cannot_be_drawn_is_said(folder, tmp_path):
    """Catches noise that is reported as a drawing, and a traceback where one line would do."""
    loaded, mute = (checkpoint.load(folder / name, torch.device("cpu")) for name in ("checkpoint", "mute"))
    with pytest.raises(RunError, match="mute was taught no views: train it with `view_share`"):
        views.measure(config(folder, checkpoint=str(folder / "mute")), mute)
    plain = EpisodeStore(tmp_path / "plain")
    episode = viewed(0, instruction=PUSH)
    own = {name: episode.poses[name] for name in ("front", "hand")}
    plain.write(replace(episode, views={}, poses=own), "episode-0")
    with pytest.raises(ValueError, match="seed 0 has no view of the size of camera front.*agent.rerender"):
        views.measure(config(folder, data=[str(tmp_path / "plain")]), loaded)
    with pytest.raises(RunError, match="no frames of some of the views left, top"):
        views.measure(config(folder, train=[str(tmp_path / "plain")]), loaded)
    with pytest.raises(RunError, match="none of the 1 episodes in .*plain is"):
        views.measure(config(folder, data=[str(tmp_path / "plain")], held_out=1000), loaded)
    with pytest.raises(ValueError, match="its own baseline"):
        config(folder, train=[str(folder / "data")])
    with pytest.raises(ValueError, match="`data` must name"):
        config(folder, data=[])
