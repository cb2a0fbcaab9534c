"""What training changes: the images, the state and the keypoints must go on telling one story."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from envs.data.augmentation import Augmentation, Change
from envs.data.camera import CameraPose, project
from envs.data.settings import from_settings
from envs.sim.table import SPEC, TABLE_HEIGHT
from envs.types import CameraSpec, StateSpec

CONFIGS = Path(__file__).parents[3] / "configs" / "augment"
POSE = CameraPose((0.50, 0.0, 1.42), (0.03, 0.0, 0.83), 38.0)
TABLETOP = Augmentation(share=1.0, shift=0.04, poses={"main": POSE}, attached=("wrist",), ground=TABLE_HEIGHT)


def place(x: float, y: float, scale: float = 1.0) -> torch.Tensor:
    """As `Change.place`, of one sample."""
    return torch.tensor([[scale, x, y, 0.0]])


def spot(points: np.ndarray, height: int = 64, width: int = 64) -> torch.Tensor:
    """A dark image with a bright blob where the camera sees each point, (1, h, w, 3) u8."""
    image = np.zeros((height, width))
    for row, column in project(POSE.pose, points, height, width):
        image += 255 * np.exp(-((np.arange(height)[:, None] - row) ** 2 + (np.arange(width) - column) ** 2) / 4)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))[None, :, :, None].repeat(1, 1, 1, 3)


def centre(image: torch.Tensor) -> np.ndarray:
    """Row and column of an image's brightness, (h, w, 3) -> (2,)."""
    weight = image[..., 0].double().numpy()
    rows, columns = np.arange(weight.shape[0]), np.arange(weight.shape[1])
    return np.array([(weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()]) / weight.sum()


def test_a_camera_looks_at_its_target():
    """Catches a mirrored or transposed projection: everything that looks round a keypoint would miss it."""
    assert np.allclose(project(POSE.pose, np.array([POSE.target]), 64, 64), 31.5)
    assert np.allclose(project(POSE.pose, np.array([POSE.target]), 48, 96), (23.5, 47.5))
    nearer, right = project(POSE.pose, np.array([[0.13, 0, 0.83], [0.03, 0.1, 0.83]]), 64, 64)
    assert nearer[0] > 32 and abs(nearer[1] - 31.5) < 1e-6, "nearer to the camera is lower in the image"
    assert right[1] > 32 and abs(right[0] - 31.5) < 1e-6, "the robot's left is the camera's right"
    assert np.isnan(project(POSE.pose, np.full((1, 3), np.nan), 64, 64)).all()


def test_a_camera_that_cannot_be_is_refused():
    """Catches NaN in every image of a camera that looks straight down."""
    with pytest.raises(ValueError, match="straight"):
        CameraPose((0, 0, 2), (0, 0, 1), 38.0)
    with pytest.raises(ValueError, match="fovy"):
        CameraPose((0, 1, 2), (0, 0, 1), 180.0)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_the_image_moves_as_far_as_the_points(size):
    """Catches a shift or a scale that is mirrored, transposed or in other units than the labels: perception learns a
    lie."""
    points = torch.tensor([[[0.02, -0.03, TABLE_HEIGHT]]])
    for shift, scale, center in ((0.0, 1.0, (0.03, 0.01)), (0.04, 0.0, (0.0, 0.0)), (0.04, 0.5, (0.0, 0.0))):
        augment = Augmentation(shift=shift, scale=scale, center=center)
        augment = replace(augment, share=1.0, hue=0.0, gain=(1.0, 1.0), poses={"main": POSE}, ground=TABLE_HEIGHT)
        change = augment.draw(1, torch.Generator().manual_seed(4))
        moved = change.images("main", spot(points[0].numpy(), *size))
        expected = project(POSE.pose, change.points(points)[0].numpy(), *size)[0]
        assert np.abs(expected - project(POSE.pose, points[0].numpy(), *size)[0]).max() > 1
        np.testing.assert_allclose(centre(moved[0]), expected, atol=0.2)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_the_image_moves_by_the_numbers_told(size):
    """Catches a change whose picture and labels agree, and neither is the change that was asked for."""
    points = torch.tensor([[[0.02, -0.03, TABLE_HEIGHT]]])
    change = Change(torch.eye(3)[None], place(0.03, -0.02), {"main": POSE}, TABLE_HEIGHT)
    moved = change.images("main", spot(points[0].numpy(), *size))
    expected = project(POSE.pose, change.points(points)[0].numpy(), *size)[0]
    np.testing.assert_allclose(centre(moved[0]), expected, atol=0.2)


def test_every_position_of_the_state_moves_along():
    """Catches the second hand, or a hand whose position does not come first, that stays where the image moves."""
    change = Change(torch.eye(3)[None], place(0.03, -0.02), {}, 0.0)
    moved = change.state(torch.zeros(1, 5, 8), ((1, 2, 3), (6, 5, 7)))
    assert moved[0, 4].tolist() == pytest.approx([0, 0.03, -0.02, 0, 0, -0.02, 0.03, 0])


def test_a_larger_world_is_one_story():
    """Catches actions that no longer lead to where the state says, a table that rises, jaws that open further than
    they can, and a command beyond the robot's range."""
    augment = replace(TABLETOP, shift=0.0, scale=0.2, center=(0.1, 0.0), translations=("dx", "dy", "dz"))
    change = augment.draw(200, torch.Generator().manual_seed(0))
    scale = change.place[:, 0]
    assert 1 / 1.2 - 1e-6 <= scale.min() < 0.87 and 1.15 < scale.max() <= 1.2 + 1e-6
    fixed = torch.tensor([0.1, 0.0, TABLE_HEIGHT]).expand(200, 1, 3)
    torch.testing.assert_close(change.points(fixed), fixed)

    before = torch.rand(200, len(SPEC.state), generator=torch.Generator().manual_seed(1)) * 0.5
    action = torch.rand(200, len(SPEC.action), generator=torch.Generator().manual_seed(2)) * 0.7
    after = before.clone()
    after[:, :3] += 0.05 * action[:, :3]  # OSC_POSE's metres
    moved, led = change.state(before, SPEC.positions), change.state(after, SPEC.positions)
    further = change.actions(action, SPEC)
    torch.testing.assert_close(led[:, :3] - moved[:, :3], 0.05 * further[:, :3])
    assert torch.equal(further[:, 3:], action[:, 3:]) and torch.equal(moved[:, 3:], before[:, 3:])
    assert change.actions(torch.ones(200, 4, len(SPEC.action)), SPEC).max() == 1
    assert replace(augment, scale=0.0).draw(2, torch.Generator()).reach(SPEC) is None


def test_what_fades_is_contrast():
    """Catches pictures that only become dark where things should become hard to tell from their ground, samples that
    all fade alike, and colours that depend on which frames of an episode are seen together."""
    images = torch.full((200, 3, 8, 8, 3), 100, dtype=torch.uint8)
    images[:, :, 2:4, 2:4] = torch.tensor([180, 60, 40], dtype=torch.uint8)
    fade = Augmentation(share=1.0, hue=0.0, gain=(1.0, 1.0), fade=0.95)
    change = fade.draw(200, torch.Generator().manual_seed(0))
    seen = change.images("main", images).float()
    assert torch.equal(change.images("main", images[:, :1, :4]).float(), seen[:, :1, :4])
    assert 80 < seen[:, 0, 0, 0].mean() < 140 and seen[:, 0, 0, 0].std() > 20
    apart = (seen[:, 0, 3, 3] - seen[:, 0, 0, 0]).norm(dim=1) / (images[0, 0, 3, 3] - 100.0).norm()
    assert apart.max() > 0.95 and apart.min() < 0.3 and apart.std() > 0.1
    assert torch.equal(change[50:].images("main", images[50:]).float(), seen[50:])
    without = replace(TABLETOP, fade=0.0).draw(4, torch.Generator().manual_seed(0))
    assert without.offset is None and not torch.equal(without.colours, change.colours[:4])
    assert torch.equal(without.place, replace(TABLETOP, fade=0.9).draw(4, torch.Generator().manual_seed(0)).place)


def test_images_of_a_sample_change_alike():
    """Catches a colour or a place that jumps within a window: the model would learn that actions do that."""
    images = torch.randint(256, (3, 1, 64, 64, 3), dtype=torch.uint8).repeat(1, 4, 1, 1, 1)
    change = TABLETOP.draw(3, torch.Generator().manual_seed(0))
    for camera, view in (("main", images), ("wrist", images[..., :32, :32, :])):
        after = change.images(camera, view)
        assert after.shape == view.shape and after.dtype == torch.uint8
        assert torch.equal(after, after[:, :1].expand_as(after)) and not torch.equal(after, view)
    assert not torch.equal(change.colours[0], change.colours[1]) and not torch.equal(change.place[0], change.place[1])


def test_what_is_not_drawn_stays_as_it_was():
    """Catches blur or rounding in samples that should be seen as they are at run time."""
    images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    change = replace(TABLETOP, share=0.0).draw(2, torch.Generator().manual_seed(0))
    assert torch.equal(change.images("main", images), images) and torch.equal(change.images("wrist", images), images)
    points = torch.rand(2, 5, 4, 3)
    assert torch.equal(change.points(points), points)


def test_noise_is_one_number_a_sample():
    """Catches noise that a model averages away over a window, that moves the hand away from its picture, or that is
    metres where the range is a centimetre."""
    narrow = replace(SPEC.state[3], low=-0.01, high=0.01)
    spec = replace(SPEC, state=(*SPEC.state[:3], narrow, *SPEC.state[4:]))
    change = Augmentation(noise=0.1).draw(500, torch.Generator().manual_seed(0), spec)
    states = torch.zeros(500, 4, len(spec.state))
    noisy = change.state(states, spec.positions)
    assert torch.equal(noisy, noisy[:, :1].expand_as(noisy)) and not noisy[..., :3].any()
    torch.testing.assert_close(noisy[:, 0, 3].std(), torch.tensor(0.002), rtol=0.15, atol=0)
    assert Augmentation().draw(2, torch.Generator(), spec).noise is None


def test_unknown_points_stay_unknown():
    """Catches a NaN keypoint that becomes a number, or that spreads."""
    points = torch.tensor([[[float("nan")] * 3, [0.1, 0.2, 0.8]]])
    moved = TABLETOP.draw(1, torch.Generator().manual_seed(0)).points(points)
    assert moved[0, 0].isnan().all() and moved[0, 1].isfinite().all() and moved[0, 1, 2] == points[0, 1, 2]


def test_nothing_moves_where_an_image_or_the_state_could_not():
    """Catches labels that move while the image of a camera of unknown pose, or a state of joint angles, stays."""
    third = replace(SPEC, cameras=(*SPEC.cameras, CameraSpec("side", 64, 64)))
    joints = replace(SPEC, state=(StateSpec("joint", -1.0, 1.0, "rad"),))
    for spec, why in ((third, "side"), (joints, "where the hand is")):
        assert why in TABLETOP.cannot_shift(spec)
        change = TABLETOP.of(spec).draw(4, torch.Generator().manual_seed(0))
        assert torch.equal(change.place, place(0, 0).expand(4, 4)) and not change.poses
        same = TABLETOP.draw(4, torch.Generator().manual_seed(0))
        assert torch.equal(change.colours, same.colours), "the same draws, so that the order of randomness is one"
    assert TABLETOP.cannot_shift(SPEC) == "" and TABLETOP.of(SPEC) == TABLETOP
    larger = replace(TABLETOP, scale=0.1)
    for names in ((), ("dx", "left"), ("gripper",)):
        wrong = replace(larger, translations=names)
        assert "must name" in wrong.cannot_scale(SPEC) and wrong.of(SPEC) == replace(wrong, scale=0.0)
    uneven = replace(SPEC, action=(replace(SPEC.action[0], low=0.0), *SPEC.action[1:]))
    larger = replace(larger, translations=("dx",))
    assert "dx is not even" in larger.cannot_scale(uneven) and larger.of(SPEC) == larger
    assert "side" in larger.cannot_scale(third)


@pytest.mark.parametrize("name", ["default", "tabletop"])
def test_presets_are_sound(name):
    """Catches a preset with a setting that no longer exists, and a default that needs to know the cameras."""
    found = from_settings(Augmentation, OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")))
    if name == "tabletop":
        assert found.of(SPEC) == found and found.shift > 0 and found.ground == TABLE_HEIGHT
        assert replace(found, scale=0.1).cannot_scale(SPEC) == ""
    else:
        assert not found.shift and not found.poses


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.5}, {"gain": (1.1, 0.7)}, {"shift": -0.1}, {"scale": -0.1}, {"hue": -1.0}, {"noise": -0.1},
        {"patches": -1}, {"fade": 1.1},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong):
    """Catches a setting that silently does something else, such as a negative share that changes nothing."""
    with pytest.raises(ValueError, match="augmentation"):
        Augmentation(**wrong)
