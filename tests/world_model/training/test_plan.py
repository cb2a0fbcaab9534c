"""What a training would take, without taking it."""

import time

import torch

from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from tests.conftest import synthetic_episode
from tests.world_model.runs import read_config, save_tokenizer
from world_model import train
from world_model.training import plan
from world_model.training.preparation import meta_model


def test_a_dry_run_of_8_billion_parameters_allocates_none(tmp_path, monkeypatch):
    """Catches weights that are made only to be counted, episodes that are read without need, a table that leaves
    parameters out, and a plan in which devices hold less than the whole."""
    store = EpisodeStore(tmp_path / "data")
    for seed in range(3):
        store.write(synthetic_episode(seed, steps=24), f"episode-{seed}")
    save_tokenizer(tmp_path / "tok", SPEC.cameras)
    read, names = EpisodeStore.read, []
    monkeypatch.setattr(EpisodeStore, "read", lambda *given, **more: names.append(given[1]) or read(*given, **more))
    began = time.process_time()
    config = read_config(tmp_path, "model=8B", "dry_run=true", "precision=bf16")
    model, said = meta_model(config), train.dry_run(config)
    assert time.process_time() - began < 10 and names == ["episode-0"] * 2
    assert {p.device.type for p in model.parameters()} == {"meta"}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 7.6e9 < trained < 8.4e9 and f"{trained:,}" in said and "36 of 218.11 M" in said
    assert "transformer.layers.0 to 35" in said and "14336 x 4096       1792         224" in said
    one, eight = (plan.memory(model, train.by_optimizer, torch.bfloat16, devices) for devices in (1, 8))
    moments = one["Muon's momentum"] + one["AdamW's moments"]
    assert one["gradients"] == 4 * trained and "gathered" not in one and 4 * trained < moments < 4.1 * trained
    for name, size in one.items():
        assert size / 8 <= eight[name] < 1.01 * size / 8 + 1e6, name
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_of_a_new_model(tmp_path):
    """Catches a size that is told though the checkpoint to start from has another."""
    config = read_config(tmp_path, "start=somewhere", "dry_run=true")
    try:
        train.dry_run(config)
    except ValueError as error:
        assert "leave `start` out" in str(error)
    else:
        raise AssertionError("it told something")
