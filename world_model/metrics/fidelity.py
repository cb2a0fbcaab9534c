"""How true imagination is, from weak evidence to strong: looks, places, other actions, values, doubts.

The weak end compares imagined frames with real ones, beside copying the last frame and beside another window's
actions: a model that ignores the action looks good there and fails below. The strong end goes back to one state of the
simulator, does several things, and asks whether each imagined future finds its own true one among them.

The order of evidence follows surveys of world models for decisions; retrieval among counterfactual futures is the
strongest that needs no policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from world_model.metrics.held_out import calibration_error, correlation, distance, foresee, spread
from world_model.model import History, Imagination, WorldModel
from world_model.tokens.layout import Tracks

CHANGED = 16  # grey levels in some channel by which a pixel differs from now: below it is light and noise
BATCH = 16
WITHIN = 3  # model steps of a window that must lie within its episode; what follows a success is rest, and known


@dataclass(frozen=True)
class Fork:
    """One state of the simulator, and what N chunks lead to from there.

    history: what the model reads. actions: (N, M, A). main (N, 64, 64, 3) u8, wrist (N, 32, 32, 3) u8, state (N, P)
    and keypoints (N, 4, 3): what the simulator shows after each chunk.
    """

    history: History
    actions: np.ndarray
    main: np.ndarray
    wrist: np.ndarray
    state: np.ndarray
    keypoints: np.ndarray


def climb(model: WorldModel, tracks: Tracks, forks: list[Fork], count: int = 256, ahead: int = 8) -> dict:
    """All figures: `horizons`, one entry a model step, and what holds over all of them.

    count: windows of `tracks`, as many from each episode. ValueError where no episode is long enough.
    """
    seen = _look(model, tracks, count, ahead)
    return {"horizons": _by_horizon(seen), **_beliefs(seen), **_retrieval(model, forks)}


# ------------------------------------------------------------------------------------------------ windows


@torch.inference_mode()
def _look(model: WorldModel, tracks: Tracks, count: int, ahead: int) -> dict[str, np.ndarray]:
    """What is compared, one row a window and one column a model step; NaN where the truth is unknown."""
    rows = []
    starts = spread(tracks, count, WITHIN)
    for part in np.array_split(starts, -(-len(starts) // BATCH)):
        window = tracks.window(part, ahead + 1).to(model.device)
        known = window.arrives[:, 1:].cumprod(1).bool()  # (B, H)
        future, other = foresee(model, window), foresee(model, window, shuffled=True)
        steps = model.layout.chunk_steps * np.arange(1, ahead + 2)
        where = np.minimum(part[:, None] + steps, tracks.last[part][:, None])
        real = torch.from_numpy(tracks.main[where]).to(model.device).float()  # (B, 1 + H, 64, 64, 3)
        now, then = real[:, :1], real[:, 1:]
        changed = (then - now).abs().amax(-1) > CHANGED  # (B, H, 64, 64)
        painted, painted_other = model.paint(future)[0].float(), model.paint(other)[0].float()
        ids = torch.cat([future.main_ids, future.wrist_ids], dim=-1)
        state = model.layout.from_bins(window.state[:, 1:])  # (B, 1 + H, P)
        points = model.layout.points_from_bins(window.keypoints[:, 1:])  # (B, 1 + H, 4, 3)

        row = {
            "pixels": changed.sum((2, 3)).float(),
            "right": (ids == window.image[:, 2:]).float().mean(-1),
            "right_copy": (window.image[:, 1:2] == window.image[:, 2:]).float().mean(-1),
            "gripper": distance(future.state, state[:, 1:]),
            "gripper_copy": distance(state[:, :1], state[:, 1:]),
            "gripper_shuffled": distance(other.state, state[:, 1:]),
            "object": (future.keypoints - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "object_copy": (points[:, :1] - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "object_shuffled": (other.keypoints - points[:, 1:]).norm(dim=-1).nanmean(-1),
            "value": future.value,
            "value_true": window.value[:, 2:],
            "success": future.success,
            "success_true": window.flags[:, 2:, 0].float(),
            "uncertainty": future.uncertainty,
        }
        for name, frames in (("", painted), ("_copy", now.expand_as(then)), ("_shuffled", painted_other)):
            row[f"error{name}"] = ((frames - then).square().mean(-1) * changed).sum((2, 3))
            row[f"ssim{name}"] = (ssim(frames, then) * changed).sum((2, 3))
        rows.append({name: value.where(known, torch.nan) for name, value in row.items()})
    return {name: torch.cat([row[name] for row in rows]).float().cpu().numpy() for name in rows[0]}


def _by_horizon(seen: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Pixels are pooled over all windows: a window in which hardly anything moves weighs hardly anything."""
    table = []
    for h in range(seen["pixels"].shape[1]):
        at = {name: values[:, h][np.isfinite(seen["pixels"][:, h])] for name, values in seen.items()}
        entry: dict[str, float] = {"model_step": h + 1, "windows": len(at["pixels"])}
        pixels = max(at["pixels"].sum(), 1.0)
        for name in ("", "_copy", "_shuffled"):
            entry[f"psnr_changed{name}"] = float(10 * np.log10(255**2 / max(at[f"error{name}"].sum() / pixels, 1e-6)))
        for name in ("", "_copy", "_shuffled"):
            entry[f"ssim_changed{name}"] = float(at[f"ssim{name}"].sum() / pixels)
        entry |= {"id_accuracy": mean(at["right"]), "id_accuracy_copy": mean(at["right_copy"])}
        for thing in ("gripper", "object"):
            for name in ("", "_copy", "_shuffled"):
                entry[f"{thing}_cm{name}"] = 100 * mean(at[f"{thing}{name}"])
        table.append({name: round(value, 4) for name, value in entry.items()})
    return table


