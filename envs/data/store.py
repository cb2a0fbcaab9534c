"""Episodes on disk: one file each, whole or not there.

A file is an `.npz` (readable by `numpy.load`) with the arrays of `envs.types.Episode`, the rest of it as
JSON in the array `metadata`, and the sha256 of everything before it as the zip's comment. The same episode
makes the same bytes, so two data sets can be compared with `diff -r`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from envs.types import Episode

FORMAT = 1  # raised when the layout of a file changes
SUFFIX = ".npz"
DIGEST_CHARS = 64  # sha256 in hexadecimal
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold; a real clock would make the bytes differ


class EpisodeError(RuntimeError):
    """An episode cannot be read or written. The message names the file and what to do about it."""


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

    def write(self, episode: Episode, name: str) -> Path:
        """Keep the episode under this name, replacing an older one, and return its path.

        Raise EpisodeError where the disk is full or refuses; nothing that was there before is touched then.
        """
        path = self.path(name)
        data = to_bytes(episode)
        temporary = self.root / f".{name}.{os.getpid()}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(self.root)  # without it the new name itself could be lost in a power cut
        except OSError as error:
            _remove(temporary)
            if error.errno == errno.ENOSPC:
                raise EpisodeError(
                    f"the disk is full: episode {path} ({len(data) / 2**20:.1f} MiB) was not written. "
                    "What was written before is whole; free some space and run the same command again."
                ) from error
            raise EpisodeError(f"cannot write episode {path}: {error.strerror or error}") from error
        return path

    def read(self, name: str) -> Episode:
        """The episode of this name. Raise EpisodeError where the file is missing, damaged or of another format."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EpisodeError(f"cannot read episode {path}: {error.strerror or error}") from error
        return from_bytes(data, str(path))

    def split(self, every: int) -> tuple[list[str], list[str]]:
        """The names to train on, and those of every n-th seed to measure on: branches of one state stay together.

        Raise EpisodeError where a file is damaged.
        """
        seeds = {name: self._seed(name) for name in self.names()}
        kept = set(sorted(set(seeds.values()))[::every])
        return [n for n, seed in seeds.items() if seed not in kept], [n for n, seed in seeds.items() if seed in kept]

    def _seed(self, name: str) -> int:
        """Of the episode, from the metadata alone: a hundredth of the time that the whole takes."""
        try:
            with np.load(self.path(name), allow_pickle=False) as archive:
                return json.loads(archive["metadata"].tobytes())["seed"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return self.read(name).seed  # which says what is wrong with it

    def clean(self) -> int:
        """Remove what killed writers left behind and return how many files that were. Call it before writers start."""
        left = list(self.root.glob(".*.tmp"))
        for path in left:
            _remove(path)
        return len(left)


def to_bytes(episode: Episode) -> bytes:
    """The file of an episode. Equal episodes give equal bytes."""
    arrays = {name: getattr(episode, name) for name in Episode.array_names()}
    meta = {f.name: getattr(episode, f.name) for f in fields(Episode) if f.name not in arrays}
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True, ensure_ascii=False)
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


def from_bytes(data: bytes, where: str) -> Episode:
    """The episode of a file's bytes. `where` names the file in the EpisodeError of a damaged one."""
    body, digest = data[:-DIGEST_CHARS], data[-DIGEST_CHARS:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise EpisodeError(
            f"episode {where} is damaged (truncated or changed on disk: its sha256 does not match). "
            "Delete it and collect its seed again by running the same command."
        )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            meta = json.loads(archive["metadata"].tobytes())
            if meta.pop("format") != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            arrays = {name: archive[name] for name in Episode.array_names()}
        return Episode(**arrays, **{**meta, "subtask_names": tuple(meta["subtask_names"])})
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise EpisodeError(
            f"episode {where} is not one that this version reads: {error}. Delete it and collect its seed again."
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # it stays behind under a name that no reader looks at; the error that led here matters more
