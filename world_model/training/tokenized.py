"""Tokenized episodes on disk: what training reads of them, without a picture.

    manifest.json       what the folder was made from: settings, the image tokenizer, the episodes' digests; how many
                        episodes each side of the split has
    train-00000/ ...    a shard, whole or not there: some episodes end to end, as arrays that numpy maps into memory
      ids.npy           (K, R, ids) image ids of all cameras in each of K copies
      place.npy noise.npy  (E, K, 4) as `Change.place` and (E, K, P) shares of the range of a state: the change of each
                        copy
      state.npy ...     every array of `envs.types.Episode` but the pictures and the simulator's states
      poses.npy         (n, 8), those that the episodes tell, one after the other
      shard.json        the rest of the episodes, and the sha256 of each file
    held_out-00000/ ... the same of the episodes to measure on, in one copy that was not changed
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.data.files import sync_folder, temporary_name, to_json, write_json
from envs.data.fingerprint import Folder, differences, digest
from envs.data.store import UNREADABLE, EpisodeError
from envs.types import POSE, Episode, Spec

FORMAT = 2  # 1 knew no scale
MANIFEST, SHARD, IDS = "manifest.json", "shard.json", "ids.npy"
OWN = "sha256_of_the_rest"  # of a JSON file, within it
SIDES = ("train", "held_out")
ARRAYS = tuple(name for name in Episode.array_names() if name != "sim_state")
PLAIN = tuple(
    f.name for f in fields(Episode) if f.name not in (*Episode.array_names(), "images", "poses", "views", "spec")
)
AGAIN = "run the same `python -m world_model.tokenize` again"


@dataclass(frozen=True)
class Tokenized:
    """One episode of T control steps in K copies. ids: (K, T + 1, ids) unsigned. place: (K, 4) f32, as
    `Change.place`. noise: (K, P) f32, shares of each state's range."""

    episode: Episode
    ids: np.ndarray
    place: np.ndarray
    noise: np.ndarray


def without_pictures(episode: Episode) -> Episode:
    """Its pictures, and those of its views, are black, of the size that they had, and take no memory."""
    sizes = ({name: view.shape[1:3] for name, view in each.items()} for each in (episode.images, episode.views))
    images, views = (_black(len(episode) + 1, each) for each in sizes)
    return replace(episode, images=images, views=views)


