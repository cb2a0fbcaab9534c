"""What the world model knows about episodes it never saw, each figure beside what copying or ignoring would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from world_model.metrics.states import error_name, state_error
from world_model.metrics.statistics import DIGITS, correlation, expected_calibration_error, mean, mean_by_column
from world_model.metrics.windows import codes_at_stride, context, imagine_batch, longest, spread_evenly
from world_model.model import WorldModel
from world_model.training.dataset import UNKNOWN, Batch, EpisodeDataset
from world_model.training.loss import FROM_EXPERT, batch_losses
from world_model.training.viewpoints import Choice

AHEAD = 4  # model steps imagined, where episodes are long enough
BATCH = 32
STRIDE_WINDOWS = 64  # that every stride imagines; the shortest takes M times the steps
ACTED = 2  # control steps of a chunk that are executed before looking again


@torch.no_grad()
def losses(model: WorldModel, dataset: EpisodeDataset, starts: np.ndarray, steps: int) -> dict[str, float]:
    """Nats an id of every kind, and of the next image when the executed actions are another window's. Of actions only
    where an expert was asked."""
    sums: dict[str, float] = {}
    windows: dict[str, int] = {}  # a batch may lack views
    for part in np.array_split(starts, max(1, len(starts) // BATCH)):
        batch = dataset.batch(part, steps, choice=Choice.all_drawn(len(part))).to(model.device)
        other = replace(batch, action=batch.action.roll(1, 0))
        found = batch_losses(model, batch)
        figures = {"loss": found.total, **{f"{k}_nats": v for k, v in found.parts.items()}}
        figures["next_image_nats_shuffled"] = batch_losses(model, other).parts["next_image"]
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(part)
            windows[name] = windows.get(name, 0) + len(part)
    untold = () if dataset.has_expert.any() else {f"{name}_nats" for name in FROM_EXPERT}
    return {name: value / windows[name] for name, value in sums.items() if name not in untold}


def evaluate(model: WorldModel, dataset: EpisodeDataset, count: int = 256) -> dict:
    """The figures of imagination, belief and action; lists run over horizons of 1 .. AHEAD model steps, or as far as
    the episodes reach. What a robot has not got (keypoints, grippers, an expert) has no figures.

    ValueError where no episode is two model steps long.
    """
    spec, ahead = model.spec, max(1, min(AHEAD, longest(dataset) - 1))
    rows = []
    for starts in np.array_split(spread_evenly(dataset, count, ahead + 1), max(1, count // BATCH)):
        if len(starts):
            rows.append(_compare(model, dataset.batch(starts, ahead + 1).to(model.device)))
    found = {name: torch.cat([row[name] for row in rows]).float().cpu().numpy() for name in rows[0]}

    def by_horizon(name: str, scale: float = 1.0) -> list[float]:
        return mean_by_column(found[name], scale)

    known = np.isfinite(found["value_true"])
    value, truth = (found[name][:, 1][known[:, 1]] for name in ("value", "value_true"))  # one model step ahead
    value_now, truth_now = (found[name][:, 0][known[:, 0]] for name in ("value", "value_true"))
    name, scale = error_name(spec)
    figures = {
        "windows": len(known),
        "id_accuracy": by_horizon("right"),
        "id_accuracy_copy": by_horizon("right_copy"),
        "id_accuracy_changed": by_horizon("right_changed"),
        name: by_horizon("state", scale),
        f"{name}_copy": by_horizon("state_copy", scale),
        f"{name}_shuffled": by_horizon("state_shuffled", scale),
        "value_correlation": correlation(value, truth),
        "value_now_correlation": correlation(value_now, truth_now),
        "value_ece": expected_calibration_error(value, truth),
    }
    error = found["keypoints" if spec.keypoints else "state"][:, 0]
    seen = np.isfinite(error)
    figures["uncertainty_correlation"] = correlation(found["uncertainty"][seen, 0], error[seen])
    if spec.keypoints:
        figures |= {
            "keypoint_cm": by_horizon("keypoints", 100), "keypoint_cm_copy": by_horizon("keypoints_copy", 100),
            "keypoint_cm_now": by_horizon("keypoints_now", 100)[0],
        }  # fmt: skip
    if len(model.strides) > 1:
        figures |= by_stride(model, dataset, min(count, STRIDE_WINDOWS), ahead)
    if np.isfinite(found["held"]).any():
        figures["held_accuracy"] = by_horizon("held")
    if np.isfinite(found["action"]).any():
        figures["action_rms"] = round(float(np.sqrt(np.nanmean(found["action"]))), DIGITS)
    if np.isfinite(found["gripper_command"]).any():
        figures["gripper_accuracy"] = mean(found["gripper_command"])
    return figures


@torch.no_grad()
def by_stride(model: WorldModel, dataset: EpisodeDataset, count: int, ahead: int) -> dict[str, list[float]]:
    """Error of the robot's state and of keypoints 1 .. `ahead` whole chunks on, imagined in model steps of each stride
    that divides M: at equal times, of the same windows."""
    spec, layout, figures = model.spec, model.layout, {}
    starts = spread_evenly(dataset, count, ahead + 1)
    batch = dataset.batch(starts, ahead + 1).to(model.device)
    state, points = layout.from_bins(batch.state[:, 2:]), layout.points_from_bins(batch.keypoints[:, 2:])
    name, scale = error_name(spec)
    for stride in (n for n in model.strides if layout.chunk_steps % n == 0):
        future = imagine_batch(model, batch, codes=codes_at_stride(dataset, starts, ahead, stride))
        errors = {f"{name}_stride_{stride}": (state_error(spec, future.state, state), scale)}
        if spec.keypoints:
            apart = (future.keypoints - points).norm(dim=-1).nanmean(-1)
            errors[f"keypoint_cm_stride_{stride}"] = apart, 100
        figures |= {name: mean_by_column(e.float().cpu().numpy(), scale) for name, (e, scale) in errors.items()}
    return figures


def _compare(model: WorldModel, batch: Batch) -> dict[str, Tensor]:
    """Imagination, beliefs and actions of a batch of windows against what was recorded, a row a window; NaN where the
    truth is unknown."""
    layout, spec = model.layout, model.spec
    now, then = batch.image[:, 1:2], batch.image[:, 2:]  # (B, 1, K), (B, H, K)
    future, other = imagine_batch(model, batch), imagine_batch(model, batch, shuffled=True)
    true_state, now_state = layout.from_bins(batch.state[:, 2:]), layout.from_bins(batch.state[:, 1:2])
    true_points = layout.points_from_bins(batch.keypoints[:, 1:])  # (B, 1 + H, n, 3)
    readout = model.read(context(model, batch))
    held, flags = torch.cat([readout.belief.held[:, None], future.held], dim=1), batch.flags[:, 1:, 1]
    return {
        "right": (future.image_ids == then).float().mean(-1),  # (B, H)
        "right_copy": (now == then).float().mean(-1),
        "right_changed": _mean_where((future.image_ids == then).float(), now != then),
        "state": state_error(spec, future.state, true_state),
        "state_copy": state_error(spec, now_state, true_state),
        "state_shuffled": state_error(spec, other.state, true_state),
        "keypoints": (future.keypoints - true_points[:, 1:]).norm(dim=-1).nanmean(-1),
        "keypoints_copy": (true_points[:, :1] - true_points[:, 1:]).norm(dim=-1).nanmean(-1),
        "keypoints_now": (readout.belief.keypoints - true_points[:, 0]).norm(dim=-1).nanmean(-1)[:, None],
        "value": torch.cat([readout.belief.value[:, None], future.value], dim=1),
        "value_true": batch.value[:, 1:],
        "held": ((held > 0.5) == flags).float().masked_fill(flags == UNKNOWN, torch.nan),
        "uncertainty": future.uncertainty,
        **_compare_actions(model, batch, model.likeliest(readout)),
    }


def _compare_actions(model: WorldModel, batch: Batch, act: Tensor) -> dict[str, Tensor]:
    """The model's chunk (B, M, A) against the expert's, (B, 1) each: the mean squared difference in halves of the
    range, and the share of gripper commands that are the same."""
    spec = model.spec
    half = torch.from_numpy((spec.action_high - spec.action_low) / 2).to(act)
    difference = (act - model.actions.decode(batch.expert[:, 1]))[:, :ACTED] / half
    asked = torch.where(batch.has_expert[:, 1] > 0, 1.0, torch.nan)[:, None]
    grippers = list(spec.grippers)
    others = [i for i in range(len(spec.action)) if i not in grippers]
    return {
        "action": asked * difference[..., others].square().mean((1, 2))[:, None],
        "gripper_command": asked * (difference[..., grippers] == 0).float().mean((1, 2))[:, None],
    }


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the last dimension of the values that count; NaN where none does."""
    return (values * where).sum(-1) / where.sum(-1)


def table(figures: dict) -> str:
    """The figures as a person reads them."""
    shown = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    width = max(len(name) for name in shown)

    def text(value: float | None) -> str:
        return "     n/a" if value is None else f"{value:8.3f}"

    lines = []
    for name, value in shown.items():
        values = value if isinstance(value, list) else [value]
        lines.append(f"  {name:{width}}  {'  '.join(map(text, values))}")
    return "\n".join(lines)
