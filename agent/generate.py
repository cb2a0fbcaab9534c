"""Make training data in the world model's imagination, and let the simulator verify it.

    python -m agent.generate env=lift starts=data/lift policy=model episodes=200 verify=simulator out=data/lift_imagined

A policy acts in the dream, from the first observations of recorded episodes or from fresh resets. What succeeds there
is kept, and with `verify=simulator` only what succeeds in MuJoCo too, when its actions are replayed from the same
start. Run the same command again to go on where it stopped. Writes ordinary episodes, and `generate.json`: how many
were kept, what each cost, and how far the dream is to be believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, Literal

import gymnasium
import hydra
import numpy as np
from gymnasium.vector import AutoresetMode
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import RunConfig, make_env, make_envs, make_policy
from agent.collection.imagining import Dream, Keep, dreams, replayed
from agent.evaluation.provenance import by_content, checkpoint_identity, identity, provenance
from agent.evaluation.starts import ResetStarts, scene_in
from agent.evaluation.statistics import wilson
from agent.launch import processes
from agent.launch.command import RunError, claimed, clear_errors, command_line, start
from envs import preflight
from envs.data.files import append_line, read_lines, write_json
from envs.data.fingerprint import Folder, digest, fingerprint
from envs.data.formats.folder import open_episodes
from envs.data.settings import from_settings
from envs.data.store import EpisodeStore, to_bytes
from envs.data.tracking import check_mode, log_run
from envs.sim.splits import refuse_recording
from world_model.imagined_env import EpisodeStarts, Starts

IMAGINED = "world_model:nextstate/Imagined-v0"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(RunConfig):
    """configs/generate.yaml says what each of these means."""

    imagines: str
    starts: tuple[str, ...] = ()
    keep: Keep = field(default_factory=Keep)
    verify: Literal["none", "simulator"] = "none"
    frames: Literal["imagined", "simulated"] = "imagined"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_recording(self.env.split)
        if self.frames == "simulated" and self.verify == "none":
            raise ValueError("frames=simulated needs verify=simulator, which is what simulates them")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> GenerateConfig:
        """As everywhere; what imagines is the policy's checkpoint where nothing else is named."""
        starts = raw["starts"] or ()
        starts = (starts,) if isinstance(starts, str) else tuple(starts)
        keep = from_settings(Keep, {name: value for name, value in raw["keep"].items() if value is not None})
        return super().of({**raw, "starts": starts, "keep": keep, "imagines": raw["imagines"] or raw["checkpoint"]})

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for episodes to stand in one folder; checkpoints and starts are told by content."""
        files = {"imagines": checkpoint_identity(self.imagines)["sha256"]}
        if told := identity(self.policy):
            files["checkpoint"] = told["sha256"]
        settings = {
            "env": asdict(self.env), "policy": by_content(self.policy, None), "verify": self.verify,
            "keep": {"success": self.keep.success, "value": str(self.keep.value), "uncertainty": self.keep.uncertainty},
            "frames": self.frames,
        }  # fmt: skip
        folders = [Folder("starts", path, open_episodes(path).digests()) for path in self.starts]
        return {"inputs": digest(fingerprint({}, files, folders)), **settings}


@dataclass(frozen=True)
class Generated:
    """What became of one dream. success, value, uncertainty: the model's, at its end. holds: in the simulator it ends
    as it was imagined; None where nobody asked. seconds: of processor time, in the dream and in the simulator."""

    number: int
    seed: int
    steps: int
    success: bool
    value: float
    uncertainty: float
    kept: bool
    holds: bool | None
    dream_seconds: float
    simulator_seconds: float


@dataclass(frozen=True)
class GenerateJob:
    """A worker's part. robots: that dream at a time."""

    config: GenerateConfig
    robots: int

    def work(self, seeds: Iterator[int]) -> Iterator[tuple[Generated, dict[str, bytes]]]:
        """Imagine and verify: what became of each dream, and its episode as a file by name where it is kept."""
        config = self.config
        with ExitStack() as opened:
            starts = _starts(config)
            imagined = opened.enter_context(closing(_imagined_envs(config, starts, self.robots)))
            real = opened.enter_context(closing(make_envs(config.env))) if config.verify == "simulator" else None
            policy = make_policy(config.policy, config.env, imagined)
            for dream in dreams(imagined, starts, policy, seeds):
                kept, holds, spent, episode = config.keep(dream), None, 0.0, dream.episode
                if kept and real is not None:
                    began = process_time()
                    simulated = replayed(real, dream)
                    holds, spent = bool(simulated.success[-1]) == dream.success, process_time() - began
                    kept = holds
                    episode = simulated if config.frames == "simulated" else episode
                files = {config.env.episode_name(dream.number): to_bytes(episode)} if kept else {}
                yield _generated(dream, kept, holds, spent), files


def _generated(dream: Dream, kept: bool, holds: bool | None, spent: float) -> Generated:
    return Generated(
        dream.number, dream.episode.seed, len(dream.episode), dream.success, dream.value, dream.uncertainty, kept,
        holds, dream.seconds, spent,
    )  # fmt: skip


def _starts(config: GenerateConfig) -> Starts:
    """The first observations of recorded episodes, or of resets."""
    return EpisodeStarts(config.starts) if config.starts else ResetStarts(make_env(config.env))


