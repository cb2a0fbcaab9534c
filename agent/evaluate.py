"""Run a policy over held-out seeds, print a table and write report.json.

    python -m agent.evaluate env=fold_half policy=planner split=seen seed=1000 episodes=50 out=outputs/my_run

Run the same command again to go on where it stopped: finished episodes are kept in outcomes.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, PolicyConfig, RunConfig, make_env, make_policy
from agent.evaluation.statistics import wilson
from agent.launch import processes
from agent.launch.command import RunError, append_line, claim, clear_errors, log_run, versions, write_whole
from envs import preflight
from policies.base import rollout

REPORTED_VERSIONS = ("nextstate", "torch", "mujoco", "robosuite", "gymnasium", "numpy")


@dataclass(frozen=True)
class Outcome:
    """How one episode went.

    steps: control steps.  progress: at the end, 0 to 1.  score: the task's own measures at the end.
    late: decisions past their deadline.  decision_seconds: of every decision, wall clock.
    """

    seed: int
    success: bool
    steps: int
    progress: float
    score: dict[str, float]
    late: int
    decision_seconds: list[float]


@dataclass(frozen=True)
class EvaluateJob:
    """A worker's part: run, and say how it went."""

    env: EnvConfig
    policy: PolicyConfig

    def work(self, seeds: Iterator[int]) -> Iterator[Outcome]:
        """One outcome a seed."""
        with closing(make_env(self.env)) as env:
            policy = make_policy(self.policy, self.env, env)
            for seed in seeds:
                run = rollout(env, policy, seed)
                yield Outcome(
                    seed=seed,
                    success=bool(run.episode.success[-1]),
                    steps=len(run.episode),
                    progress=float(run.episode.progress[-1]),
                    score=run.score,
                    late=run.late_decisions,
                    decision_seconds=[round(float(s), 5) for s in run.decision_seconds],
                )


def evaluate(config: RunConfig, command: str) -> dict[str, Any]:
    """Evaluate what is missing, write out/report.json and return it."""
    with closing(make_env(config.env)) as env:  # wrong settings are found here, before any process starts
        criterion, instruction = env.unwrapped.criterion, env.unwrapped.instruction
    checkpoint = identity(config.policy)
    recipe = {"env": asdict(config.env), "policy": asdict(config.policy), "checkpoint": checkpoint}
    out = Path(config.out)
    claimed, log = claim(out, "evaluate.json", recipe), out / "outcomes.jsonl"
    known = read_outcomes(log)
    done = [known[seed] for seed in config.seeds if seed in known]
    todo = [seed for seed in config.seeds if seed not in known]
    label = f"{config.policy.name} on {config.env.name}"
    try:
        with tqdm(total=config.episodes, initial=len(done), unit="episode", desc=label) as bar:
            for outcome in processes.run(EvaluateJob(config.env, config.policy), todo, config.workers):
                append_line(log, json.dumps(asdict(outcome)))
                done.append(outcome)
                bar.update()
                bar.set_postfix_str(f"success {sum(o.success for o in done) / len(done):.0%}")
    finally:
        if not log.exists():  # wrong settings must not claim the folder
            claimed.unlink(missing_ok=True)
    report = make_report(config, done, criterion, instruction, checkpoint, command)
    write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def make_report(
    config: RunConfig,
    outcomes: list[Outcome],
    criterion: str,
    instruction: str,
    checkpoint: dict[str, str] | None,
    command: str,
) -> dict[str, Any]:
    """What report.json holds."""
    outcomes = sorted(outcomes, key=lambda o: o.seed)
    successes = sum(o.success for o in outcomes)
    seconds = np.concatenate([o.decision_seconds for o in outcomes])
    kept = ("seed", "success", "steps", "progress", "score", "late")
    return {
        "success_rate": successes / len(outcomes),
        "ci95": list(wilson(successes, len(outcomes))),
        "episodes": len(outcomes),
        "seeds": [o.seed for o in outcomes],
        "split": config.env.split,
        "criterion": criterion,
        "outcomes": [{name: asdict(o)[name] for name in kept} for o in outcomes],
        "seconds_per_decision": {"median": float(np.median(seconds)), "p95": float(np.percentile(seconds, 95))},
        "late_decisions": sum(o.late for o in outcomes),
        "versions": {"python": platform.python_version(), **versions(*REPORTED_VERSIONS)},
        "checkpoint": checkpoint,
        "env": {"id": config.env.id, "options": dict(config.env.options)},
        "policy": config.policy.name,
        "instruction": instruction,
        "command": command,
    }


def identity(policy: PolicyConfig) -> dict[str, str] | None:
    """Name and sha256 of a learned policy's checkpoint (of its manifest, which holds the sha256 of every file)."""
    if not policy.learned:
        return None
    folder = Path(policy.checkpoint)
    try:
        manifest = (folder / "manifest.json").read_bytes()
    except OSError as error:
        raise RunError(
            f"there is no checkpoint in {folder} ({error.strerror} for manifest.json). "
            "Give checkpoint=FOLDER, or make one with `make train`."
        ) from error
    return {"name": folder.name, "sha256": hashlib.sha256(manifest).hexdigest()}


def read_outcomes(log: Path) -> dict[int, Outcome]:
    """Seed -> finished episode. A last line that a kill cut short is dropped, here and from the file."""
    if not log.exists():
        return {}
    *lines, tail = log.read_text().split("\n")
    if tail:
        write_whole(log, "".join(f"{line}\n" for line in lines))
    try:
        outcomes = [Outcome(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RunError(f"{log} is damaged ({error}). Delete it and run the same command again.") from error
    return {outcome.seed: outcome for outcome in outcomes}


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    low, high = report["ci95"]
    seconds, count = report["seconds_per_decision"], report["episodes"]
    outcomes = report["outcomes"]
    steps = [o["steps"] for o in outcomes if o["success"]]
    rows = {
        "environment": f"{report['env']['id']}, split {report['split']}, seeds {report['seeds'][0]} and on",
        "instruction": report["instruction"],
        "policy": report["policy"] + (f" ({report['checkpoint']['name']})" if report["checkpoint"] else ""),
        "success": f"{sum(o['success'] for o in outcomes)} of {count}: {report['success_rate']:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%})",
        "criterion": report["criterion"],
        "steps to success": f"{np.mean(steps):.0f} on average" if steps else "-",
        "seconds a decision": f"{seconds['median']:.3f} median, {seconds['p95']:.3f} p95",
        "late decisions": str(report["late_decisions"]),
    }
    for name in outcomes[0]["score"]:
        rows[name] = f"{np.mean([o['score'][name] for o in outcomes]):.3g} on average"
    failed = [str(o["seed"]) for o in outcomes if not o["success"]]
    if failed:
        rows["failed seeds"] = ", ".join(failed[:20]) + (" ..." if len(failed) > 20 else "")
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        config = RunConfig.of(OmegaConf.to_container(cfg, resolve=True))
        report = evaluate(config, " ".join(["python -m agent.evaluate", *HydraConfig.get().overrides.task]))
        print(table(report))
        print(f"report: {Path(config.out) / 'report.json'}")
        figures = {"success_rate": report["success_rate"], "median_seconds": report["seconds_per_decision"]["median"]}
        name = f"evaluate {config.env.name} {config.policy.name}"
        log_run(cfg.wandb, name, config.out, asdict(config), figures)


if __name__ == "__main__":
    main()
