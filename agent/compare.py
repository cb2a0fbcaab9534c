"""Which of two policies is better, on the same seeds.

    python -m agent.compare first=outputs/evaluate/planner second=outputs/evaluate/model

Reads the report.json of two evaluations. Only the seeds on which they differ tell anything, so this sees differences
that two intervals side by side hide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from agent.evaluation.statistics import mcnemar, paired_difference
from agent.launch.command import RunError, clear_errors, start
from envs.data.settings import from_settings

READ = ("env", "split", "criterion", "outcomes", "command")  # what is read of a report
ORIGIN = ("commit", "device", "precision", "cpu")  # what may differ between two reports, and a person should know


@dataclass(frozen=True)
class CompareConfig:
    """first, second: folders of two evaluations."""

    first: str | None
    second: str | None

    def __post_init__(self) -> None:
        if not self.first or not self.second:
            raise ValueError("name the folders of two evaluations: first=FOLDER second=FOLDER")


def read(folder: str) -> dict[str, Any]:
    """The report of an evaluation. RunError where there is none."""
    path = Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text())
        missing = [name for name in READ if name not in report]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot read {path} ({error}). Make it with `python -m agent.evaluate ... out={folder}`."
        ) from error
    return report


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What the seeds say that both reports have; in points, positive where the first is better.

    RunError where these are other tasks, or no seed is in both.
    """
    for name in ("env", "split", "criterion"):
        if first[name] != second[name]:
            raise RunError(f"the reports differ in `{name}`: {first[name]!r} and {second[name]!r}")
    a, b = ({o["seed"]: o["success"] for o in report["outcomes"]} for report in (first, second))
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise RunError("the reports have no seed in common; evaluate both with the same `seed` and `episodes`")
    ours, theirs = [a[seed] for seed in seeds], [b[seed] for seed in seeds]
    pairs = list(zip(ours, theirs, strict=True))
    low, high = paired_difference(ours, theirs)
    return {
        "episodes": len(seeds), "first": sum(ours), "second": sum(theirs),
        "only_first": pairs.count((True, False)), "only_second": pairs.count((False, True)),
        "points": 100 * (sum(ours) - sum(theirs)) / len(seeds), "ci95": [100 * low, 100 * high],
        "p": mcnemar(ours, theirs),
    }  # fmt: skip


def table(found: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> str:
    """For a person."""
    low, high = found["ci95"]
    rows = {
        "environment": f"{first['env']['id']}, split {first['split']}, {found['episodes']} seeds in both",
        "first": f"{found['first']} succeed: {first['command']}",
        "second": f"{found['second']} succeed: {second['command']}",
        "only one": f"{found['only_first']} only the first, {found['only_second']} only the second",
        "difference": f"{found['points']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), p = {found['p']:.2g}",
    }
    a, b = (report.get("provenance") or {} for report in (first, second))  # reports of old have none
    differing = [name for name in ORIGIN if name in a and name in b and a[name] != b[name]]
    if differing:
        rows["made differently"] = "; ".join(f"{name} {a[name]} against {b[name]}" for name in differing)
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        config = from_settings(CompareConfig, OmegaConf.to_container(cfg, resolve=True))
        first, second = read(config.first), read(config.second)
        print(table(compare(first, second), first, second))


if __name__ == "__main__":
    start(main)
