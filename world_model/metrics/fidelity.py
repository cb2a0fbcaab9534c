"""How true imagination is, from weak evidence to strong: looks, places, other actions, values, uncertainty.

The weak end compares imagined images with real ones, beside copying the last image and beside another window's
actions: a model that ignores the action looks good there and fails below. The strong end goes back to one state of the
simulator, does several things, and asks whether each imagined future finds its own true one among them.

The order of evidence follows surveys of world models for decisions; retrieval among counterfactual futures is the
strongest that needs no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.types import Observation
from world_model.metrics.images import ssim
from world_model.metrics.states import error_name, moving_dims, state_error, unit_sizes
from world_model.metrics.statistics import DIGITS, auc, correlation, expected_calibration_error, mean
from world_model.metrics.windows import codes_at_stride, imagine_batch, spread_by_episode
from world_model.model import WorldModel
from world_model.training.dataset import EpisodeDataset
from world_model.types import History, Imagination

CHANGED = 16  # grey levels in some channel by which a pixel differs from now: below it is light and noise
BATCH = 16
WITHIN = 3  # model steps of a window that must lie within its episode; what follows a success is rest, and known
BASELINES = ("", "_copy", "_shuffled")  # suffixes: the imagined, the copied, the one of another window's actions


@dataclass(frozen=True)
class Counterfactual:
    """One state of the simulator, and what N chunks lead to from there.

    history: what the model reads. actions: (N, M, A) in the robot's units. observations: (N leading), what the
    simulator shows after each chunk.
    """

    history: History
    actions: np.ndarray
    observations: Observation


def evaluate_fidelity(
    model: WorldModel, dataset: EpisodeDataset, counterfactuals: Sequence[Counterfactual], count: int = 256,
    ahead: int = 8, stride: int | None = None,
) -> dict:  # fmt: skip
    """All figures: `horizons`, one entry for each whole chunk ahead, what holds over all of them, and `by_episode`, how
    far off the imagined futures of each of the dataset's episodes are in the mean, in `error_unit` (None where an
    episode is too short to say).

    count: windows of the dataset, as many from each episode. stride: control steps of a model step, a divisor of M, so
    that strides are compared at equal times; None for M. ValueError where no episode is long enough.
    """
    stride = model.strides[-1] if stride is None else stride
    starts = spread_by_episode(dataset, count, WITHIN)
    seen = _compare(model, dataset, starts, ahead, stride)
    horizons = [_at_horizon(model, seen, h) for h in range(ahead)]
    return {
        "stride": stride, "horizons": horizons, **_by_episode(model, seen, dataset.last[starts], dataset.last),
        **_beliefs(model, seen), **_retrieval(model, counterfactuals, stride),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ windows


@torch.inference_mode()
def _compare(
    model: WorldModel, dataset: EpisodeDataset, starts: np.ndarray, ahead: int, stride: int
) -> dict[str, np.ndarray]:
    """What is compared, one row a window and one column a whole chunk; NaN where the truth is unknown."""
    spec, layout, rows = model.spec, model.layout, []
    for part in np.array_split(starts, -(-len(starts) // BATCH)):
        batch = dataset.batch(part, ahead + 1).to(model.device)
        known = batch.next_valid[:, 1:].cumprod(1).bool()  # (B, H)
        codes = codes_at_stride(dataset, part, ahead, stride)
        future, other = (imagine_batch(model, batch, shuffled, codes) for shuffled in (False, True))
        state = layout.from_bins(batch.state[:, 1:])  # (B, 1 + H, P)
        points = layout.points_from_bins(batch.keypoints[:, 1:])  # (B, 1 + H, n, 3)
        row = {
            "right": (future.image_ids == batch.image[:, 2:]).float().mean(-1),
            "right_copy": (batch.image[:, 1:2] == batch.image[:, 2:]).float().mean(-1),
            "state": state_error(spec, future.state, state[:, 1:]),
            "state_copy": state_error(spec, state[:, :1], state[:, 1:]),
            "state_shuffled": state_error(spec, other.state, state[:, 1:]),
            "keypoints": (future.keypoints - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "keypoints_copy": (points[:, :1] - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "keypoints_shuffled": (other.keypoints - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "value": future.value,
            "value_true": batch.value[:, 2:],
            "success": future.success,
            "success_true": batch.flags[:, 2:, 0].float(),
            "uncertainty": future.uncertainty,
            "known": known.float(),
        }
        steps = layout.chunk_steps * np.arange(1, ahead + 2)
        where = np.minimum(part[:, None] + steps, dataset.last[part][:, None])
        images, images_other = model.decode_frames(future), model.decode_frames(other)
        for name, recorded in dataset.images.items():
            real = torch.from_numpy(recorded[where]).to(model.device)  # (B, 1 + H, h, w, 3)
            row |= {f"{name}_{k}": v for k, v in _compare_images(real, images[name], images_other[name]).items()}
        rows.append({name: value.where(known, torch.nan) for name, value in row.items()})
    return {name: torch.cat([row[name] for row in rows]).float().cpu().numpy() for name in rows[0]}


def _compare_images(real: Tensor, imagined: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Of one camera, sums over the pixels that change, (B, H) each. real: (B, 1 + H, h, w, 3), now and what follows;
    imagined, other: (B, H, h, w, 3)."""
    now, then = real[:, :1].float(), real[:, 1:].float()
    changed = (then - now).abs().amax(-1) > CHANGED  # (B, H, h, w)
    row = {"pixels": changed.sum((2, 3)).float()}
    for suffix, images in zip(BASELINES, (imagined.float(), now.expand_as(then), other.float()), strict=True):
        row[f"error{suffix}"] = ((images - then).square().mean(-1) * changed).sum((2, 3))
        row[f"ssim{suffix}"] = (ssim(images, then) * changed).sum((2, 3))
    return row


