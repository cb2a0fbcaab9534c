"""Whether the packages that Python finds are ours. Imports nothing of ours: it runs before they are imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("agent", "envs", "policies", "world_model")  # `configs` is found by its path, whatever its name hides


def check_packages() -> None:
    """ImportError of one line where a package of another place has the name of one of ours.

    A user's own folder `envs` in the working directory comes first on Python's path, and what fails then (gymnasium
    finds no namespace `nextstate`, a module is missing) does not say why. Ends the program where `python -m` called.
    """
    home = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        place = _place(name)
        if place is None or place.parent == home:
            continue
        message = (
            f"the package `{name}` in {place} hides nextstate's own in {home / name}: rename that one, or run from a "
            "folder that holds none of that name"
        )
        if sys.argv[:1] == ["-m"]:  # so it is while `python -m` looks for the command
            sys.exit(f"error: {message}")
        raise ImportError(message)


def _place(name: str) -> Path | None:
    """The folder, or the file, from which Python takes a package; None where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [spec.origin])
    return Path(places[0]).resolve() if places and places[0] else None
