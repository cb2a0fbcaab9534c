"""Checkpoints: what is read is what was written, and whatever is wrong is named."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.types import Spec
from world_model import checkpoint
from world_model.checkpoint import CheckpointError
from world_model.training.start import continued

META = {"instructions": ["fold the cloth in half"], "figures": {"id_accuracy": [0.5]}}


@pytest.fixture
def words(world, text):
    return text.within(world.vocab.text)


@pytest.fixture
def folder(tmp_path, world, words):
    checkpoint.save(tmp_path / "kept", world, words, META)
    return tmp_path / "kept"


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree, as someone who edits a checkpoint by hand would."""
    import hashlib

    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_read_is_what_was_written(world, words, folder, cache, candidates):
    """Catches a weight, a tokenizer or a setting that does not survive."""
    loaded = checkpoint.load(folder)
    loaded.model.precision = torch.float32
    for (name, a), (other, b) in zip(world.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    assert loaded.vocab == world.vocab and loaded.actions == world.actions and loaded.meta == META
    assert loaded.spec == loaded.model.spec == world.spec
    assert loaded.text.encode("fold the cloth") == words.encode("fold the cloth")
    assert loaded.model.config == world.config and not loaded.model.training
    assert torch.equal(loaded.model.imagine(cache, candidates).value, world.imagine(cache, candidates).value)


def test_strides_are_kept(tmp_path, world, words):
    """Catches a model that forgets which model steps it was trained with."""
    model = continued(world, replace(world.config, strides=(1, 2)))
    checkpoint.save(tmp_path / "paced", model, words, {"instructions": []})
    assert checkpoint.load(tmp_path / "paced").model.config == model.config
    assert checkpoint.load(tmp_path / "paced").model.strides == (1, 2, 8)


def test_half_precision_keeps_the_frames_ids(tmp_path, world, words, make_episode):
    """Catches rounding the image tokenizer: its ids are what the model was trained on."""
    checkpoint.save(tmp_path / "half", world, words, META, dtype=torch.bfloat16)
    loaded = checkpoint.load(tmp_path / "half")
    main = torch.from_numpy(make_episode().images["main"])
    assert torch.equal(loaded.frames.encode(main), world.frame_tokenizer.encode(main))
    full = (tmp_path / "half" / "model.safetensors").stat().st_size
    assert full < 0.6 * 4 * sum(p.numel() for p in world.transformer.parameters()) + 60_000
    assert loaded.model.token_type_embed.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["model.safetensors", "frames.safetensors", "vocab.json", "text.json", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_the_file_named(folder, name, damage):
    """Catches a flipped bit that would only show in the results."""
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data if damage == "flip" else data[:-9])
    with pytest.raises(CheckpointError, match=f"{name}.*(copy|Copy) the checkpoint again"):
        checkpoint.load(folder)


def test_a_damaged_manifest_is_named(folder):
    """Catches a traceback from JSON where a message is due."""
    (folder / "manifest.json").write_text('{"format": 1')
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        checkpoint.load(folder)
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere"):
        checkpoint.load(folder.parent / "nowhere")


def test_another_vocabulary_is_refused(folder, world):
    """Catches ids that mean something else than in training."""
    other = type(world.vocab).native(world.vocab.text.size + 1, world.vocab.vision.size, 2)
    rewrite(folder, "vocab.json", other.to_json().encode())
    with pytest.raises(CheckpointError, match="another vocabulary"):
        checkpoint.load(folder)


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    rewrite(folder, "config.json", json.dumps(config).encode())


def test_files_of_different_robots_are_refused(folder):
    """Catches a checkpoint whose ids mean another camera, another state or other actions."""
    for change, named in (
        (lambda c: c["spec"]["cameras"].pop(), "the robot has 1"),
        (lambda c: c["spec"]["cameras"][0].update(height=32), "image tokenizer is of the cameras"),
        (lambda c: c["spec"]["state"].pop(), "size mismatch"),
        (lambda c: c["spec"]["action"].pop(), "codes ranges and grippers"),
        (lambda c: c["spec"]["state"][0].update(low=None), "finite range"),
    ):
        content = (folder / "config.json").read_bytes()
        edit_config(folder, change)
        with pytest.raises(CheckpointError, match=f"(?s)do not fit each other.*{named}"):
            checkpoint.load(folder)
        rewrite(folder, "config.json", content)
    edit_config(folder, lambda c: c.pop("spec"))
    with pytest.raises(CheckpointError, match="not one that this version reads.*spec"):
        checkpoint.load(folder)


def test_the_spec_on_disk_is_the_robots(folder, world):
    """Catches a spec that lost a range or a name on its way."""
    config = json.loads((folder / "config.json").read_text())
    assert Spec.from_dict(config["spec"]) == world.spec


def test_another_format_is_refused(folder):
    """Catches old weights read under new names."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="is of format 2, this version reads 3"):
        checkpoint.load(folder)


def test_json_is_strict(tmp_path, world, words):
    """Catches a bare NaN, which other readers of JSON refuse."""
    checkpoint.save(tmp_path / "kept", world, words, {**META, "figures": {"auc": float("nan"), "psnr": [30.0]}})
    content = (tmp_path / "kept" / "meta.json").read_text()

    def refuse(name: str):
        raise AssertionError(name)

    assert json.loads(content, parse_constant=refuse)["figures"] == {"auc": None, "psnr": [30.0]}


def test_weights_that_are_not_finite_are_refused(tmp_path, world, words):
    """Catches a diverged training being used."""
    with torch.no_grad():
        world.token_type_embed.weight[1, 0] = torch.nan
    checkpoint.save(tmp_path / "nan", world, words, META)
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.load(tmp_path / "nan")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, world, words, monkeypatch):
    """Catches a part of a checkpoint under its final name, and litter beside it."""

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="disk is full.*free some space"):
        checkpoint.save(tmp_path / "kept", world, words, META)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(folder, world, words):
    """Catches a shipped checkpoint replaced by accident."""
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(folder, world, words, META)


def test_replacing_leaves_the_old_one_until_the_new_one_stands(folder, world, words, monkeypatch):
    """Catches a finished checkpoint lost to a full disk while it was written again."""
    checkpoint.save(folder, world, words, {**META, "again": 1}, replace=True)
    assert checkpoint.load(folder).meta["again"] == 1

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="disk is full"):
            checkpoint.save(folder, world, words, {**META, "again": 2}, replace=True)
    assert checkpoint.load(folder).meta["again"] == 1
    assert [path.name for path in folder.parent.iterdir()] == ["kept"]


def test_last_moves_only_to_whole_folders_and_two_are_kept(tmp_path, world, words):
    """Catches a pointer to a folder that is not there, and a disk that fills."""
    assert checkpoint.last(tmp_path) is None
    for step in (1, 2, 3):
        folder = tmp_path / f"step-{step:07d}"
        checkpoint.save(folder, world, words, META, {"moment": torch.full((2,), float(step))})
        checkpoint.point(tmp_path, folder)
        assert checkpoint.last(tmp_path) == folder
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-0000002", "step-0000003"]
    assert checkpoint.load_training(checkpoint.last(tmp_path))["moment"].tolist() == [3, 3]
