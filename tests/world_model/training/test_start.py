"""Weights that move from one model to another."""

from dataclasses import replace

import pytest
import torch

from tests.world_model.conftest import COEFS
from world_model.model import WorldModel
from world_model.training.start import take_weights


def test_every_slot_has_a_name_of_its_own(world):
    """Catches two slots whose rows would be one, and a name that is a slot away from what it names."""
    at, names = world.layout, world.layout.slot_names
    assert len(names) == len(set(names)) == at.num_slots
    assert names[at.cameras["wrist"].start] == "wrist 0" and names[at.state.start].startswith("state ")
    assert names[at.obs] == "chunk begins" and names[at.action.start] == "action dx 0"
    assert names[at.action.stop] == names[at.step - 1] == "chunk ends" and names[at.step] == "value"


def test_weights_move_to_another_layout_by_what_slots_stand_for(world, make_world):
    """Catches rows that move with their number: all that follows an added slot would read as its neighbour."""
    ball = replace(world.spec, keypoints=("ball", *world.spec.keypoints))
    new = make_world(ball, COEFS, world.vocab.text.size)
    with torch.no_grad():
        for p in new.parameters():
            p.add_(1.0)
    before = new.step_embed.weight.clone()
    assert take_weights(new, world) == ("keypoint ball.x", "keypoint ball.y", "keypoint ball.z")
    there, here = new.step_embed.weight, world.step_embed.weight
    first = new.layout.step + 3  # after value, success and held
    assert torch.equal(there[:first], here[:first]) and torch.equal(there[first + 3 : -1], here[first:-1])
    assert torch.equal(there[first : first + 3], before[first : first + 3])
    for name, value in world.state_dict().items():
        assert name == "step_embed.weight" or torch.equal(value, new.state_dict()[name]), name


def test_weights_move_only_where_they_fit(world):
    """Catches a model of another width that fails deep inside, or is half overwritten."""
    config = replace(world.config, transformer=replace(world.config.transformer, hidden=64))
    new = WorldModel(config, world.spec, world.vocab, world.frame_tokenizer, world.actions)
    with pytest.raises(ValueError, match="gate_proj|down_proj"):
        take_weights(new, world)
