"""Runs in wandb. Nothing of it is imported, and nothing is written, unless a person asks for it.

A run belongs to the folder that its results are written to: the same folder goes on with the same run, and another one,
of the same name too, has another. Which run a folder belongs to stands in the folder, in `wandb.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from envs.data.files import create_whole, to_json, write_json

Mode = Literal["disabled", "offline", "online"]
PROJECT = "nextstate"
ID_FILE = "wandb.json"
LONGEST = 100  # characters of a name; wandb takes 128 of an id


def check_mode(mode: str) -> str:
    """Return the mode; ValueError for one that there is not. For the start of a command, before hours of work."""
    if mode not in get_args(Mode):
        raise ValueError(f"wandb must be {', '.join(get_args(Mode)[:-1])} or {get_args(Mode)[-1]}, got {mode!r}")
    return mode


class Run:
    """What a command tells of itself. A disabled run takes everything and keeps nothing."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, figures: Mapping[str, Any], step: int | None = None) -> None:
        """Figures of one moment, for curves."""
        if self._run is not None:
            self._run.log(dict(figures), step=step)

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """The closing figures."""
        if self._run is not None:
            self._run.summary.update(json.loads(to_json(figures)))

    def finish(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)


def start_run(mode: str, name: str, folder: str | Path, settings: Any) -> Run:
    """Begin, or go on with, the run of a folder.

    mode: disabled, offline or online. name: for a person, any text. settings: a dataclass or a mapping.
    ValueError for another mode or where wandb is not installed, ConnectionError where wandb refuses.
    """
    if check_mode(mode) == "disabled":
        return Run()
    try:
        import wandb  # only now: it takes a second
    except ImportError as error:
        raise ValueError(f"wandb={mode} needs the package wandb ({error}): install it or use wandb=disabled") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=PROJECT, name=readable(name), id=run_id(name, folder), resume="allow", mode=mode, dir=str(folder),
            config=json.loads(to_json(settings)),
        )  # fmt: skip
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConnectionError(f"wandb refuses: {reason}. Use wandb=offline or wandb=disabled.") from error
    return Run(run)


def log_run(mode: str, name: str, folder: str | Path, settings: Any, figures: Mapping[str, Any]) -> None:
    """Send the closing figures of a command to the run of its folder. Arguments and errors as of `start_run`."""
    with start_run(mode, name, folder, settings) as run:
        run.summarize(figures)


def run_id(name: str, folder: str | Path) -> str:
    """The id of the run that this folder belongs to, kept in the folder.

    It holds the hash of the folder's absolute path, so that a copy of the folder does not go on with the same run, and
    random digits, because another host, or a later try, may have a folder of the same path.
    """
    place = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]
    path = Path(folder) / ID_FILE
    content = {"id": f"{readable(name)}-{place}-{uuid.uuid4().hex[:6]}", "place": place}
    if create_whole(path, to_json(content) + "\n"):
        return content["id"]
    try:
        found = json.loads(path.read_text())
        if found["place"] == place:
            return found["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not name a run ({error!r}): delete it to begin a new one") from error
    write_json(path, content)
    return content["id"]


def readable(name: str) -> str:
    """A name as wandb takes it everywhere: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", str(name), flags=re.ASCII).strip("-.")[:LONGEST] or "run"
