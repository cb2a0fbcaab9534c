"""Patches of light that are drawn into recorded pictures: where they lie, and what they leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.data.augmentation import Augmentation
from envs.data.camera import CameraPose, plane_points, pose_matrix, project
from envs.data.patches import Patches

GROUND = 0.8
FRONT = CameraPose((0.50, 0.0, 1.42), (0.03, 0.0, 0.83), 38.0)
SIDE = CameraPose((0.0, 0.6, 1.3), (0.0, 0.05, 0.8), 45.0)
PLAIN = Augmentation(share=1.0, hue=0.0, gain=(1.0, 1.0), poses={"main": FRONT}, ground=GROUND, patches=3)


def matrices(pose: CameraPose, height: int = 64, width: int = 64) -> np.ndarray:
    return pose_matrix(pose.pose, height, width)[None, None]


def dark(x: float, y: float) -> Patches:
    """One sharp, black, round patch of 3 cm."""
    return Patches(
        centre=torch.tensor([[[x, y]]]), size=torch.full((1, 1, 2), 0.03), turn=torch.zeros(1, 1),
        edge=torch.full((1, 1), 0.02), angular=torch.zeros(1, 1, dtype=bool),
        period=torch.full((1, 1), torch.inf), tint=torch.zeros(1, 1, 3),
    )  # fmt: skip


@pytest.mark.parametrize("pose", [FRONT, SIDE])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_every_camera_shows_it_at_one_place(pose, size):
    """Catches a patch that is mirrored, or at another place of the table for the next camera."""
    picture = torch.full((1, 1, *size, 3), 200, dtype=torch.uint8)
    shown = dark(0.04, 0.05).on_ground(picture, matrices(pose, *size), GROUND)
    weight = 200 - shown[0, 0, ..., 0].double().numpy()
    assert weight.max() == 200
    rows, columns = np.arange(size[0]), np.arange(size[1])
    middle = np.array([(weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()]) / weight.sum()
    np.testing.assert_allclose(middle, project(pose.pose, np.array([[0.04, 0.05, GROUND]]), *size)[0], atol=0.3)


def test_what_is_above_the_horizon_stays():
    """Catches a patch that lies in the sky, where the lines of sight meet the plane behind the camera."""
    level = CameraPose((0.5, 0.0, 1.0), (-1.0, 0.0, 1.0), 60.0)
    points = plane_points(matrices(level)[0, 0], 64, 64, GROUND)
    assert points[:32].isinf().any(-1).all() and points[32:, :, 0].max() < 0.5
    picture = torch.full((1, 1, 64, 64, 3), 200, dtype=torch.uint8)
    large = replace(dark(0.0, 0.0), size=torch.full((1, 1, 2), 1e3))
    shown = large.on_ground(picture, matrices(level), GROUND)
    assert torch.equal(shown[:, :, :32], picture[:, :, :32]) and not shown[:, :, 33:].any()


def test_stripes_are_as_wide_as_they_should_be():
    """Catches stripes in pixels instead of metres, and ones that run across where they should run along."""
    wide = replace(dark(0.0, 0.0), size=torch.full((1, 1, 2), 0.2), period=torch.full((1, 1), 0.04))
    picture = torch.full((1, 1, 64, 64, 3), 200, dtype=torch.uint8)
    shown = wide.on_ground(picture, matrices(SIDE), GROUND)[0, 0, ..., 0]
    x = torch.linspace(-0.08, 0.08, 81)
    points = torch.stack([x, torch.full_like(x, 0.01), torch.full_like(x, GROUND)], -1).numpy()
    rows, columns = project(SIDE.pose, points, 64, 64).round().astype(int).T
    lit = shown[rows, columns] > 100
    assert (lit[1:] != lit[:-1]).sum() == 7, "four periods"
    turned = replace(wide, turn=torch.full((1, 1), np.pi / 2)).on_ground(picture, matrices(SIDE), GROUND)[0, 0, ..., 0]
    assert len(set((turned[rows, columns] > 100).tolist())) == 1


def test_they_stay_where_they_are_in_a_window():
    """Catches light that jumps from step to step, which a model would take for a consequence of actions, and samples
    that share their patches."""
    pictures = torch.full((3, 5, 64, 64, 3), 128, dtype=torch.uint8)
    change = PLAIN.draw(3, torch.Generator().manual_seed(1))
    seen = change.images("main", pictures)
    assert torch.equal(seen, seen[:, :1].expand_as(seen)) and (seen != pictures).flatten(1).any(1).all()
    assert not torch.equal(seen[0], seen[1]) and torch.equal(change[1:].images("main", pictures[1:]), seen[1:])
    wrist = change.images("wrist", pictures)
    assert torch.equal(wrist, wrist[:, :1].expand_as(wrist)) and (wrist != pictures).flatten(1).any(1).all()
    other = change.images("main", pictures, np.broadcast_to(SIDE.pose, (3, 5, 8)))
    assert not torch.equal(other, seen) and torch.equal(other, other[:, :1].expand_as(other))


def test_they_move_with_the_scene():
    """Catches patches by which a model could tell how far a scene was moved."""
    change = replace(PLAIN, patches=1, shift=0.04).draw(1, torch.Generator().manual_seed(0))
    (x, y), (dx, dy) = (0.02, 0.03), change.place[0, 1:3].tolist()
    seen = replace(change, patches=dark(x, y)).images("main", torch.full((1, 64, 64, 3), 200, dtype=torch.uint8))
    row, column = project(FRONT.pose, np.array([[x + dx, y + dy, GROUND]]), 64, 64)[0].round().astype(int)
    assert seen[0, row, column].max() < 20 and abs(dx) + abs(dy) > 0.01


def test_edges_are_seen_through_them():
    """Catches patches that hide what the task needs, and that are on every sample."""
    striped = torch.zeros(400, 64, 64, 3, dtype=torch.uint8)
    striped[..., ::2, :] = 150
    change = replace(PLAIN, share=0.5).draw(400, torch.Generator().manual_seed(0))
    seen = change.images("main", striped)
    assert (seen[..., ::2, :] > 0).all() and not seen[..., 1::2, :].any()
    assert 0.35 < (seen == striped).flatten(1).all(1).float().mean() < 0.65


def test_without_them_all_is_as_it_was():
    """Catches a setting at rest that changes trainings which are gone on with."""
    first = replace(PLAIN, hue=0.5, shift=0.04).draw(4, torch.Generator().manual_seed(3))
    second = replace(PLAIN, hue=0.5, shift=0.04, patches=0).draw(4, torch.Generator().manual_seed(3))
    assert second.patches is None
    assert torch.equal(first.colours, second.colours) and torch.equal(first.place, second.place)
