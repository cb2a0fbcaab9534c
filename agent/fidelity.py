"""How true the imagination is: one ladder of evidence, from looks to counterfactual futures to what planning exploits.

    python -m agent.fidelity env=fold_half checkpoint=checkpoints/nextstate-s seed=13000 out=outputs/fidelity

Watches held-out episodes of several kinds (disturbed demonstrations, the model's own attempts, play), leaves some of
their states in eight different ways, and lets the planner fold a few times. Prints the ladder and writes
`fidelity.json` and `fidelity.png` (real futures above imagined ones).
"""

from __future__ import annotations

import json
import math
import os
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
from agent.launch.command import clear_errors, log_run
from envs.data.settings import from_settings
from envs import preflight
from envs.data.files import to_json, write_whole
from policies.rollout import Step, rollout
from world_model import checkpoint
from world_model.checkpoint import Loaded
from world_model.metrics import fidelity, held_out
from world_model.model import History
from world_model.nn.device import choose_device
from world_model.tokens.layout import Tracks, value_to_come


@dataclass(frozen=True)
class FidelityConfig:
    """configs/fidelity.yaml says what each of these means."""

    env: EnvConfig
    checkpoint: str
    seed: int
    episodes: int
    forked: int
    planned: int
    windows: int
    ahead: int
    out: str
    workers: int
    device: str

    def __post_init__(self) -> None:
        if min(self.episodes, self.forked, self.planned, self.windows, self.ahead) < 1 or self.seed < 0:
            raise ValueError("episodes, forked, planned, windows and ahead must be positive, and seed 0 or more")

    @classmethod
    def of(cls, raw: dict[str, Any]) -> FidelityConfig:
        """From the verb's settings, in which `split` stands beside the environment."""
        kept = {name: value for name, value in raw.items() if name not in ("split", "wandb")}
        env = from_settings(EnvConfig, {**raw["env"], "split": raw["split"]})
        workers = os.cpu_count() if raw["workers"] is None else raw["workers"]
        return from_settings(cls, {**kept, "env": env, "workers": workers})


@dataclass(frozen=True)
class Planned:
    """One episode of the planner: for each decision what it expected of its plan, and what followed.

    expected, real: (D,) discount ** (control steps until success), one chunk after the decision.
    """

    expected: np.ndarray
    real: np.ndarray


@dataclass(frozen=True)
class PlannedJob:
    """A worker's part: let the planner act."""

    env: EnvConfig
    checkpoint: str
    discount: float

    def work(self, seeds: Iterator[int]) -> Iterator[Planned]:
        """One episode a seed."""
        with closing(make_env(self.env)) as env:
            policy = make_policy(PolicyConfig("planner", checkpoint=self.checkpoint, device="cpu"), self.env, env)
            for seed in seeds:
                expected: list[tuple[int, float]] = []

                def on_step(step: Step, expected: list[tuple[int, float]] = expected) -> None:
                    plan = step.state.plan
                    if step.decided and plan.imagined:
                        imagined, row = plan.imagination_of(plan.chosen)
                        due = step.index + imagined.actions.shape[1] * imagined.actions.shape[2]
                        expected.append((due, float(imagined.value[row, -1])))

                episode = rollout(env, policy, seed, on_step=on_step).episode
                truth = value_to_come(episode.success, self.discount)
                due = np.minimum([step for step, _ in expected], len(truth) - 1)
                yield Planned(np.array([value for _, value in expected]), truth[due])


def measure(config: FidelityConfig, loaded: Loaded) -> tuple[dict[str, Any], Tracks]:
    """All figures, and the episodes that they rest on, tokenized."""
    model = loaded.model
    discount = loaded.meta["discount"]
    watching = WitnessJob(config.env, config.checkpoint, config.seed, config.forked, model.layout.chunk_steps)
    watched = _all(watching, config.seed, config.episodes, config.workers, "watching")
    planning = PlannedJob(config.env, config.checkpoint, discount)
    planned = _all(planning, config.seed + config.episodes, config.planned, config.workers, "planning")

    tracks = Tracks.join([
        Tracks.of(seen.episode, model.layout, loaded.frames, loaded.actions, loaded.text, discount) for seen in watched
    ])  # fmt: skip
    forks = [as_fork(loaded, seen, left) for seen in watched for left in seen.forks]
    figures = fidelity.climb(model, tracks, forks, config.windows, config.ahead)
    expected, real = (np.concatenate([getattr(p, name) for p in planned]) for name in ("expected", "real"))
    figures |= {
        "exploitation_points": round(100 * float((expected - real).mean()), 2),
        "planned_decisions": len(expected),
        "episodes": {kind: [s.kind for s in watched].count(kind) for kind in sorted({s.kind for s in watched})},
        "episodes_failed": sum(not seen.episode.success[-1] for seen in watched),
    }
    return figures, tracks


