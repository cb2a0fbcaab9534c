"""What a page can open: recorded episodes, and those of an evaluation, a comparison or a fidelity report.

The worst stand first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode

MAX_RECORDS = 500  # that a page lists


@dataclass(frozen=True)
class Record:
    """An episode to open. title: for people. name: of the episode in `folder`, None where its actions were not kept and
    only its start is known."""

    title: str
    split: str
    seed: int
    folder: Path
    name: str | None

    def read(self) -> Episode | None:
        """The episode, where it was kept. EpisodeError where it cannot be read."""
        return None if self.name is None else EpisodeStore(self.folder).read(self.name, states=False)


def find_records(path: str, env_id: str) -> list[Record]:
    """Those of a folder of episodes, or of one that `agent.evaluate`, `agent.agree` or `agent.fidelity` wrote.

    EpisodeError where there is none. ValueError where they are of another environment.
    """
    folder = Path(path)
    if folder.suffix == ".json":
        folder = folder.parent
    if (folder / "agree.json").is_file():
        found = _compared(folder, env_id)
    elif (folder / "fidelity.json").is_file():
        found = _imagined(folder, env_id)
    elif (folder / "report.json").is_file():
        found = [record for _, record in sorted(_evaluated(folder, env_id), key=lambda each: each[0])]
    else:
        found = _recorded(folder, env_id)
    return found[:MAX_RECORDS]


def _recorded(folder: Path, env_id: str) -> list[Record]:
    """Failures first, the longest of them first."""
    store, found = EpisodeStore(folder).require(), []
    for name in store.names():
        outline = store.outline(name)
        _require_env(outline.env_id, env_id, str(store.path(name)))
        title = f"{name}: {_ended(outline.success, outline.steps)}"
        found.append((outline.success, -outline.steps, Record(title, outline.split, outline.seed, folder, name)))
    return [record for *_, record in sorted(found, key=lambda each: each[:2])]


def _evaluated(folder: Path, env_id: str) -> list[tuple[tuple[bool, float], Record]]:
    """Each outcome with how bad it is: failures, those that came least far first."""
    report, kept = _read(folder / "report.json"), _Kept(folder)
    try:
        _require_env(report["env"]["id"], env_id, str(folder / "report.json"))
        return [
            (
                (bool(one["success"]), float(one["progress"])),
                kept.record(
                    one["seed"], report["split"], f"seed {one['seed']}: {_ended(one['success'], one['steps'])}"
                ),
            )
            for one in report["outcomes"]
        ]
    except (KeyError, TypeError) as error:
        raise EpisodeError(f"{folder / 'report.json'} is no report of agent.evaluate: it lacks {error}") from error


def _compared(folder: Path, env_id: str) -> list[Record]:
    """Episodes of the simulator, those first about which the dream says otherwise."""
    found = []
    for real in sorted((folder / "real").glob("*/report.json")):
        label, dream = real.parent.name, folder / "dream" / real.parent.name / "report.json"
        imagined = {one["seed"]: bool(one["success"]) for one in _read(dream)["outcomes"]} if dream.is_file() else {}
        for (success, progress), record in _evaluated(real.parent, env_id):
            apart = imagined.get(record.seed, success) != success
            title = f"{label}, {record.title}{', in the dream ' + _ended(not success) if apart else ''}"
            found.append((not apart, success, progress, replace(record, title=title)))
    if not found:
        raise EpisodeError(f"{folder} holds no evaluations: run the agent.agree that wrote it again")
    return [record for *_, record in sorted(found, key=lambda each: each[:3])]


def _imagined(folder: Path, env_id: str) -> list[Record]:
    """Episodes of a fidelity report, those first whose imagined futures are farthest off."""
    report, kept = _read(folder / "fidelity.json"), _Kept(folder)
    try:
        _require_env(report["env"], env_id, str(folder / "fidelity.json"))
        known = [one for one in report["by_episode"] if one["error"] is not None]
        return [
            kept.record(
                one["seed"],
                report["split"],
                f"{one['kind']}, seed {one['seed']}: imagined {one['error']:.2g} {report['error_unit']} off",
            )
            for one in sorted(known, key=lambda one: -one["error"])
        ]
    except (KeyError, TypeError) as error:
        raise EpisodeError(f"{folder / 'fidelity.json'} is no report of agent.fidelity: it lacks {error}") from error


class _Kept:
    """The episodes that a report kept, by seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "episodes"
        names = EpisodeStore(self.folder).names() if self.folder.is_dir() else []
        self.names = {name.rpartition("-")[2]: name for name in names}

    def record(self, seed: int, split: str, title: str) -> Record:
        """Of a seed, whether or not its episode was kept."""
        return Record(title, str(split), int(seed), self.folder, self.names.get(f"{seed:07d}"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EpisodeError(f"cannot read {path}: {error}") from error


def _require_env(theirs: str, ours: str, where: str) -> None:
    if theirs != ours:
        raise ValueError(f"{where} is of {theirs}, and this page shows {ours}: set `env` to open it")


def _ended(success: bool, steps: int | None = None) -> str:
    return ("done" if success else "failed") + ("" if steps is None else f" after {steps} steps")


def titles(records: Sequence[Record]) -> list[str]:
    """For a menu."""
    return [record.title + (" (its start alone)" if record.name is None else "") for record in records]
