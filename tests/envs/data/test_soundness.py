"""Faults put into sound episodes, one at a time."""

from dataclasses import replace

import numpy as np
import pytest

from envs.data.soundness import ENOUGH, constants, faults_of, faults_of_all, how_far_commands_explain
from envs.types import Episode
from tests.robots import HANDS, made_up


def driven(seed: int, steps: int = 60) -> Episode:
    """An episode whose state follows its commands two control steps later, and whose pictures change."""
    episode, rng = made_up(HANDS, seed, steps), np.random.default_rng(seed)
    state = episode.state.copy()
    late = np.concatenate([np.zeros((2, 1)), episode.action[:-2, :1]])
    state[1:] = state[0] + np.cumsum(0.003 * late + rng.normal(0, 1e-4, (steps, state.shape[1])), axis=0)
    images = {  # of a sensor with noise
        name: (frames + rng.integers(0, 3, frames.shape)).astype(np.uint8) for name, frames in episode.images.items()
    }
    return replace(episode, state=state.astype(np.float32), images=images)


def test_a_sound_folder_has_no_faults():
    """Catches a rule that cries at everything."""
    episodes = [(str(seed), driven(seed)) for seed in range(5)]
    assert not [fault for _, episode in episodes for fault in faults_of(episode)]
    assert not list(faults_of_all(episodes))


@pytest.mark.parametrize("fault", ["black", "frozen", "state"])
def test_each_fault_is_named(fault):
    """Catches a fault that passes, and one that is told of another camera or dimension."""
    episode = driven(0, steps=90)
    left = episode.images["left"].copy()
    match fault:
        case "black":
            left[10:15] = 3
            broken, said = replace(episode, images={**episode.images, "left": left}), "`left` is black in 5 of 91"
        case "frozen":
            left[20:70] = left[20]
            broken, said = replace(episode, images={**episode.images, "left": left}), "`left` stands still for 49"
        case "state":
            state = episode.state.copy()
            state[:4, 1] = 0.7
            broken, said = replace(episode, state=state), "4 of 91 values of the state `a.y`"
    (found,) = faults_of(broken)
    assert said in found


def test_a_robot_that_stands_still_may_be_filmed_standing_still():
    """Catches a pause that counts as a frozen camera."""
    episode = driven(0, steps=90)
    still = np.repeat(episode.state[:1], 91, axis=0)
    images = {name: np.repeat(frames[:1], 91, axis=0) for name, frames in episode.images.items()}
    assert not list(faults_of(replace(episode, state=still, images=images)))


def test_what_only_several_episodes_tell():
    """Catches an episode recorded twice, a dimension that nobody moves, and commands of another episode."""
    twice = [("a", driven(0)), ("b", driven(1)), ("c", driven(0))]
    assert "c is the same episode as a" in list(faults_of_all(twice))
    still = [replace(e, action=np.repeat(e.action[:1], len(e), axis=0)) for _, e in twice[:1]]
    assert constants(still) == [f"action {part.name}" for part in HANDS.action]
    rng = np.random.default_rng(0)
    noise = [
        (str(s), replace(e, action=rng.uniform(0, 1, e.action.shape).astype(np.float32)))
        for s, e in enumerate(map(driven, range(40)))
    ]
    assert any("commands explain" in fault for fault in faults_of_all(noise))


def test_nothing_is_said_of_too_little():
    """Catches a verdict on a handful of steps."""
    assert how_far_commands_explain([driven(0, steps=ENOUGH // 4)]) is None
    assert how_far_commands_explain([driven(seed) for seed in range(5)]) > 0.5