def _black(count: int, sizes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    return {name: np.broadcast_to(np.uint8(0), (count, *size, 3)) for name, size in sizes.items()}


# -------------------------------------------------------------------------------------------------- writing


def shard_path(root: Path, side: str, number: int) -> Path:
    return root / f"{side}-{number:05d}"


def write_manifest(root: Path, made_from: Mapping[str, Any], episodes: Mapping[str, int]) -> None:
    """Begin a folder. episodes: how many each side will have."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / MANIFEST, _signed({"format": FORMAT, "made_from": made_from, "episodes": episodes}))


def write_shard(path: Path, episodes: Sequence[Tokenized]) -> None:
    """Write a shard, whole or not at all. OSError that says what to do where the disk is full or refuses."""
    specs = list(dict.fromkeys(to_json(e.episode.spec.to_dict(), None) for e in episodes))
    about = [
        {
            "steps": len(e.episode), "spec": specs.index(to_json(e.episode.spec.to_dict(), None)),
            "poses": list(e.episode.poses), "views": {n: view.shape[1:3] for n, view in e.episode.views.items()},
            **{name: getattr(e.episode, name) for name in PLAIN},
        }
        for e in episodes
    ]  # fmt: skip
    none = np.zeros((0, len(POSE)), np.float32)
    arrays = {name: [getattr(e.episode, name) for e in episodes] for name in ARRAYS}
    arrays |= {name: [getattr(e, name)[None] for e in episodes] for name in ("place", "noise")}
    arrays["poses"] = [none, *(pose for e in episodes for pose in e.episode.poses.values())]
    beside = temporary_name(path)
    try:
        beside.mkdir(parents=True)
        sha256 = {f"{name}.npy": _write(beside / f"{name}.npy", parts) for name, parts in arrays.items()}
        sha256[IDS] = _write(beside / IDS, [e.ids for e in episodes], copies=True)
        rows = sum(len(e.episode) + 1 for e in episodes)
        content = {"rows": rows, "episodes": about, "specs": [json.loads(spec) for spec in specs], "sha256": sha256}
        _write_synced(beside / SHARD, to_json(_signed(content)).encode())
        os.rename(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. The shards before it are whole; free some space, or see "
            "that nobody else writes here, and run the same command again"
        ) from error


def _write(path: Path, parts: Sequence[np.ndarray], copies: bool = False) -> str:
    """Parts end to end along their first axis, or along their second, after that of copies, as one `.npy`: its sha256.
    They are written one by one, so that they are never held twice."""
    axis = int(copies)
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    header = io.BytesIO()
    about = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, about)
    sha256 = hashlib.sha256(header.getvalue())
    with open(path, "wb") as file:
        file.write(header.getvalue())
        for turn in range(shape[0]) if copies else (slice(None),):
            for part in parts:
                data = np.ascontiguousarray(part[turn]).tobytes()
                sha256.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def _signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """With its own sha256, because what it says of the others must not be damaged unseen."""
    plain = json.loads(to_json(content))
    return {**plain, OWN: _sha256(plain)}


def _verified(content: dict[str, Any]) -> dict[str, Any]:
    """Itself. ValueError where it is not what was signed."""
    if content.get(OWN) != _sha256({name: value for name, value in content.items() if name != OWN}):
        raise ValueError("its sha256 does not match")
    return content


def _sha256(plain: Any) -> str:
    """Of what JSON reads as itself."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# -------------------------------------------------------------------------------------------------- reading


def is_tokenized(path: str | os.PathLike[str]) -> bool:
    return (Path(path) / MANIFEST).is_file() or any(Path(path).glob(f"{SIDES[0]}-*/{SHARD}"))


def shards(root: Path, side: str) -> list[Path]:
    """The whole shards of a side, in order. EpisodeError where one between them is missing."""
    found = sorted(path for path in root.glob(f"{side}-*") if path.is_dir())
    for number, path in enumerate(found):
        if path != shard_path(root, side, number):
            raise EpisodeError(f"{shard_path(root, side, number)} is missing: {AGAIN}")
    return found


def read_about(shard: Path) -> dict[str, Any]:
    """A shard's JSON. EpisodeError where it is damaged."""
    try:
        return _verified(json.loads((shard / SHARD).read_bytes()))
    except UNREADABLE as error:
        raise EpisodeError(f"{shard / SHARD} is damaged ({error}): remove {shard} and {AGAIN}") from error


@dataclass(frozen=True)
class TokenizedSource:
    """A finished folder of tokenized episodes, in the place of a `Source`. role: the setting that names it. made_from:
    the fingerprint. paths: of the shards of each side. rows: of each of them. train, held_out: numbers of the
    episodes. sha256: of the whole content."""

    role: str
    root: Path
    made_from: Mapping[str, Any]
    paths: Mapping[str, tuple[Path, ...]]
    rows: Mapping[str, tuple[int, ...]]
    train: range
    held_out: range
    sha256: str

    @classmethod
    def open(cls, role: str, root: str | os.PathLike[str], checked: slice = slice(None)) -> TokenizedSource:
        """EpisodeError for a folder that is damaged, or not finished. checked: the shards of each side that are read
        to the end to find damage."""
        root = Path(root)
        manifest = read_manifest(root)
        paths = {side: tuple(shards(root, side)) for side in SIDES}
        rows: dict[str, tuple[int, ...]] = dict.fromkeys(SIDES, ())
        count, content = dict.fromkeys(SIDES, 0), [digest(manifest["made_from"])]
        for side in SIDES:
            read_whole = set(paths[side][checked])
            for path in tqdm(paths[side], f"checking {root}", leave=False):
                about = read_about(path)
                if path in read_whole:
                    _check(path, about["sha256"])
                rows[side] += (about["rows"],)
                count[side] += len(about["episodes"])
                content.append(about[OWN])
            if count[side] != manifest["episodes"][side]:
                raise EpisodeError(
                    f"{root} is not finished, {count[side]} of {manifest['episodes'][side]} {side} episodes are "
                    f"tokenized: {AGAIN}, it goes on where it stopped"
                )
        numbers, sha256 = {side: range(n) for side, n in count.items()}, _sha256(content)
        return cls(role, root, manifest["made_from"], paths, rows, **numbers, sha256=sha256)

    @property
    def copies(self) -> int:
        """K."""
        return self.made_from["settings"]["copies"]

    @property
    def translations(self) -> tuple[str, ...]:
        """As `Change.translations`."""
        return tuple(self.made_from["settings"].get("augment", {}).get("translations", ()))

    def each(self, held_out: bool = False) -> Iterator[Episode]:
        """The episodes of one side, one after the other, with black pictures in place of theirs."""
        for path in self.paths[SIDES[held_out]]:
            yield from read_episodes(path)

    def ids(self, held_out: bool) -> tuple[Path, ...]:
        """The files of image ids of one side, (K, rows of the shard, ids) each."""
        return tuple(path / IDS for path in self.paths[SIDES[held_out]])

    def changes(self, held_out: bool) -> Iterator[dict[str, np.ndarray]]:
        """Of each shard of one side: `episode` (rows,) i32, a row's number within the shard, `place`, `noise`."""
        for path in self.paths[SIDES[held_out]]:
            rows = [each["steps"] + 1 for each in read_about(path)["episodes"]]
            arrays = {name: np.load(path / f"{name}.npy", allow_pickle=False) for name in ("place", "noise")}
            yield {"episode": np.repeat(np.arange(len(rows), dtype=np.int32), rows), **arrays}

    def fingerprint(self) -> Folder:
        """By one digest: a list of all episodes would grow with them, in every checkpoint too."""
        return Folder(self.role, str(self.root), {"all of it": self.sha256})

    def require(self, augment: Mapping[str, Any], held_out: int, tokenizer: str) -> None:
        """ValueError where a training has other settings or another image tokenizer (its `content`)."""
        settings = self.made_from["settings"]
        old = {"settings": {name: settings[name] for name in ("augment", "held_out")},
               "files": self.made_from["files"], "folders": []}  # fmt: skip
        new = {"settings": json.loads(to_json({"augment": augment, "held_out": held_out})),
               "files": {"tokenizer": tokenizer}, "folders": []}  # fmt: skip
        if changed := differences(old, new):
            raise ValueError(
                f"{self.root} was tokenized otherwise: {'; '.join(changed)}. Train with the settings and the tokenizer "
                "that it was made with, or run `python -m world_model.tokenize` into another `out`"
            )


def read_manifest(root: Path) -> dict[str, Any]:
    """EpisodeError where it is missing, damaged, or of another version."""
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"it is of format {manifest['format']}, and this version reads {FORMAT}")
        return _verified(manifest)
    except UNREADABLE as error:
        raise EpisodeError(f"{path} cannot be read ({error}): remove {root} and {AGAIN}") from error


