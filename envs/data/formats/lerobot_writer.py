"""Episodes as a LeRobot data set v3.0, one file of rows, one of metadata and one video a camera for each episode.

An episode is whole when `meta/info.json` counts it, and that is written last, so that a kill at any moment leaves every
finished episode readable: LeRobot reads all files of `data` and `meta/episodes` that it finds, and what lies beyond the
count is written over when the same command runs again. LeRobot would put several episodes into one file, which its own
writer leaves unreadable when it is killed.

T control steps have T + 1 observations, so they become T + 1 rows, and the last of them repeats the last action.
What LeRobot has no name for stands in columns `nextstate.*`, which its policies do not read, and as JSON in the column
`nextstate` of `meta/episodes`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa

from envs.data.files import lock, remove_leftovers, write_json, write_whole
from envs.data.formats import lerobot_layout as layout
from envs.data.formats import statistics, video
from envs.data.formats.lerobot import ACTION, CAMERAS, DONE, KEPT, REWARD, STATE, SUCCESS, LeRobotFolder
from envs.data.formats.lerobot_layout import OWN
from envs.data.formats.tables import read_json, read_table, vectors, with_index, write_table
from envs.data.store import EpisodeError
from envs.types import Episode, Spec

Images = Literal["video", "png"]
CHUNKS_SIZE = 1000  # files in a folder
PICTURE_NAMES = ["height", "width", "channels"]
COUNTED = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
           "task_index": "int64"}  # fmt: skip
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LOCK = "meta/.writing"


@dataclass(frozen=True)
class Written:
    """What is there already. tasks: text -> index. features: as in `info.json`. stats: of all episodes together."""

    names: tuple[str, ...] = ()
    frames: int = 0
    tasks: Mapping[str, int] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, statistics.Stats] = field(default_factory=dict)
    spec: Spec | None = None
    fps: float = 0.0
    robot: str = OWN

    @classmethod
    def in_folder(cls, root: Path) -> Written:
        """EpisodeError where somebody else's data set is there, or one that is damaged."""
        if not (root / layout.INFO).is_file():
            return cls()
        found = LeRobotFolder(root)
        if not (root / layout.OWN_META).is_file() or found.info.version != layout.V3:
            raise EpisodeError(f"{root} is a LeRobot data set of somebody else: choose another `out`")
        names = tuple(found.names())
        return cls(
            names, found.info.frames, {text: i for i, text in found.tasks.items()},
            dict(read_json(root / layout.INFO)["features"]), stats_of_episodes(root, len(names)), found.spec,
            found.info.fps,
        )  # fmt: skip


class LeRobotWriter:
    """Adds episodes to a LeRobot data set that this project wrote, or begins one.

    images: frames as `video` (lossy) or as `png` in the rows. crf: of the video, 0 (best) to 51. Use it within
    `with writer.claimed():`, which keeps other processes away.
    """

    def __init__(self, root: Path, images: Images = "video", crf: int = 18) -> None:
        self.root, self.images, self.crf = root, images, crf
        self._written = Written()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """For as long as episodes are written. EpisodeError where another process writes here."""
        path = self.root / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            if not lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                raise EpisodeError(f"another command is writing to {self.root}: wait for it, or choose another `out`")
            for folder in {left.parent for left in self.root.rglob(".*.tmp")}:
                remove_leftovers(folder)
            self._written = Written.in_folder(self.root)
            yield

    def names(self) -> tuple[str, ...]:
        """Of the episodes that are finished."""
        return self._written.names

    def write(self, episode: Episode, name: str) -> None:
        """Add an episode. ValueError where it is of another robot than those that are there, or cannot be kept."""
        at = self._written
        if at.spec:
            at.spec.require(episode.spec, f"the episodes in {self.root}", f"episode {name}")
        columns, pictures = columns_of(episode), {**episode.images, **episode.views}
        features = features_of(columns, pictures, episode.spec, self.images)
        if at.features:
            _require_same(features, at.features, f"episode {name}", f"the data set {self.root}")
        tasks = {**at.tasks, episode.instruction: at.tasks.get(episode.instruction, len(at.tasks))}
        index, rows, place = len(at.names), len(episode) + 1, place_of(len(at.names))
        counted = {
            "timestamp": (np.arange(rows) / episode.spec.control_hz).astype(np.float32),
            "frame_index": np.arange(rows), "episode_index": np.full(rows, index), "index": at.frames + np.arange(rows),
            "task_index": np.full(rows, tasks[episode.instruction]),
        }  # fmt: skip
        stats = {key: statistics.of_numbers(values) for key, values in {**columns, **counted}.items()}
        stats |= {CAMERAS + camera: statistics.of_pictures(frames) for camera, frames in pictures.items()}

        files = {}  # in this order: whatever is missing after a kill, nothing that is counted rests on it
        if self.images == "video":
            for camera, frames in pictures.items():
                path = layout.VIDEO_PATH.format(video_key=CAMERAS + camera, **place)
                files[path] = self._write_file(path, video.encode(frames, episode.spec.control_hz, self.crf))
        arrays = {key: vectors(values) for key, values in columns.items()}
        if self.images == "png":
            arrays |= {CAMERAS + camera: _as_png(frames) for camera, frames in pictures.items()}
        arrays |= {key: pa.array(values) for key, values in counted.items()}
        table = pa.table({key: arrays[key] for key in features if key in arrays})  # LeRobot wants this very order
        path = layout.DATA_PATH.format(**place)
        files[path] = _sum(write_table(self.root / path, table))
        write_table(self.root / layout.EPISODES_PATH.format(**place), self._row(episode, name, files, stats))
        self._written = Written(
            (*at.names, name), at.frames + rows, tasks, features,
            statistics.together([at.stats, stats]) if at.stats else stats, episode.spec, episode.spec.control_hz,
        )  # fmt: skip
        write_meta(self.root, self._written, at.tasks)

    def _row(
        self, episode: Episode, name: str, files: Mapping[str, str], stats: Mapping[str, statistics.Stats]
    ) -> pa.Table:
        """The row of `meta/episodes`."""
        rows, frames, place = len(episode) + 1, self._written.frames, place_of(len(self._written.names))
        videos = {}
        if self.images == "video":
            length = rows / episode.spec.control_hz
            videos = {CAMERAS + camera: {**place, "from_timestamp": 0.0, "to_timestamp": length}
                      for camera in (*episode.images, *episode.views)}  # fmt: skip
        own = {name: getattr(episode, name) for name in KEPT}
        own |= {"name": name, "success_at_reset": bool(episode.success[0]), "poses": list(episode.poses),
                "files": dict(files)}  # fmt: skip
        return row_of(len(self._written.names), frames, rows, [episode.instruction], place, videos, stats, own)

    def _write_file(self, relative: str, content: bytes) -> str:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        return _sum(content)