def as_fork(loaded: Loaded, seen: Seen, left: Left) -> fidelity.Fork:
    """A fork with the history that the model reads: now, and one chunk ago."""
    chunk, episode = loaded.model.layout.chunk_steps, seen.episode
    ago = left.step - chunk
    steps = ((episode.obs(ago), episode.action[ago : left.step]), (episode.obs(left.step), None))
    history = History(tuple(loaded.text.encode(episode.instruction)), steps)
    return fidelity.Fork(history, left.actions, left.main, left.wrist, left.state, left.keypoints)


def _all(job: processes.Job, seed: int, count: int, workers: int, what: str) -> list[Any]:
    results = processes.run(job, range(seed, seed + count), workers)
    return list(tqdm(results, total=count, desc=what, unit="episode"))


def to_json(report: Any) -> str:
    """JSON has no NaN: what could not be measured (one kind of outcome only, a robot without objects) is null."""

    def clean(value: Any) -> Any:
        match value:
            case dict():
                return {name: clean(v) for name, v in value.items()}
            case list():
                return [clean(v) for v in value]
            case float() if not math.isfinite(value):
                return None
        return value

    return json.dumps(clean(report), indent=1, allow_nan=False) + "\n"


def table(figures: dict[str, Any]) -> str:
    """The ladder for a person."""
    columns = {
        "psnr_changed": "dB, changed pixels", "ssim_changed": "SSIM, changed pixels", "id_accuracy": "ids right",
        "gripper_cm": "gripper, cm", "object_cm": "corners or cube, cm",
    }  # fmt: skip
    horizons = figures["horizons"]
    lines = ["model steps ahead" + " " * 17 + "".join(f"{h['model_step']:>8d}" for h in horizons)]
    for name, label in columns.items():
        for suffix, beside in (("", ""), ("_copy", "copying"), ("_shuffled", "other actions")):
            if name + suffix in horizons[0]:
                title = f"  {beside}" if beside else label
                lines.append(f"{title:<34}" + "".join(f"{h[name + suffix]:8.2f}" for h in horizons))
    lines.append("")
    rows = {
        "true future found among eight": ", ".join(
            f"{figures[f'retrieval_{name}']:.1%} by {what}"
            for name, what in (("at_1", "ids"), ("by_pixels", "pixels"), ("by_state", "state"))
        )
        + f" (chance {figures['retrieval_chance']:.1%}, {figures['retrievals']} futures)",
        "gripper displacement, r": f"{figures['gripper_displacement_r']:.3f} ({figures['retrievals']} futures)",
        "value": f"AUC {figures['value_auc']:.3f}, calibration error {figures['value_ece']:.3f}, "
        f"correlation {figures['value_correlation']:.3f} ({figures['futures']} futures; of "
        f"{sum(figures['episodes'].values())} episodes {figures['episodes_failed']} fail)",
        "success": f"AUC {figures['success_auc']:.3f}",
        "uncertainty tells large errors": f"AUC {figures['uncertainty_auc']:.3f} "
        f"({figures['doubted_futures']} futures)",
        "exploitation": f"{figures['exploitation_points']:+.1f} points over {figures['planned_decisions']} decisions",
    }
    return "\n".join(lines + [f"{name:<32}{value}" for name, value in rows.items()])


@hydra.main(version_base="1.3", config_path="../configs", config_name="fidelity")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        torch.set_num_threads(1)  # the workers keep the other cores busy, and threads that wait collapse
        raw = OmegaConf.to_container(cfg, resolve=True)
        config = FidelityConfig.of(raw)
        shipped = identity(PolicyConfig("model", checkpoint=config.checkpoint))
        loaded = checkpoint.load(Path(config.checkpoint), choose_device(config.device))
        figures, tracks = measure(config, loaded)
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        report = {
            **figures, "env": config.env.id, "split": config.env.split, "checkpoint": shipped,
            "command": " ".join(["python -m agent.fidelity", *HydraConfig.get().overrides.task]),
            "versions": versions("nextstate", "torch", "mujoco"),
        }  # fmt: skip
        write_whole(out / "fidelity.json", to_json(report))
        with torch.inference_mode():
            held_out.picture(loaded.model, tracks).save(out / "fidelity.png")
        print(table(figures))
        print(f"\nwritten to {out}")
        flat = {name: value for name, value in figures.items() if isinstance(value, float)}
        log_run(cfg.wandb, f"fidelity {config.env.name}", config.out, asdict(config), flat)


if __name__ == "__main__":
    main()
