"""Camera poses as bins."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from envs.types import POSE
from tests.viewed import FRONT, LEFT, ROBOT, TOP, viewed
from world_model.tokens.poses import PoseRange, fit_poses


def turned(pose: np.ndarray, degrees: float, axis: str) -> np.ndarray:
    """The same camera, turned; its quaternion with w >= 0, as cameras tell it."""
    w, x, y, z = pose[3:7]
    q = (Rotation.from_euler(axis, degrees, degrees=True) * Rotation.from_quat([x, y, z, w])).as_quat(canonical=True)
    return np.concatenate([pose[:3], q[[3, 0, 1, 2]], pose[7:]]).astype(np.float32)


def test_a_camera_further_away_stays_inside():
    """Catches a range in which a camera that is moved by 10 cm and turned by 10 degrees is told as another."""
    for seen in ([FRONT], [FRONT, TOP, LEFT]):
        found = PoseRange.fit("front", [np.stack(seen)])
        for pose in seen:
            for axis in "xyz":
                for sign in (-1, 1):
                    far = turned(pose, sign * 10, axis)
                    far[:3] += 0.1 * sign
                    assert found.outside(far[None]) == {}, f"turned about {axis}"
    assert found.outside(np.stack([FRONT + np.eye(8, dtype=np.float32)[0]] * 3)) == {"front.x": 3}


def test_near_cameras_have_near_bins():
    """Catches the two quaternions of one rotation: a camera at the side has w near 0, and a hair's turn flips all its
    signs."""
    found = PoseRange.fit("front", [np.stack([FRONT, TOP, LEFT])])
    assert abs(LEFT[3]) < 1e-6
    pair = torch.from_numpy(np.stack([turned(LEFT, angle, axis) for axis in "xyz" for angle in (-0.5, 0.5)]))
    assert (pair[::2, 4:7] - pair[1::2, 4:7]).abs().max() > 1, "as numbers they are far apart"
    bins = found.to_bins(pair)
    assert (bins[::2] - bins[1::2]).abs().max() < 5 and bins.min() > 0 and bins.max() < 255
    assert torch.equal(found.to_bins(-pair)[:, 3:7], bins[:, 3:7])


def test_what_nobody_knows_stays_unknown():
    """Catches a NaN that becomes a place, or that spreads over the range."""
    unknown = np.full((2, len(POSE)), np.nan, np.float32)
    found = PoseRange.fit("front", [unknown, FRONT[None]])
    assert found == PoseRange.fit("front", [FRONT[None]])
    assert found.to_bins(torch.from_numpy(unknown)).isnan().all() and found.outside(unknown) == {}
    with pytest.raises(ValueError, match="camera `front`"):
        PoseRange.fit("front", [unknown])


def test_ranges_come_back_from_json():
    """Catches a checkpoint that tells a camera's place on another scale than it was taught on."""
    found = PoseRange.fit("front", [np.stack([FRONT, TOP])])
    assert PoseRange.from_dict({**found.to_dict(), "low": list(found.low)}) == found
    with pytest.raises(ValueError, match="camera front"):
        PoseRange.from_dict({**found.to_dict(), "low": [1.0]})


def test_the_first_camera_has_room_for_the_views():
    """Catches a wanted view that is clamped to the camera's own place, and a hand's camera stretched over the room."""
    episode = viewed(0)
    front, hand = fit_poses(ROBOT.cameras, [episode])
    assert (front.camera, hand.camera) == ("front", "hand")
    assert all(front.outside(pose) == {} for pose in (episode.poses["left"], episode.poses["top"]))
    assert hand.high[2] - hand.low[2] < 0.5 < front.high[2] - front.low[2]
