"""Teach a checkpoint what its own search finds: act, keep what succeeds, train on it, and again.

    python -m agent.improve env=lift checkpoint=checkpoints/nextstate-few-lift data=data/lift \\
        '+train.coefs=[4,4,4,2,2,2]' out=outputs/mine

In every round `policy` (the planner, unless told otherwise) attempts the task in MuJoCo, and with `dreams` also in the
model's imagination, where the simulator verifies what succeeds. No demonstrator is asked: the label of a step is what
was done there, in the attempts that succeed. Failures tell the value, which gets worse by training on what it is to
judge: so `value_attempts` of each round are kept from training, and the value is fitted on them afterwards, before the
next round searches by it. The same model alone is evaluated before the first round and after each. Run the same
command again to go on where it stopped. Writes `improve.json` and `improve.png`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import matplotlib
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from agent.build import PolicyConfig, RunConfig
from agent.collect import CollectConfig, collect
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation.provenance import checkpoint_identity, provenance
from agent.generate import GenerateConfig, generate
from agent.launch.command import clear_errors, command_line, start
from envs import preflight
from envs.data.files import write_json
from envs.data.formats.folder import open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeStore
from envs.data.tracking import check_mode, log_run
from envs.sim.splits import refuse_recording
from envs.types import Episode
from world_model import fit_value
from world_model import train as training
from world_model.fit_value import FitValueConfig
from world_model.train import TrainConfig
from world_model.training.sources import as_folders

matplotlib.use("Agg")  # draws into files; a machine without a screen has no other way
import matplotlib.pyplot as plt  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class ImproveConfig(RunConfig):
    """seed, episodes: of the first round's attempts, and how many each round has. value_attempts: how many of them tell
    what states are worth, and nothing else. dreams: imagined attempts of each. train: of every round, whose data are
    added and whose `start` and `out` are set here. judge: the evaluation of the model alone, whose checkpoint and `out`
    are set here. The rest is said in configs/improve.yaml."""

    rounds: int
    value_attempts: int
    dreams: int
    train: TrainConfig
    fit_value: FitValueConfig
    judge: EvaluateConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_recording(self.env.split)
        if self.rounds < 1 or self.dreams < 0:
            raise ValueError(f"rounds must be at least 1 and dreams 0 or more, got {self.rounds} and {self.dreams}")
        if not 0 <= self.value_attempts < self.episodes:
            raise ValueError(
                f"value_attempts must be 0 or more and fewer than all {self.episodes} attempts, "
                f"got {self.value_attempts}"
            )
        if not self.policy.learned:
            raise ValueError(f"policy={self.policy.name} has nothing that could be improved: choose planner or model")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> ImproveConfig:
        """As everywhere; `train` holds settings of world_model.train and `judge` those of agent.evaluate."""
        settings = hydra.compose("train", [f"{name}={value}" for name, value in raw["train"].items()])
        for name in ("data", "unlabelled"):
            settings[name] = as_folders(raw[name])
        value = OmegaConf.to_container(hydra.compose("fit_value", [f"threads={settings.threads}"]))
        policy = {"name": "model", "execute": raw["policy"]["execute"], "device": raw["policy"]["device"]}
        judge = EvaluateConfig.of({**raw, **raw["judge"], "policy": policy, "env": {**raw["env"], "expert": None}})
        env = {**raw["env"], "expert": None}  # nobody demonstrates
        parts = {"train": training.to_config(settings), "fit_value": from_settings(FitValueConfig, value)}
        return super().of({**raw, "env": env, **parts, "judge": judge})

    def folder(self, number: int) -> Path:
        """Of a round; 0 is before the first."""
        return Path(self.out) / f"round-{number}"


def improve(config: ImproveConfig, command: str) -> dict[str, Any]:
    """Do what is missing of every round, write the report and return it. EpisodeError, before anything is tried, for
    folders of episodes that are not there."""
    for folder in (*config.train.data, *config.train.unlabelled):
        open_episodes(folder)
    checkpoint = config.policy.checkpoint
    rows = [{"round": 0, "model": judged(config, 0, checkpoint, command)}]
    data, failures, judging = list(config.train.data), [], []
    for number in range(1, config.rounds + 1):
        kept, failed, row = attempts(config, number, checkpoint, command)
        data += kept
        failures += failed
        taught = replace(
            config.train, data=tuple(data), on_policy=(*config.train.on_policy, *failures), start=checkpoint,
            out=str(config.folder(number) / "train"),
        )  # fmt: skip
        training.run(taught)
        checkpoint = str(config.folder(number) / "train" / "checkpoint")
        if config.value_attempts:
            judging.append(str(config.folder(number) / "value"))
            checkpoint, row["value"] = fitted(config, number, checkpoint, judging)
        rows.append({"round": number, **row, "model": judged(config, number, checkpoint, command)})
    report = {
        "rounds": rows, "policy": config.policy.label,
        "env": {"id": config.env.id, "options": dict(config.env.options)},
        "start": checkpoint_identity(config.policy.checkpoint), "end": checkpoint_identity(checkpoint),
        "provenance": provenance(config.policy.device, None), "command": command,
    }  # fmt: skip
    write_json(Path(config.out) / "improve.json", report)
    plot(report, Path(config.out) / "improve.png")
    return report


def attempts(
    config: ImproveConfig, number: int, checkpoint: str, command: str
) -> tuple[list[str], list[str], dict[str, Any]]:
    """What a round's policy tries: the folders of successes, those of failures, and how many there are of each."""
    folder, policy = config.folder(number), replace(config.policy, checkpoint=checkpoint)
    seed = config.seed + (number - 1) * max(config.episodes, config.dreams)
    shared = {"env": config.env, "workers": config.workers, "robots": config.robots}
    tried = CollectConfig(
        policy=policy, seed=seed, episodes=config.episodes, out=str(folder / "attempts"), states="none", **shared
    )
    collect(tried)
    value, successes, failures = sorted_out(EpisodeStore(tried.out), folder, config.value_attempts)
    succeed = len(successes) + sum(bool(episode.success[-1]) for episode in value)
    row = {"attempts": config.episodes, "succeed": succeed}
    kept, failed = ([str(store.root)] if len(store) else [] for store in (successes, failures))
    if config.dreams:
        dreamt = GenerateConfig(
            policy=policy, imagines=checkpoint, seed=seed, episodes=config.dreams, verify="simulator",
            frames="simulated", out=str(folder / "dreamt"), **{**shared, "robots": max(config.robots, 16)},
        )  # fmt: skip
        found = generate(dreamt, command)
        row |= {"dreams": config.dreams, "dreams_kept": found["kept"]}
        kept += [dreamt.out] if found["kept"] else []
    return kept, failed, row


