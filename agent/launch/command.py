"""What every command does at its border: expected errors become one line, and folders are claimed."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.data.files import create_whole, lock, to_json
from envs.data.settings import closest
from envs.data.store import EpisodeError
from envs.types import SimulationError

STOPPED = 130  # the exit status of a program that was ended by Ctrl-C
OURS = "NEXTSTATE_FULL_ERROR"  # what the user asked for; `start` changes what Hydra reads
HYDRAS = "HYDRA_FULL_ERROR"


class RunError(RuntimeError):
    """A run cannot start or go on. The message says why and what to do."""


# -------------------------------------------------------------------------------------------------- errors


def expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend: bad settings, bad files, a full disk, a missing library."""
    late = (("world_model.checkpoint", "CheckpointError"), ("world_model.tokens.images", "TokenizerError"),
            ("policies.learned.policy", "PolicyError"))  # fmt: skip
    return ValueError, OSError, EpisodeError, RunError, SimulationError, *_loaded(late), *settings_errors()


def settings_errors() -> tuple[type[Exception], ...]:
    """What Hydra and OmegaConf say of settings."""
    return _loaded((("hydra.errors", "HydraException"), ("omegaconf.errors", "OmegaConfBaseException")))


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    """Errors of modules that a command may not have loaded: they take seconds, and cannot have been raised then."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print an expected error as one line and exit with 1, or with 130 for Ctrl-C.

    HYDRA_FULL_ERROR=1 shows where an error came from.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        if os.environ.get(OURS, os.environ.get(HYDRAS)) == "1" or not isinstance(error, expected_errors()):
            raise
        sys.exit(f"error: {one_line(error)}")


def start(main: Callable[[], None]) -> None:
    """Run a command's Hydra main; what Hydra says of a mistyped setting becomes one line too.

    The body of `main` still needs `clear_errors`: of an error that leaves it Hydra prints a line of its own.
    """
    sys.argv[1:] = [setting for typed in sys.argv[1:] for setting in spelled_out(typed)]
    os.environ.setdefault(OURS, os.environ.get(HYDRAS, "0"))
    os.environ[HYDRAS] = "1"  # Hydra then raises what it would print in seven lines
    with clear_errors():
        main()


def spelled_out(setting: str) -> list[str]:
    """What Hydra takes for `policy=lerobot:FOLDER`, and any other setting as it is."""
    name, short, folder = setting.partition("=lerobot:")
    if not short or name != "policy":
        return [setting]
    if not re.fullmatch(r"[\w.-]*/[\w./-]*", folder):  # which Hydra would take for something else than a text
        folder = "'" + folder.replace("'", "\\'") + "'"
    return ["policy=lerobot", f"policy.folder={folder}"]


def command_line(module: str, overrides: Sequence[str]) -> str:
    """What was typed, for a report: pasted into a shell it does the same again, brackets and spaces too."""
    return shlex.join(["python", "-m", module, *overrides])


def one_line(error: Exception) -> str:
    """What an error says; of Hydra's and OmegaConf's only what a user can act on."""
    text = str(error) or type(error).__name__
    if not isinstance(error, settings_errors()):
        return text
    cause = error.__cause__ if hasattr(error.__cause__, "parent_node") else error
    parent, name = getattr(cause, "parent_node", None), getattr(cause, "full_key", None)
    known = sorted(str(key) for key in parent if key != "hydra") if isinstance(parent, Mapping) else []
    if name and known and name.split(".")[-1] not in known:
        within = f"`{name.rpartition('.')[0]}`" if "." in name else "this command"
        return f"there is no setting `{name}`{closest(name.split('.')[-1], known)}; {within} has {', '.join(known)}"
    for heading in ("\nConfig search path", "\n    full_key", "\nSet the environment"):
        text = text.split(heading)[0]
    return " ".join(text.split())


# -------------------------------------------------------------------------------------------------- folders


def claim(folder: str | os.PathLike[str], name: str, settings: Mapping[str, Any]) -> Path:
    """Keep the settings that a folder's contents are made with in folder/name, and return that path.

    Of several commands that start at the same time, those with equal settings go on together. ValueError where the
    folder belongs to other settings: results of two must not mix.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = to_json(settings, sort_keys=True) + "\n"
    if create_whole(path, text):
        return path
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or choose another `out`") from error
    differing = differences(found, json.loads(text))
    if differing:
        raise ValueError(
            f"{path} says that this folder was filled with other settings ({'; '.join(differing)}); "
            "choose another `out`"
        )
    return path


@contextmanager
def claimed(
    folder: str | os.PathLike[str], name: str, settings: Mapping[str, Any], used: Callable[[], bool]
) -> Iterator[Path]:
    """`claim` for as long as a command works in the folder.

    At the end a claim that came to nothing (`used()` is False: wrong settings, say) is withdrawn, unless another
    command that works in the folder rests on it too.
    """
    path = claim(folder, name, settings)
    file = open(path, "r+")  # noqa: SIM115  closed below; open for writing, because network file systems ask for it
    while lock(file, fcntl.LOCK_SH) and not os.fstat(file.fileno()).st_nlink:  # withdrawn between the two lines
        file.close()
        path = claim(folder, name, settings)
        file = open(path, "r+")  # noqa: SIM115
    with file:
        try:
            yield path
        finally:
            if not used() and lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, by the names of the settings, such as `policy.execute: 2 against 8`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            text
            for key in sorted(found.keys() | wanted.keys())
            for text in differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    if found == wanted or (found is None and wanted in ("", {}, [])):  # one that is added later, and says nothing here
        return []
    return [f"{name}: {to_json(found, indent=None)} against {to_json(wanted, indent=None)}"]


def versions(*packages: str) -> dict[str, str]:
    """Name -> installed version, `missing` for what is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