def _imagined_envs(config: GenerateConfig, starts: Starts, robots: int) -> gymnasium.vector.VectorEnv:
    """Dreams that are looked at whenever the policy looks. ValueError for starts of another split or robot."""
    envs = gymnasium.make_vec(
        IMAGINED, robots, checkpoint=config.imagines, starts=starts, look=config.policy.execute,
        max_steps=config.env.max_steps, device=config.policy.device, scene_in=scene_in(starts(config.seed).env_id),
        autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip
    if envs.split != config.env.split:
        raise ValueError(f"the starts are of split={envs.split}, and split={config.env.split} is asked for")
    return envs


def generate(config: GenerateConfig, command: str) -> dict[str, Any]:
    """Imagine what is missing, write `generate.json` and return it."""
    store, out = EpisodeStore(config.out), Path(config.out)
    log = out / "generated.jsonl"
    with claimed(out, "settings.json", config.fingerprint(), used=log.exists):
        store.clean()
        known = read_log(log)
        known = {n: g for n, g in known.items() if not g.kept or config.env.episode_name(n) in store}
        done, todo = [known[n] for n in config.seeds if n in known], [n for n in config.seeds if n not in known]
        job = GenerateJob(config, config.robots_for(len(todo)))
        with tqdm(total=config.episodes, initial=len(done), unit="dream", desc=f"dream {config.env.label}") as bar:
            for generated, files in processes.run(job, todo, config.workers, config.launcher):
                store.write_files(files)
                append_line(log, json.dumps(asdict(generated), allow_nan=False))
                done.append(generated)
                bar.update()
                bar.set_postfix_str(f"kept {sum(g.kept for g in done)}")
    report = make_report(config, sorted(done, key=lambda g: g.number), command)
    write_json(out / "generate.json", report)
    return report


def read_log(log: Path) -> dict[int, Generated]:
    """Number -> what became of it. A last line that a kill cut short is left out."""
    try:
        found = [Generated(**json.loads(line)) for line in read_lines(log)]
    except (ValueError, TypeError) as error:
        raise RunError(f"{log} is damaged ({error}). Delete it and run the same command again.") from error
    return {generated.number: generated for generated in found}


def make_report(config: GenerateConfig, done: list[Generated], command: str) -> dict[str, Any]:
    """What `generate.json` holds."""
    kept, asked = sum(g.kept for g in done), [g for g in done if g.holds is not None]
    true = sum(g.holds for g in asked)
    seconds = {name: sum(getattr(g, f"{name}_seconds") for g in done) for name in ("dream", "simulator")}
    unsure = {
        name: float(np.median([g.uncertainty for g in asked if g.holds is holds])) if 0 < true < len(asked) else None
        for name, holds in (("holds", True), ("does_not_hold", False))
    }
    return {
        "dreams": len(done),
        "imagined_successes": sum(g.success for g in done),
        "kept": kept,
        "yield": {"rate": kept / len(done), "ci95": list(wilson(kept, len(done)))},
        "verified": {"asked": len(asked), "hold": true, "ci95": list(wilson(true, len(asked))) if asked else None},
        "median_uncertainty": unsure,
        "processor_seconds": seconds,
        "processor_seconds_a_kept_episode": sum(seconds.values()) / kept if kept else None,
        "steps": sum(g.steps for g in done),
        "dreamt": [asdict(g) for g in done],
        "split": config.env.split,
        "starts": "resets" if not config.starts else f"{len(config.starts)} folders",
        "imagined_by": checkpoint_identity(config.imagines),
        "checkpoint": identity(config.policy),
        "policy": config.policy.label,
        "env": {"id": config.env.id, "options": dict(config.env.options)},
        "provenance": provenance(config.policy.device, None),
        "command": command,
    }


def table(report: dict[str, Any]) -> str:
    """For a person."""
    verified, unsure = report["verified"], report["median_uncertainty"]
    rows = {
        "dreams": f"{report['dreams']}, {report['imagined_successes']} of them succeed in the dream",
        "kept": f"{report['kept']} ({report['yield']['rate']:.0%})",
    }
    if verified["asked"]:
        low, high = verified["ci95"]
        rows["hold in the simulator"] = f"{verified['hold']} of {verified['asked']} ({low:.0%} to {high:.0%})"
    if unsure["holds"] is not None:
        rows["uncertainty"] = "{holds:.3f} m of those that hold, {does_not_hold:.3f} m of the others".format(**unsure)
    if report["kept"]:
        spent = "in all {dream:.0f} s in the dream, {simulator:.0f} s in the simulator"
        rows["processor time"] = (
            f"{report['processor_seconds_a_kept_episode']:.1f} s an episode that was kept "
            f"({spent.format(**report['processor_seconds'])})"
        )
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


@hydra.main(version_base="1.3", config_path="../configs", config_name="generate")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        check_mode(cfg.wandb)
        config = GenerateConfig.of(OmegaConf.to_container(cfg, resolve=True))
        report = generate(config, command_line("agent.generate", HydraConfig.get().overrides.task))
        print(table(report))
        print(f"written to {config.out}")
        figures = {name: report[name] for name in ("dreams", "imagined_successes", "kept")}
        log_run(cfg.wandb, f"generate {config.env.label}", config.out, config.fingerprint(), figures)


if __name__ == "__main__":
    start(main)
