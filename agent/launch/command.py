"""What every verb of this room does at its border: expected errors become one line, versions are named."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.data.store import EpisodeError


class RunError(RuntimeError):
    """A run cannot start or go on. The message says why and what to do."""


def expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend: bad settings, bad files, a full disk, a missing library."""
    expected: list[type[Exception]] = [ValueError, OSError, EpisodeError, RunError]
    # these come into being only where a verb has loaded the model, and torch with it
    late = (("world_model.checkpoint", "CheckpointError"), ("world_model.tokens.images", "TokenizerError"))
    expected += [getattr(sys.modules[module], name) for module, name in late if module in sys.modules]
    return tuple(expected)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print an expected error as one line and exit with 1; HYDRA_FULL_ERROR=1 shows where it came from."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, expected_errors()):
            raise
        sys.exit(f"error: {error}")


def claim(folder: Path, name: str, recipe: dict[str, Any]) -> Path:
    """Keep the settings that a folder's contents were made with in folder/name, and return that path.

    ValueError where they stand there already and differ: results of two recipes must not mix.
    """
    path = folder / name
    text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
    if path.exists():
        if path.read_text() != text:
            raise ValueError(f"{path} says that this folder was filled with other settings; choose another `out`")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is whole or not there. OSError names it."""
    temporary = path.with_name(f".{path.name}.tmp")
    _write(temporary, "w", text, path)
    os.replace(temporary, path)


def append_line(path: Path, line: str) -> None:
    """Add a line and see that it is on the disk before anything goes on. OSError names the file."""
    _write(path, "a", line + "\n", path)


def _write(path: Path, mode: str, text: str, meant: Path) -> None:
    try:
        with open(path, mode) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"cannot write {meant}: {error.strerror or error}. What was written before is kept; "
            "free some space or choose another `out`, and run the same command again."
        ) from error


def log_run(mode: str, name: str, folder: str, recipe: dict[str, Any], figures: dict[str, float]) -> None:
    """Send the closing figures of a run to wandb. mode: disabled | offline | online."""
    if mode not in ("disabled", "offline", "online"):
        raise ValueError(f"wandb must be disabled, offline or online, got {mode!r}")
    if mode == "disabled":
        return
    import wandb  # only now: it takes a second

    with wandb.init(project="nextstate", name=name, mode=mode, dir=folder, config=recipe) as run:
        run.summary.update(figures)


def versions(*packages: str) -> dict[str, str]:
    """Name -> installed version, `missing` for what is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
