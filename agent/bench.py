"""What imagining, simulating, deciding, loading and training cost: `python -m agent.bench [candidates=64]`.

The contestants of a part take turns within one run, so that their ratios hold on a busy machine where seconds do not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import matplotlib
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from agent.benchmark import contestants, loading
from agent.benchmark.contestants import AUTOREGRESSIVE, AUTOREGRESSIVE_COPIES, FRAMES, PARALLEL, REREADING
from agent.benchmark.timing import Contestant, take_turns
from agent.build import EnvConfig, PolicyConfig, env_config, make_envs, make_expert, make_policy
from agent.evaluation.provenance import checkpoint_identity, provenance
from agent.launch.command import clear_errors, command_line, start
from agent.launch.processes import ONE_THREAD
from agent.planning.policies import ModelPolicy
from envs import preflight
from envs.data.files import write_json
from envs.data.settings import from_settings
from envs.types import Episode
from policies.rollout import rollout
from world_model import checkpoint
from world_model.checkpoint import Loaded
from world_model.metrics.windows import context, spread_by_episode
from world_model.nn.device import choose_device, choose_precision
from world_model.training.dataset import EpisodeDataset

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402

Rows = dict[str, dict[str, Any]]
PAIR = "S with 1024 vision ids: "  # begins the names of what is compared with `generate`


@dataclass(frozen=True)
class BenchConfig:
    """See configs/bench.yaml. tasks: short name -> environment, each with an expert."""

    tasks: Mapping[str, EnvConfig]
    checkpoint: str
    candidates: int
    fewer: tuple[int, ...]
    simulated: int
    robots: tuple[int, ...]
    windows: int
    ahead: int
    episodes: int
    seed: int
    batch: int
    window: int
    repeats: tuple[int, ...]
    rounds: int
    threads: int
    device: str
    precision: str
    generate: bool
    out: str

    def __post_init__(self) -> None:
        counts = ("candidates", "simulated", "windows", "ahead", "episodes", "batch", "rounds", "threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.window < 2 or not self.tasks or not self.robots or min(*self.robots, *self.fewer, *self.repeats, 1) < 1:
            raise ValueError(
                "`window` must be at least 2, `robots`, `fewer` and `repeats` at least 1 each, and `tasks` not empty"
            )
        if self.simulated > self.candidates:
            raise ValueError(f"only {self.candidates} candidates can be simulated, got simulated={self.simulated}")


def bench(config: BenchConfig) -> dict[str, Any]:
    """All rows by part, the ratios that matter, and where they come from."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    device = choose_device(config.device)
    loaded = checkpoint.load(Path(config.checkpoint), device)
    model = loaded.model
    model.precision = choose_precision(config.precision, device)
    known, discount = tuple(loaded.meta["instructions"]), loaded.meta["discount"]
    acting = ModelPolicy(model, loaded.text, known, chunk=loaded.actions.chunk, discount=discount)
    episodes = _episodes(config)
    dataset = EpisodeDataset.join([
        EpisodeDataset.of(episode, model.layout, loaded.frames, loaded.actions, loaded.text) for episode in episodes
    ])  # fmt: skip

    # One situation and what might be done in it: the cost does not depend on which.
    situation = dataset.batch(spread_by_episode(dataset, 1, 2), 2).to(device)
    cache, generator = context(model, situation), torch.Generator().manual_seed(0)
    chunks = model.propose(cache, config.candidates, 1.0, [generator])  # (1, N, M, A)
    actions = chunks[:, :, None].repeat(1, 1, 2, 1, 1)  # (1, N, 2, M, A)

    def turns(found: Mapping[str, Contestant], title: str) -> Rows:
        return take_turns(found, config.rounds, device, title)

    decoding = turns(contestants.decoders(model, cache, actions[:, :, :1]), "decoding")
    for decode, figures in contestants.quality(model, dataset, config.windows, config.ahead).items():
        for name in decoding:
            decoding[name] |= figures if name.startswith(decode) else {}
    first = episodes[0]
    step = min(len(first), acting.chunk) // acting.execute
    seen = [first.obs(i * acting.execute) for i in range(step + 1)]
    parts = {
        "decoding": decoding,
        "candidates": turns(contestants.fewer(model, cache, actions[:, :, :1], config.fewer), "fewer candidates"),
        "horizon": turns(contestants.horizons(model, cache, actions), "horizon"),
        "generate": _generate(config, model.spec, loaded.actions, device, turns) if config.generate else {},
        "simulation": _simulation(config, chunks[0, : config.simulated].cpu().numpy(), turns),
        "decisions": turns(contestants.decisions(acting, seen, config.robots), "decisions"),
    }
    parts["training"] = _training(config, loaded, episodes, dataset, turns)
    return {
        "settings": asdict(config), "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoint": checkpoint_identity(config.checkpoint), "load_average": os.getloadavg(),
        **{name: rows for name, rows in parts.items() if rows}, "ratios": ratios(parts),
        "provenance": provenance(device, model.precision),
    }  # fmt: skip


