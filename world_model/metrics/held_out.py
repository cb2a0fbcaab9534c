"""What the world model knows about episodes it never saw, each figure beside what copying or ignoring would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from world_model.model import Imagination, WorldModel
from world_model.tokens.images import MAIN_IDS
from world_model.tokens.layout import Tracks, Window
from world_model.training.loss import window_losses

AHEAD = 4  # model steps imagined
BATCH = 32
ACTED = 2  # control steps of a chunk that are executed before looking again


def pick(tracks: Tracks, count: int, ahead: int = AHEAD) -> np.ndarray:
    """Up to `count` rows, evenly spread, from which a step of history and `ahead` more lie within the episode."""
    fits = np.flatnonzero(np.arange(len(tracks)) + (ahead + 1) * tracks.layout.chunk_steps <= tracks.last)
    if not len(fits):
        raise ValueError(f"no held-out episode is long enough to imagine {ahead} model steps ahead")
    return fits[np.linspace(0, len(fits) - 1, min(count, len(fits))).astype(int)]


def spread(tracks: Tracks, count: int, ahead: int = AHEAD) -> np.ndarray:
    """`count` rows, as many from a short episode as from a long one, from which `ahead` model steps lie within it:
    else what fails, which lasts longest, is most of what is seen."""
    fits = np.flatnonzero(np.arange(len(tracks)) + ahead * tracks.layout.chunk_steps <= tracks.last)
    if not len(fits):
        raise ValueError(f"no episode is {ahead} model steps long: give longer ones")
    each = np.split(fits, np.flatnonzero(np.diff(tracks.last[fits])) + 1)
    shares = [len(share) for share in np.array_split(np.arange(count), len(each))]
    even = [np.linspace(0, len(rows) - 1, min(n, len(rows))) for rows, n in zip(each, shares, strict=True)]
    return np.concatenate([rows[places.astype(int)] for rows, places in zip(each, even, strict=True)])


@torch.no_grad()
def losses(model: WorldModel, tracks: Tracks, starts: np.ndarray, steps: int) -> dict[str, float]:
    """Nats an id of every kind, and of the next image when the executed actions are another window's."""
    sums: dict[str, float] = {}
    for part in np.array_split(starts, max(1, len(starts) // BATCH)):
        window = tracks.window(part, steps).to(model.device)
        other = replace(window, action=window.action.roll(1, 0))
        found = window_losses(model, window)
        figures = {"loss": found.total, **{f"{k}_nats": v for k, v in found.parts.items()}}
        figures["next_image_nats_shuffled"] = window_losses(model, other).parts["next_image"]
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(part) / len(starts)
    return sums


def foresee(model: WorldModel, window: Window, shuffled: bool = False) -> Imagination:
    """Imagine a window's own actions from its second step on, its first being history. shuffled: another window's."""
    views = [(window.image[:, s], window.state[:, s]) for s in (0, 1)]
    cache = model.context(window.instruction, views, [window.action[:, 0]])
    codes = window.action[:, 1:]
    return model.imagine(cache, model.actions.decode(codes.roll(1, 0) if shuffled else codes))


def measure(model: WorldModel, tracks: Tracks, count: int = 256) -> dict:
    """The figures of imagination, belief and action; lists run over horizons of 1 .. AHEAD model steps."""
    layout, rows = model.layout, []
    for starts in np.array_split(pick(tracks, count), max(1, count // BATCH)):
        window = tracks.window(starts, AHEAD + 1).to(model.device)
        now, then = window.image[:, 1:2], window.image[:, 2:]  # (B, 1, 80), (B, AHEAD, 80)
        future, other = foresee(model, window), foresee(model, window, shuffled=True)
        ids = torch.cat([future.main_ids, future.wrist_ids], dim=-1)
        true_state, now_state = layout.from_bins(window.state[:, 2:]), layout.from_bins(window.state[:, 1:2])
        true_points = layout.points_from_bins(window.keypoints[:, 1:])  # (B, 1 + AHEAD, 4, 3)

        cache = model.context(window.instruction, [(window.image[:, s], window.state[:, s]) for s in (0, 1)],
                              [window.action[:, 0]])  # fmt: skip
        reading = model.read(cache)
        held = torch.cat([reading.belief.held[:, None], future.held], dim=1)
        act = model.actions.decode_median(reading.coefs, reading.gripper)[:, :ACTED]
        advice = model.actions.decode(window.expert[:, 1])[:, :ACTED]
        asked = torch.where(window.advised[:, 1] > 0, 1.0, torch.nan)[:, None]
        rows.append({
            "right": (ids == then).float().mean(-1),  # (B, AHEAD)
            "right_copy": (now == then).float().mean(-1),
            "right_changed": nan_mean((ids == then).float(), now != then),
            "gripper": distance(future.state, true_state),
            "gripper_copy": distance(now_state, true_state),
            "gripper_shuffled": distance(other.state, true_state),
            "points_next": (future.keypoints - true_points[:, 1:]).norm(dim=-1).nanmean(-1),
            "points_next_copy": (true_points[:, :1] - true_points[:, 1:]).norm(dim=-1).nanmean(-1),
            "points_now": (reading.belief.keypoints - true_points[:, 0]).norm(dim=-1).nanmean(-1)[:, None],
            "value": torch.cat([reading.belief.value[:, None], future.value], dim=1),
            "value_true": window.value[:, 1:],
            "held": ((held > 0.5) == window.flags[:, 1:, 1]).float(),
            "uncertainty": future.uncertainty,
            "action": asked * (act - advice)[..., :-1].square().mean((1, 2))[:, None],
            "gripper_command": asked * (act[..., -1] == advice[..., -1]).float().mean(1)[:, None],
        })  # fmt: skip
    found = {name: torch.cat([row[name] for row in rows]).float().cpu().numpy() for name in rows[0]}

    def by_horizon(name: str, scale: float = 1.0) -> list[float]:
        return [round(float(scale * v), 4) for v in np.nanmean(found[name], axis=0)]

    told = np.isfinite(found["value_true"])
    value, truth = (found[name][:, 1][told[:, 1]] for name in ("value", "value_true"))  # one model step ahead
    value_now, truth_now = (found[name][:, 0][told[:, 0]] for name in ("value", "value_true"))
    known = np.isfinite(found["points_next"][:, 0])
    return {
        "windows": len(told),
        "id_accuracy": by_horizon("right"),
        "id_accuracy_copy": by_horizon("right_copy"),
        "id_accuracy_changed": by_horizon("right_changed"),
        "gripper_cm": by_horizon("gripper", 100),
        "gripper_cm_copy": by_horizon("gripper_copy", 100),
        "gripper_cm_shuffled": by_horizon("gripper_shuffled", 100),
        "keypoint_cm": by_horizon("points_next", 100),
        "keypoint_cm_copy": by_horizon("points_next_copy", 100),
        "keypoint_cm_now": by_horizon("points_now", 100)[0],
        "held_accuracy": by_horizon("held"),
        "value_correlation": correlation(value, truth),
        "value_now_correlation": correlation(value_now, truth_now),
        "value_ece": calibration_error(value, truth),
        "uncertainty_correlation": correlation(found["uncertainty"][known, 0], found["points_next"][known, 0]),
        "action_rms": round(float(np.sqrt(np.nanmean(found["action"]))), 4),
        "gripper_accuracy": round(float(np.nanmean(found["gripper_command"])), 4),
    }


def distance(state: Tensor, true: Tensor) -> Tensor:
    """Between gripper positions of states (..., P), in m."""
    return (state[..., :3] - true[..., :3]).norm(dim=-1)


def nan_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the last dimension of the values that count; NaN where none does."""
    return (values * where).sum(-1) / where.sum(-1)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; 0 where one of them never varies."""
    if np.std(a) < 1e-8 or np.std(b) < 1e-8:
        return 0.0
    return round(float(np.corrcoef(a, b)[0, 1]), 4)


def calibration_error(predicted: np.ndarray, true: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of numbers in [0, 1]: mean gap between what a bin predicts and what follows."""
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [abs(predicted[which == b].mean() - true[which == b].mean()) * (which == b).mean() for b in set(which)]
    return round(float(sum(gaps)), 4)


def picture(model: WorldModel, tracks: Tracks, rows: int = 4, scale: int = 3) -> Image.Image:
    """Pairs of strips, now and AHEAD model steps on: what the codes of the real frames show, and the imagined."""
    window = tracks.window(pick(tracks, rows), AHEAD + 1).to(model.device)
    main, wrist = model.paint(foresee(model, window))  # (rows, AHEAD, h, w, 3)
    real_main, real_wrist = model.frames(window.image[:, 1:, :MAIN_IDS]), model.frames(window.image[:, 1:, MAIN_IDS:])
    strips = []
    for i in range(len(main)):
        imagined = torch.cat([real_main[i, :1], main[i]]), torch.cat([real_wrist[i, :1], wrist[i]])
        strips += [strip(real_main[i], real_wrist[i]), strip(*imagined)]
    return Image.fromarray(np.concatenate(strips).repeat(scale, 0).repeat(scale, 1))


def strip(main: Tensor, wrist: Tensor) -> np.ndarray:
    """Frames side by side, each with its wrist view: (n, 64, 64, 3), (n, 32, 32, 3) u8 -> (66, w, 3) u8."""
    wrist = np.pad(wrist.cpu().numpy(), ((0, 0), (0, main.shape[1] - wrist.shape[1]), (0, 4), (0, 0)))
    row = np.concatenate([view for pair in zip(main.cpu().numpy(), wrist, strict=True) for view in pair], axis=1)
    return np.pad(row, ((0, 2), (0, 0), (0, 0)))


def table(figures: dict) -> str:
    """The figures as a person reads them."""
    width = max(len(name) for name in figures)
    lines = []
    for name, value in figures.items():
        shown = "  ".join(f"{v:8.3f}" for v in value) if isinstance(value, list) else f"{value:8.3f}"
        lines.append(f"  {name:{width}}  {shown}")
    return "\n".join(lines)
