"""What the world model is taught: the next ids of everything, and the parallel copies beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from world_model.tokens.layout import FLAGS
from world_model.tokens.poses import POSE_IDS
from world_model.tokens.sequence import Sequence
from world_model.tokens.vocab import Block

if TYPE_CHECKING:
    from world_model.model import WorldModel
    from world_model.training.dataset import Batch


FROM_EXPERT = ("action", "gripper", "expert_action", "expert_gripper")  # terms that teach what an expert would do


@dataclass(frozen=True)
class LossWeights:
    """What one id weighs. Emu3 gives vision half of the rest."""

    image: float = 0.5
    state: float = 1.0
    action: float = 3.0  # acting is what all of this is for, and its few ids stand beside many of the image
    belief: float = 2.0
    value: float = 2.0  # of the one id that says how good it is to be there
    causal: float = 1.0  # times the above, for the next-token reading of causal ids
    changed: float = 4.0  # times the image's, for ids that differ from the current image's
    causal_images: int = 1  # model steps at a window's end whose images are also read id by id; all cost 15 % more
    # Share of training steps in which the next observation is predicted without its images, which is how a search asks.
    imageless: float = 0.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise ValueError(f"the weights of the loss must be 0 or more, got {self}")
        if self.imageless > 1:
            raise ValueError(f"`imageless` is a share of training steps, 0 to 1, got {self.imageless}")


class Losses(NamedTuple):  # no dataclass: older FSDP does not look into those for where the backward pass begins
    """total: what to minimise, nats an id, weighted; the mean over windows. sums: nats of each kind, detached. counts:
    ids of each kind that count."""

    total: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]

    @property
    def parts(self) -> dict[str, Tensor]:
        """Mean nats an id of each kind."""
        return {name: self.sums[name] / self.counts[name].clamp_min(1.0) for name in self.sums}


def hidden_by_step(
    model: WorldModel, batch: Batch, first: int = 0, images: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of a batch of windows (B, S steps), each (B, S, n, width): of the causal ids of every model step,
    of the copy `act` and of the copy `next`; and of the images of the views, (B, V, Kv, width).

    first: number of the first model step, so that every rotary position a long imagination reaches is trained.
    images: whether `next` has any.
    """
    at, sequence = model.layout, Sequence(model.layout, batch.action.shape[1], batch.view.shape[1], images)
    ids = sequence.ids(batch)  # (B, L)
    h, _ = model.run(ids, sequence.slots, sequence.token_types, sequence.position_ids(first), sequence.segments)
    views = at.instruction + sequence.steps * sequence.step
    by_step = h[:, at.instruction : views].unflatten(1, (-1, sequence.step))  # (B, S, step, width)
    view_h = h[:, views:].unflatten(1, (sequence.views, at.view))[:, :, POSE_IDS:]
    return *by_step.split([at.step, at.act, sequence.next], dim=2), view_h