def _episodes(config: BenchConfig) -> list[Episode]:
    """What a disturbed expert does in each task."""
    episodes, seeds = [], range(config.seed, config.seed + config.episodes)
    for task in config.tasks.values():
        with closing(make_envs(task)) as envs:
            expert = make_expert(task, envs.get_attr("robot_spec")[0])
            policy = make_policy(PolicyConfig(name="perturbed" if expert else "random"), task, envs)
            episodes += [run.episode for run in rollout(envs, policy, seeds, expert)]
    return episodes


def _simulation(config: BenchConfig, actions: np.ndarray, turns: Any) -> Rows:
    rows: Rows = {}
    for name, task in config.tasks.items():
        with closing(make_envs(task)) as envs:
            envs.reset(seed=[config.seed])
            rows |= turns(contestants.simulators(envs.envs[0], actions, name), f"simulating {name}")
    return rows


def _training(config: BenchConfig, loaded: Loaded, episodes: list[Episode], memory: EpisodeDataset, turns: Any) -> Rows:
    """A step, and loading the windows that it learns from."""
    sizes = config.batch, config.window
    batch = memory.batch(spread_by_episode(memory, *sizes), config.window).to(loaded.model.device)
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        loading.write(Path(folder), loaded, episodes, 1)
        disk = loading.open_dataset(Path(folder), loaded)
        both = contestants.training(loaded.model, batch) | loading.contestants(loaded, memory, disk, *sizes)
        rows = turns(both, "training and loading")
        repeated = Path(folder) / "repeated"
        held = loading.measure_memory(repeated, config.checkpoint, loaded, episodes, config.repeats, *sizes)
    return {name: {**row, **held.get(name, {})} for name, row in rows.items()}


def _generate(config: BenchConfig, spec: Any, tokenizer: Any, device: torch.device, turns: Any) -> Rows:
    """The pair that `transformers` can run too; nothing, and a word about it, where it is not installed."""
    try:
        from agent.benchmark.generate import generators, random_model
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        print("`generate` of transformers is left out, for it is not installed: pip install 'nextstate[hf]'")
        return {}
    model = random_model(spec, tokenizer).to(device)
    model.precision = choose_precision(config.precision, device)
    at, generator = model.layout, torch.Generator().manual_seed(0)
    image = torch.randint(model.vocab.vision.size, (1, at.image_ids), generator=generator).to(device)
    state = torch.randint(model.vocab.state.size, (1, at.state_dim), generator=generator).float().to(device)
    drawn = torch.rand(1, config.candidates, 1, at.chunk_steps, len(spec.action), generator=generator)
    actions = torch.from_numpy(spec.action_low) + drawn * torch.from_numpy(spec.action_high - spec.action_low)
    instruction = at.instruction_ids(tuple(range(8)))[None].to(device)
    cache = model.context(instruction, [(image, state)], [])
    history = torch.cat([instruction, at.obs_ids(image, state)], dim=1)  # (1, L)
    found = contestants.decoders(model, cache, actions, rereading=False)
    theirs = generators(model, history, actions[0, :, 0])
    found |= {f"generate of transformers, {name}": Contestant(run, config.candidates, FRAMES)
              for name, run in theirs.items()}  # fmt: skip
    rows = turns({PAIR + name: contestant for name, contestant in found.items()}, "generate")
    imagined = model.imagine(cache, actions, "autoregressive")
    ours = at.obs_ids(imagined.image_ids[0, :, 0], at.to_bins(imagined.state[0, :, 0]))
    for name, run in theirs.items():
        rows[f"{PAIR}generate of transformers, {name}"]["same_ids"] = (run() == ours).float().mean().item()
    return rows


