"""Fold the cloth once, and show it.

    python -m agent.demo [env=lift] [seed=1] [policy=model] [out=outputs/demo]

Writes a film of the real camera beside what the model had imagined for the same moment, a picture of one decision,
and a report. Exits with 1 where the task was not done.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, PolicyConfig, RunConfig, env_config, make_envs, make_policy
from agent.evaluate import Outcome, make_report, table
from agent.evaluation.provenance import identity
from agent.launch.command import clear_errors, command_line, start
from agent.planning.planner import Plan
from agent.planning.policies import ModelPolicy, PlanningPolicy
from agent.viz.film import Film, Future, Moment, draw, film, sheet
from envs import preflight
from envs.adapter import Adapter
from envs.data.files import write_json
from envs.data.settings import from_settings
from policies.rollout import Rollout, Step, rollout
from world_model.model import WorldModel

CAMERA = 320  # pixels, the real camera in the film
SHEET_CAMERA = 128  # pixels, in the picture of one decision
LAST_S = 1.0  # seconds for which the film shows how it ended


@dataclass(frozen=True)
class DemoConfig:
    """futures: how many candidates plan.png shows. rerun: a file for a Rerun recording, or null."""

    env: EnvConfig
    policy: PolicyConfig
    seed: int
    out: Path
    futures: int
    rerun: str | None = None

    def __post_init__(self) -> None:
        if self.rerun:
            import agent.viz.recording  # noqa: F401  needs the extra `rerun`, and says so before anything runs
        if not self.policy.learned:
            raise ValueError(f"the demo shows policy=planner or policy=model, not {self.policy.name}")


@dataclass(frozen=True)
class Decision:
    """A plan, and the simulator's state in which it was made."""

    step: int
    plan: Plan
    saved: Any


@dataclass
class Recorder:
    """Watches an episode: draws the film, and keeps the one decision whose futures differed most.

    A future that was imagined at one control step is due one model step later. It is shown then, beside what came.
    """

    env: Adapter
    policy: ModelPolicy | PlanningPolicy
    film: Film
    bar: tqdm
    due: dict[int, np.ndarray] = field(default_factory=dict)  # control step -> the frame imagined for it
    shown: np.ndarray | None = None
    stride: int | None = None  # control steps of the model step that was imagined last
    frame: np.ndarray | None = None  # the film's last one
    widest: Decision | None = None
    saved: Any = None  # the simulator's state before the next control step

    @property
    def acting(self) -> ModelPolicy:
        """The policy without its search."""
        return getattr(self.policy, "acting", self.policy)

    def watch(self, step: Step) -> None:
        """One control step of `rollout`."""
        plan = getattr(step.state, "plan", None)
        if step.decided and plan is not None and plan.imagined:
            self.stride = plan.imagined[0].strides[0]
            self.due[step.index + self.stride] = next_frame(self.acting.model, plan, plan.chosen)
            wider = self.widest is None or np.ptp(plan.scores) > np.ptp(self.widest.plan.scores)
            if wider and self.saved is not None:
                self.widest = Decision(step.index, plan, self.saved)
        self.saved = self.env.unwrapped.save_state() if restores(self.env) else None

        now, env, rate = step.index + 1, self.env, self.env.robot_spec.control_hz
        self.shown = self.due.pop(now, self.shown)
        moment = Moment(
            env.picture(CAMERA), self.shown, env.instruction, step.info["subtask"], now, now / rate,
            plan.scores if plan else None, plan.chosen if plan else None, step.info["success"],
            f"imagined {(self.stride or self.acting.chunk) / rate:.1f} s ago",
        )  # fmt: skip
        self.frame = draw(moment)
        self.film.add(self.frame)
        self.bar.set_postfix_str(step.info["subtask"] + (f", value {plan.value:.2f}" if plan else ""))
        self.bar.update()


def restores(env: Adapter) -> bool:
    """Whether the simulator can be put back to an earlier moment."""
    return hasattr(env.unwrapped, "save_state")


def next_frame(model: WorldModel, plan: Plan, row: int) -> np.ndarray:
    """What candidate `row` was imagined to lead to one model step later, in the first camera: (h, w, 3) u8."""
    imagined, index = plan.imagination_of(row)
    frames = model.decode_frames(imagined, slice(index, index + 1))  # camera -> (1, H, h, w, 3)
    return frames[model.spec.cameras[0].name][0, 0].cpu().numpy()


