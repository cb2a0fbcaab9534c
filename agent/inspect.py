"""What is in a folder of episodes or a checkpoint, and whether it is sound.

    python -m agent.inspect data=data/fold_half out=outputs/inspect
    python -m agent.inspect checkpoint=checkpoints/nextstate-s

Of episodes it prints a table and one line a fault, writes `report.json`, `sheet.png` (the beginning, middle and end of
some) and `histograms.png` (state, commands, lengths), and exits with 1 where there is a fault.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import matplotlib
import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agent.launch.command import RunError, clear_errors, start
from envs.data.files import to_json, write_json
from envs.data.formats.folder import open_episodes
from envs.data.settings import from_settings
from envs.data.soundness import constants, faults_of, faults_of_all
from envs.data.store import EpisodeError
from envs.types import Episode, Spec
from world_model.metrics import pictures

matplotlib.use("Agg")  # draws into files; a machine without a screen has no other way
import matplotlib.pyplot as plt  # noqa: E402

SHOWN, MOMENTS = 8, 6  # episodes in the sheet, and pictures of each
COLUMNS = 4  # of the histograms


@dataclass(frozen=True)
class InspectConfig:
    """configs/inspect.yaml says what each of these means."""

    data: str | None
    checkpoint: str | None
    out: str

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.checkpoint):
            raise ValueError("name either a folder of episodes, data=FOLDER, or a checkpoint=FOLDER")


def inspect_episodes(config: InspectConfig) -> dict[str, Any]:
    """Read every episode, write everything into `out`; returns the report."""
    store, faults, read = open_episodes(config.data), [], []
    for name in tqdm(store.names(), desc="reading", unit="episode"):
        try:
            episode = store.read(name, states=False)
        except EpisodeError as error:
            faults.append(str(error))
            continue
        read.append((name, episode))
        if differing := read[0][1].spec.differences(episode.spec):
            faults.append(f"{name}: another robot than {read[0][0]}: {'; '.join(differing)}")
            read.pop()
            continue
        faults += [f"{name}: {fault}" for fault in faults_of(episode)]
    if not read:
        raise RunError(f"no episode in {config.data} can be read: {faults[0]}")
    faults += faults_of_all(read)
    episodes = [episode for _, episode in read]
    report = {"data": config.data, **summary(episodes), "faults": faults}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    sheet(episodes).save(out / "sheet.png")
    histograms(episodes, out / "histograms.png")
    write_json(out / "report.json", report)
    return json.loads(to_json(report))


def summary(episodes: list[Episode]) -> dict[str, Any]:
    """What there is, in numbers."""
    lengths = np.array([len(episode) for episode in episodes])
    spec = episodes[0].spec

    def counted(name: str) -> dict[str, int]:
        return dict(Counter(getattr(episode, name) for episode in episodes).most_common())

    return {
        "episodes": len(episodes), "seeds": len({episode.seed for episode in episodes}),
        "succeed": sum(bool(episode.success[-1]) for episode in episodes), "control_steps": int(lengths.sum()),
        "length": {"shortest": int(lengths.min()), "median": float(np.median(lengths)), "longest": int(lengths.max())},
        "hours": float(lengths.sum() / spec.control_hz / 3600),
        "labelled_steps": int(sum(np.isfinite(episode.expert).all(1).sum() for episode in episodes)),
        **{f"{name}s": counted(name) for name in ("instruction", "env_id", "split", "source")},
        "constant": constants(episodes), "views": sorted({view for episode in episodes for view in episode.views}),
        "spec": spec.to_dict(),
    }  # fmt: skip


def sheet(episodes: list[Episode]):
    """A row an episode, evenly spread over the folder: its cameras from the beginning to the end."""
    pick = np.linspace(0, len(episodes) - 1, min(SHOWN, len(episodes))).astype(int)
    strips = []
    for episode in (episodes[i] for i in pick):
        moments = np.linspace(0, len(episode), MOMENTS).astype(int)
        strips.append(pictures.strip({name: frames[moments] for name, frames in episode.images.items()}))
    return pictures.stack(strips)


def histograms(episodes: list[Episode], path: Path) -> None:
    """Lengths, and the values of every dimension of the state and the commands, with the range where there is one."""
    spec = episodes[0].spec
    parts = [("control steps", np.array([len(episode) for episode in episodes]), None)]
    for kind, dims in (("state", spec.state), ("action", spec.action)):
        values = np.concatenate([getattr(episode, kind) for episode in episodes])
        parts += [(f"{kind} {part.name}", values[:, i], (part.low, part.high)) for i, part in enumerate(dims)]
    rows = -(-len(parts) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3 * COLUMNS, 1.9 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(parts) :]:
        axis.axis("off")
    for axis, (title, values, ends) in zip(axes.flat, parts, strict=False):
        axis.hist(values, bins=40, color="0.4")
        for end in ends or ():
            if np.isfinite(end):
                axis.axvline(end, color="tab:orange", linewidth=1)
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(report: dict[str, Any]) -> str:
    """For a person."""
    spec, length = Spec.from_dict(report["spec"]), report["length"]
    rows = {
        "episodes": f"{report['episodes']} of {report['seeds']} seeds, {report['succeed']} succeed",
        "control steps": f"{report['control_steps']} ({length['shortest']} to {length['longest']} an episode, median "
        f"{length['median']:.0f}), {report['hours']:.2f} hours at {spec.control_hz:g} Hz",
        "labelled": f"{report['labelled_steps']} steps say what an expert would do",
        **{name: _counted(report[name]) for name in ("instructions", "env_ids", "splits", "sources")},
        **_robot(spec),
    }
    if report["constant"]:
        rows["never changes"] = ", ".join(report["constant"])
    if report["views"]:
        rows["views"] = ", ".join(report["views"])
    return _lines(rows)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or '-'} ({count})" for name, count in counts.items())


def _robot(spec: Spec) -> dict[str, str]:
    return {
        "cameras": ", ".join(f"{c.name} {c.height} x {c.width}{' (posed)' * c.posed}" for c in spec.cameras),
        "state": ", ".join(part.name for part in spec.state) or "-",
        "action": ", ".join(part.name + " (gripper)" * part.gripper for part in spec.action),
        "keypoints": ", ".join(spec.keypoints) or "-",
    }


def _lines(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def inspect_checkpoint(folder: str) -> str:
    """What a checkpoint is, for a person. CheckpointError where it cannot be read."""
    from world_model import checkpoint  # and torch, which a folder of episodes does without

    loaded = checkpoint.load(folder)
    model, meta = loaded.model, loaded.meta
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in (
        ("transformer and heads", model), ("image tokenizer", model.frame_tokenizer))}  # fmt: skip
    sizes["transformer and heads"] -= sizes["image tokenizer"]
    rows = {
        "checkpoint": f"{folder}, sha256 {loaded.sha256[:16]}",
        "instructions": ", ".join(map(repr, meta["instructions"])),
        **_robot(loaded.spec),
        "parameters": ", ".join(f"{count / 1e6:.2f} M {name}" for name, count in sizes.items()),
        "model steps": ", ".join(map(str, model.strides)) + f" control steps at {loaded.spec.control_hz:g} Hz",
        "told poses": ", ".join(pose.camera for pose in model.layout.poses) or "none",
        "draws views": ", ".join(meta.get("views", [])) or "none",
        "without images": "yes" if model.imagines_without_images else "no",
        "discount": str(meta["discount"]),
        "episodes": _counted(meta["episodes"]) if "episodes" in meta else "-",
    }  # fmt: skip
    return _lines(rows)


@hydra.main(version_base="1.3", config_path="../configs", config_name="inspect")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        config = from_settings(InspectConfig, OmegaConf.to_container(cfg, resolve=True))
        if config.checkpoint:
            print(inspect_checkpoint(config.checkpoint))
            return
        report = inspect_episodes(config)
        print(table(report))
        for fault in report["faults"]:
            print(f"fault: {fault}")
        count = len(report["faults"])
        print(f"\n{count or 'no'} fault{'s' * (count != 1)}; written to {config.out}")
        sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    start(main)
