"""What is measured on held-out episodes."""

import numpy as np
import pytest

from envs.data.files import to_json
from tests.robots import ARM, HANDS, made_up
from world_model.metrics import held_out
from world_model.training.dataset import EpisodeDataset, fit_ranges


def dataset_of(world, text, episodes) -> EpisodeDataset:
    words = text.within(world.vocab.text)
    return EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip


def test_all_figures_of_a_robot_that_has_everything(world, dataset):
    """Catches a figure that is missing or unknown, and copies that are not copies."""
    figures = held_out.evaluate(world, dataset, 12)
    for name in ("position_cm", "position_cm_copy", "position_cm_shuffled", "keypoint_cm", "id_accuracy"):
        assert len(figures[name]) == held_out.AHEAD and np.isfinite(figures[name]).all(), name
    assert figures["keypoint_cm_copy"] == [0, 0, 0, 0], "keypoints of these episodes never move"
    assert len(figures["held_accuracy"]) == 1 + held_out.AHEAD
    assert 0 <= figures["gripper_accuracy"] <= 1 and figures["action_rms"] > 0 and figures["windows"] == 12
    assert "position_cm" in held_out.table(figures)


@pytest.mark.parametrize(("spec", "coefs"), [(ARM, (2, 3, 0, 8)), (HANDS, (4, 2))])
def test_what_a_robot_has_not_got_has_no_figures(make_world, text, spec, coefs):
    """Catches a figure of grippers, keypoints, grasps or advice that there are not, and NaN in their place."""
    episodes = [made_up(spec, seed, steps=26, expert=spec is HANDS) for seed in range(2)]
    world = make_world(fit_ranges(spec, [e.state for e in episodes]), coefs, text.size)
    dataset = dataset_of(world, text, episodes)
    starts = np.array([0, 30])
    figures = {**held_out.losses(world, dataset, starts, 2), **held_out.evaluate(world, dataset, 8)}
    has = {"gripper_accuracy", "keypoint_cm", "action_rms", "position_cm", "expert_action_nats"}
    assert has & figures.keys() == (has if spec is HANDS else set())
    assert "held_accuracy" not in figures and ("state_error" in figures) == (spec is ARM)
    assert len(figures["id_accuracy"]) == 2, "episodes of three model steps"
    assert "null" not in to_json({name: value for name, value in figures.items() if name != "id_accuracy_changed"})


def test_losses_are_those_of_all_windows(world, dataset):
    """Catches batches that count alike however many windows they hold."""
    starts = np.arange(held_out.BATCH + held_out.BATCH // 2)
    together = held_out.losses(world, dataset, starts, 2)
    one = [held_out.losses(world, dataset, part, 2) for part in (starts[:24], starts[24:])]
    for name in ("next_state_nats", "image_nats", "value_nats"):
        assert together[name] == pytest.approx((one[0][name] + one[1][name]) / 2, rel=1e-4), name


def test_a_table_shows_what_is_unknown():
    """Catches a traceback at the end of a training for a figure that is null."""
    shown = held_out.table({"a": None, "b": [1.0, None], "state_outside": {"train": {}}})
    assert "n/a" in shown and "state_outside" not in shown