def batch_losses(model: WorldModel, batch: Batch, first: int = 0, images: bool = True) -> Losses:
    """Teach a batch of windows (B, S steps). first, images: as `hidden_by_step` takes them."""
    at = model.layout
    causal, act, following, view_h = hidden_by_step(model, batch, first, images)

    def ahead(slots: slice) -> Tensor:
        """Hidden states from which the next-token reading says these slots: one slot earlier."""
        return causal[:, :, slots.start - 1 : slots.stop - 1]

    def exact(h: Tensor, block: Block, target: Tensor) -> Tensor:
        return exact_nats(model, h, block, target)

    def code(h: Tensor, target: Tensor, current: Tensor | None = None) -> Tensor:
        return -model.codes(h, current).log_prob(target)

    def smooth(h: Tensor, block: Block, target: Tensor) -> Tensor:
        return smooth_nats(model, h, block, target)

    # What is there, (B, S, n), and how much of it counts, (B, S, 1).
    vocab, w = model.vocab, model.config.weights
    now, then = slice(None, -1), slice(1, None)
    valid, next_valid, has_expert = (
        each[..., None] for each in (batch.valid[:, now], batch.next_valid, batch.has_expert)
    )
    image, state = batch.image[:, now], batch.state[:, now]
    next_image, next_state = batch.image[:, then], batch.state[:, then]
    moved = vocab.state.size // 2 + next_state - state  # an edit of this state, in bins around the middle
    changed = 1 + (w.changed - 1) * (next_image != image)
    expert_coefs, expert_gripper = batch.expert.split([at.num_coefs, at.num_grippers], dim=-1)
    next_coefs, next_gripper = batch.expert_action.split([at.num_coefs, at.num_grippers], dim=-1)

    # Which hidden states say it.
    read_by_id = slice(-w.causal_images, None) if w.causal_images else slice(0)
    image_h = torch.cat([ahead(slots) for slots in at.cameras.values()], dim=2)[:, read_by_id]
    drawn = following.shape[2] - at.outcome
    next_h, next_state_h, next_belief_h = following.split([drawn, at.state_dim, at.beliefs], dim=2)
    belief_h, coefs_h, gripper_h = act.split([at.beliefs, at.num_coefs, at.num_grippers], dim=2)
    middle = at.action.start + at.num_coefs
    coefs, gripper = slice(at.action.start, middle), slice(middle, at.action.stop)

    def beliefs(name: str, h: Tensor, when: slice, counts: Tensor) -> dict[str, tuple]:
        """h (B, S, beliefs, width): value, success, held, keypoints."""
        value_h, flags_h, points_h = h.split([1, FLAGS, at.keypoint_ids], dim=2)
        value, points = at.value_to_bins(batch.value[:, when, None]), batch.keypoints[:, when]
        told, flags = counts * torch.isfinite(value), batch.flags[:, when]
        # Where some keypoints are known, one that is not does not exist: it stands in bin 0, which is a belief too.
        known = counts * torch.isfinite(points).any(-1, keepdim=True)
        return {
            f"{name}value": (w.value, smooth(value_h, vocab.value, value.nan_to_num(0.0)), told),
            f"{name}flags": (w.belief, exact(flags_h, at.flag, flags.clamp_min(0)), counts * (flags >= 0)),
            f"{name}keypoints": (w.belief, smooth(points_h, vocab.state, points.nan_to_num(0.0)), known),
        }

    terms = {  # name: (weight of an id, nats (B, S, n), which of them count (B, S, 1 or n))
        "image": (w.image * w.causal, code(image_h, image[:, read_by_id]), valid[:, read_by_id]),
        "state": (w.state * w.causal, smooth(ahead(at.state), vocab.state, state), valid),
        "action": (w.action * w.causal, smooth(ahead(coefs), vocab.action, next_coefs), has_expert),
        "gripper": (w.action * w.causal, exact(ahead(gripper), vocab.gripper, next_gripper), has_expert),
        "expert_action": (w.action, smooth(coefs_h, vocab.action, expert_coefs), has_expert),
        "expert_gripper": (w.action, exact(gripper_h, vocab.gripper, expert_gripper), has_expert),
        "next_image": (
            w.image, code(next_h, next_image[..., :drawn], image[..., :drawn]), next_valid * changed[..., :drawn]
        ),
        "next_state": (w.state, smooth(next_state_h, vocab.state, moved), next_valid),
        **({"view": (w.image, code(view_h, batch.view), batch.view_valid[..., None])} if batch.view.numel() else {}),
        **beliefs("", belief_h, now, valid),
        **beliefs("next_", next_belief_h, then, next_valid),
    }
    terms = {name: term for name, term in terms.items() if term[1].numel()}  # a robot may lack grippers or keypoints
    total = sum(weight * (nats * counts).sum() for weight, nats, counts in terms.values())
    full = sum(weight * nats.numel() for weight, nats, _ in terms.values())
    sums = {name: (nats * counts).sum().detach() for name, (_, nats, counts) in terms.items()}
    counted = {name: counts.expand_as(nats).sum() for name, (_, nats, counts) in terms.items()}
    return Losses(total / full, sums, counted)


def exact_nats(model: WorldModel, h: Tensor, block: Block, target: Tensor) -> Tensor:
    """Cross-entropy of local numbers. h (..., n, width), target (..., n) -> (..., n)."""
    logits = model.logits(h, block)
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)


def smooth_nats(model: WorldModel, h: Tensor, block: Block, target: Tensor) -> Tensor:
    """Cross-entropy against `soft_bins` of the target. (..., n) -> (..., n)."""
    wanted = soft_bins(target.float(), block.size, model.config.smoothing)
    return -(wanted * model.logits(h, block).log_softmax(-1)).sum(-1)


def soft_bins(target: Tensor, size: int, smoothing: float) -> Tensor:
    """What to say of numbers (...) that may lie between bins: a Gaussian around them, (..., size)."""
    away = (torch.arange(size, device=target.device) - target[..., None].clamp(0, size - 1)) / smoothing
    return (-0.5 * away.square()).softmax(-1)
