"""Objects that are found by their colour where keypoints say they are."""

import numpy as np
import pytest

from world_model.metrics.silhouettes import compare_objects, compare_outlines, compare_small


def scene(place: tuple[int, int], size: int, colour=(200, 40, 30), shape=(64, 64)) -> np.ndarray:
    """A grey table with one square whose upper left corner is at `place`."""
    image = np.full((*shape, 3), 150, np.uint8)
    image[place[0] : place[0] + size, place[1] : place[1] + size] = colour
    return image


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_a_small_object_is_found_moved_and_lost(shape):
    """Catches a measure that calls a vanished object good because the mean error is small."""
    true = np.stack([scene((30, 20), 5, shape=shape)] * 3)
    again = np.stack([scene((30, 20), 5, shape=shape), scene((30, 22), 5, shape=shape), scene((0, 0), 0, shape=shape)])
    found = compare_small(true, again, np.full((3, 2), (32, 22)))
    assert found["object_lost"] == [0, 0, 1]
    assert found["object_error"] == pytest.approx([0, 2])


def test_images_that_say_nothing_are_not_counted():
    """Catches a figure that rests on images where the object is hidden or has the table's colour."""
    places = np.full((2, 2), (32, 22))
    hidden = np.stack([scene((30, 20), 5), scene((50, 50), 5)])
    assert len(compare_small(hidden, hidden, places)["object_lost"]) == 1
    alike = np.stack([scene((30, 20), 5, colour=(155, 150, 150))] * 2)
    assert compare_small(alike, alike, places) == {"object_lost": [], "object_error": []}


CORNERS = np.array([[39, 20], [39, 39], [20, 20], [20, 39]], float)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1), (0, 3, 1, 2)])
def test_the_overlap_of_outlines(order):
    """Catches an overlap that counts the table, which would read 0.9 for a cloth that is not there, and corners that
    must come in one order."""
    true = np.stack([scene((20, 20), 20)] * 2)
    again = np.stack([scene((20, 20), 20), scene((20, 25), 20)])
    places = np.stack([CORNERS[list(order)]] * 2)
    assert compare_outlines(true, again, places)["outline_iou"] == pytest.approx([1.0, 15 / 25])
    gone = np.stack([scene((0, 0), 0)] * 2)
    assert compare_outlines(true, gone, places)["outline_iou"] == [0, 0]


def test_a_grey_robot_is_no_object():
    """Catches a gripper over the cloth that counts as cloth where its grey is nearer to the cloth than to the table."""
    flat, covered = scene((20, 20), 20, (45, 44, 217)), scene((20, 20), 20, (45, 44, 217))
    flat[flat[..., 2] == 150] = covered[covered[..., 2] == 150] = (210, 174, 136)
    covered[20:40, 30:40] = (70, 70, 72)
    again = covered.copy()
    again[20:30, 30:40] = (210, 174, 136)  # table where the gripper was: the cloth is as it was
    overlap = compare_outlines(np.stack([flat, covered]), np.stack([flat, again]), np.stack([CORNERS] * 2))
    assert overlap["outline_iou"] == [1.0, 1.0]


def test_keypoints_that_are_used_decide():
    """Catches a cube that is looked for as an outline, or a cloth as four small objects."""
    images = np.stack([scene((30, 20), 5)] * 2)
    places = np.full((2, 4, 2), np.nan)
    assert compare_objects(images, images, places) == {"object_lost": [], "object_error": []}
    places[:, 1] = 32, 22
    assert compare_objects(images, images, places) == {"object_lost": [0, 0], "object_error": [0, 0]}
    cloth = np.stack([scene((20, 20), 20)] * 2)
    assert compare_objects(cloth, cloth, np.stack([CORNERS] * 2)) == {"outline_iou": [1, 1]}
