"""The controller against robosuite's own, which it must equal: every measured outcome depends on it.

To the last bit on most processors. On some a product of small matrices rounds by where they lie in memory, and two
worlds that are moved alike part in the sixteenth digit.
"""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import envs  # noqa: F401  (registers the ids)
from envs.sim.table import SPEC
from envs.types import Scene
from policies.scripted.fold_half import FoldExpert
from policies.scripted.lift import LiftExpert

MOST_STEPS = 400  # control steps within which an expert has grasped
EXPERTS = {"Lift": LiftExpert(), "FoldHalf": FoldExpert()}


def same(ours: np.ndarray, theirs: np.ndarray, where: str = "") -> None:
    """Equal but for rounding, which some hundred steps in contact make larger."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8, err_msg=where)


@pytest.fixture(scope="module", params=EXPERTS)
def pair(request):
    """The same task twice, one to be moved by robosuite's path; and its expert."""
    ours, theirs = (gym.make(f"nextstate/{request.param}-v0").unwrapped for _ in range(2))
    yield ours, theirs, EXPERTS[request.param]
    ours.close()
    theirs.close()


def advance_robosuite(env, action: np.ndarray) -> None:
    """A control step along robosuite's own path."""
    env._before_step(action)
    for substep in range(round(1 / SPEC.control_hz / env.timestep)):
        env._world.sim.step1()
        env._world._pre_action(action, substep == 0)
        env._world.sim.step2()
    env._world.sim.forward()


def expert_action(env, expert, scene: Scene) -> np.ndarray:
    """What the expert does; it reads the scene alone."""
    return expert.act(None, None, scene)[0][0]


def until_held(env, expert, seed: int) -> list[np.ndarray]:
    """Let the expert work until it holds a keypoint; returns its actions."""
    _, info = env.reset(seed=seed)
    actions = []
    while info["scene"].held != 0:
        assert len(actions) < MOST_STEPS, f"the expert never grasped with seed {seed}"
        actions.append(expert_action(env, expert, info["scene"]))
        *_, info = env.advance(actions[-1])
    return actions


def random_actions(seed: int, steps: int) -> np.ndarray:
    """(steps, A): full-range noise, among it steps that do not turn or do not move at all."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[::5, 3:6] = 0
    actions[::7] = 0
    return actions


def test_random_motion_equals_robosuite(pair):
    """A term that is wrong, missing, or read at another moment: physics and commands would part within a substep."""
    ours, theirs, _ = pair
    for env in (ours, theirs):
        env.reset(seed=1)
    for step, action in enumerate(random_actions(seed=0, steps=40)):
        ours.advance(action)
        advance_robosuite(theirs, action)
        same(ours.save_state().physics, theirs.save_state().physics, f"step {step}")
        same(ours._data.ctrl, theirs._data.ctrl, f"step {step}")
        same(ours._gripper.current_action, theirs._gripper.current_action, f"step {step}")


def test_grasping_equals_robosuite(pair):
    """Contact and load: a difference that free motion forgives."""
    ours, theirs, expert = pair
    actions = until_held(ours, expert, seed=2)
    carried = random_actions(seed=1, steps=8)
    carried[:, -1] = 1
    for action in carried:
        ours.advance(action)
    theirs.reset(seed=2)
    for action in (*actions, *carried):
        advance_robosuite(theirs, action)
    assert ours.scene().held == 0
    same(ours.save_state().physics, theirs.save_state().physics)


def test_torques_equal_robosuite_at_every_substep(pair):
    """Torques of which the limits hide a part, or errors that cancel over a control step."""
    env, _, _ = pair
    env.reset(seed=3)
    model, data, controller, gripper, torques = env._model, env._data, env._controller, env._gripper, []
    for step, action in enumerate(random_actions(seed=2, steps=6)):
        for substep in range(round(1 / SPEC.control_hz / env.timestep)):
            mujoco.mj_step1(model, data)
            before = gripper.current_action.copy()
            env._world._pre_action(action, substep == 0)
            expected = data.ctrl.copy()
            data.ctrl[:7] = np.nan  # the fingers are commanded once a control step
            reading = controller.at_reset if step == substep == 0 else controller.read()
            if substep == 0:
                gripper.current_action = before
                data.ctrl[7:] = np.nan
                controller.set_goal(action, reading)
            controller.command(reading)
            same(data.ctrl, expected, f"step {step}, substep {substep}")
            torques.append(expected[:7])
            mujoco.mj_step2(model, data)
    limits = model.actuator_ctrlrange[:7]
    assert ((np.array(torques) > limits[:, 0]) & (np.array(torques) < limits[:, 1])).mean() > 0.5  # limits hide little


@pytest.mark.parametrize("when", ["after a reset", "in mid-grasp"])
def test_a_restored_state_moves_as_it_did(pair, when):
    """A memory of the controller that `save_state` leaves out gives a planner's futures another start."""
    env, _, expert = pair
    if when == "in mid-grasp":
        until_held(env, expert, seed=4)
    else:
        env.reset(seed=4)
    saved, actions = env.save_state(), random_actions(seed=3, steps=6)
    futures = []
    for _ in range(2):
        env.load_state(saved)
        np.testing.assert_array_equal(env.save_state().physics, saved.physics)
        for action in actions:
            env.advance(action)
        futures.append(env.save_state())
        env.advance(-actions[0])  # something else in between
    np.testing.assert_array_equal(futures[0].physics, futures[1].physics)
    np.testing.assert_array_equal(futures[0].gripper_command, futures[1].gripper_command)


def test_a_state_restored_after_a_reset_moves_as_robosuite(pair):
    """The first step goes by what was read during the reset: it must do so again when that state is restored."""
    ours, theirs, _ = pair
    for env in (ours, theirs):
        env.reset(seed=5)
    saved, actions = ours.save_state(), random_actions(seed=4, steps=3) + np.float32(0.01)
    ours.advance(actions[-1])
    ours.load_state(saved)
    for action in actions:
        ours.advance(action)
        advance_robosuite(theirs, np.clip(action, -1, 1))
    same(ours.save_state().physics, theirs.save_state().physics)
