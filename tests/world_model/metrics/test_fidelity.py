from dataclasses import replace

import numpy as np
import pytest
import torch

from world_model.metrics import fidelity
from world_model.metrics.fidelity import Fork, auc, climb, ssim
from world_model.model import History, Imagination


def test_auc_counts_pairs():
    """Catches ranks that favour ties, or a curve turned over."""
    score, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert auc(score, positive) == 0.875 and auc(-score, positive) == 0.125
    assert np.isnan(auc(score, np.ones(4, bool)))


def test_ssim_sees_structure():
    """Catches an index that is not one for equal frames, or that a change of structure does not lower."""
    rng = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (2, 64, 64, 3), generator=rng).float()
    torch.testing.assert_close(ssim(frame, frame), torch.ones(2, 64, 64))
    noise = ssim(frame, frame.flip(1))
    assert noise.shape == (2, 64, 64) and noise.mean() < 0.2 < ssim(frame, 0.8 * frame + 20).mean()


@pytest.fixture
def forks(world, text, make_episode) -> list[Fork]:
    """Two states left five ways each; what follows looks like nothing before."""
    episode, words = make_episode(0, steps=64), tuple(text.within(world.vocab.text).encode("lift the cube"))
    rng, made = np.random.default_rng(0), []
    for step in (16, 32):
        history = History(words, ((episode.obs(step - 8), episode.action[step - 8 : step]), (episode.obs(step), None)))
        actions = rng.uniform(-1, 1, (5, 8, 7)).astype(np.float32)
        main, wrist = (rng.integers(0, 256, (5, size, size, 3), dtype=np.uint8) for size in (64, 32))
        state = rng.uniform(-0.1, 0.1, (5, 7)).astype(np.float32)
        made.append(Fork(history, actions, main, wrist, state, np.zeros((5, 4, 3))))
    return made


def test_a_true_imagination_finds_every_future(world, forks, monkeypatch):
    """Catches rows and columns turned round, or distances of which the largest wins."""

    def know(cache, actions, decode="parallel") -> Imagination:
        """The imagination of a model that knows what follows: what the simulator showed."""
        fork = next(f for f in forks if np.array_equal(f.actions, actions[:, 0].numpy()))
        ids = torch.cat([world.frame_tokenizer.encode(torch.from_numpy(v)) for v in (fork.main, fork.wrist)], -1)
        known = future(cache, actions)
        views = [torch.from_numpy(view)[:, None] for view in (fork.main, fork.wrist)]
        monkeypatch.setattr(world, "paint", lambda _: views)
        return replace(known, state=torch.from_numpy(fork.state)[:, None], before=ids[:, None])

    future = world.imagine
    monkeypatch.setattr(world, "imagine", know)
    torch.nn.init.constant_(world.vision.gate.bias, 50.0)  # every draft stays what it is, and it is the truth
    found = fidelity._retrieval(world, forks)
    assert found["retrieval_at_1"] == found["retrieval_by_state"] == found["retrieval_by_pixels"] == 1.0
    assert found["gripper_displacement_r"] == 1.0 and found["retrievals"] == 10 and found["retrieval_chance"] == 0.2


def test_an_untrained_imagination_does_not(world, forks):
    """Catches a comparison of the truth with itself."""
    assert fidelity._retrieval(world, forks)["retrieval_at_1"] < 0.8


def test_the_whole_ladder(world, tracks, forks):
    """Catches horizons beyond an episode's end that count, copies that are not copies, and missing figures."""
    figures = climb(world, tracks, forks, count=12, ahead=6)
    first, last = figures["horizons"][0], figures["horizons"][-1]
    assert len(figures["horizons"]) == 6 and first["windows"] == 12 > last["windows"] > 0
    assert first["gripper_cm_copy"] > 0 and first["ssim_changed"] < 1
    for name in ("psnr_changed", "psnr_changed_copy", "psnr_changed_shuffled", "gripper_cm", "object_cm"):
        assert all(np.isfinite(entry[name]) for entry in figures["horizons"])
    for name in ("value_ece", "uncertainty_auc", "retrieval_at_1", "gripper_displacement_r"):
        assert np.isfinite(figures[name])


def test_short_episodes_are_refused(world, tracks, forks):
    """Catches windows that are padding only."""
    with pytest.raises(ValueError, match="model steps long"):
        climb(world, replace(tracks, last=np.arange(len(tracks))), forks)
