"""What a LeRobot data set says of itself: `meta/info.json`, its tasks, and where each episode lies.

    v3.0  data/chunk-000/file-000.parquet           rows of one or several episodes
          videos/<key>/chunk-000/file-000.mp4       frames of one or several episodes, told apart by time
          meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    v2.1  data/chunk-000/episode_000000.parquet, videos/chunk-000/<key>/episode_000000.mp4
          meta/info.json, meta/tasks.jsonl, meta/episodes.jsonl, meta/episodes_stats.jsonl

After `lerobot/datasets/{utils,dataset_metadata}.py` and `lerobot/scripts/convert_dataset_v21_to_v30.py`. The number of
episodes in `info.json` is what counts: LeRobot writes it last, and so do we. What lies beyond it was being written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from envs.data.formats.tables import UNREADABLE, numbers, read_json, read_json_lines, read_table, texts
from envs.data.store import EpisodeError

V3, V2 = "v3.0", ("v2.0", "v2.1")  # v2.0 is v2.1 without statistics of episodes, which nothing here reads
INFO, TASKS, EPISODES, STATS = "meta/info.json", "meta/tasks.parquet", "meta/episodes", "meta/stats.json"
OWN = "nextstate"  # the column of `meta/episodes`, and the prefix of those in `data`, that only this project reads
OWN_META = "meta/nextstate.json"  # the spec, of which `info.json` cannot hold ranges, units and grippers
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"
EPISODES_PATH = f"{EPISODES}/{FILE}.parquet"
PICTURES = ("video", "image")
PLACE = ("chunk_index", "file_index")


@dataclass(frozen=True)
class Feature:
    """A column. shape: of one row; of pictures (h, w, 3) whatever order the data set keeps. names: of its dimensions,
    None where it says none. codec: of a video, where it says it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    codec: str | None = None


@dataclass(frozen=True)
class Info:
    """`meta/info.json`."""

    path: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    data_path: str
    video_path: str | None
    chunks_size: int
    robot: str

    @property
    def pictures(self) -> dict[str, Feature]:
        """The cameras, by key."""
        return {key: feature for key, feature in self.features.items() if feature.dtype in PICTURES}


@dataclass(frozen=True)
class Entry:
    """Where an episode lies. videos: by key, the file and the seconds at which it begins there. own: what this project
    kept of it, nothing where somebody else wrote it. tasks: their texts, as far as the episode itself tells them."""

    index: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]
    own: Mapping[str, Any]
    tasks: tuple[str, ...] = ()


