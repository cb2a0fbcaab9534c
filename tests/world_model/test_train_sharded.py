"""Training by two processes is training by one, whoever goes on with what the other left."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from tests.conftest import synthetic_episode
from tests.world_model import together
from tests.world_model.runs import SEEDS, read_config, save_tokenizer
from world_model import checkpoint, train
from world_model.checkpoint import CheckpointError
from world_model.training import plan, shards

ROOT = Path(__file__).parents[2]
# An odd number of rows, so that two processes hold different numbers of them.
SETTINGS = ("augment=tabletop", "coefs=[4,4,4,2,2,2]", "batch=4", "model.transformer.hidden=63")


@dataclass(frozen=True)
class Runs:
    """folder: what all of these lie in. whole: what one process made of the whole training, and its losses; half: the
    losses of two processes until they were killed. said, warned: by two processes that ended what one had begun."""

    folder: Path
    config: train.TrainConfig
    whole: Path
    losses: list[dict]
    half: list[dict]
    said: str
    warned: str


def some_steps(config: train.TrainConfig, steps: int | None = None) -> list[dict]:
    """The losses of a process that is killed after some steps."""
    losses = []
    for progress, found in train.train(config, train.prepare(config, torch.device("cpu"))):
        losses.append(found)
        if progress.step == steps:
            break
    return losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    store = EpisodeStore(folder / "data")
    for seed in SEEDS:
        store.write(synthetic_episode(seed, steps=56), f"episode-{seed}")
    save_tokenizer(folder / "tok", SPEC.cameras)
    config = read_config(folder, *SETTINGS)
    losses = some_steps(replace(config, out=str(folder / "whole")))
    train.run(replace(config, out=str(folder / "whole")))
    some_steps(replace(config, out=str(folder / "one")), together.HALF)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
                "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    done = subprocess.run(
        [*torchrun, together.__file__, str(folder), *SETTINGS], capture_output=True, text=True, timeout=250, cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    half, others = (json.loads((folder / f"losses-{rank}.json").read_text()) for rank in (0, 1))
    assert half == others, "each has the losses of the whole batch"
    return Runs(folder, config, folder / "whole", losses, half, done.stdout, done.stderr)


def require_same_checkpoint(run: Path, whole: Path) -> None:
    """The same files with the same weights, within rounding."""
    files = [{path.name for path in (each / "checkpoint").iterdir()} for each in (run, whole)]
    assert files[0] == files[1]
    for name in ("model.safetensors", "frames.safetensors"):
        found, expected = (safetensors.torch.load_file(each / "checkpoint" / name) for each in (run, whole))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    metas = [checkpoint.load(each / "checkpoint").meta for each in (run, whole)]
    for meta in metas:
        del meta["training"]["seconds"]
    figures = [meta.pop("figures") for meta in metas]
    assert metas[0] == metas[1] and figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-5)


def require_same_losses(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_one_process_goes_on_from_two(runs):
    """Catches shares that are not those of one batch, gradients that are summed and not averaged, matrices that Muon
    makes orthogonal by halves, and moments or rows that get lost or mixed up between two processes and one."""
    require_same_losses(runs.half, runs.losses[: together.HALF])
    config = replace(runs.config, out=str(runs.folder / "two"))
    assert shards.are_in(checkpoint.last(Path(config.out)))
    require_same_losses(some_steps(config), runs.losses[together.HALF :])
    train.run(config)
    require_same_checkpoint(Path(config.out), runs.whole)


def test_two_processes_go_on_from_one(runs):
    """Catches files of one process that several cannot read, figures or an export of a part of the weights, and what is
    said or written twice."""
    require_same_checkpoint(runs.folder / "one", runs.whole)
    assert runs.said.count("written to") == 1 == runs.said.count("step      6  trained/held out")
    assert "FSDP2" not in runs.warned
    last = checkpoint.last(runs.folder / "one")
    assert shards.are_in(last) and last.name == "step-0000006"
    assert not list((runs.folder / "one").glob(".*.tmp"))


def test_the_plan_is_what_each_process_holds(runs):
    """Catches a dry run that tells other sizes than those that training takes."""
    model = checkpoint.load(runs.whole / "checkpoint").model
    told = plan.memory(model, train.by_optimizer, torch.float32, 2)
    frozen = 4 * sum(p.numel() for p in model.frame_tokenizer.parameters())
    files = sorted((runs.folder / "one" / "step-0000006").glob("shard-*"))
    kept = [{k: v for k, v in safetensors.torch.load_file(file).items() if v.dim()} for file in files]
    first, second = (4 * sum(tensor.numel() for tensor in each.values()) for each in kept)
    assert first == told["weights"] - frozen + told["Muon's momentum"] + told["AdamW's moments"] > second > 0


def test_another_training_is_told_apart(runs):
    """Catches a process that goes on with what several left under other settings, or with a damaged part of it, and a
    half-finished training that is taken for a checkpoint."""
    config = replace(runs.config, out=str(runs.folder / "one"))
    with pytest.raises(ValueError, match="`learning_rate` was 0.002 and is 0.0001.*Choose another `out`"):
        some_steps(replace(config, learning_rate=1e-4))
    last = checkpoint.last(Path(config.out))
    with pytest.raises(CheckpointError, match="name the folder `checkpoint` beside it"):
        checkpoint.load(last)
    file = last / "shard-00002-model-00001-of-00001.safetensors"
    whole = file.read_bytes()
    for content, what in ((whole[:-4] + b"\xff\xff\xff\xff", "damaged"), (None, "missing")):
        file.unlink()
        if content:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file.name} is {what}: restore it"):
            some_steps(config)
    file.write_bytes(whole)
