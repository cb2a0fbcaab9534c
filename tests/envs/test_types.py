"""What a robot shows and takes, as a value; and what is refused at the border."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from envs.sim.table import SPEC
from envs.types import ActionSpec, CameraSpec, Observation, Spec, StateSpec, check_action

TWO_ARMS = Spec(
    cameras=(CameraSpec("top", 96, 128),),
    state=tuple(
        StateSpec(f"{arm}.{name}", unit=unit)
        for arm in ("left", "right") for name, unit in (("x", "m"), ("y", "m"), ("z", "m"), ("angle", "rad"))
    ),
    action=(ActionSpec("left.jaw", 0, 1, True), ActionSpec("turn", -3, -1), ActionSpec("right.jaw", 0, 1, True)),
    control_hz=50,
)  # fmt: skip


@pytest.mark.parametrize("spec", [SPEC, TWO_ARMS])
def test_json_round_trip(spec):
    """Catches a spec that comes back changed from a checkpoint, and an infinity that is no JSON."""
    text = json.dumps(spec.to_dict(), allow_nan=False)
    assert Spec.from_dict(json.loads(text)) == spec


def test_what_lies_where():
    """Catches hands and jaws that are looked for at fixed places."""
    assert SPEC.positions == ((0, 1, 2),) and SPEC.grippers == (6,)
    assert TWO_ARMS.positions == ((0, 1, 2), (4, 5, 6)) and TWO_ARMS.grippers == (0, 2)
    np.testing.assert_array_equal(TWO_ARMS.rest, np.float32([0, -1, 0]))
    np.testing.assert_array_equal(SPEC.rest, np.float32([0, 0, 0, 0, 0, 0, -1]))


def test_differences_are_named():
    """Catches two robots that are taken for one, and an error that says only that something differs."""
    assert SPEC.differences(SPEC) == []
    other = replace(SPEC, control_hz=10, cameras=(CameraSpec("main", 96, 96), SPEC.cameras[1]))
    found = "; ".join(SPEC.differences(other))
    assert "camera" in found and "`main`: height 64 against 96" in found and "control_hz 20 against 10" in found
    with pytest.raises(ValueError, match="the data and the checkpoint are of different robots: .*left.jaw"):
        SPEC.require(TWO_ARMS, "the data", "the checkpoint")


def test_an_unknown_range_differs_from_nothing():
    """Catches a checkpoint, which knows the ranges of its data, that refuses the environment the data came from."""
    known = TWO_ARMS.with_ranges(np.full(8, -2.0), np.full(8, 2.0))
    assert known != TWO_ARMS and not known.differences(TWO_ARMS) and not TWO_ARMS.differences(known)
    assert known.differences(known.with_ranges(np.full(8, -9.0), np.full(8, 9.0))) == [], "a known range was changed"


def test_what_leaves_the_range_is_counted():
    """Catches values that are clamped in silence."""
    state = np.zeros((3, 7), np.float32)
    state[:, 2] = (0.7, 1.5, math.pi)
    assert SPEC.outside(state) == {"gripper.z": 2}
    assert TWO_ARMS.outside(np.full((5, 8), 1e9, np.float32)) == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"control_hz": 0}, "control_hz"),
        ({"control_hz": math.nan}, "control_hz"),
        ({"cameras": ()}, "at least one camera"),
        ({"action": (ActionSpec("a"), ActionSpec("a"))}, "different names, got a, a"),
        ({"state": (StateSpec("s", 1.0, 1.0),)}, "`s` must not be empty"),
        ({"keypoints": ("tip",), "workspace": None}, "workspace"),
    ],
)
def test_a_spec_that_makes_no_sense(change, says):
    """Catches a robot that fails hours later, in the middle of a training."""
    with pytest.raises(ValueError, match=says):
        replace(SPEC, **change)


def test_float_pictures_are_refused(make_episode):
    """Catches pictures in [0, 1] that become black frames and are trained on."""
    episode = make_episode(0)
    for wrong in (np.float32(1 / 255), 1):
        images = {name: (frames * wrong).astype(type(wrong)) for name, frames in episode.images.items()}
        with pytest.raises(ValueError, match="image `main` must be uint8"):
            replace(episode, images=images)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", lambda e: e.state.astype(np.float64)),
        ("action", lambda e: e.action.astype(np.float64)),
        ("success", lambda e: e.success.astype(np.float32)),
        ("held", lambda e: e.held.astype(np.int64)),
        ("progress", lambda e: e.progress * np.nan),
        ("action", lambda e: e.action + 2),
        ("expert", lambda e: e.expert - 2),
        ("keypoints", lambda e: e.keypoints[:, :2]),
        ("seed", lambda e: np.int64(3)),
        ("subtask", lambda e: e.subtask + 5),
    ],
)
def test_wrong_types_and_shapes_are_named(make_episode, field, value):
    """Catches data that is silently something else than it says: types are checked as shapes are."""
    episode = make_episode(0)
    with pytest.raises(ValueError, match=f"`{field}`"):
        replace(episode, **{field: value(episode)})


def test_cameras_in_another_order_are_refused(make_episode):
    """Catches two pictures of one size that change places."""
    obs = make_episode(0).obs(0)
    with pytest.raises(ValueError, match="must be of the cameras main, wrist"):
        Observation(dict(reversed(obs.images.items())), obs.state).check(SPEC)


def test_actions_are_cut_to_each_dimension():
    """Catches a robot of other ranges that is cut to -1 .. 1."""
    np.testing.assert_array_equal(check_action(np.array([2, 0, -1]), TWO_ARMS), np.float32([1, -1, 0]))
    with pytest.raises(ValueError, match="3 dimensions"):
        check_action(np.zeros(7), TWO_ARMS)
    with pytest.raises(ValueError, match="not finite at index"):
        check_action(np.array([0, np.nan, 0]), TWO_ARMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pose: pose[:, :7], "must be float32"),
        (lambda pose: pose * np.float32([1, 1, 1, 2, 2, 2, 2, 1]), "unit quaternion"),
        (lambda pose: np.where(np.arange(8) == 2, np.nan, pose).astype(np.float32), "NaN as a whole"),
    ],
)
def test_a_pose_that_is_none_is_refused(make_episode, change, message):
    """Catches a pose in another convention, or with a hole, that a model would be told as the truth."""
    episode = make_episode(0)
    pose = np.tile(np.float32([0, 0, 1, 1, 0, 0, 0, 0.7]), (len(episode) + 1, 1))
    assert replace(episode, poses={"main": pose}).obs(0).check(SPEC).poses["main"].shape == (8,)
    replace(episode, poses={"main": np.full_like(pose, np.nan)})  # nobody knows
    with pytest.raises(ValueError, match=message):
        replace(episode, poses={"main": change(pose)})
    with pytest.raises(ValueError, match="neither view nor camera: top"):
        replace(episode, poses={"top": pose})


def test_a_camera_that_tells_its_pose_is_the_same_camera():
    """Catches a checkpoint that reads no poses being refused by a robot that tells them."""
    told = replace(SPEC, cameras=tuple(replace(camera, posed=True) for camera in SPEC.cameras))
    assert told.differences(replace(SPEC, cameras=tuple(replace(c, posed=False) for c in SPEC.cameras))) == []
    assert told.cameras == tuple(replace(camera, posed=False) for camera in told.cameras)
