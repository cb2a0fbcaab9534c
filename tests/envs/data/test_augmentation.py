"""What training changes: the picture, the state and the keypoints must go on telling one story."""

import numpy as np
import torch

from envs.data.augmentation import Augmentation, Change
from envs.data.camera import Camera


def spot(points: np.ndarray) -> torch.Tensor:
    """A dark frame with a bright blob where the camera sees each point, (1, 64, 64, 3) u8."""
    axis = np.arange(64)
    frame = np.zeros((64, 64))
    for row, column in Camera().project(points):
        frame += 255 * np.exp(-((axis[:, None] - row) ** 2 + (axis - column) ** 2) / 4)
    return torch.from_numpy(frame.clip(0, 255).astype(np.uint8))[None, :, :, None].repeat(1, 1, 1, 3)


def centre(frame: torch.Tensor) -> np.ndarray:
    """Row and column of a frame's brightness, (64, 64, 3) -> (2,)."""
    weight, axis = frame[..., 0].double().numpy(), np.arange(64)
    return np.array([(weight.sum(1) * axis).sum(), (weight.sum(0) * axis).sum()]) / weight.sum()


def test_the_picture_moves_as_far_as_the_points():
    """Catches a shift that is mirrored, transposed or in other units than the labels: perception learns a lie."""
    points = torch.tensor([[[0.02, -0.03, 0.8]]])
    change = Change(torch.eye(3)[None], torch.tensor([[0.03, -0.02]]), Camera())
    moved = change.main(spot(points[0].numpy()))
    np.testing.assert_allclose(centre(moved[0]), Camera().project(change.points(points)[0, 0].numpy()), atol=0.2)


def test_frames_of_a_sample_change_alike():
    """Catches a colour or a place that jumps within a window: the model would learn that actions do that."""
    frames = torch.randint(256, (3, 1, 64, 64, 3), dtype=torch.uint8).repeat(1, 4, 1, 1, 1)
    change = Augmentation(share=1.0).draw(3, torch.Generator().manual_seed(0))
    for changed, view in ((change.main, frames), (change.wrist, frames[..., :32, :32, :])):
        after = changed(view)
        assert after.shape == view.shape and after.dtype == torch.uint8
        assert torch.equal(after, after[:, :1].expand_as(after)) and not torch.equal(after, view)
    assert not torch.equal(change.colours[0], change.colours[1]) and not torch.equal(change.shift[0], change.shift[1])


def test_what_is_not_drawn_stays_as_it_was():
    """Catches blur or rounding in samples that should be seen as they are at run time."""
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    change = Augmentation(share=0.0).draw(2, torch.Generator().manual_seed(0))
    assert torch.equal(change.main(frames), frames) and torch.equal(change.wrist(frames), frames)
    points = torch.rand(2, 5, 4, 3)
    assert torch.equal(change.points(points), points)


def test_unknown_points_stay_unknown():
    """Catches a NaN keypoint that becomes a number, or that spreads."""
    points = torch.tensor([[[float("nan")] * 3, [0.1, 0.2, 0.8]]])
    moved = Augmentation(share=1.0).draw(1, torch.Generator().manual_seed(0)).points(points)
    assert moved[0, 0].isnan().all() and moved[0, 1].isfinite().all() and moved[0, 1, 2] == points[0, 1, 2]
