"""Other colours and other places: what makes a few hundred episodes enough.

Episodes differ by how they look. A model that sees few of them tells them apart by their colours and remembers where
each cloth lay, instead of looking: on held-out episodes it was 4.5 cm off where it is 1.5 cm off with other colours and
places in every batch (LOG.md). Images are changed before they become ids, so all ids of a window tell one story.

Colours can be changed for any robot. The scene can only be moved, or made larger or smaller, where every image can
change with it: a fixed camera needs its pose for that, and one that is attached to the hand moves by itself. The state
must tell where the hand is, in metres, to move along. Where a camera is neither, or there is no such position, nothing
is moved at all, because an image that stayed where the labels move would teach a lie. A world that is a tenth larger,
its robot included, wants actions that reach a tenth further; a camera on its hand sees what it saw.

Patches of other light can lie on any picture (envs/data/patches.py).

Sources: random shifts (DrQ, Kostrikov et al. 2021; RAD, Laskin et al. 2020), here of the scene instead of the
image, so that state, keypoints and actions change along and stay true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.data.camera import CameraPose, place_scene, pose_matrix
from envs.data.patches import Patches
from envs.types import Spec


@dataclass(frozen=True)
class Augmentation:
    """How far training strays from what was recorded.

    share: of samples whose colours change, and, drawn apart, of those whose place does.
    hue: radians, standard deviation of the turn about grey.
    gain: range of each channel's scale.
    shift: metres, the most that the scene is moved along x and y; 0 to leave it where it is.
    scale: the most by which the scene is made larger or smaller, so that 0.1 is from 1 / 1.1 to 1.1 times its size.
    center: x and y in metres of what stays where it is by that. translations: names of the action dimensions that move
    the hand, and so reach as much further.
    poses: of the fixed cameras, by name; where an episode tells it, its own is taken. attached: names of the cameras
    that move with the hand.
    ground: metres, height of the plane on which the scene stands, for which the pictures are exact.
    noise: standard deviation of what is added to each number of the state that is no position, in shares of its range,
    the same throughout a sample: numbers that no shift changes, such as the place of a thing relative to the hand, are
    else known by heart.
    patches: of other light, the most of a sample.
    fade: the most that is taken, in shares, of how far colours lie from some colour, another for each sample, and in
    half of them along one direction of colour alone: things that are told from their ground by it are hard to see then.
    """

    share: float = 0.7
    hue: float = 0.5
    gain: tuple[float, float] = (0.7, 1.1)
    shift: float = 0.0
    scale: float = 0.0
    center: tuple[float, float] = (0.0, 0.0)
    translations: tuple[str, ...] = ()
    poses: Mapping[str, CameraPose] = field(default_factory=dict)
    attached: tuple[str, ...] = ()
    ground: float = 0.0
    noise: float = 0.0
    patches: int = 0
    fade: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.hue, self.shift, self.scale, self.noise, self.patches)
        if not (0 <= self.share <= 1 and 0 <= self.fade <= 1 and least >= 0 and 0 <= self.gain[0] <= self.gain[1]):
            raise ValueError(
                "an augmentation's `share` and `fade` must be in [0, 1], `hue`, `shift`, `scale`, `noise` and "
                f"`patches` 0 or more, `gain` a range from low to high, got share={self.share}, fade={self.fade}, "
                f"hue={self.hue}, shift={self.shift}, scale={self.scale}, noise={self.noise}, "
                f"patches={self.patches}, gain={self.gain}"
            )

    def cannot_shift(self, spec: Spec) -> str:
        """Why a robot's scene cannot be moved, in words; empty where it can."""
        unknown = [camera.name for camera in spec.cameras if camera.name not in (*self.poses, *self.attached)]
        if unknown:
            return f"the pose of camera {', '.join(unknown)} is not known"
        return "" if spec.positions else "no state says where the hand is, in metres"

    def cannot_scale(self, spec: Spec) -> str:
        """Why a robot's scene cannot be made larger or smaller, in words; empty where it can."""
        if why := self.cannot_shift(spec):
            return why
        ranges = {part.name: (part.low, part.high) for part in spec.action if not part.gripper}
        if not self.translations or not set(self.translations) <= set(ranges):
            return f"`augment.translations` must name the action dimensions that move the hand, of {', '.join(ranges)}"
        uneven = [name for name in self.translations if ranges[name][0] != -ranges[name][1]]
        return f"the range of {', '.join(uneven)} is not even about 0" if uneven else ""

    def of(self, spec: Spec) -> Augmentation:
        """What of this can be done for a robot: without shift or scale where its scene cannot take them."""
        shift, scale = self.cannot_shift(spec), self.cannot_scale(spec)
        return replace(self, shift=0.0 if shift else self.shift, scale=0.0 if scale else self.scale)

    def draw(self, count: int, rng: torch.Generator, spec: Spec | None = None) -> Change:
        """One change for each of `count` samples. rng: a CPU generator. spec: of the robot, with finite ranges, where
        states change too."""
        recoloured, moved = torch.rand(2, count, generator=rng) < self.share
        angle = torch.randn(count, generator=rng) * self.hue * recoloured
        low, high = self.gain
        gain = torch.where(recoloured[:, None], low + (high - low) * torch.rand(count, 3, generator=rng), 1.0)
        third = 3**-0.5  # a rotation about the grey axis, by Rodrigues' formula
        across = torch.tensor([[0, -third, third], [third, 0, -third], [-third, third, 0]])
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        colours = gain[:, :, None] * (cosine * torch.eye(3) + (1 - cosine) / 3 + sine * across)
        shift = (2 * torch.rand(count, 2, generator=rng) - 1) * self.shift * moved[:, None]
        noise = self._noise(count, rng, spec) if self.noise and spec else None
        place = self._place(shift, self._scale(count, rng) * moved)
        poses = self.poses if self.shift or self.scale or self.patches else {}
        # Drawn last, so that without them everything else is what it was.
        patches = offset = None
        if self.patches:
            shown = torch.rand(count, generator=rng) < self.share
            patches = Patches.draw(shown, self.patches, self.center, rng)
        if self.fade:
            taken = self.fade * torch.rand(count, generator=rng) * (torch.rand(count, generator=rng) < self.share)
            along = F.normalize(torch.randn(count, 3, generator=rng), dim=1)
            one, every = along[:, :, None] * along[:, None, :], torch.eye(3).expand(count, 3, 3)
            gone = taken[:, None, None] * torch.where(torch.rand(count, 1, 1, generator=rng) < 0.5, one, every)
            towards = 255 * torch.rand(count, 3, 1, generator=rng)
            offset = (colours @ gone @ towards)[..., 0]
            colours = colours @ (torch.eye(3) - gone)
        return Change(colours, place, poses, self.ground, noise, self.translations, patches, offset)

    def _scale(self, count: int, rng: torch.Generator) -> Tensor:
        """(count,), natural logarithms."""
        if not self.scale:  # nothing is drawn, so that what was drawn before there was a scale stays what it was
            return torch.zeros(count)
        return (2 * torch.rand(count, generator=rng) - 1) * math.log1p(self.scale)

    def _place(self, shift: Tensor, log_scale: Tensor) -> Tensor:
        """As `Change.place`; shift (count, 2), metres."""
        scale = log_scale.exp()[:, None]
        kept = torch.tensor([*self.center, self.ground], dtype=scale.dtype)
        return torch.cat([scale, (1 - scale) * kept + F.pad(shift, (0, 1))], dim=1)

    def _noise(self, count: int, rng: torch.Generator, spec: Spec) -> Tensor:
        """(count, P), in the state's units."""
        spread = self.noise * torch.from_numpy(spec.state_high - spec.state_low)
        spread[[i for position in spec.positions for i in position]] = 0.0
        return torch.randn(count, len(spread), generator=rng) * spread


