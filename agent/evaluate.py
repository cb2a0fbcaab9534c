"""Run a policy over held-out seeds, print a table and write report.json.

    python -m agent.evaluate env=fold_half policy=planner split=seen seed=1000 episodes=50 out=outputs/my_run

Run the same command again to go on where it stopped: finished episodes are kept in outcomes.jsonl.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import PolicyConfig, RunConfig, make_envs, make_policy
from agent.evaluation.provenance import by_content, identity, provenance
from agent.evaluation.statistics import wilson
from agent.launch import processes
from agent.launch.command import RunError, claimed, clear_errors, command_line, start
from envs import preflight
from envs.data.files import append_line, read_lines, write_json
from envs.data.store import EpisodeStore, to_bytes
from envs.data.tracking import check_mode, log_run
from policies.rollout import Rollout, rollout


@dataclass(frozen=True)
class Outcome:
    """How one episode went.

    steps: control steps.  progress: at the end, 0 to 1.  score: the task's own measures at the end.
    late: decisions past their deadline.  decision_seconds: of every decision, wall clock.
    at_reset: it was a success before anything was done.  clipped, outside: action and state values that left their
    range, by dimension.
    """

    seed: int
    success: bool
    steps: int
    progress: float
    score: dict[str, float]
    late: int
    decision_seconds: list[float]
    at_reset: bool = False
    clipped: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Rollout) -> Outcome:
        """What a rollout came to."""
        episode = run.episode
        return cls(
            seed=episode.seed,
            success=bool(episode.success[-1]),
            steps=len(episode),
            progress=float(episode.progress[-1]),
            score=run.score,
            late=run.late_decisions,
            decision_seconds=[round(float(s), 5) for s in run.decision_seconds],
            at_reset=bool(episode.success[0]),
            clipped=run.clipped,
            outside=run.outside,
        )


@dataclass(frozen=True)
class EvaluateConfig(RunConfig):
    """keep: the episodes, too, in `episodes` within `out`. rerun: a file for their Rerun recordings, or null. title: of
    the policy in them."""

    keep: bool = False
    rerun: str | None = None
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rerun:
            import agent.viz.recording  # noqa: F401  needs the extra `rerun`, and says so before anything runs

    @property
    def kept(self) -> EpisodeStore:
        """Where episodes are kept."""
        return EpisodeStore(Path(self.out) / "episodes")


@dataclass(frozen=True)
class EvaluateJob:
    """A worker's part: run, and say how it went. robots: driven at a time."""

    config: EvaluateConfig
    robots: int = 1

    def work(self, seeds: Iterator[int]) -> Iterator[tuple[Outcome, dict[str, bytes], bytes]]:
        """The outcome of each seed, its episode as a file by name where episodes are kept, and its recording."""
        config = self.config
        with closing(make_envs(config.env, self.robots)) as envs:
            policy = make_policy(config.policy, config.env, envs)
            recorder = None
            if config.rerun:
                from agent.viz.recording import Recorder

                recorder = Recorder(policy, config.title or config.policy.label)
            for run in rollout(envs, policy, seeds, on_step=recorder and recorder.watch):
                files = {config.env.episode_name(run.episode.seed): to_bytes(run.episode)} if config.keep else {}
                yield Outcome.of(run), files, recorder.finish(run) if recorder else b""


def evaluate(config: EvaluateConfig, command: str) -> dict[str, Any]:
    """Evaluate what is missing, write out/report.json and return it."""
    with closing(make_envs(config.env)) as envs:  # wrong settings are found here, before any process starts
        criterion, instruction = envs.get_attr("criterion")[0], envs.get_attr("instruction")[0]
    checkpoint = identity(config.policy)
    policy = by_content(config.policy, checkpoint)
    out = Path(config.out)
    log, label = out / "outcomes.jsonl", f"{config.policy.label} on {config.env.label}"
    with claimed(out, "evaluate.json", {"env": asdict(config.env), "policy": policy}, used=log.exists):
        known = read_outcomes(log)
        if config.keep:  # what an earlier run did not keep is played again
            kept = set(config.kept.names())
            known = {seed: outcome for seed, outcome in known.items() if config.env.episode_name(seed) in kept}
        done = [known[seed] for seed in config.seeds if seed in known]
        todo = [seed for seed in config.seeds if seed not in known]
        job, recordings = EvaluateJob(config, config.robots_for(len(todo))), []
        with tqdm(total=config.episodes, initial=len(done), unit="episode", desc=label) as bar:
            for outcome, files, recorded in processes.run(job, todo, config.workers, config.launcher):
                config.kept.write_files(files)
                recordings.append(recorded)
                append_line(log, json.dumps(asdict(outcome), allow_nan=False))
                done.append(outcome)
                bar.update()
                bar.set_postfix_str(f"success {sum(o.success for o in done) / len(done):.0%}")
    if config.rerun and todo:
        from agent.viz import recording

        recording.write(config.rerun, recordings)
    if config.rerun and len(todo) < config.episodes:
        print(f"recorded: the {len(todo)} episodes that were left to do in {config.out}; another `out` records all")
    report = make_report(config, done, criterion, instruction, checkpoint, command)
    write_json(out / "report.json", report)
    return report


def make_report(
    config: EvaluateConfig,
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
    kept = ("seed", "success", "steps", "progress", "score", "late", "at_reset")
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
        "already_done_at_reset": sum(o.at_reset for o in outcomes),
        "actions_clipped": total(o.clipped for o in outcomes),
        "state_outside": total(o.outside for o in outcomes),
        "provenance": provenance(*computed_on(config.policy)),
        "checkpoint": checkpoint,
        "env": {"id": config.env.id, "options": dict(config.env.options)},
        "policy": config.policy.label,
        "instruction": instruction,
        "command": command,
    }


def computed_on(policy: PolicyConfig) -> tuple[Any, Any]:
    """Device and precision of a learned policy; None for one that computes nothing."""
    if not policy.learned:
        return None, None
    from world_model.nn.device import choose_device, fast_precision  # and torch, which an expert does without

    device = choose_device(policy.device)
    return device, "float32" if policy.name == "learned" else fast_precision(device)


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    added: Counter[str] = Counter()
    for count in counts:
        added.update(count)
    return dict(added)


def read_outcomes(log: Path) -> dict[int, Outcome]:
    """Seed -> finished episode. A last line that a kill cut short is left out."""
    try:
        outcomes = [Outcome(**json.loads(line)) for line in read_lines(log)]
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
    for name, label in (("actions_clipped", "actions clipped"), ("state_outside", "state out of range")):
        if report[name]:
            rows[label] = ", ".join(f"{dim} {count} times" for dim, count in report[name].items())
    if report["already_done_at_reset"]:
        rows["done at reset"] = f"{report['already_done_at_reset']} of {count}, counted as successes"
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
        check_mode(cfg.wandb)
        config = EvaluateConfig.of(OmegaConf.to_container(cfg, resolve=True))
        report = evaluate(config, command_line("agent.evaluate", HydraConfig.get().overrides.task))
        print(table(report))
        print(f"report: {Path(config.out) / 'report.json'}")
        figures = {"success_rate": report["success_rate"], "median_seconds": report["seconds_per_decision"]["median"]}
        name = f"evaluate {config.env.label} {config.policy.label}"
        log_run(cfg.wandb, name, config.out, asdict(config), figures)


if __name__ == "__main__":
    start(main)
