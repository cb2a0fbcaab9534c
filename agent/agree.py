"""Whether policies do in the world model's imagination what they do in the simulator.

    python -m agent.agree env=lift episodes=50 out=outputs/agree

Runs every policy of `policies` from the same starts in both, then compares: success of each, and of single episodes,
where gripper and objects are by time. Prints a table; writes `agree.json`, `agree.png` (success there against here, and
drift by time) and `disagreements.png` (real episodes above imagined ones, those that end otherwise). The same command
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import matplotlib
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from agent.build import EnvConfig, PolicyConfig, env_config
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation.agreement import Outcomes, with_intervals
from agent.evaluation.provenance import provenance
from agent.evaluation.statistics import wilson
from agent.launch.command import clear_errors, command_line, start
from agent.launch.processes import Launcher, default_workers
from envs import preflight
from envs.data.files import write_json
from envs.data.settings import from_settings
from envs.data.tracking import check_mode, log_run
from envs.types import Episode
from world_model.metrics import pictures
from world_model.metrics.statistics import mean_by_column

matplotlib.use("Agg")  # draws into files; a machine without a screen has no other way
import matplotlib.pyplot as plt  # noqa: E402

SHOWN, MOMENTS = 6, 8  # episodes that end otherwise, and pictures of each
NAMES = {
    "pearson": "Pearson r", "spearman": "Spearman", "mmrv": "MMRV", "mean_difference": "mean difference",
    "bias": "bias of the dream", "episodes_agree": "single episodes agree", "episodes_auc": "single episodes, AUC",
    "faithful_failures": "failures imagined as such", "faithful_successes": "successes imagined as such",
}  # fmt: skip


@dataclass(frozen=True)
class AgreeConfig:
    """configs/agree.yaml says what each of these means."""

    env: EnvConfig
    policies: Mapping[str, PolicyConfig]
    checkpoint: str
    seed: int
    episodes: int
    out: str
    workers: int
    robots: int
    launcher: Launcher = "local"
    rerun: str | None = None

    def __post_init__(self) -> None:
        if len(self.policies) < 2:
            raise ValueError("agreement needs two policies or more")
        unsaid = [label for label, policy in self.policies.items() if policy.execute is None]
        if unsaid:
            raise ValueError(f"the dream must know how often a policy looks: set `execute` of {', '.join(unsaid)}")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> AgreeConfig:
        """From the command's settings. A policy that names no checkpoint of its own acts by that which imagines."""
        policies = {
            label: from_settings(PolicyConfig, {"checkpoint": raw["checkpoint"], **settings})
            for label, settings in raw["policies"].items()
            if settings is not None
        }
        kept = {name: value for name, value in raw.items() if name not in ("split", "policies", "wandb")}
        workers = default_workers(raw.get("launcher", "local")) if raw["workers"] is None else raw["workers"]
        return from_settings(cls, {**kept, "policies": policies, "env": env_config(raw), "workers": workers})

    def run(self, label: str, imagined: bool) -> EvaluateConfig:
        """One policy's evaluation, here or there. In the dream it begins where the first policy's real episodes did,
        and is looked at whenever the policy looks."""
        policy, where = self.policies[label], "dream" if imagined else "real"
        env = self.env
        if imagined:
            starts = Path(self.out) / "real" / next(iter(self.policies)) / "episodes"
            options = {"checkpoint": self.checkpoint, "look": policy.execute}
            env = EnvConfig(
                id="world_model:nextstate/Imagined-v0", name=f"imagined_{env.label}", split=env.split,
                starts=str(starts), options=options, max_steps=env.max_steps, expert=env.expert,
            )  # fmt: skip
        policy, out = policy if policy.learned else replace(policy, checkpoint=""), Path(self.out) / where / label
        return EvaluateConfig(
            env=env, policy=policy, seed=self.seed, episodes=self.episodes, out=str(out), workers=self.workers,
            robots=self.robots if imagined else 1, keep=True, launcher=self.launcher, title=label,
            rerun=str(out / "recordings.rrd") if self.rerun else None,
        )  # fmt: skip


def agree(config: AgreeConfig, command: str) -> dict[str, Any]:
    """Run what is missing, compare, write everything and return the report."""
    runs, reports = {}, {}
    for imagined in (False, True):
        for label in config.policies:
            runs[label, imagined] = config.run(label, imagined)
            reports[label, imagined] = evaluate(runs[label, imagined], command)

    def told(name: str, imagined: bool) -> np.ndarray:
        return np.array([[o[name] for o in reports[label, imagined]["outcomes"]] for label in config.policies])

    real, dream = told("success", False), told("success", True)
    episodes = {key: {e.seed: e for e in run.kept} for key, run in runs.items()}
    pairs = [
        (label, episodes[label, False][seed], episodes[label, True][seed])
        for label in config.policies for seed in range(config.seed, config.seed + config.episodes)
    ]  # fmt: skip
    report = {
        "figures": with_intervals(Outcomes(real, dream, told("progress", True))),
        "policies": {
            label: {
                name: {"rate": float(each.mean()), "ci95": list(wilson(int(each.sum()), len(each)))}
                for name, each in (("real", real[i]), ("dream", dream[i]))
            }
            for i, label in enumerate(config.policies)
        },
        "drift": drift([(config.policies[label].execute, *both) for label, *both in pairs]),
        "ends": failures_apart(pairs),
        "episodes": config.episodes, "split": config.env.split, "env": config.env.id, "command": command,
        "checkpoint": reports[next(iter(config.policies)), True]["env"]["options"]["checkpoint"],
        "provenance": provenance(None, None),
    }  # fmt: skip
    out = Path(config.out)
    write_json(out / "agree.json", report)
    plot(report, out / "agree.png")
    apart = [pair for pair in pairs if pair[1].success[-1] != pair[2].success[-1]]
    if apart:
        pick = np.linspace(0, len(apart) - 1, min(SHOWN, len(apart))).astype(int)
        pictures.stack([row for i in pick for row in film(*apart[i][1:])]).save(out / "disagreements.png")
    if config.rerun:  # both worlds' recordings of a start have one name, so Rerun shows them as one
        from agent.viz import recording

        if parts := [part.read_bytes() for part in (Path(run.rerun) for run in runs.values()) if part.exists()]:
            recording.write(config.rerun, parts)
    return report


