"""A tokenizer measured on episodes that no training may see."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.data.augmentation import Augmentation
from envs.data.store import EpisodeError, EpisodeStore
from tests.robots import ARM, made_up
from world_model import measure_tokenizer as command
from world_model.tokens.images import ImageConfig, ImageTokenizer, TokenizerError
from world_model.training.sources import open_sources


@pytest.fixture
def config(tmp_path: Path) -> command.MeasureConfig:
    store = EpisodeStore(tmp_path / "wild")
    for seed in range(3):
        store.write(replace(made_up(ARM, seed), split="wild"), f"{seed}")
    torch.manual_seed(0)
    ImageTokenizer(ImageConfig(ARM.cameras, (5, 4, 4), 16, 1, 1)).save(tmp_path / "tok")
    return command.MeasureConfig(
        data=(str(tmp_path / "wild"),), tokenizer=str(tmp_path / "tok"), out=str(tmp_path / "out"),
        augment=Augmentation(), episodes=2, threads=1, device="cpu",
    )  # fmt: skip


def test_figures_of_each_split(config: command.MeasureConfig, tmp_path: Path):
    """Catches frames of `wild` that cannot be measured because a training may not see them, figures of two splits in
    one row, and a report that does not say of which tokenizer it is."""
    with pytest.raises(ValueError, match="split=wild, which is for evaluation alone"):
        next(open_sources({"data": config.data})[0].each())
    EpisodeStore(tmp_path / "plain").write(made_up(ARM, 5), "5")
    report = command.run(replace(config, data=(*config.data, str(tmp_path / "plain"))))
    env = made_up(ARM, 5).env_id
    assert set(report["figures"]) == {env, f"{env}, wild"} and report["episodes"] == 3
    assert report["tokenizer"]["content"] == ImageTokenizer.load(config.tokenizer).content()
    assert json.loads((Path(config.out) / "report.json").read_text()) == report
    assert (Path(config.out) / "reconstruction.png").exists()
    camera = ARM.cameras[0].name
    assert any("MISSED" in line for line in command.table(report["figures"], ()).splitlines() if camera in line)


def test_what_is_not_there_is_named(config: command.MeasureConfig, tmp_path: Path):
    """Catches a traceback where a path is misspelt."""
    with pytest.raises(EpisodeError, match="nowhere"):
        command.run(replace(config, data=(str(tmp_path / "nowhere"),)))
    with pytest.raises(TokenizerError, match="train_tokenizer"):
        command.run(replace(config, tokenizer=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="`data` must name"):
        replace(config, data=())
