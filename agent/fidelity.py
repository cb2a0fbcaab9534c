"""How true the imagination is, from weak evidence to strong: looks, counterfactual futures, what planning exploits.

    python -m agent.fidelity env=fold_half checkpoint=checkpoints/nextstate-s seed=13000 out=outputs/fidelity
    python -m agent.fidelity stride=2  # imagined in model steps of 2 control steps, compared at the same times

Watches held-out episodes of several kinds (disturbed demonstrations, the model's own attempts, play), follows some of
their states in eight different ways, and lets the planner act a few times. Prints a table and writes `fidelity.json`
and `fidelity.png` (real futures above imagined ones); `keep=true` keeps the watched episodes, which `agent.explore`
opens, those first whose imagined futures are farthest off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, PolicyConfig, env_config, make_envs, make_policy
from agent.collection.counterfactual import CounterfactualJob, Futures, Watched
from agent.evaluation.provenance import checkpoint_identity, provenance
from agent.launch import processes
from agent.launch.command import clear_errors, command_line, start
from envs import preflight
from envs.data.files import write_json
from envs.data.settings import from_settings
from envs.data.store import EpisodeStore
from envs.data.tracking import check_mode, log_run
from policies.rollout import Step, rollout
from world_model import checkpoint
from world_model.checkpoint import Loaded
from world_model.metrics import fidelity, pictures
from world_model.nn.device import choose_device
from world_model.training.dataset import EpisodeDataset, value_to_come
from world_model.types import History

BESIDE = {"_copy": "copying", "_shuffled": "other actions"}  # what stands beside a figure, by the end of its name


@dataclass(frozen=True)
class FidelityConfig:
    """configs/fidelity.yaml says what each of these means."""

    env: EnvConfig
    checkpoint: str
    seed: int
    episodes: int
    branched: int
    planned: int
    windows: int
    ahead: int
    stride: int | None
    out: str
    keep: bool
    workers: int
    device: str

    def __post_init__(self) -> None:
        if min(self.episodes, self.branched, self.planned, self.windows, self.ahead) < 1 or self.seed < 0:
            raise ValueError("episodes, branched, planned, windows and ahead must be positive, and seed 0 or more")

    @classmethod
    def of(cls, raw: dict[str, Any]) -> FidelityConfig:
        """From the command's settings, in which `split` stands beside the environment."""
        kept = {name: value for name, value in raw.items() if name not in ("split", "wandb")}
        workers = processes.available_cores() if raw["workers"] is None else raw["workers"]
        return from_settings(cls, {**kept, "env": env_config(raw), "workers": workers})


@dataclass(frozen=True)
class Planned:
    """One episode of the planner: for each decision the score of the plan that it chose, and what followed.

    expected, real: (D,) discount ** (control steps until success), from the decision on. The score is what chooses, so
    it is what a search can exploit; what it takes off for uncertainty makes it a little smaller than it expects.
    """

    expected: np.ndarray
    real: np.ndarray


@dataclass(frozen=True)
class PlannedJob:
    """A worker's part: let the planner act."""

    env: EnvConfig
    checkpoint: str
    discount: float
    stride: int | None

    def work(self, seeds: Iterator[int]) -> Iterator[Planned]:
        """One episode a seed."""
        with closing(make_envs(self.env)) as envs:
            planner = {"imagine": self.stride}
            config = PolicyConfig(name="planner", checkpoint=self.checkpoint, device="cpu", planner=planner)
            policy = make_policy(config, self.env, envs)
            for seed in seeds:
                expected: list[tuple[int, float]] = []

                def on_step(step: Step, expected: list[tuple[int, float]] = expected) -> None:
                    if step.decided:
                        expected.append((step.index, step.state.plan.value))

                (run,) = rollout(envs, policy, [seed], on_step=on_step)
                decided, scores = zip(*expected, strict=True)
                yield Planned(np.array(scores), value_to_come(run.episode.success, self.discount)[list(decided)])


def measure(config: FidelityConfig, loaded: Loaded) -> tuple[dict[str, Any], EpisodeDataset, list[Watched]]:
    """All figures, and the episodes that they rest on, tokenized and whole."""
    model, discount = loaded.model, loaded.meta["discount"]
    if config.stride is not None:
        model.layout.require_strides([config.stride])
    watching = CounterfactualJob(
        config.env, config.checkpoint, config.seed, config.branched, model.layout.chunk_steps, loaded.actions.coefs
    )
    watched = _all(watching, config.seed, config.episodes, config.workers, "watching")
    planning = PlannedJob(config.env, config.checkpoint, discount, config.stride)
    planned = _all(planning, config.seed + config.episodes, config.planned, config.workers, "planning")

    dataset = EpisodeDataset.join([
        EpisodeDataset.of(seen.episode, model.layout, loaded.frames, loaded.actions, loaded.text, discount)
        for seen in watched
    ])  # fmt: skip
    followed = [as_counterfactual(loaded, seen, futures) for seen in watched for futures in seen.futures]
    figures = fidelity.evaluate_fidelity(model, dataset, followed, config.windows, config.ahead, config.stride)
    expected, real = (np.concatenate([getattr(p, name) for p in planned]) for name in ("expected", "real"))
    figures |= {
        "by_episode": [
            {"seed": seen.episode.seed, "kind": seen.kind, "success": bool(seen.episode.success[-1]), "error": error}
            for seen, error in zip(watched, figures["by_episode"], strict=True)
        ],
        "exploitation_points": round(100 * float((expected - real).mean()), 2),
        "planned_decisions": len(expected),
        "episodes": {kind: [s.kind for s in watched].count(kind) for kind in sorted({s.kind for s in watched})},
        "episodes_failed": sum(not seen.episode.success[-1] for seen in watched),
    }
    return figures, dataset, watched


