"""What a decision and a simulated step cost: `python -m agent.bench [candidates=64] [device=cuda]`.

The contestants take turns within one run, so that their ratios hold on a busy machine where seconds do not.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.build import EnvConfig, from_settings, make_env
from agent.launch.command import clear_errors, versions, write_whole
from agent.launch.processes import ONE_THREAD
from agent.planning.agent import ModelPolicy, PlanningPolicy
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from envs.types import MAIN_SIZE, STATE_DIM, WRIST_SIZE, Obs

WITHOUT_DEADLINE = 3600.0  # seconds; a search that is cut short would look fast


@dataclass(frozen=True)
class BenchConfig:
    """See configs/bench.yaml."""

    env: EnvConfig
    checkpoint: str
    candidates: int
    iterations: int
    horizon: int
    repeats: int
    threads: int
    device: str
    out: str


def bench(cfg: BenchConfig) -> dict[str, Any]:
    """Median seconds of every contestant, and the ratios that matter."""
    torch.set_num_threads(cfg.threads)
    acting = ModelPolicy.load(cfg.checkpoint, device=cfg.device)
    search = PlannerConfig(cfg.candidates, cfg.iterations, cfg.horizon, deadline_s=WITHOUT_DEADLINE)
    planning = PlanningPolicy(acting, Planner(search, Objective()))
    model, rng = acting.model, np.random.default_rng(0)

    def look() -> Obs:
        """Noise: the cost of a decision does not depend on what is seen."""
        views = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (MAIN_SIZE, WRIST_SIZE)]
        return Obs(*views, np.array([0, 0, 1, 0, 0, 0, 0.08], np.float32)[:STATE_DIM])

    state = acting.init(acting.known[0])
    for _ in range(acting.chunk // acting.execute + 1):  # from here on the history is as long as it gets
        _, state = acting.act(look(), state)
    obs = look()
    history = acting.history(acting.see(obs, state))
    cache = model.prefill(history)
    generator = torch.Generator().manual_seed(0)
    chunks = model.propose(cache, cfg.candidates, 1.0, generator)
    actions = chunks[:, None].repeat(1, cfg.horizon, 1, 1)

    def imagine_each_from_its_own_prefix() -> None:
        model.imagine(model.prefill(*[history] * cfg.candidates), actions)

    for name in ONE_THREAD:  # of the software renderer, which reads it when its context is made
        os.environ[name] = str(cfg.threads)
    env = make_env(cfg.env)
    env.reset(seed=0)

    def simulate() -> None:
        """A chunk of small motions, every frame drawn."""
        for _ in range(acting.chunk):
            *_, terminated, truncated, _ = env.step(rng.uniform(-0.1, 0.1, env.action_space.shape).astype(np.float32))
            if terminated or truncated:
                env.reset(seed=0)

    contestants: dict[str, Callable[[], object]] = {
        "a decision without search": lambda: acting.act(obs, state),
        "a decision with search": lambda: planning.act(obs, state),
        "read the history": lambda: model.prefill(history),
        "imagine, parallel": lambda: model.imagine(cache, actions),
        "imagine, token by token": lambda: model.imagine(cache, actions, "causal"),
        "read and imagine, one shared prefix": lambda: model.imagine(model.prefill(history), actions),
        "read and imagine, a prefix each": imagine_each_from_its_own_prefix,
        "simulate and draw a chunk": simulate,
    }
    seconds = {name: [] for name in contestants}
    with closing(env):
        for repeat in tqdm(range(cfg.repeats + 1), unit="round"):
            for name, run in contestants.items():
                took = timed(run, model.device)
                if repeat:  # the first round warms up
                    seconds[name].append(took)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "settings": asdict(cfg), "device": str(model.device), "machine": platform.processor() or platform.machine(),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": median,
        "frames_per_second": acting.chunk / median["simulate and draw a chunk"],
        "futures_per_second": cfg.candidates * cfg.horizon / median["imagine, parallel"],
        "ratios": {
            "token by token / parallel": median["imagine, token by token"] / median["imagine, parallel"],
            "a prefix each / one shared": median["read and imagine, a prefix each"]
            / median["read and imagine, one shared prefix"],
            "with search / without": median["a decision with search"] / median["a decision without search"],
            "simulated / imagined chunk": median["simulate and draw a chunk"]
            / (median["imagine, parallel"] / cfg.candidates / cfg.horizon),
        },
        "versions": versions("torch", "numpy"),
    }  # fmt: skip


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    settings, millions = report["settings"], report["parameters"] / 1e6
    search = f"{settings['iterations']} x {settings['candidates']} futures, {settings['horizon']} model step(s)"
    rows = [
        ("model", f"{millions:.1f}M parameters, {report['device']}, {settings['threads']} thread(s)"),
        ("a search", search),
        *((name, f"{1000 * value:.1f} ms") for name, value in report["seconds"].items()),
        ("futures imagined", f"{report['futures_per_second']:.0f} model steps a second"),
        (settings["env"]["name"], f"{report['frames_per_second']:.0f} control steps a second, both views drawn"),
        *((name, f"{value:.1f} times") for name, value in report["ratios"].items()),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


@hydra.main(version_base="1.3", config_path="../configs", config_name="bench")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        raw = OmegaConf.to_container(cfg, resolve=True)
        config = from_settings(BenchConfig, {**raw, "env": from_settings(EnvConfig, {**raw["env"], "split": "train"})})
        report = bench(config)
        path = Path(config.out) / "bench.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(report, indent=1) + "\n")
        print(table(report))
        print(f"report: {path}")


if __name__ == "__main__":
    main()
