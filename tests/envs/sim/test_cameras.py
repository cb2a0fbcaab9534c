import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.sim.cameras import VIEWS, check_views
from envs.sim.tabletop import CAMERAS
from envs.tasks.lift import Lift
from envs.types import check_pose, pose_key

NEAR = 1.0  # pixels of the main camera, 64 a side


@pytest.fixture(scope="module")
def lift():
    """One environment for the whole file: building it is the slow part."""
    env = Lift()
    yield env
    env.close()


def seen_at(pose: np.ndarray, point: np.ndarray, size: int) -> np.ndarray:
    """(2,) row and column of a point in the frame that the pose is relative to."""
    x, y, z = Rotation.from_quat(pose[[4, 5, 6, 3]]).inv().apply(point - pose[:3])
    focal = size / 2 / np.tan(pose[7] / 2)
    return (size - 1) / 2 + focal * np.array([-y, x]) / -z


def move_cube(env: Lift, position: np.ndarray) -> None:
    joint = mujoco.mj_name2id(env._model, mujoco.mjtObj.mjOBJ_JOINT, "cube_joint0")
    where = env._model.jnt_qposadr[joint]
    env._data.qpos[where : where + 3] = position
    mujoco.mj_forward(env._model, env._data)


def pictures(env: Lift) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Picture and pose of the robot's cameras and of all views."""
    obs = env.observe()
    return {name: (obs[name], obs[pose_key(name)]) for name in CAMERAS} | env.observe_views(tuple(VIEWS))


@pytest.mark.parametrize("look", [0, 3])
def test_poses_are_where_the_cameras_are(lift, look):
    """A pose in another frame or convention, or of another look: whoever is told it looks for the cube elsewhere."""
    lift.reset(seed=2, options={"look": look})
    x, y, _ = lift.gripper_position()
    cube = np.array([x + 0.05, y + 0.04, 0.84])  # beside the fingers, in sight of the wrist too
    move_cube(lift, cube)
    with_cube = pictures(lift)
    move_cube(lift, np.array([0, 0, -5.0]))
    without = pictures(lift)
    hand = lift._model.cam_bodyid[lift._model.camera(CAMERAS["wrist"]).id]
    in_hand = lift._data.xmat[hand].reshape(3, 3).T @ (cube - lift._data.xpos[hand])
    for name, (picture, pose) in with_cube.items():
        check_pose(name, pose, ())
        assert pose[3] >= 0 and np.array_equal(pose, without[name][1])
        changed = np.abs(picture.astype(float) - without[name][0]).sum(-1)
        changed[changed < 0.3 * changed.max()] = 0  # a shadow or a reflection is no cube
        rows, columns = np.mgrid[: len(picture), : len(picture)]
        found = np.array([(rows * changed).sum(), (columns * changed).sum()]) / changed.sum()
        told = seen_at(pose, in_hand if name == "wrist" else cube, len(picture))
        assert changed.max() > 60, f"{name} does not show the cube"
        assert np.abs(found - told).max() < 2 * NEAR, f"{name}: seen at {found}, told {told}"


def test_views_move_with_the_look_and_the_top_is_up(lift):
    """Views that stand still teach one place each; a view that is turned shows left for right."""
    poses = []
    for look in (0, 1, 1):
        lift.reset(seed=2, options={"look": look})
        poses.append({name: pose for name, (_, pose) in lift.observe_views(tuple(VIEWS)).items()})
    for name, place in VIEWS.items():
        own, one, again = (pose[name] for pose in poses)
        assert np.array_equal(one, again) and not np.array_equal(own, one)
        for pose in (own, one):
            assert np.abs(pose[:3] - place.position).max() <= 0.0201
            forward = Rotation.from_quat(pose[[4, 5, 6, 3]]).apply([0, 0, -1])
            wanted = np.subtract(place.target, place.position)
            assert np.degrees(np.arccos(forward @ wanted / np.linalg.norm(wanted))) < 2.01
    pose = poses[0]["top"]
    ahead, right = seen_at(pose, np.array([-0.2, 0, 0.8]), 64), seen_at(pose, np.array([0, 0.2, 0.8]), 64)
    assert ahead[0] < 20 and abs(ahead[1] - 32) < 6 and right[1] > 44, "the robot is above, as in the main picture"


def test_unknown_views_are_named(lift):
    """A misspelt place that is left out in silence."""
    with pytest.raises(ValueError, match="no view botom: views are top, left"):
        check_views(["top", "botom"])
    with pytest.raises(ValueError, match="named twice"):
        check_views(["top", "top"])
    with pytest.raises(ValueError, match="no view main"):
        lift.observe_views(["main"])


def test_poses_can_be_left_untold():
    """What a pose is worth cannot be measured by an environment that always tells it."""
    env = Lift(tell_poses=False)
    try:
        obs, _ = env.reset(seed=0)
        assert set(obs) == {"main", "wrist", "state"} and env.observation_space.contains(obs)
        assert not any(camera.posed for camera in env.robot_spec.cameras)
    finally:
        env.close()