def run(cfg: DemoConfig, command: str) -> tuple[dict[str, Any], list[Path]]:
    """One episode. Returns the report, and what was written."""
    began = time.perf_counter()
    film_path = cfg.out / f"{cfg.env.label.split('_')[0]}.mp4"  # fold.mp4, lift.mp4
    sheet_path, report_path = cfg.out / "plan.png", cfg.out / "report.json"
    written = [film_path]
    with closing(make_envs(cfg.env)) as envs:
        (env,), policy = envs.envs, make_policy(cfg.policy, cfg.env, envs)
        rate, limit = round(env.robot_spec.control_hz), env.max_steps
        with film(film_path, rate) as open_film, tqdm(total=limit, unit="step", desc=cfg.env.label) as bar:
            recorder = Recorder(env, policy, open_film, bar)
            watch = [recorder.watch]
            if cfg.rerun:
                from agent.viz import recording

                rerun = recording.Recorder(policy, cfg.policy.label)
                watch.append(rerun.watch)
            (result,) = rollout(envs, policy, [cfg.seed], on_step=lambda step: [each(step) for each in watch])
            if cfg.rerun:
                recording.write(cfg.rerun, [rerun.finish(result)])
                written.append(Path(cfg.rerun))
            for _ in range(round(LAST_S * rate)):  # a success ends the episode, which nobody could see otherwise
                open_film.add(recorder.frame)
        if recorder.widest:
            draw_decision(sheet_path, env, policy.acting.model, recorder.widest, cfg.futures)
            written.append(sheet_path)
        report = describe(cfg, result, env.criterion, command) | {"seconds": round(time.perf_counter() - began, 1)}
    write_json(report_path, report)
    return report, [*written, report_path]


def draw_decision(path: Path, env: Adapter, model: WorldModel, decision: Decision, count: int) -> None:
    """Draw what one decision considered: each imagined frame beside the true one, found by doing it.

    env: in the episode of the decision. It is left in the decision's state.
    """
    plan, world = decision.plan, env.unwrapped
    rows = [int(row) for row in np.argsort(-plan.scores, kind="stable")]
    evenly = [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    shown = list(dict.fromkeys([plan.chosen, 0, *evenly]))[:count]
    world.load_state(decision.saved)
    now, futures = env.picture(SHEET_CAMERA), []
    for row in shown:
        for action in plan.actions[row, 0, : plan.imagined[0].strides[0]]:
            world.advance(action)
        true = env.picture(SHEET_CAMERA)
        frame, score = next_frame(model, plan, row), float(plan.scores[row])
        futures.append(Future(score, frame, true, chosen=row == plan.chosen, own=row == 0))
        world.load_state(decision.saved)
    title = f"“{env.instruction}”, control step {decision.step}: {len(shown)} of {len(rows)} futures, best first"
    sheet(path, now, futures, title)


def describe(cfg: DemoConfig, result: Rollout, criterion: str, command: str) -> dict[str, Any]:
    """The report of one episode: what evaluation reports, and how this one ended."""
    outcome, instruction = Outcome.of(result), result.episode.instruction
    settings = RunConfig(env=cfg.env, policy=cfg.policy, seed=cfg.seed, episodes=1, out=str(cfg.out), workers=0)
    checkpoint = identity(cfg.policy)
    report = make_report(settings, [outcome], criterion, instruction, checkpoint, command)
    ending = {"success": outcome.success, "steps": outcome.steps, "score": outcome.score}
    return {**ending, "decisions": len(outcome.decision_seconds), **report}


def from_hydra(cfg: DictConfig) -> DemoConfig:
    """The settings of this command."""
    raw = OmegaConf.to_container(cfg, resolve=True)
    policy = from_settings(PolicyConfig, {**raw["policy"], "checkpoint": raw["checkpoint"]})
    kept = {name: raw[name] for name in ("seed", "out", "futures", "rerun")}
    return from_settings(DemoConfig, {**kept, "env": env_config(raw), "policy": policy})


@hydra.main(version_base="1.3", config_path="../configs", config_name="demo")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        torch.set_num_threads(1)  # on a busy machine more wait for each other: a decision took 5 s instead of 0.12
        report, written = run(from_hydra(cfg), command_line("agent.demo", HydraConfig.get().overrides.task))
        print(table(report))
        print(f"{report['seconds']:.0f} s in all. Written: {', '.join(str(path) for path in written)}")
    sys.exit(0 if report["success"] else 1)


if __name__ == "__main__":
    start(main)
