"""Whether the packages that Python finds are ours: what hides one of them is named.

Standard library alone, and loaded by its path where a package of ours begins (`runpy.run_path`): by its name it would
be looked for in the very package that may be the user's.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_packages(*names: str) -> None:
    """ImportError of one line where one of these packages of ours is hidden by one of another place.

    A user's own folder `envs` in the working directory comes first on Python's path, and what fails then (gymnasium
    finds no namespace `nextstate`, a module is missing) does not say why. Ends the program where `python -m` called.
    """
    home = Path(__file__).resolve().parents[1]
    for name in names:
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