def places(episode: Episode) -> dict[str, np.ndarray]:
    """Where gripper and objects are at every moment: name -> (T + 1, n, 3) metres."""
    hands = [episode.state[:, list(triple)] for triple in episode.spec.positions]
    found = {"gripper": np.stack(hands, axis=1)} if hands else {}
    return {**found, "objects": episode.keypoints} if episode.spec.keypoints else found


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(T, n, 3) each -> (T,) mean distance in cm of what is known in both; NaN where nothing is."""
    away = 100 * np.linalg.norm(first - second, axis=-1)
    known = np.isfinite(away)
    with np.errstate(invalid="ignore"):
        return np.where(known, away, 0).sum(1) / known.sum(1)


def drift(pairs: list[tuple[int, Episode, Episode]]) -> dict[str, list[list[float]]]:
    """How far the dream is from the truth, of the episodes that last as long, up to where a quarter of them does: name
    -> pairs of a control step and cm. Of each pair the first is how many control steps lie between two looks: the dream
    stays as it is between."""
    last = [min(len(real), len(dream)) for _, real, dream in pairs]
    longest = int(np.percentile(last, 75)) + 1
    found: dict[str, np.ndarray] = {}
    for row, (look, real, dream) in enumerate(pairs):
        here, there = places(real), places(dream)
        steps = np.arange(0, min(last[row] + 1, longest), look)
        for name in here.keys() & there.keys():
            cm = found.setdefault(name, np.full((len(pairs), longest), np.nan))
            cm[row, steps] = _apart(here[name][steps], there[name][steps])
    return {
        name: [[step, value] for step, value in enumerate(mean_by_column(cm)) if np.isfinite(value)]
        for name, cm in sorted(found.items())
    }


def failures_apart(pairs: list[tuple[str, Episode, Episode]]) -> dict[str, float]:
    """Of the episodes that fail in both, how far apart they end: name -> median cm."""
    found: dict[str, list[float]] = {}
    for _, real, dream in pairs:
        if not real.success[-1] and not dream.success[-1]:
            here, there = places(real), places(dream)
            for name in here.keys() & there.keys():
                found.setdefault(name, []).append(float(_apart(here[name][-1:], there[name][-1:])[0]))
    return {name: float(np.nanmedian(each)) for name, each in sorted(found.items())}


def film(real: Episode, dream: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Both by time, as two strips of the same moments; the shorter one stays as it ends."""
    moments = np.linspace(0, max(len(real), len(dream)), MOMENTS).astype(int)
    return tuple(
        pictures.strip({name: each[np.minimum(moments, len(episode))] for name, each in episode.images.items()})
        for episode in (real, dream)
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Success in the dream against success in the simulator, with intervals, and drift by time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for label, each in report["policies"].items():
        x, y = each["real"], each["dream"]
        spans = [[[abs(end["rate"] - bound)] for bound in end["ci95"]] for end in (x, y)]
        left.errorbar(x["rate"], y["rate"], xerr=spans[0], yerr=spans[1], fmt="o", capsize=2, label=label)
    left.set(xlabel="success in the simulator", ylabel="success in the dream", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    found = report["figures"]
    left.set_title(f"r {found['pearson']['value']:.3f}, MMRV {found['mmrv']['value']:.3f}")
    left.legend(fontsize=7)
    for name, series in report["drift"].items():
        right.plot(*zip(*series, strict=True), marker=".", label=name)
    right.set(xlabel="control steps", ylabel="cm between dream and simulator", title="the same policy, the same start")
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(report: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"{report['env']}, split {report['split']}, {report['episodes']} starts", ""]
    width = max(len(name) for name in (*report["policies"], *NAMES.values()))
    lines.append(f"{'':<{width}}  simulator  dream")
    for label, each in report["policies"].items():
        lines.append(f"{label:<{width}}  {each['real']['rate']:9.0%}  {each['dream']['rate']:5.0%}")
    lines.append("")
    for name, title in NAMES.items():
        each = report["figures"][name]
        lines.append(f"{title:<{width}}  {each['value']:.3f}  ({each['low']:.3f} to {each['high']:.3f})")
    for name, cm in report["ends"].items():
        lines.append(f"{f'failures end apart, {name}':<{width}}  {cm:.1f} cm")
    return "\n".join(lines)


@hydra.main(version_base="1.3", config_path="../configs", config_name="agree")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        check_mode(cfg.wandb)
        config = AgreeConfig.of(OmegaConf.to_container(cfg, resolve=True))
        report = agree(config, command_line("agent.agree", HydraConfig.get().overrides.task))
        print(table(report))
        print(f"written to {config.out}")
        log_run(cfg.wandb, f"agree {config.env.label}", config.out, {"command": report["command"]}, {
            name: each["value"] for name, each in report["figures"].items()
        })  # fmt: skip


if __name__ == "__main__":
    start(main)