def _at_horizon(model: WorldModel, seen: dict[str, np.ndarray], h: int) -> dict[str, float]:
    """Pixels are pooled over all windows: a window in which hardly anything moves weighs hardly anything."""
    at = {name: values[:, h][np.isfinite(seen["known"][:, h])] for name, values in seen.items()}
    entry: dict[str, float] = {"model_step": h + 1, "windows": len(at["known"])}
    for camera in model.spec.cameras:
        pixels = max(at[f"{camera.name}_pixels"].sum(), 1.0)
        for suffix in BASELINES:
            error = at[f"{camera.name}_error{suffix}"].sum() / pixels
            entry[f"{camera.name}_psnr_changed{suffix}"] = float(10 * np.log10(255**2 / max(error, 1e-6)))
            entry[f"{camera.name}_ssim_changed{suffix}"] = float(at[f"{camera.name}_ssim{suffix}"].sum() / pixels)
    entry |= {"id_accuracy": mean(at["right"]), "id_accuracy_copy": mean(at["right_copy"])}
    name, scale = error_name(model.spec)
    for suffix in BASELINES:
        entry[f"{name}{suffix}"] = scale * mean(at[f"state{suffix}"])
        if model.spec.keypoints:
            entry[f"keypoint_cm{suffix}"] = 100 * mean(at[f"keypoints{suffix}"])
    return {name: round(value, DIGITS) for name, value in entry.items()}


def _error(model: WorldModel, seen: dict[str, np.ndarray]) -> np.ndarray:
    """How far off each future is. Errors of positions and of keypoints are in the same unit and add up."""
    error = seen["state"] if model.spec.positions or not model.spec.keypoints else 0.0
    return error + seen["keypoints"] if model.spec.keypoints else error


def _by_episode(
    model: WorldModel, seen: dict[str, np.ndarray], episode: np.ndarray, episodes: np.ndarray
) -> dict[str, Any]:
    """The mean error of each of `episodes`. episode: that of each window."""
    in_metres = model.spec.positions or model.spec.keypoints
    unit, scale = ("cm", 100.0) if in_metres else ("of the range", 1.0)
    error = scale * _error(model, seen)
    means = [mean(error[episode == each]) for each in np.unique(episodes)]
    return {"error_unit": unit, "by_episode": [round(each, DIGITS) if np.isfinite(each) else None for each in means]}


