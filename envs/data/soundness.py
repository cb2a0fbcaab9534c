"""What is wrong with recorded episodes, as far as the numbers themselves tell. What an episode cannot hold at all,
NaN, wrong shapes, commands out of range, is refused when it is written and when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from envs.types import Episode

OUTSIDE = 0.01  # share of a dimension's values that may leave its range
DARK = 4  # grey levels: a frame that is nowhere brighter shows nothing
FROZEN_S = 1.0  # seconds for which a camera's picture may stay the same to the bit while the robot moves
MOVES = 1e-3  # share of a state's range that counts as motion, summed over all dimensions
EXPLAINED = 0.05  # least share of the motion of the best explained state dimension that the commands must explain
LAGS = 4  # control steps that a command may take to arrive
ENOUGH = 200  # control steps below which nothing is said of commands


def faults_of(episode: Episode) -> Iterator[str]:
    """Those of one episode, a line each."""
    spec = episode.spec
    for name, count in spec.outside(episode.state).items():
        if count > OUTSIDE * len(episode.state):
            yield f"{count} of {len(episode.state)} values of the state `{name}` leave its range"
    for camera, frames in episode.images.items():
        dark = int((frames.reshape(len(frames), -1).max(1) <= DARK).sum())
        if dark:
            yield f"camera `{camera}` is black in {dark} of {len(frames)} frames"
        longest = _longest_frozen(frames, episode.state)
        if longest > FROZEN_S * spec.control_hz:
            yield f"camera `{camera}` stands still for {longest} control steps while the robot moves"


def faults_of_all(episodes: Sequence[tuple[str, Episode]]) -> Iterator[str]:
    """Those that only several episodes tell, by their names: one recorded twice, commands that have nothing to do with
    what the robot does."""
    seen: dict[str, str] = {}
    for name, episode in episodes:
        content = hashlib.sha256(episode.action.tobytes() + episode.state.tobytes()).hexdigest()
        if content in seen:
            yield f"{name} is the same episode as {seen[content]}"
        seen.setdefault(content, name)
    explained = how_far_commands_explain([episode for _, episode in episodes])
    if explained is not None and explained < EXPLAINED:
        yield (
            f"commands explain {explained:.1%} of how the state changes: are they shifted in time, of another episode, "
            "or of another robot?"
        )


def constants(episodes: Sequence[Episode]) -> list[str]:
    """Dimensions of state and commands that never change, which is sound but worth knowing."""
    spec, found = episodes[0].spec, []
    for kind, parts in (("state", spec.state), ("action", spec.action)):
        values = np.concatenate([getattr(episode, kind) for episode in episodes])
        spreads = np.ptp(values, axis=0)
        found += [f"{kind} {part.name}" for part, spread in zip(parts, spreads, strict=True) if not spread]
    return found


def how_far_commands_explain(episodes: Sequence[Episode]) -> float | None:
    """The share of the variance of the state's changes that a linear function of the last commands explains, of the
    dimension that is explained best; None where too little was recorded to say."""
    causes, effects = [], []
    for episode in episodes:
        if len(episode) <= LAGS:
            continue
        past = [episode.action[LAGS - 1 - lag : len(episode) - lag] for lag in range(LAGS)]
        causes.append(np.concatenate(past, axis=1))
        effects.append(np.diff(episode.state, axis=0)[LAGS - 1 :])
    if not causes or len(cause := np.concatenate(causes).astype(np.float64)) < ENOUGH or not effects[0].shape[1]:
        return None
    effect = np.concatenate(effects).astype(np.float64)
    cause, effect = cause - cause.mean(0), effect - effect.mean(0)
    moving = effect.std(0) > 1e-9
    if not moving.any():
        return None
    rest = effect[:, moving] - cause @ np.linalg.lstsq(cause, effect[:, moving], rcond=None)[0]
    return float(1 - (rest.var(0) / effect[:, moving].var(0)).min())


def _longest_frozen(frames: np.ndarray, state: np.ndarray) -> int:
    """Control steps of the longest run in which no pixel changes but the state does at every step."""
    span = np.maximum(np.ptp(state, axis=0), 1e-9) if state.shape[1] else np.ones(0)
    moves = (np.abs(np.diff(state, axis=0)) / span).sum(1) > MOVES
    same = (frames[1:] == frames[:-1]).reshape(len(frames) - 1, -1).all(1)
    longest = run = 0
    for frozen in moves & same:
        run = run + 1 if frozen else 0
        longest = max(longest, run)
    return longest
