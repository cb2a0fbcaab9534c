"""Fit once more what states are worth, when all else is learnt: `python -m world_model.fit_value`.

The value says how things end from here on. While a model is trained, its episodes end as experts, or earlier and
poorer states of itself, end them, and it comes to know them by heart. So its value is fitted again last, on episodes
that the finished model never learnt from, many of them its own, with everything else frozen: only the rows of the value
ids move (last-layer retraining, Kirichenko et al. 2023). This is a multinomial logistic regression, convex, so there is
nothing to tune. No value id is ever read back, so whatever else the model says stays the same.

Prints how well the value ranks and what its numbers mean, before and after, on episodes left out of the fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from envs.data.store import EpisodeError, EpisodeStore
from envs.types import STATE_DIM
from world_model import checkpoint
from world_model.checkpoint import CheckpointError, Loaded
from world_model.metrics.fidelity import auc
from world_model.metrics.held_out import calibration_error, correlation, spread
from world_model.model import WorldModel
from world_model.nn.device import choose_device
from world_model.tokens.layout import IMAGE_IDS, Tracks
from world_model.training.loss import hidden_by_step, soft_bins

BATCH = 16
WITHIN = 3  # model steps of a window that must lie within its episode
FOLDS = 5  # of cross-validation
ITERATIONS = 100  # of L-BFGS at most; it converges in about half


@dataclass(frozen=True)
class FitValueConfig:
    """configs/fit_value.yaml says what each of these means."""

    data: tuple[str, ...]
    start: str
    out: str
    windows: int
    steps: int
    pull: float
    threads: int
    device: str

    def __post_init__(self) -> None:
        if min(self.windows, self.steps, self.threads) < 1 or self.pull < 0:
            raise ValueError("`windows`, `steps` and `threads` must be positive, and `pull` 0 or more")

    def recipe(self) -> dict:
        """What a checkpoint that is there already must have been made with to be this one."""
        return {"data": list(self.data), "start": self.start, "windows": self.windows, "steps": self.steps,
                "pull": self.pull}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What is believed from, and what followed. hidden: (N, width) f32. value: (N,) f32. episode: (N,) i64."""

    hidden: Tensor
    value: Tensor
    episode: Tensor

    def of(self, which: Tensor) -> Evidence:
        """The rows that a mask (N,) names."""
        return Evidence(self.hidden[which], self.value[which], self.episode[which])


