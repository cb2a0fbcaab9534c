"""Where figures come from: which code, on what machine, from which checkpoint."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.launch.command import RunError, versions
from agent.launch.processes import available_cores

if TYPE_CHECKING:
    from agent.build import PolicyConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nextstate", "torch", "mujoco", "robosuite", "gymnasium", "numpy", "scipy")
GIT_S = 10.0  # seconds after which a report does without the commit


def provenance(device: object = None, precision: object = None) -> dict[str, Any]:
    """What a report says of its origin, as JSON takes it. Cheap, and never fails: what cannot be found is None.

    device: a torch.device or its name, precision: a torch.dtype or its name, of what was computed in this process or
    its workers; None where nothing was (a scripted policy).
    """
    torch = sys.modules.get("torch")  # not imported for this: a command that did without it has no threads of it
    return {
        **commit(),
        "device": None if device is None else str(device),
        "accelerator": _accelerator(str(device)),
        "precision": None if precision is None else str(precision).removeprefix("torch."),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": None if torch is None else torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
    }


def commit(root: Path = ROOT) -> dict[str, Any]:
    """`commit`, the full name of the one that this code is at, and `dirty`, whether tracked files differ from it.

    Both are None where git does not keep this code: an installed package is not of the repository around it.
    """
    kept = _git(root, "ls-files", "--error-unmatch", "agent/__init__.py")
    found = _git(root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") if kept else None
    if not found:
        return {"commit": None, "dirty": None}
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def cpu_name(listing: Path = Path("/proc/cpuinfo")) -> str | None:
    """The model's name as its maker gives it."""
    try:
        lines = listing.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or None


def checkpoint_identity(folder: str | os.PathLike[str]) -> dict[str, str]:
    """`sha256` of a checkpoint's manifest, which holds the sha256 of every file, and its folder's `name`.

    The sha256 alone is its identity: the same content under another path is the same checkpoint, and other content
    under the same path another. The name only tells a person which one it was. RunError where there is none.
    """
    folder = Path(folder)
    try:
        manifest = (folder / "manifest.json").read_bytes()
    except OSError as error:
        raise RunError(
            f"there is no checkpoint in {folder} ({error.strerror} for manifest.json). "
            "Give checkpoint=FOLDER, or make one with `make train`."
        ) from error
    return {"name": folder.resolve().name, "sha256": hashlib.sha256(manifest).hexdigest()}


def identity(policy: PolicyConfig) -> dict[str, str] | None:
    """Name and sha256 of a learned policy's checkpoint, or of a served one's where the server tells it; None for any
    other. RunError where there is none."""
    if policy.name == "server":
        from policies.remote.client import served_checkpoint

        return served_checkpoint(policy.address, policy.timeout_s)
    if policy.name == "lerobot":
        return folder_identity(policy.folder)
    return checkpoint_identity(policy.checkpoint) if policy.learned else None


def by_content(policy: PolicyConfig, known: Mapping[str, str] | None) -> dict[str, Any]:
    """A policy's settings, in which what `identity` knows of its files stands for the paths that lead to them."""
    return {**asdict(policy), "checkpoint": known["sha256"] if known else "", "folder": "", "python": None}


def folder_identity(folder: str | os.PathLike[str]) -> dict[str, str]:
    """As `checkpoint_identity`, of a folder without a manifest: `sha256` is of the names and contents of the files that
    make the policy. RunError where there are none."""
    folder, sums = Path(folder), []
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")):
            with open(path, "rb") as file:
                sums.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    except OSError as error:
        raise RunError(f"there is no policy in {folder} ({error.strerror})") from error
    if not sums:
        raise RunError(f"there is no policy in {folder} (it holds neither .json nor .safetensors)")
    return {"name": folder.resolve().name, "sha256": hashlib.sha256("".join(sums).encode()).hexdigest()}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None where it fails or is not there."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # asking must not write into the repository
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=GIT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()


def _accelerator(device: str) -> str | None:
    """The name of a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    try:
        return torch.cuda.get_device_name(device)
    except (RuntimeError, ValueError, AssertionError):  # what torch says where it has no such device
        return None