def run(config: FidelityConfig, command: str) -> dict[str, Any]:
    """Measure, and write what was found into `config.out`; returns the figures. command: what the report says that it
    was made by."""
    shipped = checkpoint_identity(config.checkpoint)
    loaded = checkpoint.load(Path(config.checkpoint), choose_device(config.device))
    figures, dataset, watched = measure(config, loaded)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if config.keep:
        store = EpisodeStore(out / "episodes")
        for seen in watched:
            store.write(seen.episode, config.env.episode_name(seen.episode.seed))
    write_json(out / "fidelity.json", {
        **figures, "env": config.env.id, "split": config.env.split, "checkpoint": shipped, "command": command,
        "provenance": provenance(loaded.model.device, loaded.model.precision),
    })  # fmt: skip
    with torch.inference_mode():
        pictures.imagined(loaded.model, dataset).save(out / "fidelity.png")
    return figures


def as_counterfactual(loaded: Loaded, seen: Watched, futures: Futures) -> fidelity.Counterfactual:
    """With the history that the model reads: now, and one chunk ago."""
    chunk, episode = loaded.model.layout.chunk_steps, seen.episode
    ago = futures.step - chunk
    steps = ((episode.obs(ago), episode.action[ago : futures.step]), (episode.obs(futures.step), None))
    history = History(tuple(loaded.text.encode(episode.instruction)), steps)
    return fidelity.Counterfactual(history, futures.actions, futures.observations)


def _all(job: processes.Job, seed: int, count: int, workers: int, what: str) -> list[Any]:
    results = processes.run(job, range(seed, seed + count), workers)
    return list(tqdm(results, total=count, desc=what, unit="episode"))


def table(figures: dict[str, Any]) -> str:
    """The figures for a person."""
    horizons = figures["horizons"]
    names = [name for name in horizons[0] if name not in ("model_step", "windows")]
    lines = [f"{'chunks ahead':<40}" + "".join(f"{h['model_step']:>8d}" for h in horizons)]
    for name in names:
        beside = next((word for suffix, word in BESIDE.items() if name.endswith(suffix)), "")
        title = f"  {beside}" if beside else name.replace("_", " ")
        lines.append(f"{title:<40}" + "".join(f"{h[name]:8.2f}" for h in horizons))
    lines.append("")
    rows = {
        "true future found among eight": ", ".join(
            f"{figures[f'retrieval_{name}']:.1%} by {what}"
            for name, what in (("at_1", "ids"), ("by_pixels", "pixels"), ("by_state", "state"))
        )
        + f" (chance {figures['retrieval_chance']:.1%}, {figures['retrievals']} futures)",
        "displacement, r": f"{figures['displacement_r']:.3f} ({figures['retrievals']} futures)",
        "value": f"AUC {figures['value_auc']:.3f}, calibration error {figures['value_ece']:.3f}, "
        f"correlation {figures['value_correlation']:.3f} ({figures['futures']} futures; of "
        f"{sum(figures['episodes'].values())} episodes {figures['episodes_failed']} fail)",
        "success": f"AUC {figures['success_auc']:.3f}",
        "uncertainty tells large errors": f"AUC {figures['uncertainty_auc']:.3f} "
        f"({figures['futures_with_uncertainty']} futures)",
        "exploitation": f"{figures['exploitation_points']:+.1f} points over {figures['planned_decisions']} decisions",
    }
    return "\n".join(lines + [f"{name:<32}{value}" for name, value in rows.items()])


@hydra.main(version_base="1.3", config_path="../configs", config_name="fidelity")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        check_mode(cfg.wandb)
        torch.set_num_threads(1)  # the workers keep the other cores busy, and threads that wait collapse
        raw = OmegaConf.to_container(cfg, resolve=True)
        config = FidelityConfig.of(raw)
        figures = run(config, command_line("agent.fidelity", HydraConfig.get().overrides.task))
        print(table(figures))
        print(f"\nwritten to {config.out}")
        flat = {name: value for name, value in figures.items() if isinstance(value, float)}
        log_run(cfg.wandb, f"fidelity {config.env.label}", config.out, asdict(config), flat)


if __name__ == "__main__":
    start(main)