def columns_of(episode: Episode) -> dict[str, np.ndarray]:
    """The numbers of an episode by the names of their columns, (T + 1,) or (T + 1, n) each."""
    rows = len(episode) + 1
    last = episode.action[-1:] if len(episode) else episode.spec.rest[None]

    def steps(values: np.ndarray, end: Any) -> np.ndarray:
        """(T, ...) -> (T + 1, ...), with what stands in the row of the last observation."""
        return np.concatenate([values, np.asarray(end, values.dtype).reshape(1, *values.shape[1:])])

    columns = {} if not episode.spec.state else {STATE: episode.state}
    columns |= {
        ACTION: steps(episode.action, last), REWARD: steps(episode.reward, 0),
        SUCCESS: np.append(episode.success[1:], episode.success[-1]), DONE: np.arange(rows) == rows - 1,
        f"{OWN}.progress": episode.progress, f"{OWN}.held": episode.held.astype(np.int64),
        f"{OWN}.subtask": steps(episode.subtask.astype(np.int64), episode.subtask[-1] if len(episode) else 0),
    }  # fmt: skip
    partly = {f"{OWN}.expert": steps(episode.expert, np.full_like(last, np.nan))}
    partly |= {f"{OWN}.pose.{name}": pose for name, pose in episode.poses.items()}
    if episode.spec.keypoints:
        partly[f"{OWN}.keypoints"] = episode.keypoints.reshape(rows, -1)
    for key, values in partly.items():  # LeRobot's statistics know no NaN
        columns |= {key: np.nan_to_num(values), f"{key}_known": np.isfinite(values)}
    if episode.sim_state.size:
        columns[f"{OWN}.sim_state"] = episode.sim_state
    return {key: values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
            for key, values in columns.items()}  # fmt: skip


def features_of(
    columns: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray], spec: Spec, images: Images
) -> dict[str, Any]:
    """`features` of `info.json`."""
    names = {STATE: [part.name for part in spec.state], ACTION: [part.name for part in spec.action]}
    features: dict[str, Any] = {}
    for camera, frames in pictures.items():
        if "/" in camera:
            raise ValueError(f"the name of a camera must not hold a slash in a LeRobot data set, got {camera!r}")
        height, width = frames.shape[1:3]
        feature: dict[str, Any] = {"dtype": "video" if images == "video" else "image", "shape": [height, width, 3],
                                   "names": PICTURE_NAMES}  # fmt: skip
        if images == "video":
            feature["info"] = {
                "video.height": height, "video.width": width, "video.codec": video.CODEC,
                "video.pix_fmt": video.PIXELS, "video.fps": _whole(spec.control_hz), "video.channels": 3,
                "has_audio": False, "is_depth_map": False,
            }  # fmt: skip
        features[CAMERAS + camera] = feature
    for key, values in columns.items():
        shape = list(values.shape[1:]) or [1]
        features[key] = {"dtype": str(values.dtype), "shape": shape, "names": names.get(key)}
    return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in COUNTED.items()}