def _beliefs(model: WorldModel, seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Value and success against what really follows, and uncertainty against errors, over all horizons."""
    known, valued = np.isfinite(seen["known"]), np.isfinite(seen["value_true"])
    value, truth = seen["value"][valued], seen["value_true"][valued]
    error = _error(model, seen)[known]
    judged = np.isfinite(error)
    large = error[judged] > np.median(error[judged]) if judged.any() else judged[judged]
    return {
        "value_auc": auc(value, truth > 0),
        "value_ece": expected_calibration_error(value, truth),
        "value_correlation": correlation(value, truth),
        "success_auc": auc(seen["success"][known], seen["success_true"][known] > 0.5),
        "uncertainty_auc": auc(seen["uncertainty"][known][judged], large),
        "futures": int(valued.sum()),
        "futures_with_uncertainty": int(judged.sum()),
    }


# ------------------------------------------------------------------------------------------------ counterfactuals


@torch.inference_mode()
def _retrieval(model: WorldModel, counterfactuals: Sequence[Counterfactual], stride: int) -> dict[str, float]:
    """Does each imagined future find its own true one? By the ids that are seen, by images and by the robot's state."""
    found: dict[str, list[float]] = {"at_1": [], "by_pixels": [], "by_state": []}
    moved, imagined_moved, dims = [np.zeros(0)], [np.zeros(0)], moving_dims(model.spec)
    unit = unit_sizes(model.spec).numpy()[dims]
    for each in counterfactuals:
        actions = torch.stack([
            torch.from_numpy(each.actions).roll(-done, 1) for done in range(0, each.actions.shape[1], stride)
        ], dim=1)  # (N, M / stride, M, A), of which what is still to come is read
        future = model.imagine(model.prefill([each.history]), actions[None], strides=stride)[0]
        for name, likeness in _likeness(model, each.observations, future).items():  # (N imagined, N true)
            found[name] += (likeness.argmax(1).cpu() == torch.arange(len(likeness))).float().tolist()
        now = each.history.steps[-1][0].state
        moved.append(((each.observations.state - now)[:, dims] / unit).ravel())
        imagined_moved.append(((future.state[:, -1].cpu().numpy() - now)[:, dims] / unit).ravel())
    return {
        **{f"retrieval_{name}": mean(np.array(hits)) for name, hits in found.items()},
        "displacement_r": correlation(np.concatenate(imagined_moved), np.concatenate(moved)),
        "retrievals": sum(len(each.actions) for each in counterfactuals),
        "retrieval_chance": mean(np.array([1 / len(each.actions) for each in counterfactuals])),
    }


def _likeness(model: WorldModel, true: Observation, future: Imagination) -> dict[str, Tensor]:
    """How well the end of each of N imagined futures fits each of N true observations, (N, N) each, larger is nearer.
    """
    images = {camera.name: torch.from_numpy(true.images[camera.name]).to(model.device) for camera in model.spec.cameras}
    true_ids = torch.cat([model.frame_tokenizer.encode(image) for image in images.values()], dim=-1)  # (N, K)
    num = len(true_ids)
    probabilities = model.codes(
        future.hidden[:, -1, None].expand(-1, num, -1, -1), future.before[:, -1, None].expand(-1, num, -1)
    )  # of each imagined future, (N, N, K)
    imagined = model.decode_frames(future)
    pixels = sum(
        (imagined[name][:, -1:].float() - image[None].float()).square().flatten(2).sum(-1)
        for name, image in images.items()
    )
    difference = future.state[:, -1:].cpu() - torch.from_numpy(true.state)[None]
    return {
        "at_1": probabilities.log_prob(true_ids[None].expand(num, -1, -1)).sum(-1),
        "by_pixels": -pixels,
        "by_state": -(difference / unit_sizes(model.spec)).square().sum(-1),
    }
