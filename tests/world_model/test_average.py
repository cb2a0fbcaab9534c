"""The average of checkpoints, and which cannot be averaged."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from world_model import average, checkpoint
from world_model.average import AverageConfig
from world_model.checkpoint import CheckpointError

CPU = torch.device("cpu")
META = {"instructions": ["lift the cube"], "figures": {"loss": 1.0}, "discount": 0.997}


@pytest.fixture
def config(world, text, tmp_path) -> AverageConfig:
    """Two checkpoints, of which the second has moved on."""
    words = text.within(world.vocab.text)
    checkpoint.save(tmp_path / "first", world, words, META)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in world.named_parameters():
            if name.startswith(checkpoint.FRAMES):
                continue
            weight += 0.1 * torch.randn_like(weight)
    checkpoint.save(tmp_path / "second", world, words, META)
    return AverageConfig((str(tmp_path / "first"), str(tmp_path / "second")), str(tmp_path / "out"))


@pytest.mark.parametrize("weights, share", [(None, 0.5), ((1.0, 3.0), 0.75), ((1.0, 0.0), 0.0)])
def test_every_weight_lies_between(config, weights, share):
    """Catches a part of the model that is left out, shares that do not add up to one, and figures of one of the two
    that are said of their average."""
    assert average.run(replace(config, weights=weights))
    first, second, found = (checkpoint.load(folder, CPU) for folder in (*config.checkpoints, config.out))
    for name, weight in found.model.state_dict().items():
        mine, theirs = (each.model.state_dict()[name] for each in (first, second))
        if weight.is_floating_point():
            torch.testing.assert_close(weight, torch.lerp(mine, theirs, share))
    assert found.meta["average"][1] == {"sha256": second.sha256, "share": share}
    assert "figures" not in found.meta and found.meta["discount"] == 0.997


def test_a_second_time_keeps_it(config, tmp_path):
    """Catches a pipeline that stops here when it is run again, and one that takes another checkpoint for this one."""
    assert average.run(config) and not average.run(config)
    with pytest.raises(CheckpointError, match="another one"):
        average.run(replace(config, weights=(1.0, 2.0)))
    with pytest.raises(CheckpointError, match="another one"):
        average.run(replace(config, out=config.checkpoints[0]))


def test_only_what_came_from_one_start(config, make_world, text, tmp_path):
    """Catches weights of other ids or actions that are mixed into nonsense."""
    first = checkpoint.load(config.checkpoints[0], CPU)
    other = make_world(first.spec, (4, 4, 4, 2, 2, 2), text.size)
    checkpoint.save(tmp_path / "other", other, text.within(other.vocab.text), META)
    with pytest.raises(CheckpointError, match="their .*actions.* differ"):
        average.run(replace(config, checkpoints=(config.checkpoints[0], str(tmp_path / "other"))))
    with torch.no_grad():
        next(first.frames.parameters()).add_(0.1)
    checkpoint.save(tmp_path / "frames", first.model, first.text, META)
    with pytest.raises(CheckpointError, match="their image tokenizer differ"):
        average.run(replace(config, checkpoints=(config.checkpoints[0], str(tmp_path / "frames"))))


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"checkpoints": ("a",)}, "at least two"), ({"weights": (1.0,)}, "one number a checkpoint"),
        ({"weights": (0.0, 0.0)}, "not all 0"), ({"weights": (2.0, -1.0)}, "0 or more"), ({"dtype": "int8"}, "dtype"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(config, wrong, error):
    """Catches weights that extrapolate without a word."""
    with pytest.raises(ValueError, match=error):
        replace(config, **wrong)


def test_settings_as_people_write_them(tmp_path):
    """Catches a config file whose names have drifted from the dataclass, and a traceback shown to a user."""
    command = [sys.executable, "-m", "world_model.average", f"out={tmp_path}/out", f"checkpoints=[{tmp_path}/a,b]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no checkpoint at" in done.stderr and "Traceback" not in done.stderr
