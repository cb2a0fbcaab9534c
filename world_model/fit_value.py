"""Fit once more what states are worth, when all else is learnt: `python -m world_model.fit_value`.

The value says how things end from here on. While a model is trained, its episodes end as experts, or earlier and
poorer states of itself, end them, and it comes to know them by heart. So its value is fitted again last, on episodes
that the finished model never learnt from, many of them its own, with everything else frozen: only the rows of the value
ids move (last-layer retraining, Kirichenko et al. 2023). This is a multinomial logistic regression, convex, so there is
nothing to tune. No value id is ever read back, so whatever else the model says stays the same.

Prints how well the value ranks and what its numbers mean, before and after, on episodes left out of the fit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from envs.data.files import to_json
from envs.data.fingerprint import fingerprint, require_same
from envs.data.settings import from_settings
from envs.data.store import EpisodeError
from world_model import checkpoint
from world_model.checkpoint import CheckpointError, Loaded
from world_model.metrics.statistics import DIGITS, auc, correlation, expected_calibration_error
from world_model.metrics.windows import spread_by_episode
from world_model.model import WorldModel
from world_model.nn.device import choose_device
from world_model.training import sources
from world_model.training.dataset import EpisodeDataset
from world_model.training.loss import hidden_by_step, soft_bins
from world_model.training.sources import Source

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
    l2_prior: float
    threads: int
    device: str

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("`data` must name at least one folder of episodes")
        for name in ("windows", "steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.l2_prior < 0:
            raise ValueError(f"`l2_prior` must be 0 or more, got {self.l2_prior}")

    def fingerprint(self, start: Loaded, found: Sequence[Source]) -> dict:
        """What a checkpoint that is there already must have been made from to be this one."""
        settings = {"windows": self.windows, "steps": self.steps, "l2_prior": self.l2_prior}
        return fingerprint(settings, {"start": start.sha256}, [source.fingerprint() for source in found])


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
def gather(model: WorldModel, dataset: EpisodeDataset, windows: int, steps: int) -> Evidence:
    """Hidden states that the value is read from, now and after each chunk, of `windows` windows of `steps` model
    steps from every episode."""
    ends, at = np.unique(dataset.last), model.layout
    starts = spread_by_episode(dataset, windows * len(ends), WITHIN)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in tqdm(np.array_split(starts, -(-len(starts) // BATCH)), desc="reading", unit="batch"):
        batch = dataset.batch(part, steps).to(model.device)
        _, act, following, _ = hidden_by_step(model, batch)
        now, then = act[:, :, 0], following[:, :, at.image_ids + at.state_dim]  # (B, S, width), the first belief
        episode = torch.from_numpy(np.searchsorted(ends, dataset.last[part]))[:, None].expand(-1, steps)
        for hidden, value, counts in (
            (now, batch.value[:, :-1], batch.valid[:, :-1]),
            (then, batch.value[:, 1:], batch.next_valid),
        ):
            told = (counts.bool() & torch.isfinite(value)).cpu()
            found.append((hidden.cpu()[told].float(), value.cpu()[told], episode[told]))
    return Evidence(*(torch.cat(column) for column in zip(*found, strict=True)))


def fit(rows: Tensor, evidence: Evidence, target: Callable[[Tensor], Tensor], l2_prior: float) -> Tensor:
    """Rows (64, width) that say best what followed.

    rows: where to begin. target: values (N,) -> what should be said, (N, 64). l2_prior: weight of the squared distance
    from `rows`.
    """
    moved, said = torch.zeros_like(rows, requires_grad=True), target(evidence.value)
    optimizer = torch.optim.LBFGS([moved], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = -(said * (evidence.hidden @ (rows + moved).T).log_softmax(-1)).sum(-1).mean()
        total = nats + l2_prior * moved.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (rows + moved).detach()


def judge(value: Tensor, evidence: Evidence) -> dict[str, float]:
    """How well values (N,) rank what succeeds over what never does, and whether they mean what they say."""
    said, true = value.numpy(), evidence.value.numpy()
    return {
        "auc": auc(said, true > 0), "ece": expected_calibration_error(said, true),
        "correlation": correlation(said, true), "mean": round(float(said.mean()), DIGITS),
        "true_mean": round(float(true.mean()), DIGITS),
    }  # fmt: skip


def run(config: FitValueConfig) -> dict:
    """Fit, write the checkpoint, return the figures; those of the last time where this was done already."""
    torch.set_num_threads(config.threads)
    found = sources.open_sources({"data": config.data})
    loaded = checkpoint.load(config.start, choose_device(config.device))
    made_from = config.fingerprint(loaded, found)
    if Path(config.out).exists():
        figures = checkpoint.load(config.out).meta.get("value", {})
        if "after" not in figures:
            raise CheckpointError(f"checkpoint {config.out} is another one: choose another folder or remove it")
        require_same(figures.get("fingerprint"), made_from, f"checkpoint {config.out}")
        return figures
    model = loaded.model
    evidence = gather(model, read(found, loaded), config.windows, config.steps)
    if not 0 < int((evidence.value > 0).sum()) < len(evidence.value):
        raise EpisodeError("these episodes all end alike: a value needs some that succeed and some that do not")

    block, support = model.vocab.value, model.layout.value_support
    rows = block.select(model.transformer.head.detach(), dim=0).float().cpu()

    def target(value: Tensor) -> Tensor:
        return soft_bins(model.layout.value_to_bins(value), block.size, model.config.smoothing)

    def read_with(rows: Tensor, hidden: Tensor) -> Tensor:
        return (hidden @ rows.T).softmax(-1) @ support

    # How good this is, each episode judged by a fit that has not seen it; then the fit on all of them.
    unseen = torch.zeros_like(evidence.value)
    for fold in tqdm(range(FOLDS), desc="cross-validating", unit="fold"):
        left_out = evidence.episode % FOLDS == fold
        unseen[left_out] = read_with(
            fit(rows, evidence.of(~left_out), target, config.l2_prior), evidence.hidden[left_out]
        )
    figures = {
        "before": judge(read_with(rows, evidence.hidden), evidence), "after": judge(unseen, evidence),
        "episodes": int(evidence.episode.max()) + 1, "readings": len(evidence.value),
        "fingerprint": made_from,
    }  # fmt: skip
    fitted = fit(rows, evidence, target, config.l2_prior)
    with torch.no_grad():
        model.transformer.head[block.ids(model.device)] = fitted.to(model.transformer.head)
    figures = json.loads(to_json(figures))
    checkpoint.save(config.out, model, loaded.text, {**loaded.meta, "value": figures})
    return figures


def read(found: Sequence[Source], loaded: Loaded) -> EpisodeDataset:
    """All episodes of these folders. ValueError for those of another robot than the checkpoint's."""
    parts = []
    for source in found:
        for episode in source.each():
            loaded.spec.require(episode.spec, "the checkpoint", str(source.store.root))
            parts.append(EpisodeDataset.of(
                episode, loaded.model.layout, loaded.frames, loaded.actions, loaded.text, loaded.meta["discount"]
            ))  # fmt: skip
    return EpisodeDataset.join(parts)


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
        config = from_settings(FitValueConfig, {**values, "data": sources.as_folders(values["data"])})
        figures = run(config)
    except (EpisodeError, CheckpointError, ValueError, OSError) as error:
        sys.exit(f"fit_value: {error}")
    print(table(figures))
    print(f"\nwritten to {raw.out}")


if __name__ == "__main__":
    main()