def _check(shard: Path, sha256: Mapping[str, str]) -> None:
    """EpisodeError where a file of a shard is missing or damaged."""
    for name, expected in sha256.items():
        try:
            with open(shard / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
            raise EpisodeError(f"{shard / name} {why}: remove {shard} and {AGAIN}") from error
        if found != expected:
            raise EpisodeError(f"{shard / name} is damaged (its sha256 does not match): remove {shard} and {AGAIN}")


def read_episodes(shard: Path) -> Iterator[Episode]:
    """The episodes of a shard. Their pictures, and those of their views, are black, of the right size, and take no
    memory. EpisodeError where the files do not fit each other."""
    about = read_about(shard)
    try:
        specs = [Spec.from_dict(raw) for raw in about["specs"]]
        arrays = {name: np.load(shard / f"{name}.npy", allow_pickle=False) for name in (*ARRAYS, "poses")}
        at = dict.fromkeys(arrays, 0)

        def take(name: str, count: int) -> np.ndarray:
            at[name] += count
            return arrays[name][at[name] - count : at[name]].copy()

        for raw in about["episodes"]:
            steps, spec = raw["steps"], specs[raw["spec"]]
            own = {name: take(name, steps + (len(arrays[name]) == about["rows"])) for name in ARRAYS}
            cameras = {camera.name: (camera.height, camera.width) for camera in spec.cameras}
            images, views = (_black(steps + 1, sizes) for sizes in (cameras, raw["views"]))
            poses = {name: take("poses", steps + 1) for name in raw["poses"]}
            plain = {name: raw[name] for name in PLAIN} | {"subtask_names": tuple(raw["subtask_names"])}
            yield Episode(images=images, views=views, poses=poses, spec=spec, **own, **plain)
    except UNREADABLE as error:
        raise EpisodeError(f"{shard} does not fit together ({error}): remove it and {AGAIN}") from error