def read_info(root: Path) -> Info:
    """`meta/info.json`, checked. EpisodeError names the file and what is wrong in it."""
    path = root / INFO
    raw = read_json(path)

    def field(name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = raw.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise EpisodeError(f"{path}: `{name}` must be {wanted}, got {value!r}")
        return value

    version = field("codebase_version", str)
    if not (version == V3 or version in V2):
        raise EpisodeError(f"{path}: `codebase_version` is {version}, and this reads {V3} and {' and '.join(V2)}")
    fps = field("fps", (int, float))
    if not (math.isfinite(fps) and fps > 0):
        raise EpisodeError(f"{path}: `fps` must be positive, got {fps}")
    features = {key: _feature(path, key, value) for key, value in field("features", dict).items()}
    counts = {name: field(name, int) for name in ("total_episodes", "total_frames")}
    for name, value in {**counts, "chunks_size": field("chunks_size", int, 1000)}.items():
        if value < (name == "chunks_size"):
            raise EpisodeError(f"{path}: `{name}` must not be {value}")
    video_path = raw.get("video_path")
    if any(feature.dtype == "video" for feature in features.values()):
        video_path = field("video_path", str)
    return Info(
        path, version, float(fps), features, counts["total_episodes"], counts["total_frames"], field("data_path", str),
        video_path, raw.get("chunks_size", 1000), str(raw.get("robot_type") or "lerobot"),
    )  # fmt: skip


def _feature(path: Path, key: str, raw: Any) -> Feature:
    if not isinstance(raw, dict) or not isinstance(raw.get("dtype"), str):
        raise EpisodeError(f"{path}: the feature `{key}` has no `dtype`")
    shape = raw.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise EpisodeError(f"{path}: the `shape` of the feature `{key}` must be a list of whole numbers, got {shape!r}")
    names = _flat_names(raw.get("names"))
    if raw["dtype"] not in PICTURES:
        return Feature(key, raw["dtype"], tuple(shape), names)
    info = raw.get("info") or raw.get("video_info") or {}
    info = info if isinstance(info, dict) else {}
    if len(shape) == 3 and (1 in (shape[0], shape[2]) or info.get("is_depth_map") or info.get("video.is_depth_map")):
        return Feature(key, "depth", tuple(shape), names)  # no picture in colours; nothing here reads it
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise EpisodeError(f"{path}: the `shape` of the camera `{key}` must be of height, width and 3, got {shape}")
    first = names is not None and names[0].startswith("channel") if shape[2] == 3 else True
    return Feature(key, raw["dtype"], tuple(shape[1:] + [3] if first else shape), names, info.get("video.codec"))


def _flat_names(names: Any) -> tuple[str, ...] | None:
    """Names stand as a list, or as lists in a mapping such as {"motors": [...]}."""
    if isinstance(names, dict):
        parts = [part for value in names.values() for part in (value if isinstance(value, list) else [value])]
        names = parts if all(isinstance(part, str) for part in parts) else list(names)
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def read_tasks(root: Path, info: Info) -> dict[int, str]:
    """The texts of the tasks, by their index."""
    if info.version != V3:
        path = root / "meta/tasks.jsonl"
        found = {}
        for line in read_json_lines(path):
            if type(line.get("task_index")) is not int or not isinstance(line.get("task"), str):
                raise EpisodeError(f"{path}: a line must hold `task_index` and `task`, got {line}")
            found[line["task_index"]] = line["task"]
        return found
    path = root / TASKS
    table = read_table(path)
    named = [name for name in table.column_names if name != "task_index"]
    index = numbers(table, "task_index", (), np.int64, path)
    return dict(zip(index.tolist(), texts(table, "task" if "task" in named or not named else named[0], path),
                    strict=True))  # fmt: skip


def read_entries(root: Path, info: Info) -> list[Entry]:
    """Where the episodes lie that `info` counts, in order. EpisodeError where the files of `meta` contradict it."""
    found = _entries_v3(root, info) if info.version == V3 else entries_v2(root, info)
    by_index = {entry.index: entry for entry in found}
    where = root / (EPISODES if info.version == V3 else "meta/episodes.jsonl")
    if missing := [i for i in range(info.episodes) if i not in by_index]:
        raise EpisodeError(
            f"{info.path}: `total_episodes` is {info.episodes}, but {where} knows no episode {missing[0]}; "
            "`python -m agent.repair` saves what can be saved"
        )
    entries = [by_index[i] for i in range(info.episodes)]
    if (frames := sum(entry.length for entry in entries)) != info.frames:
        raise EpisodeError(
            f"{info.path}: `total_frames` is {info.frames}, but the episodes in {where} have {frames}; "
            "`python -m agent.repair` saves what can be saved"
        )
    return entries


def _entries_v3(root: Path, info: Info) -> list[Entry]:
    files = episode_files(root)
    if not files:
        raise EpisodeError(f"{root / EPISODES} holds no parquet file")
    return [entry for path in files for entry in entries_in(path, root, info)]


def episode_files(root: Path) -> list[Path]:
    """The files of `meta/episodes` in their order."""
    return sorted(path for path in (root / EPISODES).glob("*/*.parquet") if not path.name.startswith("."))


def entries_in(path: Path, root: Path, info: Info) -> list[Entry]:
    """Where the episodes lie that one file of `meta/episodes` tells of."""
    videos = [key for key, feature in info.features.items() if feature.dtype == "video"]
    things = ("data", *(f"videos/{key}" for key in videos))
    table = read_table(path, _columns(path))
    at = {name: numbers(table, name, (), np.int64, path).tolist() for name in (
        "episode_index", "length", *(f"{of}/{part}" for of in things for part in PLACE))}  # fmt: skip
    starts = {key: numbers(table, f"videos/{key}/from_timestamp", (), np.float64, path) for key in videos}
    own = texts(table, OWN, path) if OWN in table.column_names else ["{}"] * len(table)
    told = table.column("tasks").to_pylist() if "tasks" in table.column_names else [None] * len(table)
    found = []
    for row in range(len(table)):
        place = {of: {part: at[f"{of}/{part}"][row] for part in PLACE} for of in things}
        files = {k: inside(root, info, "video_path", {**place[f"videos/{k}"], "video_key": k}) for k in videos}
        found.append(Entry(
            at["episode_index"][row], at["length"][row], inside(root, info, "data_path", place["data"]),
            {key: (files[key], float(starts[key][row])) for key in videos}, _own(own[row], path),
            tuple(map(str, told[row] or ())),
        ))  # fmt: skip
    return found


def _columns(path: Path) -> list[str]:
    """Those of `meta/episodes` but the statistics, which are most of them."""
    try:
        return [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
    except UNREADABLE as error:
        raise EpisodeError(f"{path} is damaged or no parquet file ({str(error).splitlines()[0]})") from error


def _own(text: str, path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EpisodeError(f"{path}: column `{OWN}` is no JSON ({error})") from error


def entries_v2(root: Path, info: Info) -> list[Entry]:
    """Where the episodes lie of a data set v2.1."""
    path = root / "meta/episodes.jsonl"
    videos = [key for key, feature in info.features.items() if feature.dtype == "video"]
    found = []
    for line in read_json_lines(path):
        index, length = line.get("episode_index"), line.get("length")
        if type(index) is not int or type(length) is not int:
            raise EpisodeError(f"{path}: a line must hold `episode_index` and `length`, got {line}")
        at = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        places = {key: (inside(root, info, "video_path", {**at, "video_key": key}), 0.0) for key in videos}
        tasks = line.get("tasks")
        told = tuple(map(str, tasks)) if isinstance(tasks, list) else ()
        found.append(Entry(index, length, inside(root, info, "data_path", at), places, {}, told))
    return found


def inside(root: Path, info: Info, name: str, values: Mapping[str, Any]) -> Path:
    """The file that a pattern of `info.json` names; EpisodeError where it is none or leaves the data set."""
    pattern = getattr(info, name)
    try:
        path = root / pattern.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise EpisodeError(f"{info.path}: `{name}` is {pattern!r}, which names no file ({error!r})") from error
    if ".." in path.relative_to(root).parts if path.is_relative_to(root) else True:
        raise EpisodeError(f"{info.path}: `{name}` is {pattern!r}, which leaves the data set")
    return path

