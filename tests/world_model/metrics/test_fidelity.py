"""Imagination against what the simulator does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.types import Observation
from tests.robots import ARM, HANDS, made_up
from world_model.metrics import fidelity
from world_model.metrics.fidelity import Counterfactual, evaluate_fidelity
from world_model.training.dataset import EpisodeDataset, fit_ranges
from world_model.training.start import continued
from world_model.types import History, Imagination


def counterfactuals_of(world, text, episode) -> list[Counterfactual]:
    """Two states left five ways each; what follows looks like nothing before."""
    words, rng, made = tuple(text.within(world.vocab.text).encode("lift the cube")), np.random.default_rng(0), []
    for step in (16, 32):
        history = History(words, ((episode.obs(step - 8), episode.action[step - 8 : step]), (episode.obs(step), None)))
        low, high = world.spec.action_low, world.spec.action_high
        actions = rng.uniform(low, high, (5, 8, len(low))).astype(np.float32)
        images = {c.name: rng.integers(0, 256, (5, c.height, c.width, 3), dtype=np.uint8) for c in world.spec.cameras}
        state = rng.uniform(-0.1, 0.1, (5, len(world.spec.state))).astype(np.float32)
        made.append(Counterfactual(history, actions, Observation(images, state)))
    return made


@pytest.fixture
def counterfactuals(world, text, make_episode) -> list[Counterfactual]:
    return counterfactuals_of(world, text, make_episode(0, steps=64))


def test_a_true_imagination_finds_every_future(world, counterfactuals, monkeypatch):
    """Catches rows and columns turned round, or distances of which the largest wins."""

    def know(cache, actions, strides) -> Imagination:
        """The imagination of a model that knows what follows: what the simulator showed."""
        each = next(c for c in counterfactuals if np.array_equal(c.actions, actions[0, :, 0].numpy()))
        images = {name: torch.from_numpy(view) for name, view in each.observations.images.items()}
        ids = torch.cat([world.frame_tokenizer.encode(view) for view in images.values()], -1)
        monkeypatch.setattr(world, "decode_frames", lambda _: {n: view[:, None] for n, view in images.items()})
        state = torch.from_numpy(each.observations.state)
        return replace(imagine(cache, actions), state=state[None, :, None], before=ids[None, :, None])

    imagine = world.imagine
    monkeypatch.setattr(world, "imagine", know)
    torch.nn.init.constant_(world.vision.gate.bias, 50.0)  # every copy stays what it is, and it is the truth
    found = fidelity._retrieval(world, counterfactuals, 8)
    assert found["retrieval_at_1"] == found["retrieval_by_state"] == found["retrieval_by_pixels"] == 1.0
    assert found["displacement_r"] == 1.0 and found["retrievals"] == 10 and found["retrieval_chance"] == 0.2


def test_an_untrained_imagination_does_not(world, counterfactuals):
    """Catches a comparison of the truth with itself."""
    assert fidelity._retrieval(world, counterfactuals, 8)["retrieval_at_1"] < 0.8


def test_all_figures(world, dataset, counterfactuals):
    """Catches horizons beyond an episode's end that count, copies that are not copies, and missing figures."""
    figures = evaluate_fidelity(world, dataset, counterfactuals, count=12, ahead=6)
    first, last = figures["horizons"][0], figures["horizons"][-1]
    assert len(figures["horizons"]) == 6 and first["windows"] == 12 > last["windows"] > 0
    assert first["position_cm_copy"] > 0 and first["main_ssim_changed"] < 1
    names = ("main_psnr_changed", "main_psnr_changed_copy", "wrist_psnr_changed_shuffled", "position_cm", "keypoint_cm")
    for name in names:
        assert all(np.isfinite(entry[name]) for entry in figures["horizons"]), name
    for name in ("value_ece", "uncertainty_auc", "retrieval_at_1", "displacement_r"):
        assert np.isfinite(figures[name])


def test_each_episode_has_its_own_error(world, text, make_episode, counterfactuals):
    """Catches errors that are told of another episode, which people would then look into, and made-up ones."""
    words = text.within(world.vocab.text)
    episodes = [make_episode(seed, steps=steps) for seed, steps in ((0, 64), (1, 20), (2, 40))]
    each = [EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes]
    together = evaluate_fidelity(world, EpisodeDataset.join(each), counterfactuals, 12, 3)
    alone = [evaluate_fidelity(world, each[i], counterfactuals, 6, 3)["by_episode"] for i in (0, 2)]
    assert [[together["by_episode"][i]] for i in (0, 2)] == [pytest.approx(error, rel=1e-3) for error in alone]
    assert together["by_episode"][1] is None and together["error_unit"] == "cm"


def test_short_model_steps_are_measured_at_the_same_times(world, text, make_episode, counterfactuals):
    """Catches a horizon that comes sooner than it is compared with, and futures that stop within their chunk."""
    paced = continued(world, replace(world.config, strides=(4,)))
    words = text.within(world.vocab.text)
    dataset = EpisodeDataset.of(make_episode(0, steps=64), paced.layout, paced.frame_tokenizer, paced.actions, words)
    whole, short = (evaluate_fidelity(paced, dataset, counterfactuals, 8, 3, stride) for stride in (None, 4))
    assert (whole["stride"], short["stride"]) == (8, 4) and len(short["horizons"]) == 3
    for one, other in zip(whole["horizons"], short["horizons"], strict=True):
        assert one["position_cm_copy"] == other["position_cm_copy"] and one["windows"] == other["windows"]
        assert one["main_psnr_changed_copy"] == other["main_psnr_changed_copy"]
        assert one["position_cm"] != other["position_cm"]
    asked, imagine = [], paced.imagine
    paced.imagine = lambda cache, actions, strides: asked.append(actions) or imagine(cache, actions, strides=strides)
    fidelity._retrieval(paced, counterfactuals[:1], 4)
    chunk, (steps,) = torch.from_numpy(counterfactuals[0].actions), asked
    assert torch.equal(torch.cat([steps[0, :, 0, :4], steps[0, :, 1, :4]], 1), chunk)
    with pytest.raises(ValueError, match="not of 2"):
        evaluate_fidelity(paced, dataset, counterfactuals, 8, 3, 2)


@pytest.mark.parametrize(("spec", "coefs"), [(ARM, (2, 3, 0, 8)), (HANDS, (4, 2))])
def test_any_robot(make_world, text, spec, coefs):
    """Catches a camera, a size or a dimension that is written into the code."""
    episodes = [made_up(spec, seed, steps=40) for seed in range(2)]
    world = make_world(fit_ranges(spec, [e.state for e in episodes]), coefs, text.size)
    words = text.within(world.vocab.text)
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(e, world.layout, world.frame_tokenizer, world.actions, words) for e in episodes
    ])  # fmt: skip
    figures = evaluate_fidelity(world, dataset, counterfactuals_of(world, text, episodes[0]), count=4, ahead=3)
    entry = figures["horizons"][0]
    assert {f"{camera.name}_psnr_changed" for camera in spec.cameras} <= entry.keys()
    assert ("keypoint_cm" in entry) == (spec is HANDS) and ("position_cm" in entry) == (spec is HANDS)
    assert np.isfinite(figures["uncertainty_auc"]) and figures["retrievals"] == 10


def test_short_episodes_are_refused(world, dataset, counterfactuals):
    """Catches windows that are padding only."""
    with pytest.raises(ValueError, match="no episode is 3 model steps"):
        evaluate_fidelity(world, replace(dataset, last=np.arange(len(dataset))), counterfactuals)
