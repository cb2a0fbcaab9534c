"""What every verb of this room does at its border: expected errors become one line, versions are named."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from envs.store import EpisodeError


class RunError(RuntimeError):
    """A run cannot start or go on. The message says why and what to do."""


def expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend: bad settings, bad files, a full disk, a missing library."""
    expected: tuple[type[Exception], ...] = (ValueError, OSError, EpisodeError, RunError)
    checkpoint = sys.modules.get("world_model.checkpoint")  # only where a verb has loaded it: it takes torch along
    return (*expected, checkpoint.CheckpointError) if checkpoint else expected


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


def versions(*packages: str) -> dict[str, str]:
    """Name -> installed version, `missing` for what is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