def sorted_out(attempted: EpisodeStore, folder: Path, judging: int) -> tuple[EpisodeStore, EpisodeStore, EpisodeStore]:
    """Copies of the attempts in three folders: the first `judging` of them, for the value, and of the others what
    succeeds, labelled with what was done, and what fails. ValueError where an earlier run sorted by another number."""
    value, successes, failures = (EpisodeStore(folder / name) for name in ("value", "succeed", "fail"))
    for number, name in enumerate(attempted.names()):
        if (name in value and number >= judging) or (number < judging and (name in successes or name in failures)):
            raise ValueError(
                f"{folder} was made with another value_attempts than {judging}: go on with that one, or begin in "
                "another `out`"
            )
        if not any(name in store for store in (value, successes, failures)):
            episode = attempted.read(name)
            if number < judging:
                value.write(episode, name)
            elif episode.success[-1]:
                successes.write(labelled(episode), name)
            else:
                failures.write(episode, name)
    return value, successes, failures


def fitted(
    config: ImproveConfig, number: int, checkpoint: str, judging: list[str]
) -> tuple[str, dict[str, Any] | None]:  # fmt: skip
    """The round's checkpoint with its value fitted on attempts that were never trained on, and how well it ranks before
    and after; as it was, and None, where these all end alike."""
    ends = {bool(episode.success[-1]) for folder in judging for episode in EpisodeStore(folder)}
    if len(ends) < 2:
        return checkpoint, None
    out = str(config.folder(number) / "checkpoint")
    figures = fit_value.run(replace(config.fit_value, data=tuple(judging), start=checkpoint, out=out))
    return out, {name: figures[name] for name in ("before", "after", "episodes")}


def labelled(episode: Episode) -> Episode:
    """The same, where what was done is what should be done."""
    return replace(episode, expert=episode.action.copy())


def judged(config: ImproveConfig, number: int, checkpoint: str, command: str) -> dict[str, Any]:
    """How the model alone does after a round."""
    policy: PolicyConfig = replace(config.judge.policy, checkpoint=checkpoint)
    run = replace(config.judge, policy=policy, out=str(config.folder(number) / "evaluate"))
    report = evaluate(run, command)
    return {name: report[name] for name in ("success_rate", "ci95", "episodes", "split")}


def plot(report: dict[str, Any], path: Path) -> None:
    """Success by round: of the model alone with its interval, and of what it was taught by."""
    rows = report["rounds"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    alone = [row["model"]["success_rate"] for row in rows]
    ends = [[abs(rate - row["model"]["ci95"][i]) for rate, row in zip(alone, rows, strict=True)] for i in (0, 1)]
    axes.errorbar([row["round"] for row in rows], alone, yerr=ends, marker="o", capsize=3, label="model alone")
    tried = [row for row in rows if "attempts" in row]
    axes.plot([row["round"] for row in tried], [row["succeed"] / row["attempts"] for row in tried], "s--",
              label=f"attempts by {report['policy']}, before the round")  # fmt: skip
    axes.set(xlabel="round", ylabel="success", ylim=(-0.02, 1.02), xticks=[row["round"] for row in rows])
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(report: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"{'round':>5}  {'attempts':>12}  {'dreams kept':>12}  model alone"]
    for row in report["rounds"]:
        tried = f"{row['succeed']} of {row['attempts']}" if "attempts" in row else "-"
        dreams = f"{row['dreams_kept']} of {row['dreams']}" if "dreams" in row else "-"
        low, high = row["model"]["ci95"]
        alone = f"{row['model']['success_rate']:.1%} ({low:.0%} to {high:.0%}, {row['model']['episodes']} episodes)"
        lines.append(f"{row['round']:>5}  {tried:>12}  {dreams:>12}  {alone}")
    return "\n".join(lines)


@hydra.main(version_base="1.3", config_path="../configs", config_name="improve")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        check_mode(cfg.wandb)
        config = ImproveConfig.of(OmegaConf.to_container(cfg, resolve=True))
        report = improve(config, command_line("agent.improve", HydraConfig.get().overrides.task))
        print(table(report))
        print(f"written to {config.out}")
        figures = {f"success_{row['round']}": row["model"]["success_rate"] for row in report["rounds"]}
        log_run(cfg.wandb, f"improve {config.env.label}", config.out, {"command": report["command"]}, figures)


if __name__ == "__main__":
    start(main)