@torch.no_grad()
def gather(model: WorldModel, tracks: Tracks, windows: int, steps: int) -> Evidence:
    """Hidden states that the value is read from, now and after each chunk, of `windows` windows of `steps` model
    steps from every episode."""
    ends = np.unique(tracks.last)
    starts = spread(tracks, windows * len(ends), WITHIN)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in tqdm(np.array_split(starts, -(-len(starts) // BATCH)), desc="reading", unit="batch"):
        window = tracks.window(part, steps).to(model.device)
        _, act, following = hidden_by_step(model, window)
        now, then = act[:, :, 0], following[:, :, IMAGE_IDS + STATE_DIM]  # (B, S, width), the first of the beliefs
        episode = torch.from_numpy(np.searchsorted(ends, tracks.last[part]))[:, None].expand(-1, steps)
        for hidden, value, counts in (
            (now, window.value[:, :-1], window.here[:, :-1]),
            (then, window.value[:, 1:], window.arrives),
        ):
            told = (counts.bool() & torch.isfinite(value)).cpu()
            found.append((hidden.cpu()[told].float(), value.cpu()[told], episode[told]))
    return Evidence(*(torch.cat(column) for column in zip(*found, strict=True)))


def fit(rows: Tensor, evidence: Evidence, target: Callable[[Tensor], Tensor], pull: float) -> Tensor:
    """Rows (64, width) that say best what followed.

    rows: where to begin. target: values (N,) -> what should be said, (N, 64). pull: towards `rows`, per squared unit.
    """
    moved, said = torch.zeros_like(rows, requires_grad=True), target(evidence.value)
    optimizer = torch.optim.LBFGS([moved], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = -(said * (evidence.hidden @ (rows + moved).T).log_softmax(-1)).sum(-1).mean()
        total = nats + pull * moved.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (rows + moved).detach()


def judge(value: Tensor, evidence: Evidence) -> dict[str, float]:
    """How well values (N,) rank what succeeds over what never does, and whether they mean what they say."""
    said, true = value.numpy(), evidence.value.numpy()
    return {
        "auc": auc(said, true > 0), "ece": calibration_error(said, true), "correlation": correlation(said, true),
        "mean": round(float(said.mean()), 4), "true_mean": round(float(true.mean()), 4),
    }  # fmt: skip


def run(config: FitValueConfig) -> dict:
    """Fit, write the checkpoint, return the figures; those of the last time where this was done already."""
    torch.set_num_threads(config.threads)
    if Path(config.out).exists():
        figures = checkpoint.load(config.out).meta.get("value", {})
        if figures.get("recipe") != config.recipe():
            raise CheckpointError(f"checkpoint {config.out} is another one: choose another folder or remove it")
        return figures
    loaded = checkpoint.load(config.start, choose_device(config.device))
    model = loaded.model
    evidence = gather(model, read(config.data, loaded), config.windows, config.steps)
    if not 0 < int((evidence.value > 0).sum()) < len(evidence.value):
        raise EpisodeError("these episodes all end alike: a value needs some that succeed and some that do not")

    block, worth = model.vocab.value, model.layout.worth
    rows = block.select(model.transformer.head.detach(), dim=0).float().cpu()

    def target(value: Tensor) -> Tensor:
        return soft_bins(model.layout.value_to_bins(value), block.size, model.config.smoothing)

    def read_with(rows: Tensor, hidden: Tensor) -> Tensor:
        return (hidden @ rows.T).softmax(-1) @ worth

    # How good this is, each episode judged by a fit that has not seen it; then the fit on all of them.
    unseen = torch.zeros_like(evidence.value)
    for fold in tqdm(range(FOLDS), desc="cross-validating", unit="fold"):
        left_out = evidence.episode % FOLDS == fold
        unseen[left_out] = read_with(fit(rows, evidence.of(~left_out), target, config.pull), evidence.hidden[left_out])
    figures = {
        "before": judge(read_with(rows, evidence.hidden), evidence), "after": judge(unseen, evidence),
        "episodes": int(evidence.episode.max()) + 1, "readings": len(evidence.value),
        "recipe": config.recipe(),
    }  # fmt: skip
    fitted = fit(rows, evidence, target, config.pull)
    with torch.no_grad():
        model.transformer.head[block.ids(model.device)] = fitted.to(model.transformer.head)
    checkpoint.save(config.out, model, loaded.text, {**loaded.meta, "value": figures})
    return figures


def read(folders: tuple[str, ...], loaded: Loaded) -> Tracks:
    """All episodes of these folders."""
    tracks = []
    for folder in folders:
        store = EpisodeStore(folder)
        tracks += [
            Tracks.of(store.read(name), loaded.model.layout, loaded.frames, loaded.actions, loaded.text,
                      loaded.meta["discount"])
            for name in tqdm(store.names(), desc=f"reading {folder}", unit="episode")
        ]  # fmt: skip
    if not tracks:
        raise EpisodeError(f"no episode under {', '.join(folders)}: run `python -m agent.collect` first")
    return Tracks.join(tracks)


def table(figures: dict) -> str:
    """The figures for a person."""
    lines = [f"{figures['readings']} readings of {figures['episodes']} episodes, each judged by a fit that left it out"]
    for name in ("before", "after"):
        it = figures[name]
        ranks = f"AUC {it['auc']:.3f}   calibration error {it['ece']:.3f}   correlation {it['correlation']:.3f}"
        lines.append(f"  {name:<8}{ranks}   mean {it['mean']:.3f}, and {it['true_mean']:.3f} followed")
    return "\n".join(lines)


@hydra.main(version_base=None, config_path="../configs", config_name="fit_value")
def main(raw: DictConfig) -> None:
    try:
        values = OmegaConf.to_container(raw, resolve=True)
        figures = run(FitValueConfig(**{**values, "data": tuple(values["data"])}))
    except (EpisodeError, CheckpointError, ValueError, OSError) as error:
        sys.exit(f"fit_value: {error}")
    print(table(figures))
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