def ratios(parts: Mapping[str, Rows]) -> dict[str, float]:
    """What is more a second than what, and how many times. Of several ways to do the same, the fastest counts."""
    rate = {name: row["per_second"] for rows in parts.values() for name, row in rows.items()}
    seconds = {name: row["seconds"] for name, row in parts["horizon"].items()}
    found = {f"{PARALLEL} / {other}": rate[PARALLEL] / rate[other]
             for other in (AUTOREGRESSIVE, AUTOREGRESSIVE_COPIES, REREADING)}  # fmt: skip
    theirs = [name for name in parts["generate"] if "generate of" in name]
    if theirs:
        best = max(theirs, key=rate.get)
        found[f"{PAIR}{PARALLEL} / generate of transformers"] = rate[PAIR + PARALLEL] / rate[best]
        found[f"{PAIR}autoregressive / generate of transformers"] = rate[PAIR + AUTOREGRESSIVE] / rate[best]
    for name in parts["candidates"]:
        if name.startswith(PARALLEL):
            other = name.replace(PARALLEL, "autoregressive", 1)
            found[f"{name} / {other}"] = rate[name] / rate[other]
    found["seconds of horizon 2 / of horizon 1"] = seconds["horizon 2"] / seconds["horizon 1"]
    for name in parts["simulation"]:
        found[f"{PARALLEL} / {name}"] = rate[PARALLEL] / rate[name]
    searches = [name for name in parts["decisions"] if name.startswith("with search")]
    for name in searches[1:]:
        found[f"decisions a second, {name} / {searches[0]}"] = rate[name] / rate[searches[0]]
    found["loading, memory-mapped ids / training"] = rate[loading.DISK] / rate["training"]
    found["training / the bare matrix products"] = rate["training"] / rate["training, the bare matrix products"]
    return found


def machine(report: Mapping[str, Any]) -> str:
    """What was timed, and on what."""
    settings, made = report["settings"], report["provenance"]
    return (
        f"{report['parameters'] / 1e6:.1f}M parameters, {made['accelerator'] or made['cpu']}, {made['device']}, "
        f"{made['precision']}, {made['threads']} thread(s), {settings['candidates']} candidates, "
        f"load {report['load_average'][0]:.1f}"
    )


def in_digits(number: float) -> str:
    """Three digits of it, and no exponent for what is large."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def table(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [machine(report)]
    width = max(len(name) for part in PARTS for name in report.get(part, ()))
    for part in PARTS:
        for name, row in report.get(part, {}).items():
            more = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key not in TIMES)
            lines.append(f"{name:<{width}}  {in_digits(row['per_second']):>8} {row['unit']} a second   {more}")
    lines += [f"{name:<{width}}  {in_digits(value):>8} times" for name, value in report["ratios"].items()]
    return "\n".join(lines)


PARTS = ("decoding", "candidates", "horizon", "generate", "simulation", "decisions", "training")
COLOUR = "#3b6ea5"
TIMES = ("seconds", "range", "per_second", "unit", "model_steps_ahead", "windows")


def plot(report: Mapping[str, Any], path: Path) -> None:
    """How much a second, one point a row with the range of its rounds, and how many times the slowest of its part.

    On a log axis, since a part's rows lie up to a hundred times apart; on it lengths of bars would mean nothing.
    """
    parts = [part for part in PARTS if part in report]
    heights = [len(report[part]) + 1.2 for part in parts]
    size = (11, 0.34 * sum(heights) + 0.8)
    figure, axes = plt.subplots(len(parts), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    for axis, part in zip(axes.flat, parts, strict=True):
        rows, places = list(report[part].values()), range(len(report[part]))
        rates = np.array([row["per_second"] for row in rows])
        slow, fast = (rates * [row["seconds"] / row["range"][end] for row in rows] for end in (1, 0))
        axis.hlines(places, slow, fast, color=COLOUR, linewidth=2)
        axis.plot(rates, places, "o", color=COLOUR, markersize=5)
        for place, rate, end in zip(places, rates, fast, strict=True):
            times = f"   {rate / rates.min():.3g} times" if rate > rates.min() else ""
            beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
            axis.annotate(in_digits(rate) + times, (end, place), **beside)
        axis.set_xscale("log")
        axis.set(yticks=places, yticklabels=list(report[part]), ylim=(len(rows) - 0.4, -0.6))
        axis.set_xlim(slow.min() / 1.3, fast.max() * (fast.max() / slow.min()) ** 0.3 * 1.5)  # room for the last label
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_title(f"{part}: {rows[0]['unit']} a second", loc="left", fontsize=10, fontweight="bold")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.tick_params(which="both", length=0, labelsize=9)
        axis.spines[["top", "right", "left"]].set_visible(False)
    explained = "points are medians, lines the range of the rounds, times those of the slowest row of a part"
    figure.suptitle(f"{machine(report)}\n{explained}", fontsize=9, x=0.01, ha="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


@hydra.main(version_base="1.3", config_path="../configs", config_name="bench")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        raw = OmegaConf.to_container(cfg, resolve=True)
        tasks = {name: env_config({"env": env, "split": "train"}) for name, env in raw["tasks"].items()}
        config = from_settings(BenchConfig, {**raw, "tasks": tasks})
        for name in ONE_THREAD:  # of the software renderer, which reads it when its context is made
            os.environ[name] = str(config.threads)
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        report = bench(config)
        report["command"] = command_line("agent.bench", HydraConfig.get().overrides.task)
        write_json(out / "bench.json", report)
        plot(report, out / "bench.png")
        print(table(report))
        print(f"written to {out}")


if __name__ == "__main__":
    start(main)
