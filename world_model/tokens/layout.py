"""How an episode is written as one sequence of ids, and which ids each training window teaches.

    BOS instruction EOT                                                        padded to a fixed length
    then for each model step, one every M control steps or, where the model was trained for that, every n < M:
      obs    [begin pose image end] of each camera, [BOT state EOST]           causal; pose: where cameras tell it
      chunk  [BOA or n, action EOA]                                            causal: what was executed
      act    value, success, held, keypoints | action                          in parallel, from MASK
      next   images, state | value, success, held, keypoints                   in parallel, from the current ids
    and after all steps, for some of them
      view   a wanted pose, the image that a camera of that pose would show    in parallel, from MASK

`act`, `next` and `view` are parallel copies (DiDA's noisy copies in Emu3.5): they stand at the positions of what they
stand for, see all causal ids before it and each other in both directions, and are seen by no causal id. `act` reads the
expert's chunk and what is believed now; `next` reads the next observation as an edit of this one, in one pass, and can
do without its images, which are four fifths of it, where only the worth of a future is asked for; `view` stands where
the first camera that tells its pose stands, and draws the scene from elsewhere. Beliefs have no causal copy, so nothing
can depend on a value that would be missing at run time. A step sees the instruction, the step before and itself, which
is what is known at run time.

A chunk begins with BOA where all of its M control steps are executed before the next observation. Where fewer are, the
id that counts them stands in its place, and the action ids say those alone (`actions.hold`). So a length of its own
costs no id, and what a model without it has learnt stays as it is.

Every segment has a fixed place, so a sequence needs no mask and no padding but the instruction's, whose PAD ids are
ids like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from envs.types import POSE, Spec
from world_model.nn.device import constants
from world_model.tokens.images import grid
from world_model.tokens.poses import POSE_IDS, PoseRange
from world_model.tokens.vocab import Block, Vocab

FLAGS = 2  # success, held
CAUSAL, ACT, NEXT, VIEW = 0, 1, 2, 3  # token types: all but the first are parallel copies

# Value ids are even in value ** (1 / VALUE_CURVE): fine near success, where each control step tells, coarse far off.
VALUE_CURVE = 0.3
# Smoothed targets spread "never" over the lowest ids, which all read as 0; they begin 300 control steps from success.
NEVER_IDS = 3


@dataclass(frozen=True)
class Layout:
    """Where everything stands. Lengths in ids; a slot is a position within a model step, counted from its start.

    spec: of the robot, with a finite range for every state dimension. coefs: ids of each action dimension
    that is no gripper. instruction: ids kept for `BOS text EOT` and its padding. strides: control steps that a model
    step may cover, in order; M is always the last of them. poses: of the cameras whose pose is told, in their order.
    """

    spec: Spec
    vocab: Vocab
    coefs: tuple[int, ...]
    chunk_steps: int = 8  # M
    instruction: int = 24
    strides: tuple[int, ...] = ()
    poses: tuple[PoseRange, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 < n <= self.chunk_steps for n in self.strides):
            raise ValueError(
                f"`strides` are control steps of a chunk, so 1 to {self.chunk_steps} each, got {list(self.strides)}"
            )
        object.__setattr__(self, "strides", tuple(sorted({*self.strides, self.chunk_steps})))
        if len(self.vocab.marks.cameras) != len(self.spec.cameras):
            raise ValueError(
                f"the vocabulary has marks for {len(self.vocab.marks.cameras)} cameras, "
                f"the robot has {len(self.spec.cameras)}"
            )
        if len(self.coefs) != len(self.spec.action) - len(self.spec.grippers):
            raise ValueError(f"`coefs` must say how many ids each dimension that is no gripper has, got {self.coefs}")
        if [camera.name for camera in self.spec.cameras if camera.posed] != [told.camera for told in self.poses]:
            raise ValueError("every camera whose pose is told needs the range of its poses, and no other camera")
        unknown = [part.name for part in self.spec.state if math.isinf(part.low) or math.isinf(part.high)]
        if unknown:
            raise ValueError(f"state needs a finite range to become ids, which is not known of {', '.join(unknown)}")
        # torch.compile cannot fill caches
        _ = self.image_slices, self.pose_slices, self.cameras, self.image_ids, self.state, self.flag

    # Slots of the causal ids of a model step, in order: the images, the state, the chunk.
    @cached_property
    def cameras(self) -> dict[str, slice]:
        """Slots of each camera's image, without its marks."""
        slots, start = {}, 1
        for camera, ids in self.image_slices.items():
            start += POSE_IDS * (camera in self.pose_slices)
            slots[camera] = slice(start, start + ids.stop - ids.start)
            start = slots[camera].stop + 2
        return slots

    @cached_property
    def pose_slices(self) -> dict[str, slice]:
        """Each camera's part of the Q numbers of all poses."""
        return {told.camera: slice(POSE_IDS * i, POSE_IDS * (i + 1)) for i, told in enumerate(self.poses)}

    @property
    def pose_slots(self) -> tuple[int, ...]:
        """(Q,) slots of the poses: each stands before its camera's image."""
        return tuple(self.cameras[told.camera].start - POSE_IDS + i for told in self.poses for i in range(POSE_IDS))

    @property
    def view_camera(self) -> str:
        """The camera whose place views from elsewhere take, the first that tells its pose; empty where none does."""
        return self.poses[0].camera if self.poses else ""

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of its pictures; (0, 0) where no camera tells its pose."""
        return next(((c.height, c.width) for c in self.spec.cameras if c.name == self.view_camera), (0, 0))

    @cached_property
    def image_slices(self) -> dict[str, slice]:
        """Each camera's part of the K ids of all cameras."""
        parts, start = {}, 0
        for camera in self.spec.cameras:
            parts[camera.name] = slice(start, start + math.prod(grid(camera)))
            start = parts[camera.name].stop
        return parts

    @cached_property
    def image_ids(self) -> int:
        """K, ids of all cameras."""
        return sum(math.prod(grid(camera)) for camera in self.spec.cameras)

    @property
    def pose_ids(self) -> int:
        """Q, numbers of all poses."""
        return POSE_IDS * len(self.poses)

    @property
    def num_coefs(self) -> int:
        """Action ids without the grippers'."""
        return sum(self.coefs)

    @property
    def num_grippers(self) -> int:
        return len(self.spec.grippers)

    @property
    def num_action_ids(self) -> int:
        """Ka: ids of a chunk without its marks, the coefficients' and then the grippers'."""
        return self.num_coefs + self.num_grippers

    @property
    def state_dim(self) -> int:
        """P."""
        return len(self.spec.state)

    @property
    def keypoint_ids(self) -> int:
        return 3 * len(self.spec.keypoints)

    @cached_property
    def state(self) -> slice:
        start = self.image_ids + self.pose_ids + 2 * len(self.spec.cameras) + 1
        return slice(start, start + self.state_dim)

    @property
    def obs(self) -> int:
        """Length of the observation with its marks."""
        return self.state.stop + 1

    @property
    def action(self) -> slice:
        """The coefficients, then the grippers."""
        return slice(self.obs + 1, self.obs + 1 + self.num_action_ids)

    @property
    def step(self) -> int:
        """Length of the causal ids of a model step."""
        return self.action.stop + 1

    @property
    def chunk(self) -> int:
        """Length of the action segment with its marks."""
        return self.step - self.obs

    # Parallel copies. Beliefs have slots after the causal ones and the position of the observation's last mark.
    @property
    def beliefs(self) -> int:
        """Value, flags, keypoints."""
        return 1 + FLAGS + self.keypoint_ids

    @property
    def act(self) -> int:
        """Length of `act`: beliefs, action."""
        return self.beliefs + self.num_action_ids

    @property
    def next(self) -> int:
        """Length of `next`: images, state, beliefs."""
        return self.image_ids + self.outcome

    @property
    def outcome(self) -> int:
        """Length of `next` without its images: state, beliefs."""
        return self.state_dim + self.beliefs

    @property
    def view(self) -> int:
        """Length of `view`: a pose, an image."""
        return len(self.view_slots)

    @property
    def num_slots(self) -> int:
        return self.step + self.beliefs

    @property
    def slot_names(self) -> tuple[str, ...]:
        """(num_slots,) what stands at each slot, by names that mean the same in any other layout of the robot."""
        names = []
        for camera, slots in self.cameras.items():
            told = [f"{camera} pose {name}" for name in POSE if camera in self.pose_slices]
            image = (f"{camera} {i}" for i in range(slots.stop - slots.start))
            names += [f"{camera} begins", *told, *image, f"{camera} ends"]
        names += ["state begins", *(f"state {part.name}" for part in self.spec.state), "state ends", "chunk begins"]
        others = [part.name for part in self.spec.action if not part.gripper]
        names += [f"action {name} {i}" for name, count in zip(others, self.coefs, strict=True) for i in range(count)]
        names += [f"gripper {self.spec.action[i].name}" for i in self.spec.grippers]
        names += ["chunk ends", "value", "success", "held"]
        return (*names, *(f"keypoint {name}.{axis}" for name in self.spec.keypoints for axis in "xyz"))

    @cached_property
    def flag(self) -> Block:
        """NO and YES as a block of two."""
        marks = self.vocab.marks
        return Block("flag", marks.no, 2, marks.yes - marks.no)

    @property
    def obs_slots(self) -> Tensor:
        """Slots of the ids of an observation without its marks, (K + P,): images, state."""
        return torch.cat([torch.arange(s.start, s.stop) for s in (*self.cameras.values(), self.state)])

    @property
    def act_slots(self) -> Tensor:
        beliefs = torch.arange(self.step, self.num_slots)
        return torch.cat([beliefs, torch.arange(self.action.start, self.action.stop)])

    @property
    def next_slots(self) -> Tensor:
        return torch.cat([self.obs_slots, torch.arange(self.step, self.num_slots)])

    @property
    def view_slots(self) -> Tensor:
        """Those of the pose and the image of `view_camera`; none where no camera tells its pose."""
        if not self.poses:
            return torch.arange(0)
        image = self.cameras[self.view_camera]
        return torch.arange(image.start - POSE_IDS, image.stop)

    def position_ids(self, slots: Tensor, step: int | Tensor) -> Tensor:
        """Rotary positions (n,) of slots (n,) of model step `step`; (B, n) for steps (B, 1)."""
        inside = torch.where(slots < self.step, slots, self.obs - 1)
        return self.instruction + step * self.step + inside

    # Ids from local numbers. Leading dimensions are free.
    def instruction_ids(self, text: list[int] | tuple[int, ...]) -> Tensor:
        """Ids of a text -> (instruction,) i64: `BOS text EOT`, padded; a text too long loses its end."""
        marks = self.vocab.marks
        ids = [marks.bos, *list(text)[: self.instruction - 2], marks.eot]
        return torch.tensor(ids + [marks.pad] * (self.instruction - len(ids)))

    def obs_ids(self, image: Tensor, state: Tensor, pose: Tensor | None = None) -> Tensor:
        """image (..., K) local, state (..., P) and pose (..., Q) in bins, which may be unknown -> (..., obs) ids."""
        marks, vision = self.vocab.marks, self.vocab.vision.encode(image)
        told = self.told_ids(self.untold(image) if pose is None else pose)
        images = [
            (begin, torch.cat([told[..., self.pose_slices.get(camera, slice(0))], vision[..., part]], dim=-1), end)
            for (begin, end), (camera, part) in zip(marks.cameras, self.image_slices.items(), strict=True)
        ]
        return self._segments(*images, (marks.bot, self.state_ids(state), marks.eost))

    def require_strides(self, strides: Iterable[int]) -> None:
        """ValueError where the model was not trained with model steps of so many control steps."""
        unknown = sorted({*strides} - {*self.strides})
        if unknown:
            raise ValueError(
                f"this model was trained with model steps of {', '.join(map(str, self.strides))} control steps, not of "
                f"{', '.join(map(str, unknown))}: use one of those, or train with `strides`"
            )

    def stride_ids(self, stride: Tensor) -> Tensor:
        """Control steps (...) -> the id that a chunk of which so many are executed begins with. Gripper ids count
        control steps too: number n - 1 is a gripper that closes after n."""
        counted = self.vocab.gripper.encode(stride - 1)
        return counted.masked_fill(stride == self.chunk_steps, self.vocab.marks.boa)

    def chunk_ids(self, action: Tensor, stride: int | Tensor | None = None) -> Tensor:
        """action (..., Ka) local -> (..., chunk) ids. stride: control steps that it says, (...) or one for all; None
        for M."""
        vocab, marks = self.vocab, self.vocab.marks
        stride = self.chunk_steps if stride is None else stride
        if isinstance(stride, int):
            begins = vocab.gripper.encode(stride - 1) if stride < self.chunk_steps else marks.boa
        else:
            begins = self.stride_ids(stride)
        coefs, grippers = action.split([self.num_coefs, self.num_grippers], dim=-1)
        ids = torch.cat([vocab.action.encode(coefs), vocab.gripper.encode(grippers)], dim=-1)
        return self._segments((begins, ids, marks.eoa))

    def act_ids(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """(*lead, act) ids: nothing is known yet."""
        return torch.full((*lead, self.act), self.vocab.marks.mask, device=device)

    def next_ids(self, image: Tensor, state: Tensor, images: bool = True) -> Tensor:
        """The current observation, image (..., K) local and state (..., P) in bins -> (..., next) ids; (..., outcome)
        without images."""
        masks = image.new_full((*image.shape[:-1], self.beliefs), self.vocab.marks.mask)
        seen = [self.vocab.vision.encode(image)] if images else []
        return torch.cat([*seen, self.state_ids(state), masks], dim=-1)

    def view_ids(self, pose: Tensor) -> Tensor:
        """A wanted pose (..., 8) in bins -> (..., view) ids."""
        told = self.told_ids(pose)
        return torch.cat([told, told.new_full((*told.shape[:-1], self.view - POSE_IDS), self.vocab.marks.mask)], dim=-1)

    def told_ids(self, pose: Tensor) -> Tensor:
        """Bins of poses (...), NaN where nobody knows -> ids."""
        return torch.where(pose.isnan(), self.vocab.marks.mask, self.state_ids(pose.nan_to_num(0.0)))

    def untold(self, image: Tensor) -> Tensor:
        """(..., Q) f32 for images (..., K) of which no pose is known."""
        return torch.full((*image.shape[:-1], self.pose_ids), torch.nan, device=image.device)

    def state_ids(self, state: Tensor) -> Tensor:
        """Bins -> ids; what lies outside the range takes the outermost one."""
        block = self.vocab.state
        return block.encode(state.round().clamp(0, block.size - 1).long())

    # Numbers that have an order live in float bins; ids are the rounded ones.
    def to_bins(self, state: Tensor) -> Tensor:
        """(..., P) f32 in the robot's units -> bins, below 0 or above 255 outside the spec's range."""
        low, high = self._state_range(state.device)
        return (state - low) / (high - low) * (self.vocab.state.size - 1)

    def from_bins(self, bins: Tensor) -> Tensor:
        """Bins (..., P) -> the robot's units."""
        low, high = self._state_range(bins.device)
        return low + bins / (self.vocab.state.size - 1) * (high - low)

    def pose_to_bins(self, pose: Tensor) -> Tensor:
        """(..., Q) f32, `POSE` of each camera that tells it -> bins; NaN stays NaN."""
        parts = [told.to_bins(pose[..., self.pose_slices[told.camera]]) for told in self.poses]
        return torch.cat(parts, dim=-1) if parts else pose

    def points_to_bins(self, points: Tensor) -> Tensor:
        """(..., n, 3) m in the spec's workspace -> (..., 3 n) bins; NaN stays NaN."""
        low, high = self._workspace(points.device)
        return ((points - low) / (high - low) * (self.vocab.state.size - 1)).flatten(-2)

    def points_from_bins(self, bins: Tensor) -> Tensor:
        """(..., 3 n) bins -> (..., n, 3) m."""
        low, high = self._workspace(bins.device)
        return low + bins.unflatten(-1, (len(self.spec.keypoints), 3)) / (self.vocab.state.size - 1) * (high - low)

    def value_to_bins(self, value: Tensor) -> Tensor:
        """(...) in [0, 1] -> bins; NaN stays NaN."""
        return value ** (1 / VALUE_CURVE) * (self.vocab.value.size - 1)

    @property
    def value_support(self) -> Tensor:
        """(64,) f32, the value that each id stands for."""
        support = torch.linspace(0, 1, self.vocab.value.size) ** VALUE_CURVE
        support[:NEVER_IDS] = 0
        return support

    def _state_range(self, device: torch.device) -> tuple[Tensor, Tensor]:
        low, high = tuple(part.low for part in self.spec.state), tuple(part.high for part in self.spec.state)
        return constants(low, device), constants(high, device)

    def _workspace(self, device: torch.device) -> tuple[Tensor, Tensor]:
        low, high = self.spec.workspace or ((0.0,) * 3, (1.0,) * 3)
        return constants(low, device), constants(high, device)

    @staticmethod
    def _segments(*segments: tuple[int | Tensor, Tensor, int]) -> Tensor:
        """Each (mark, ids, mark), joined; a mark is one for all or (...)."""
        parts = []
        for begin, ids, end in segments:
            one = (*ids.shape[:-1], 1)
            first = ids.new_full(one, begin) if isinstance(begin, int) else begin[..., None].expand(one)
            parts += [first, ids, ids.new_full(one, end)]
        return torch.cat(parts, dim=-1)
