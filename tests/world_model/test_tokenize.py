"""Tokenized episodes: training from them equals training from memory, and a kill loses one shard at most."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from envs.data.augmentation import Augmentation
from envs.data.store import EpisodeError, EpisodeStore
from envs.sim.table import SPEC
from tests.robots import HANDS, made_up
from tests.viewed import ROBOT, viewed
from tests.world_model.runs import CONFIGS, SEEDS, go, read_config, save_tokenizer
from world_model import checkpoint, tokenize, train
from world_model.tokens.images import ImageTokenizer
from world_model.training.sides import open_folders

CPU = torch.device("cpu")
UNCHANGED = Augmentation(share=0.0)


def read(tmp_path: Path, *overrides: str) -> tokenize.TokenizeConfig:
    common = [f"data=[{tmp_path / 'data'}]", f"tokenizer={tmp_path / 'tok'}", f"out={tmp_path / 'ids'}", "held_out=2"]
    with initialize_config_dir(CONFIGS, version_base=None):
        return tokenize.to_config(compose("tokenize", [*common, *overrides]))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(a, b) -> None:
    """Two batches, to the bit."""
    for name, value in vars(a).items():
        torch.testing.assert_close(value, getattr(b, name), rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("extra", [(), ("strides=[1,2,4]", "hide_poses=0.5", "discount=0.9", "chunk=4")])
def test_unchanged_copies_train_as_memory_does(config, tmp_path, extra):
    """Catches windows, strides, weights, labels, a split or randomness that differ from the ordinary training, whatever
    the settings of the model."""
    settings = replace(read_config(tmp_path, *extra, "coefs=[4,4,4,2,2,2]"), augment=UNCHANGED)
    tokenize.run(replace(read(tmp_path, "copies=1", "shard_mib=0.001"), augment=UNCHANGED))
    assert len(list((tmp_path / "ids").glob("train-*"))) > 1
    onto = replace(settings, data=(str(tmp_path / "ids"),), out=str(tmp_path / "out2"))
    memory, disk = train.prepare(settings, CPU), train.prepare(onto, CPU)
    assert disk.about == memory.about and disk.notes == memory.notes
    assert disk.train.outside() == memory.train.outside()
    choice = settings.viewpoints.choose(5, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for side in ("train", "held_out"):
        ours, theirs = getattr(disk, side), getattr(memory, side)
        assert len(ours) == len(theirs) and ours.images == {}
        starts = np.r_[rng.integers(len(ours), size=4), len(ours) - 2]
        strides = rng.choice(memory.model.strides, (5, 3))
        same(ours.batch(starts, 3, None, strides, choice), theirs.batch(starts, 3, None, strides, choice))
    figures = train.run(settings)
    go(onto, steps=3)  # and is killed
    assert train.run(onto) == figures
    whole, again = (files(tmp_path / out / "checkpoint") for out in ("out", "out2"))
    told = {name for name in whole if whole[name] != again[name]}
    assert told == {"meta.json", "manifest.json"}, "nothing but their fingerprints differs"


def test_each_copy_tells_one_story(config, tmp_path, monkeypatch):
    """Catches images of one copy beside the state or under the light of another, a change within an episode, held-out
    episodes that are changed, and epochs that show one copy alone."""
    monkeypatch.setattr(tokenize, "IMAGES_AT_ONCE", 8)
    augment = replace(config.augment, share=1.0, noise=0.1, scale=0.3, patches=3, fade=0.8)
    tokenize.run(replace(read(tmp_path, "copies=3", "shard_mib=0.001"), augment=augment))
    settings = replace(config, augment=augment)
    memory = train.prepare(settings, CPU)
    disk = train.prepare(replace(settings, data=(str(tmp_path / "ids"),), out=str(tmp_path / "out2")), CPU)
    copies, start = disk.train.copies, 20
    spread = SPEC.state_high - SPEC.state_low
    for k in range(3):
        rng = torch.Generator().manual_seed(1)  # of the second episode, `seed` being 0
        unit = replace(SPEC, state=tuple(replace(part, low=0.0, high=1.0) for part in SPEC.state))
        change = augment.draw(3, rng, unit)
        change = replace(change, noise=change.noise * torch.from_numpy(spread))
        own = change[k : k + 1]
        expected = memory.train.batch(np.array([57 + start]), 2, own)
        same(disk.train.batch(np.array([k * len(disk.train) + 57 + start]), 2), expected)
    with pytest.raises(ValueError, match="each copy has its own"):
        disk.train.batch(np.array([0]), 2, own)
    assert len(copies) == 3 and len({*map(tuple, copies.place.reshape(-1, 4).tolist())}) == copies.place[..., 0].size
    same(disk.held_out.batch(np.array([5]), 2), memory.held_out.batch(np.array([5]), 2))
    rows = len(disk.train)
    seen = np.concatenate([train.batch_starts(config, rows, step, 3) for step in range(rows)])  # a batch is 3
    assert sorted(seen) == list(range(3 * rows)), "in three epochs every window in every copy"


def test_a_kill_loses_one_shard(config, tmp_path, monkeypatch):
    """Catches a folder that begins anew, differs from one that was never interrupted, or is trained from half-way."""
    settings = read(tmp_path, "copies=2", "shard_mib=0.001", "augment=tabletop")
    tokenize.run(replace(settings, out=str(tmp_path / "whole")))
    written, write = [], tokenize.tokenized.write_shard

    def killed(path, episodes):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, episodes)

    monkeypatch.setattr(tokenize.tokenized, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize.run(settings)
    onto = replace(config, data=(str(tmp_path / "ids"),))
    with pytest.raises(EpisodeError, match="ids is not finished, 1 of 2 train .*world_model.tokenize` again"):
        train.prepare(onto, CPU)
    monkeypatch.setattr(tokenize.tokenized, "write_shard", write)
    tokenize.run(settings)
    assert files(tmp_path / "ids") == files(tmp_path / "whole")
    train.prepare(onto, CPU)
    monkeypatch.setattr(tokenize.tokenized, "write_shard", killed)
    assert tokenize.run(settings)["train"] == 2, "nothing is left to do"


def test_what_was_damaged_is_named_and_made_again(config, tmp_path):
    """Catches a flipped bit or a lost file that is trained on, and one bad shard that costs the whole folder."""
    settings = read(tmp_path, "copies=1", "shard_mib=0.001", "augment=tabletop")
    tokenize.run(settings)
    onto, before = replace(config, data=(str(tmp_path / "ids"),)), files(tmp_path / "ids")
    shard = tmp_path / "ids" / "train-00000"
    for name in ("ids.npy", "action.npy", "shard.json"):
        content = (shard / name).read_bytes()
        (shard / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(EpisodeError, match=rf"{name} is damaged.*remove .*train-00000 and run the same"):
            train.prepare(onto, CPU)
        (shard / name).unlink()
        with pytest.raises(EpisodeError, match=f"{name} .*remove .*train-00000 and run the same"):
            train.prepare(onto, CPU)
        for path in shard.iterdir():
            path.unlink()
        shard.rmdir()
        with pytest.raises(EpisodeError, match="train-00000 is missing: run the same"):
            train.prepare(onto, CPU)
        tokenize.run(settings)
        assert files(tmp_path / "ids") == before
    told = (shard / "shard.json").read_text()
    (shard / "shard.json").write_text(told.replace('"seed": ', '"seed": 1'))
    with pytest.raises(EpisodeError, match=r"shard.json is damaged \(its sha256 does not match\): remove"):
        train.prepare(onto, CPU)
    (shard / "shard.json").write_text(told)
    (shard / "ids.npy").write_bytes(before["train-00000/ids.npy"][:-1])
    folders = {"data": onto.data}
    open_folders(folders, 2, checked=slice(1, None, 2))  # another process looks at that shard
    with pytest.raises(EpisodeError, match="train-00000/ids.npy is damaged"):
        open_folders(folders, 2, checked=slice(0, None, 2))
    manifest = tmp_path / "ids" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    with pytest.raises(EpisodeError, match="is of format 0"):
        train.prepare(onto, CPU)
    manifest.write_text("{")
    with pytest.raises(EpisodeError, match="manifest.json cannot be read .*run the same"):
        train.prepare(onto, CPU)


def test_a_share_of_a_batch_is_cut_from_its_own_shards(config, tmp_path, monkeypatch):
    """Catches processes that each read the ids of the whole batch, or take a window in another copy than one process
    would."""
    tokenize.run(read(tmp_path, "copies=2", "shard_mib=0.001", "augment=tabletop"))
    dataset = train.prepare(replace(config, data=(str(tmp_path / "ids"),)), CPU).train
    rows, choice = len(dataset), config.viewpoints.choose(2, torch.Generator().manual_seed(0))
    starts, strides = np.array([rows - 9, rows + 5]), np.array([[8, 8], [8, 8]])  # the last episode, the first changed
    whole = dataset.batch(starts, 2, None, strides, choice)
    for share, shard in ((slice(0, 1), 1), (slice(1, 2), 0)):
        opened, load = [], np.load
        monkeypatch.setattr(np, "load", lambda path, **how: opened.append(path) or load(path, **how))  # noqa: B023
        part = replace(dataset, copies=replace(dataset.copies)).batch(starts, 2, None, strides, choice, share)
        monkeypatch.undo()
        assert [path.parent.name for path in opened] == [f"train-{shard:05d}"]
        same(part, type(whole)(**{name: value[share] for name, value in vars(whole).items()}))


def test_other_commands_know_tokenized_episodes(config, tmp_path, capsys):
    """Catches a dry run that needs pictures, and a command that finds a folder of ids empty."""
    onto = replace(config, data=(str(tmp_path / "ids"),))
    tokenize.run(read(tmp_path, "augment=tabletop"))
    assert train.dry_run(onto) == train.dry_run(config)
    with pytest.raises(EpisodeError, match="ids holds ids without pictures, which `world_model.train` alone reads"):
        tokenize.run(read(tmp_path, f"data={tmp_path / 'ids'}", f"out={tmp_path / 'again'}"))


def test_ids_are_told_by_content(config, tmp_path):
    """Catches a half-finished training that is refused because folders were moved."""
    tokenize.run(read(tmp_path, "copies=2", "augment=tabletop"))
    onto = replace(config, data=(str(tmp_path / "ids"),))
    go(onto, steps=1)
    (tmp_path / "data").rename(tmp_path / "moved")
    tokenize.run(read(tmp_path, "copies=2", "augment=tabletop", f"data={tmp_path / 'moved'}"))
    (tmp_path / "ids").rename(tmp_path / "ids2")
    assert len(go(replace(onto, data=(str(tmp_path / "ids2"),)))[1]) == 5


def test_what_does_not_fit_is_refused(config, tmp_path, make_episode):
    """Catches ids of another tokenizer, copies of another augmentation, held-out episodes that are trained on, and a
    training that goes on though its ids were made again from other episodes."""
    settings = read(tmp_path, "copies=1", "augment=tabletop")
    tokenize.run(settings)
    onto = replace(config, data=(str(tmp_path / "ids"),))
    go(onto, steps=1)
    assert len(go(onto)[1]) == 5
    save_tokenizer(tmp_path / "tok2", SPEC.cameras, seed=1)
    for change, words in (
        ({"tokenizer": str(tmp_path / "tok2")}, "what `tokenizer` names is not what it was"),
        ({"augment": replace(config.augment, shift=0.0)}, "`augment.shift` was 0.04 and is 0.0"),
        ({"held_out": 3}, "`held_out` was 2 and is 3"),
        ({"swap_share": 0.5}, "`swap_share` need pictures"),
        ({"data": (*onto.data, *config.data)}, "ids is tokenized and .*data is not"),
    ):
        with pytest.raises(ValueError, match=words):
            train.prepare(replace(onto, **change), CPU)
    EpisodeStore(tmp_path / "data").write(make_episode(9, steps=56), "episode-9")
    with pytest.raises(ValueError, match=r"1 episode \(episode-9\) added.*Choose another `out`"):
        tokenize.run(settings)
    tokenize.run(replace(settings, out=str(tmp_path / "ids2")))
    (tmp_path / "ids").rename(tmp_path / "old")
    (tmp_path / "ids2").rename(tmp_path / "ids")
    with pytest.raises(ValueError, match="out/step-.* was made from something else: .*changed"):
        go(onto)


def test_roles_and_a_checkpoint_to_start_from(config, tmp_path, make_episode):
    """Catches labels that are taught though their folder is unlabelled, and tokenizers that are fitted again where a
    checkpoint has them."""
    for seed in SEEDS:
        EpisodeStore(tmp_path / "own").write(make_episode(seed, steps=40), f"own-{seed}")
    train.run(config)
    for name in ("data", "own"):
        tokenize.run(read(tmp_path, f"data={tmp_path / name}", f"out={tmp_path / name}_ids", "augment=tabletop"))
    begun = replace(config, start=str(tmp_path / "out" / "checkpoint"), out=str(tmp_path / "on"),
                    unlabelled=(str(tmp_path / "own"),))  # fmt: skip
    onto = replace(begun, data=(str(tmp_path / "data_ids"),), unlabelled=(str(tmp_path / "own_ids"),))
    memory, disk = train.prepare(begun, CPU), train.prepare(onto, CPU)
    assert disk.model.actions == memory.model.actions == checkpoint.load(begun.start).actions
    for name in ("has_expert", "value", "action", "last", "instruction"):
        np.testing.assert_array_equal(getattr(disk.train, name), getattr(memory.train, name))


def test_poses_are_told_and_views_left_out(tmp_path):
    """Catches ranges of poses that are fitted on less than in memory, and scenes that are moved as if their cameras
    stood where the settings say and not where the episodes do."""
    for seed in SEEDS:
        EpisodeStore(tmp_path / "data").write(viewed(seed, steps=24), f"episode-{seed}")
    save_tokenizer(tmp_path / "tok", ROBOT.cameras)
    pose = "augment.poses.front={position:[0.8,0.1,0.9],target:[0,0,0],fovy:45}"
    moved = ("augment.share=1", "augment.shift=0.05", f"+{pose}", "augment.attached=[hand]")
    tokenize.run(read(tmp_path, *moved, "copies=2"))
    settings = read_config(tmp_path, *moved)
    memory = train.prepare(settings, CPU)
    disk = train.prepare(replace(settings, data=(str(tmp_path / "ids"),)), CPU)
    assert disk.model.layout.poses == memory.model.layout.poses != ()
    change = settings.augment.draw(2, torch.Generator().manual_seed(0))
    own = replace(change, colours=change.colours[:1], place=change.place[:1])
    same(disk.train.batch(np.array([3]), 2), memory.train.batch(np.array([3]), 2, own))


def test_other_cameras_are_refused_at_once(tmp_path):
    """Catches hours of ids that no training can use."""
    EpisodeStore(tmp_path / "data").write(made_up(HANDS, 1), "e1")
    save_tokenizer(tmp_path / "tok", SPEC.cameras)
    with pytest.raises(ValueError, match="is of the cameras main 64 x 64.*the episodes are of left 16 x 16"):
        tokenize.run(read(tmp_path))
    for wrong in ("copies=0", "held_out=1", "shard_mib=0", "data=[]"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            read(tmp_path, wrong)


def test_ids_are_those_of_the_tokenizer(make_episode, tmp_path):
    """Catches cameras in another order, and ids that do not fit their type."""
    save_tokenizer(tmp_path, SPEC.cameras)
    frames, episode = ImageTokenizer.load(tmp_path), make_episode(0, steps=8)
    found = tokenize.encode(frames, episode, UNCHANGED.draw(2, torch.Generator()))
    expected = torch.cat([frames.encode(torch.from_numpy(images)) for images in episode.images.values()], dim=-1)
    assert found.dtype == np.uint8 and found.shape == (2, 9, 80)
    for copy in found:
        np.testing.assert_array_equal(copy, expected)
