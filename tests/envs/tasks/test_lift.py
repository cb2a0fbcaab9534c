import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401  (registers the ids)
from envs.sim.table import TABLE_HEIGHT
from envs.tasks.lift import APART, PLACEMENT, Lift
from envs.tasks.score import LIFTED
from policies.scripted.lift import LiftExpert

MAX_STEPS = 120


@pytest.fixture(scope="module")
def lift():
    """One training environment for the whole file: building it is the slow part."""
    env = gym.make("nextstate/Lift-v0").unwrapped
    yield env
    env.close()


def expert_action(info: dict) -> np.ndarray:
    return LiftExpert().act(None, None, info["scene"])[0][0]


def until_held(env: Lift, seed: int) -> None:
    """Let the expert work until the cube is between the pads."""
    _, info = env.reset(seed=seed)
    for _ in range(MAX_STEPS):
        *_, info = env.step(expert_action(info))
        if info["scene"].held == 0:
            return
    raise AssertionError(f"the expert never grasped the cube with seed {seed}")


def same(first: dict, second: dict) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_gymnasium_accepts_it(lift):
    """Spaces, dtypes, seeding, render modes or return values that break a gymnasium user's loop, or make it warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(lift)


def test_same_seed_and_actions_give_equal_bits(lift):
    """An unseeded generator (robosuite's own placement, a random start pose) makes every result unrepeatable."""
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)
    runs = []
    for _ in range(2):
        trace = [lift.reset(seed=5)[0]]
        trace += [lift.step(action)[0] for action in actions]
        runs.append((trace, lift.save_state().physics))
        lift.reset(seed=6)  # something else in between
        lift.step(actions[0])
    assert all(same(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_a_fresh_environment_repeats_an_old_one(lift):
    """State that survives a reset (a controller's goal, a gripper's command) leaks into the next episode."""
    until_held(lift, seed=1)
    used, _ = lift.reset(seed=7)
    used_after = lift.step(np.full(7, 0.5, np.float32))[0]
    fresh = gym.make("nextstate/Lift-v0").unwrapped
    try:
        assert same(fresh.reset(seed=7)[0], used)
        assert same(fresh.step(np.full(7, 0.5, np.float32))[0], used_after)
    finally:
        fresh.close()


def test_restoring_in_the_middle_of_a_grasp_is_exact(lift):
    """A controller memory that is not restored shows as another future; a planner would be misled by it."""
    until_held(lift, seed=2)
    saved = lift.save_state()
    actions = np.random.default_rng(1).uniform(-0.5, 1, (10, 7)).astype(np.float32)
    actions[:, -1] = 1
    first = [lift.step(action) for action in actions]
    physics = lift.save_state().physics
    for action in actions[::-1]:
        lift.step(-action)  # another future, gripper opened
    lift.load_state(saved)
    np.testing.assert_array_equal(lift.save_state().physics, saved.physics)
    assert lift.scene().held == 0
    second = [lift.step(action) for action in actions]
    np.testing.assert_array_equal(lift.save_state().physics, physics)
    for (obs, reward, *_), (obs_again, reward_again, *_) in zip(first, second, strict=True):
        assert same(obs, obs_again) and reward == reward_again


def test_moving_without_looking_is_the_same_motion(lift):
    """An `advance` that is not the step which is taken later would make every simulated future a wrong one; and a state
    saved right after a reset, from which the controller goes by an older reading, was once restored inexactly."""
    lift.reset(seed=4)
    saved, actions = lift.save_state(), np.random.default_rng(2).uniform(-1, 1, (6, 7)).astype(np.float32)
    for action in actions:
        obs, *told, _ = lift.step(action)
    physics = lift.save_state().physics
    lift.load_state(saved)
    for action in actions:
        *told_again, _ = lift.advance(action)
    np.testing.assert_array_equal(lift.save_state().physics, physics)
    assert told == told_again and same(lift.observe(), obs)


def test_the_whole_task(lift):
    """Progress, subtask and success must tell one story, or the value is trained on contradictions; and so must what is
    told of the scene without the simulator."""
    _, info = lift.reset(seed=3)
    assert info["instruction"] == lift.instruction == "lift the cube"
    assert not info["success"] and info["progress"] < 0.2 and info["scene"].held == -1
    subtasks, progress, rewards, ended = [info["subtask"]], [info["progress"]], [], False
    while not ended:
        obs, reward, terminated, truncated, info = lift.step(expert_action(info))
        scene = info["scene"]
        told = lift.scene_in(scene.keypoints, obs["state"], scene.held >= 0, info["success"])
        assert (told.held, told.stage) == (scene.held, scene.stage)
        assert told.opening == pytest.approx(scene.opening, abs=1e-6)
        subtasks.append(info["subtask"])
        progress.append(info["progress"])
        rewards.append(reward)
        ended = terminated or truncated
    assert terminated and info["success"] and info["scene"].held == 0
    assert info["scene"].keypoints[0, 2] > TABLE_HEIGHT + LIFTED and info["score"]["height_mm"] > 1000 * LIFTED
    assert list(dict.fromkeys(subtasks)) == list(lift.subtask_names)
    assert progress[-1] == 1.0 and 0 <= min(progress) and max(progress) <= 1
    assert sum(rewards) == pytest.approx(progress[-1] - progress[0])


def robosuite_holds(env: Lift) -> bool:
    return env._world._check_grasp(gripper=env._world.robots[0].gripper, object_geoms=env._world.cube)


def test_an_expert_holds_what_robosuite_calls_grasped(lift):
    """Other geoms or a single pad: labels and progress would tell of grasps that hold nothing."""
    held = []
    _, info = lift.reset(seed=3)
    while not info["success"]:
        *_, info = lift.advance(expert_action(info))
        held.append(robosuite_holds(lift))
        assert held[-1] == (info["scene"].held == 0)
    assert set(held) == {False, True}


def test_closed_jaws_that_press_on_the_cube_hold_nothing(lift):
    """robosuite calls it a grasp when both pads touch the cube, on top of it too: the model would learn to press."""
    _, info = lift.reset(seed=3)
    touched = 0
    for step in range(60):
        target = info["scene"].keypoints[0] + [0, 0, 0.1 if step < 30 else 0]
        move = np.clip((target - info["scene"].gripper) / 0.05, -1, 1)
        *_, info = lift.advance(np.array([*move, 0, 0, 0, 1], np.float32))
        touched += robosuite_holds(lift)
        assert info["scene"].held == -1
    assert touched > 5 and lift.opening() < APART


def test_standing_still_ends_at_the_step_limit():
    """An episode without success must be truncated, never terminated, and by the limit that the user sets."""
    assert gym.spec("nextstate/Lift-v0").max_episode_steps == MAX_STEPS
    env = gym.make("nextstate/Lift-v0", max_episode_steps=2)
    try:
        env.reset(seed=0)
        ends = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(2)]
        assert ends == [(False, False), (False, True)]
    finally:
        env.close()


def test_poses_cover_the_table(lift):
    """A cube that always lies at the same place is solved by heart."""
    poses = []
    for seed in range(6):
        _, info = lift.reset(seed=seed)
        poses.append([*info["scene"].keypoints[0, :2], lift._yaw])
        assert np.isnan(info["scene"].keypoints[1:]).all()
    poses = np.array(poses)
    assert np.abs(poses[:, :2]).max() <= PLACEMENT + 1e-3
    assert np.ptp(poses[:, :2], axis=0).min() > PLACEMENT / 2 and np.ptp(poses[:, 2]) > 1


def test_splits_differ():
    """`seen` must keep the ranges and change the episodes; `unseen` must leave the ranges."""
    drawn = {}
    for split in ("train", "seen", "unseen"):
        env, cubes = Lift(split=split), []
        for seed in range(30):
            rng = np.random.default_rng([seed, len(split)])
            env._draw(rng, unseen=split == "unseen")
            env._draw_look(rng, unseen=split == "unseen")
            cubes.append((env._half, *env._color))
        drawn[split] = np.array(cubes)
    assert drawn["seen"][:, 0].min() >= 0.020 and drawn["seen"][:, 0].max() <= 0.023
    assert ((drawn["unseen"][:, 0] < 0.020) | (drawn["unseen"][:, 0] > 0.023)).all()
    red_leads = {split: cubes[:, 1] > cubes[:, 2:].max(1) for split, cubes in drawn.items()}
    assert red_leads["train"].all() and red_leads["seen"].all() and red_leads["unseen"].mean() < 0.5


def test_the_same_seed_of_another_split_is_another_episode(lift):
    """Held-out seeds that repeat training episodes make every reported figure worthless."""
    held_out = gym.make("nextstate/Lift-v0", split="seen").unwrapped
    try:
        ours, theirs = lift.reset(seed=4)[1]["scene"], held_out.reset(seed=4)[1]["scene"]
        assert not np.allclose(ours.keypoints[0], theirs.keypoints[0], atol=1e-4)
    finally:
        held_out.close()


def test_a_wrong_split_is_named():
    """A typo must not quietly evaluate on the training split."""
    with pytest.raises(ValueError, match="tset"):
        Lift(split="tset")
