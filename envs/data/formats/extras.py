"""The packages that other people's formats need and that an installation may lack."""

from __future__ import annotations

import importlib.util

from envs.data.store import EpisodeError


def require_package(package: str, what: str) -> None:
    """EpisodeError with the command that installs `package` where it is missing; `what` is what needs it."""
    if importlib.util.find_spec(package) is None:
        raise EpisodeError(f"{what} needs the package {package}: pip install 'nextstate[formats]'")