def _beliefs(seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Value and success against what really follows, and doubts against errors, over all horizons."""
    known, told = np.isfinite(seen["pixels"]), np.isfinite(seen["value_true"])
    value, truth = seen["value"][told], seen["value_true"][told]
    # how far off a future is: the gripper's and the object's error, which are in the same unit
    error = (seen["gripper"] + seen["object"])[known]
    doubted = np.isfinite(error)
    large = error[doubted] > np.median(error[doubted])
    return {
        "value_auc": auc(value, truth > 0),
        "value_ece": calibration_error(value, truth),
        "value_correlation": correlation(value, truth),
        "success_auc": auc(seen["success"][known], seen["success_true"][known] > 0.5),
        "uncertainty_auc": auc(seen["uncertainty"][known][doubted], large),
        "futures": int(told.sum()),
        "doubted_futures": int(doubted.sum()),
    }


# ------------------------------------------------------------------------------------------------ forks


@torch.inference_mode()
def _retrieval(model: WorldModel, forks: list[Fork]) -> dict[str, float]:
    """Does each imagined future find its own true one? By the ids that are seen, by frames and by the robot's state."""
    found: dict[str, list[float]] = {"at_1": [], "by_pixels": [], "by_state": []}
    moved, imagined_moved = [], []
    for fork in forks:
        cache = model.prefill(fork.history)
        future = model.imagine(cache, torch.from_numpy(fork.actions)[:, None])
        for name, likeness in _likeness(model, fork, future).items():  # (N imagined, N true)
            found[name] += (likeness.argmax(1).cpu() == torch.arange(len(likeness))).float().tolist()
        now = fork.history.steps[-1][0].state[:3]
        moved.append(fork.state[:, :3] - now)
        imagined_moved.append(future.state[:, 0, :3].cpu().numpy() - now)
    return {
        **{f"retrieval_{name}": mean(np.array(hits)) for name, hits in found.items()},
        "gripper_displacement_r": correlation(np.concatenate(imagined_moved).ravel(), np.concatenate(moved).ravel()),
        "retrievals": sum(len(fork.actions) for fork in forks),
        "retrieval_chance": mean(np.array([1 / len(fork.actions) for fork in forks])),
    }


def _likeness(model: WorldModel, fork: Fork, future: Imagination) -> dict[str, Tensor]:
    """How well each imagined future fits each true one, (N, N) each, larger is nearer."""
    views = [torch.from_numpy(view).to(model.device) for view in (fork.main, fork.wrist)]
    true_ids = torch.cat([model.frame_tokenizer.encode(view) for view in views], dim=-1)  # (N, 80)
    num = len(true_ids)
    said = model.codes(
        future.hidden[:, 0, None].expand(-1, num, -1, -1), future.before[:, 0, None].expand(-1, num, -1)
    )  # of each imagined future, (N, N, 80)
    painted = model.paint(future)
    pixels = sum(
        (frames[:, :1].float() - view[None].float()).square().flatten(2).sum(-1)
        for frames, view in zip(painted, views, strict=True)
    )
    scale = torch.tensor([0.01, 0.01, 0.01, 0.1, 0.1, 0.1, 0.01])  # m, rad, m: what counts as one unit of difference
    state = torch.from_numpy(fork.state).float()
    away = ((future.state[:, :1].cpu() - state[None]) / scale).square().sum(-1)
    return {"at_1": said.log_prob(true_ids[None].expand(num, -1, -1)).sum(-1), "by_pixels": -pixels, "by_state": -away}


# ------------------------------------------------------------------------------------------------ measures


def ssim(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Structural similarity (Wang et al. 2004) of frames (..., h, w, 3) in 0 .. 255, pixel by pixel: (..., h, w)."""
    grey = [x.mean(-1).flatten(0, -3)[:, None] for x in (a, b)]

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    mean_a, mean_b = map(local, grey)
    var_a, var_b = (local(x.square()) - m.square() for x, m in zip(grey, (mean_a, mean_b), strict=True))
    both = local(grey[0] * grey[1]) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    index = index / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return index.view(a.shape[:-1])


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN where one kind is missing."""
    many, few = int(positive.sum()), int((~positive).sum())
    if not many or not few:
        return float("nan")
    return round(float((rankdata(score)[positive].sum() - many * (many + 1) / 2) / (many * few)), 4)


def mean(values: np.ndarray) -> float:
    """Of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 4) if len(known) else float("nan")
