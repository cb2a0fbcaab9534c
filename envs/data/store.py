"""Episodes on disk: one file each, whole or not there.

A file is an `.npz` (readable by `numpy.load`) with the arrays of `envs.types.Episode`, its images as `images/<camera>`,
poses and views alike, the rest of it as JSON in the array `metadata`, and the sha256 of everything before it as the
zip's comment. The same episode makes the same bytes, so two data sets can be compared with `diff -r`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.files import remove_leftovers, write_whole
from envs.data.split import split_by_seed
from envs.types import Episode, Spec

FORMAT = 3  # raised when the layout of a file changes; format 2 knew neither poses nor views nor simulator states
READABLE = (2, FORMAT)
SUFFIX = ".npz"
NAMED = ("images", "poses", "views")  # the fields that are arrays by name, each kept as field/name
DIGEST_CHARS = 64  # sha256 in hexadecimal
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold; a real clock would make the bytes differ
# what a file that is no episode of ours can make numpy, zipfile, zlib and json raise
UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class EpisodeError(RuntimeError):
    """An episode cannot be read or written. The message names the file and what to do about it."""


@dataclass(frozen=True)
class Outline:
    """What an episode is, without its pictures. success: at its end."""

    seed: int
    env_id: str
    split: str
    steps: int
    success: bool


class EpisodeStore:
    """A folder of episodes, addressed by name.

    Several processes may write different names at once. A kill at any moment loses at most the episode
    being written: what lies under its final name is whole.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """Where the episode of this name lies. Raise ValueError for a name that is not a plain file name."""
        if not name or name.startswith(".") or Path(name).name != name:
            raise ValueError(f"episode name {name!r} must be a plain file name that does not start with a dot")
        return self.root / f"{name}{SUFFIX}"

    def names(self) -> list[str]:
        """The names of all whole episodes, sorted."""
        return sorted(p.stem for p in self.root.glob(f"*{SUFFIX}") if not p.name.startswith("."))

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(name) for name in self.names())

    def require(self) -> EpisodeStore:
        """Itself. Raise EpisodeError for a folder that is missing or holds no episode."""
        if not len(self):
            what = "holds no episodes" if self.root.is_dir() else "does not exist"
            raise EpisodeError(f"the data folder {self.root} {what}: check its name, or run `python -m agent.collect`")
        return self

    def write(self, episode: Episode, name: str) -> Path:
        """Keep the episode under this name, replacing an older one, and return its path.

        Raise EpisodeError where the disk is full or refuses; nothing that was there before is touched then.
        """
        return self._write_bytes(to_bytes(episode), name)

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Keep episodes that another process, perhaps on another machine, made into files: name -> `to_bytes` of it.

        Errors as of `write`.
        """
        for name, data in files.items():
            self._write_bytes(data, name)

    def _write_bytes(self, data: bytes, name: str) -> Path:
        path = self.path(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise EpisodeError(
                    f"the disk is full: episode {path} ({len(data) / 2**20:.1f} MiB) was not written. "
                    "What was written before is whole; free some space and run the same command again."
                ) from error
            raise EpisodeError(f"cannot write episode {path}: {error.strerror or error}") from error
        return path

    def read(self, name: str, states: bool = True) -> Episode:
        """The episode of this name. Raise EpisodeError where the file is missing, damaged or of another format.

        states: with the simulator's states, which may be larger than its pictures and which no training reads.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EpisodeError(f"cannot read episode {path}: {error.strerror or error}") from error
        return from_bytes(data, str(path), states)

    def split(self, every: int) -> tuple[list[str], list[str]]:
        """The names to train on, and those of about every n-th seed to measure on: branches of one state stay together.

        A hash of the seed alone decides, so an episode stays on its side when others are added. Raise EpisodeError
        where a file is damaged.
        """
        return split_by_seed({name: self.outline(name).seed for name in self.names()}, every)

    def digests(self) -> dict[str, str]:
        """Name -> sha256 of each episode, as its file says: what the folder holds, at the cost of a glance."""
        found = {}
        for name in self.names():
            with open(self.path(name), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - DIGEST_CHARS))
                found[name] = file.read().decode("ascii", "replace")
        return found

    def outline(self, name: str) -> Outline:
        """What an episode is, without its pictures: a hundredth of the time that the whole takes. EpisodeError as in
        `read`."""
        try:
            with np.load(self.path(name), allow_pickle=False) as archive:
                meta, success = json.loads(archive["metadata"].tobytes()), archive["success"]
                return Outline(int(meta["seed"]), meta["env_id"], meta["split"], len(success) - 1, bool(success[-1]))
        except UNREADABLE:
            whole = self.read(name)  # which says what is wrong with it
            return Outline(whole.seed, whole.env_id, whole.split, len(whole), bool(whole.success[-1]))

    def clean(self) -> int:
        """Remove what killed writers left behind and return how many files that were."""
        return remove_leftovers(self.root)


def to_bytes(episode: Episode) -> bytes:
    """The file of an episode. Equal episodes give equal bytes. ValueError names a field that JSON cannot hold."""
    arrays = {name: getattr(episode, name) for name in Episode.array_names()}
    arrays |= {f"{field}/{name}": array for field in NAMED for name, array in getattr(episode, field).items()}
    other = [f.name for f in fields(Episode) if f.name not in (*Episode.array_names(), *NAMED, "spec")]
    meta = {name: getattr(episode, name) for name in other} | {"spec": episode.spec.to_dict()}
    for name, value in meta.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"episode field `{name}` cannot be kept as JSON ({error}): {value!r}") from error
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    arrays["metadata"] = np.frombuffer(text.encode(), dtype=np.uint8)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        archive.comment = b"0" * DIGEST_CHARS  # room for the digest; its length is part of what is hashed
    body = buffer.getvalue()[:-DIGEST_CHARS]
    return body + hashlib.sha256(body).hexdigest().encode()


def from_bytes(data: bytes, where: str, states: bool = True) -> Episode:
    """The episode of a file's bytes. `where` names the file in the EpisodeError of a damaged one. states: read the
    simulator's states too."""
    body, digest = data[:-DIGEST_CHARS], data[-DIGEST_CHARS:]
    if not body or hashlib.sha256(body).hexdigest().encode() != digest:
        raise EpisodeError(
            f"episode {where} is damaged (truncated or changed on disk: its sha256 does not match). "
            "Delete it and collect its seed again by running the same command."
        )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            meta = json.loads(archive["metadata"].tobytes())
            written = meta.pop("format")
            if written not in READABLE:
                raise ValueError(f"it is of format {written}, and not of format {' or '.join(map(str, READABLE))}")
            found = set(archive.files) - {"metadata"} - (set() if states else {"sim_state"})
            arrays = {name: archive[name] for name in found if "/" not in name}
            spec = Spec.from_dict(meta["spec"])
            named = {field: {} for field in NAMED}
            for name in sorted(found):
                field, slash, key = name.partition("/")
                if slash:
                    named[field][key] = archive[name]
            named["images"] = {camera.name: named["images"][camera.name] for camera in spec.cameras}  # in its order
        rest: dict[str, Any] = {**meta, "spec": spec, "subtask_names": tuple(meta["subtask_names"])}
        return Episode(**named, **arrays, **rest)
    except UNREADABLE as error:
        raise EpisodeError(
            f"episode {where} is not one that this version reads: {error}. Delete it and collect its seed again."
        ) from error
