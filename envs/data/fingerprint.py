"""What a run is made from: its settings, and the content of the files and episodes it reads.

A path says where something lies and not what it is: the checkpoint under it may have been trained again, the folder may
have grown. So files and episodes are told by their sha256, and a run that is taken up again compares the fingerprint
that it kept with the one of now. Where folders lie is kept too, to name them, but is not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.data.files import to_json

SHOWN = 3  # names that a message lists before it only counts


@dataclass(frozen=True)
class Folder:
    """Episodes that a run reads. role: the setting that names the folder. episodes: name -> sha256."""

    role: str
    path: str
    episodes: Mapping[str, str]


def fingerprint(settings: Mapping[str, Any], files: Mapping[str, str], folders: Sequence[Folder] = ()) -> dict:
    """The fingerprint as JSON takes it. settings: by name, without paths. files: the setting that names it -> sha256
    of what it is. folders: in the order in which they are read."""
    return json.loads(to_json({
        "settings": settings, "files": files,
        "folders": [{"role": f.role, "path": f.path, "episodes": f.episodes} for f in folders],
    }))  # fmt: skip


def digest(of: Mapping[str, Any]) -> str:
    """sha256 of a fingerprint, the same for the same content under other paths."""
    folders = [{name: value for name, value in folder.items() if name != "path"} for folder in of["folders"]]
    return hashlib.sha256(to_json({**of, "folders": folders}, sort_keys=True).encode()).hexdigest()


def require_same(old: Mapping[str, Any] | None, new: Mapping[str, Any], place: str) -> None:
    """ValueError that says what has changed since `place` was made; None is what a run of another version kept."""
    changed = ["it was made by another version"] if old is None else differences(old, new)
    if changed:
        raise ValueError(
            f"{place} was made from something else: {'; '.join(changed)}. Choose another `out`, or remove it to begin "
            "anew"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed from one fingerprint to another, in words; empty where nothing has."""
    found = _settings(old["settings"], new["settings"])
    for name in sorted(old["files"].keys() | new["files"].keys()):
        if old["files"].get(name) != new["files"].get(name):
            found.append(f"what `{name}` names is not what it was")
    for role in _roles(old, new):
        ours, theirs = ([f for f in each["folders"] if f["role"] == role] for each in (old, new))
        if len(ours) != len(theirs):
            found.append(f"`{role}` had {_paths(ours)} and has {_paths(theirs)}")
            continue
        for before, after in zip(ours, theirs, strict=True):
            if changes := _episodes(before["episodes"], after["episodes"]):
                found.append(f"{after['path']}: {', '.join(changes)}")
    return found


def _roles(*fingerprints: Mapping[str, Any]) -> list[str]:
    """In the order in which they are read."""
    return list(dict.fromkeys(folder["role"] for each in fingerprints for folder in each["folders"]))


def _paths(folders: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(folder["path"] for folder in folders) or "no folder"


def _settings(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = ((key, f"{name}.{key}" if name else key) for key in sorted(old.keys() | new.keys()))
        return [text for key, full in inner for text in _settings(old.get(key), new.get(key), full)]
    return [] if old == new else [f"`{name}` was {_shown(old)} and is {_shown(new)}"]


def _shown(value: Any) -> str:
    return to_json(value, indent=None)


def _episodes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    changes = {
        "added": sorted(new.keys() - old.keys()), "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }  # fmt: skip
    return [f"{_counted(names)} {what}" for what, names in changes.items() if names]


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} episode{'s' if len(names) > 1 else ''} ({shown})"
