"""The checkpoints that ship with the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.sim.table import SPEC
from envs.types import Observation
from world_model import checkpoint
from world_model.types import History

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FOLD, LIFT = "fold the cloth in half", "lift the cube"
TASKS = {"nextstate-s": {FOLD, LIFT}, "nextstate-few": {FOLD}, "nextstate-few-lift": {LIFT}}


@pytest.fixture(scope="module", params=TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def shipped(name) -> checkpoint.Loaded:
    return checkpoint.load(CHECKPOINTS / name, torch.device("cpu"))


def test_it_is_small_and_knows_its_tasks(name, shipped):
    """Catches training state left in what ships, and a checkpoint of other tasks than it is said to know."""
    assert sum(file.stat().st_size for file in (CHECKPOINTS / name).iterdir()) < 40 * 2**20
    assert set(shipped.meta["instructions"]) == TASKS[name]


def test_it_is_of_our_robot(shipped):
    """Catches a spec that moved on from the one the weights were trained for."""
    assert shipped.spec == SPEC


def test_its_imagination_obeys_the_action(shipped):
    """Catches code that has moved on from the weights: opposite pushes must lead the gripper apart."""
    images = {c.name: np.full((c.height, c.width, 3), 200, np.uint8) for c in SPEC.cameras}
    state = np.array([-0.1, 0.0, 0.95, 0, -0.1, 0, 0.08], np.float32)
    text = tuple(shipped.text.encode(shipped.meta["instructions"][0]))
    cache = shipped.model.prefill([History(text, ((Observation(images, state), None),))])
    push = torch.zeros(1, 2, 1, shipped.actions.chunk, shipped.actions.action_dim)
    push[0, 0, ..., 1], push[0, 1, ..., 1], push[..., -1] = 0.5, -0.5, -1.0
    left, right = shipped.model.imagine(cache, push).state[0, :, 0, 1]
    assert left - right > 0.03