def row_of(
    index: int, first: int, rows: int, tasks: Sequence[str], place: Mapping[str, int],
    videos: Mapping[str, Mapping[str, Any]], stats: Mapping[str, statistics.Stats], own: Mapping[str, Any],
) -> pa.Table:  # fmt: skip
    """A row of `meta/episodes`. first: the index of its first frame in the data set. place: of its files. videos: by
    key, the place and the times of its frames there."""
    row: dict[str, Any] = {
        "episode_index": index, "tasks": list(tasks), "length": rows,
        **{f"data/{name}": value for name, value in place.items()},
        "dataset_from_index": first, "dataset_to_index": first + rows,
    }  # fmt: skip
    row |= {f"videos/{key}/{name}": value for key, of in videos.items() for name, value in of.items()}
    row |= {f"stats/{key}/{stat}": value.tolist() for key, of in stats.items() for stat, value in of.items()}
    row |= {f"meta/episodes/{name}": value for name, value in place.items()}
    if own:
        row[OWN] = json.dumps(dict(own), ensure_ascii=False, allow_nan=False)
    return pa.table({key: pa.array([value]) for key, value in row.items()})


def write_meta(root: Path, written: Written, tasks: Mapping[str, int] | None = None) -> None:
    """What is said of the whole data set; `info.json`, which counts the episodes, last. tasks: those that are already
    written."""
    if written.spec and not (root / layout.OWN_META).is_file():
        write_json(root / layout.OWN_META, {"format": 1, "spec": written.spec.to_dict()})
    if tasks != written.tasks:
        table = pa.table({"task_index": pa.array(list(written.tasks.values())), "task": pa.array(list(written.tasks))})
        write_table(root / layout.TASKS, with_index(table, "task"))
    write_json(root / layout.STATS, written.stats)
    videos = any(feature["dtype"] == "video" for feature in written.features.values())
    episodes = len(written.names)
    write_json(root / layout.INFO, {
        "codebase_version": layout.V3, "robot_type": written.robot, "fps": _whole(written.fps),
        "total_episodes": episodes, "total_frames": written.frames, "total_tasks": len(written.tasks),
        "chunks_size": CHUNKS_SIZE, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "splits": {"train": f"0:{episodes}"}, "data_path": layout.DATA_PATH,
        "video_path": layout.VIDEO_PATH if videos else None, "features": written.features,
    })  # fmt: skip


def stats_of_episodes(root: Path, episodes: int) -> dict[str, dict[str, np.ndarray]]:
    """Those of the first so many episodes together, as they stand in `meta/episodes`."""
    found: list[dict[str, dict[str, np.ndarray]]] = []
    for episode in range(episodes):
        row = read_table(root / layout.EPISODES_PATH.format(**place_of(episode))).slice(0, 1).to_pylist()[0]
        stats: dict[str, dict[str, np.ndarray]] = {}
        for name, value in row.items():
            if name.startswith("stats/"):
                _, key, stat = name.split("/")
                stats.setdefault(key, {})[stat] = np.array(value)
        found.append(stats)
    return statistics.together(found) if found else {}


def _require_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], one: str, other: str) -> None:
    """ValueError where an episode has other columns than the data set."""
    for key in {**ours, **theirs}:
        a, b = (each.get(key) for each in (ours, theirs))
        if a is None or b is None or (a["dtype"], a["shape"]) != (b["dtype"], b["shape"]):
            raise ValueError(
                f"{one} and {other} differ in `{key}`: {_shown(a)} against {_shown(b)}; every episode of a LeRobot "
                "data set has the same columns"
            )


def _shown(feature: Mapping[str, Any] | None) -> str:
    return f"{feature['dtype']} {feature['shape']}" if feature else "none"


def place_of(episode: int) -> dict[str, int]:
    """The folder and file of an episode that has them to itself."""
    return {"chunk_index": episode // CHUNKS_SIZE, "file_index": episode % CHUNKS_SIZE}


def _as_png(frames: np.ndarray) -> pa.Array:
    cells = []
    for i, frame in enumerate(frames):
        done, content = cv2.imencode(".png", frame[..., ::-1])
        if not done:
            raise ValueError(f"frame {i} of {frame.shape} cannot be written as PNG")
        cells.append({"bytes": content.tobytes(), "path": f"frame-{i:06d}.png"})
    return pa.array(cells, PICTURE)


def _whole(hz: float) -> int | float:
    return int(hz) if float(hz).is_integer() else float(hz)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