@dataclass(frozen=True)
class Change:
    """What is done to each of n samples, to all images of a sample alike.

    colours: (n, 3, 3) f32 matrices. place: (n, 4) f32, a scale and x, y and z in metres: a point of the scene times the
    scale, and that added. poses: of the cameras whose images have to be changed for that. ground: height of the plane
    on which the scene stands, metres; it stays. noise: (n, P) f32, added to the states, or None. translations: names of
    the action dimensions that the scale goes for. patches: of light, or None.
    offset: (n, 3) f32 grey levels, added to the colours after their matrices, or None.
    """

    colours: Tensor
    place: Tensor
    poses: Mapping[str, CameraPose]
    ground: float
    noise: Tensor | None = None
    translations: tuple[str, ...] = ()
    patches: Patches | None = None
    offset: Tensor | None = None

    def __getitem__(self, part: slice) -> Change:
        """What is done to some of the samples."""
        optional = {name: getattr(self, name) for name in ("noise", "patches", "offset")}
        optional = {name: None if value is None else value[part] for name, value in optional.items()}
        return replace(self, colours=self.colours[part], place=self.place[part], **optional)

    def images(self, camera: str, images: Tensor, told: np.ndarray | None = None) -> Tensor:
        """Images of one camera (n, ..., h, w, 3) u8 -> the same shape. told: the poses (n, ..., 8) that it had then,
        NaN where nobody knows; they stay true, because it is the scene that moves, and not the camera."""
        if camera in self.poses:
            size = images.shape[-3:-1]
            matrix = pose_matrix(self.poses[camera].pose, *size)
            if told is not None and np.isfinite(told).any():
                own = pose_matrix(told, *size)
                matrix = np.where(np.isfinite(own), own, matrix)
            if self.patches is not None:  # before the scene moves, and they with it
                flat = images.reshape(len(images), -1, *size, 3)
                matrices = np.broadcast_to(matrix, (*images.shape[:-3], 3, 4)).reshape(*flat.shape[:2], 3, 4)
                images = self.patches.on_ground(flat, matrices, self.ground).view(images.shape)
            matrix = matrix.reshape(-1, 3, 4) if matrix.ndim > 2 else matrix
            place = self.place.repeat_interleave(images.shape[1:-3].numel(), dim=0)
            images = place_scene(images.flatten(0, -4), matrix, place, self.ground).view(images.shape)
        elif self.patches is not None:
            flat = images.reshape(len(images), -1, *images.shape[-3:])
            images = self.patches.on_picture(flat).view(images.shape)
        shown, colours = images.float().flatten(1, -2), self.colours.to(images.device)  # (n, pixels, 3)
        shown = shown @ colours.mT
        if self.offset is not None:
            shown = shown + self.offset.to(images.device)[:, None]
        return shown.clamp(0, 255).round().to(torch.uint8).view(images.shape)

    def points(self, points: Tensor) -> Tensor:
        """World points (n, ..., 3) in m -> the same shape."""
        return self._moved(points, ((0, 1, 2),))

    def state(self, state: Tensor, positions: tuple[tuple[int, int, int], ...]) -> Tensor:
        """States (n, ..., P) -> the same shape. positions: the dimensions that are positions, `Spec.positions`."""
        moved = self._moved(state, positions)
        if self.noise is None:
            return moved
        return moved + self.noise.to(moved).view(len(moved), *[1] * (moved.ndim - 2), -1)

    def reach(self, spec: Spec) -> Tensor | None:
        """(n, A) f32, by how much more each dimension of an action does; None where all do what they did."""
        scale = self.place[:, :1]
        if bool((scale == 1).all()):
            return None
        return torch.where(torch.tensor([part.name in self.translations for part in spec.action]), scale, 1.0)

    def actions(self, actions: Tensor, spec: Spec) -> Tensor:
        """Actions (n, ..., A), in the robot's units -> the same shape, within its range."""
        reach = self.reach(spec)
        if reach is None:
            return actions
        further = actions * reach.to(actions).view(len(actions), *[1] * (actions.ndim - 2), -1)
        return further.clamp(*(torch.from_numpy(end).to(actions) for end in (spec.action_low, spec.action_high)))

    def _moved(self, values: Tensor, positions: tuple[tuple[int, int, int], ...]) -> Tensor:
        moved = values.clone()
        place = self.place.to(values).view(len(values), *[1] * (values.ndim - 2), 4)
        for each in map(list, positions):
            moved[..., each] = moved[..., each] * place[..., :1] + place[..., 1:]
        return moved
