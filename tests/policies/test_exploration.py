from contextlib import closing

import numpy as np

from envs.sim.table import SPEC
from envs.types import ActionSpec, CameraSpec, Spec
from policies.exploration import RandomPolicy
from policies.rollout import rollout
from tests.reach import reach_envs


def test_random_motion_is_smooth_and_repeats_itself():
    """Catches white noise, of which a robot makes nothing, and a seed that is not used."""
    with closing(reach_envs()) as envs:
        first, again, other = (run.episode.action for run in rollout(envs, RandomPolicy(SPEC), (1, 1, 2)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1] > 0.3


def test_random_motion_uses_the_whole_range_of_any_robot():
    """Catches a policy that takes every robot for one commanded from -1 to 1, or its last dimension for jaws."""
    action = (ActionSpec("jaw", 0, 255, gripper=True), ActionSpec("angle", -3, -1))
    policy = RandomPolicy(Spec((CameraSpec("eye", 8, 8),), (), action, control_hz=50))
    state, actions = policy.init("", 0), []
    for _ in range(200):
        chunk, state = policy.act(None, state)
        actions.append(chunk[0])
    jaw, angle = np.array(actions).T
    assert set(jaw) == {0, 255} and -3 <= angle.min() < -2.5 and -1.5 < angle.max() <= -1
