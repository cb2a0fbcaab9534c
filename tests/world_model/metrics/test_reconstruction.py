import numpy as np
import pytest

from envs.data.camera import Camera
from world_model.metrics.reconstruction import Fidelity, passes_gate, psnr, still_kept, track_cloth, track_cube


def scene(place: tuple[int, int], size: int, colour=(200, 40, 30)) -> np.ndarray:
    """A grey table with one square whose upper left corner is at `place`."""
    frame = np.full((64, 64, 3), 150, np.uint8)
    frame[place[0] : place[0] + size, place[1] : place[1] + size] = colour
    return frame


def test_camera_looks_at_its_target():
    """Catches a mirrored or transposed projection: the keypoint windows would miss the objects."""
    camera = Camera()
    assert np.allclose(camera.project(np.array(camera.target)), 31.5)
    nearer, right = camera.project(np.array([[0.13, 0, 0.83], [0.03, 0.1, 0.83]]))
    assert nearer[0] > 32 and abs(nearer[1] - 31.5) < 1e-6, "nearer to the camera is lower in the picture"
    assert right[1] > 32 and abs(right[0] - 31.5) < 1e-6, "the robot's left is the camera's right"
    assert np.isnan(camera.project(np.full(3, np.nan))).all()


def test_cube_found_moved_and_lost():
    """Catches a measure that calls a vanished cube good because the mean error is small."""
    true = np.stack([scene((30, 20), 5)] * 3)
    again = np.stack([scene((30, 20), 5), scene((30, 22), 5), scene((0, 0), 0)])
    places = np.full((3, 4, 2), np.nan)
    places[:, 0] = 32, 22
    found = track_cube(true, again, places)
    assert found["cube_lost"] == [0, 0, 1]
    assert found["cube_error"] == pytest.approx([0, 2])


def test_frames_that_say_nothing_are_not_counted():
    """Catches a figure that rests on frames where the cube is hidden or has the table's colour."""
    places = np.full((2, 4, 2), np.nan)
    places[:, 0] = 32, 22
    hidden = np.stack([scene((30, 20), 5), scene((50, 50), 5)])
    assert len(track_cube(hidden, hidden, places)["cube_lost"]) == 1
    alike = np.stack([scene((30, 20), 5, colour=(155, 150, 150))] * 2)
    assert track_cube(alike, alike, places) == {"cube_lost": [], "cube_error": []}


def test_cloth_iou():
    """Catches an overlap that counts the table, which would read 0.9 for a cloth that is not there."""
    true = np.stack([scene((20, 20), 20)] * 2)
    again = np.stack([scene((20, 20), 20), scene((20, 25), 20)])
    corners = np.array([[39, 20], [39, 39], [20, 20], [20, 39]], float)
    overlap = track_cloth(true, again, np.stack([corners] * 2))["cloth_iou"]
    assert overlap == pytest.approx([1.0, 15 / 25])
    gone = np.stack([scene((0, 0), 0)] * 2)
    assert track_cloth(true, gone, np.stack([corners] * 2))["cloth_iou"] == [0, 0]


def test_a_grey_robot_is_no_cloth():
    """Catches a gripper over the cloth that counts as cloth where its grey is nearer to the cloth than to the table."""
    flat, covered = scene((20, 20), 20, (45, 44, 217)), scene((20, 20), 20, (45, 44, 217))
    flat[flat[..., 2] == 150] = covered[covered[..., 2] == 150] = (210, 174, 136)
    covered[20:40, 30:40] = (70, 70, 72)
    corners = np.array([[39, 20], [39, 39], [20, 20], [20, 39]], float)
    again = covered.copy()
    again[20:30, 30:40] = (210, 174, 136)  # table where the gripper was: the cloth is as it was
    overlap = track_cloth(np.stack([flat, covered]), np.stack([flat, again]), np.stack([corners] * 2))["cloth_iou"]
    assert overlap == [1.0, 1.0]


def test_still_patches():
    """Catches moving patches being counted, and an id that flickers on a still one being missed."""
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[1, :8, :8] = 90  # the first patch moves
    frames[1, 8:, 8:] = 2  # noise
    ids = np.zeros((2, 16), int)
    ids[1, 0], ids[1, 5] = 1, 1
    kept = still_kept(frames, ids)
    assert len(kept) == 15 and kept.sum() == 14


def test_psnr():
    """Catches the usual slip of taking the logarithm of the wrong scale."""
    black = np.zeros((1, 64, 64, 3), np.uint8)
    assert psnr(black, black + 255)[0] == pytest.approx(0, abs=1e-4)
    assert psnr(black, black + 8)[0] == pytest.approx(30.07, abs=0.01)


def test_figures_weigh_frames_not_episodes():
    """Catches a mean of means, in which a short episode counts as much as a long one."""
    both = Fidelity({"psnr": 90.0}, {"psnr": 3}) + Fidelity({"psnr": 10.0, "cube_lost": 1}, {"psnr": 1, "cube_lost": 4})
    figures = both.figures()
    assert figures == {"psnr": 25.0, "cube_lost": 0.25, "cube_lost_frames": 4}
    assert passes_gate(figures) == {"psnr": False, "cube_lost": False}
