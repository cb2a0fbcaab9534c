"""A LeRobot data set as episodes of this project: v3.0 and v2.1.

A row holds an observation and the action that was sent then, so that N rows are N observations and N - 1 control steps:
what the last action led to was not recorded, and it is left out. What this project wrote itself comes back as it was,
bit for bit but the pixels of videos. Of other people's data sets:

- cameras are the features of dtype `video` and `image`; the state is `observation.state` and then every other vector
  under `observation`; an action dimension's range is that of all its values, and no gripper is assumed.
- the instruction is the episode's task, and where an episode has several, they are its subtasks.
- success and reward are `next.success` and `next.reward` where there are such. The seed is the index of the episode.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from envs.data.formats import lerobot_layout as layout
from envs.data.formats import video
from envs.data.formats.lerobot_layout import OWN, Entry, Feature
from envs.data.formats.tables import numbers, read_json, read_table
from envs.data.split import split_by_seed
from envs.data.store import EpisodeError
from envs.types import HELD_UNKNOWN, ActionSpec, CameraSpec, Episode, Spec, StateSpec

STATE, ACTION, CAMERAS = "observation.state", "action", "observation.images."
REWARD, SUCCESS, DONE = "next.reward", "next.success", "next.done"
# what LeRobot has no name for, of a whole episode
KEPT = ("env_id", "seed", "split", "source", "off_task_steps", "terminated", "truncated", "versions", "subtask_names")
MARGIN = 1e-3  # by which the range of an action that never changes is widened, at least


class LeRobotFolder:
    """A LeRobot data set, read like an `EpisodeStore`. Raise EpisodeError for one that says nothing of itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = layout.read_info(root)
        self._sums: dict[Path, str] = {}

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Where the episodes lie, by name."""
        if not self.info.episodes:
            return {}
        entries = layout.read_entries(self.root, self.info)
        return {entry.own.get("name", f"episode_{entry.index:06d}"): entry for entry in entries}

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The texts of the tasks by their index."""
        return layout.read_tasks(self.root, self.info)

    def names(self) -> list[str]:
        """The names of all episodes that are finished, in their order."""
        return list(self.entries)

    def path(self, name: str) -> Path:
        """The file that holds the numbers of an episode."""
        return self._entry(name).data

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(name) for name in self.names())

    def require(self) -> LeRobotFolder:
        """Itself. Raise EpisodeError where it holds no episode."""
        if not len(self):
            raise EpisodeError(f"the LeRobot data set {self.root} holds no episodes: `total_episodes` is 0")
        return self

    def split(self, every: int) -> tuple[list[str], list[str]]:
        """As of an `EpisodeStore`."""
        return split_by_seed({name: self._seed(entry) for name, entry in self.entries.items()}, every)

    def digests(self) -> dict[str, str]:
        """Name -> sha256 of the files that an episode lies in and of its place in them."""
        found = {}
        for name, entry in self.entries.items():
            places = [(entry.data, entry.index), *((path, start) for path, start in entry.videos.values())]
            kept = entry.own.get("files", {})
            text = [f"{kept.get(self._relative(path)) or self._sum(path)} {at}" for path, at in places]
            found[name] = hashlib.sha256("\n".join([*text, str(entry.length)]).encode()).hexdigest()
        return found

    # ---------------------------------------------------------------------------------------------- the robot

    @cached_property
    def spec(self) -> Spec:
        """What the robot shows and takes."""
        own = self.root / layout.OWN_META
        if not own.is_file():
            return self._foreign_spec()
        try:
            spec = Spec.from_dict(read_json(own)["spec"])
        except (KeyError, ValueError) as error:
            raise EpisodeError(f"{own}: `spec` is none ({error})") from error
        told = {
            "fps": (self.info.fps, float(spec.control_hz)),
            STATE: (self._names(STATE), [part.name for part in spec.state]),
            ACTION: (self._names(ACTION), [part.name for part in spec.action]),
        }
        for camera in spec.cameras:
            feature = self.info.pictures.get(CAMERAS + camera.name)
            told[CAMERAS + camera.name] = (feature and feature.shape[:2], (camera.height, camera.width))
        for name, (a, b) in told.items():
            if a != b:
                raise EpisodeError(f"{self.info.path}: `{name}` says {a}, but the spec in {own} says {b}")
        return spec

    def _names(self, key: str) -> list[str]:
        feature = self.info.features.get(key)
        return list(feature.names or ()) if feature else []

    def _foreign_spec(self) -> Spec:
        if not self.info.pictures:
            raise EpisodeError(f"{self.info.path}: `features` has no camera, and this project learns from pictures")
        cameras = tuple(CameraSpec(_camera(key), *f.shape[:2]) for key, f in self.info.pictures.items())
        states = tuple(StateSpec(name) for feature in self._states for name in _dimensions(feature, STATE))
        action = self._vector(ACTION)
        low, high = self._action_range(action)
        actions = tuple(
            ActionSpec(name, float(a), float(b))
            for name, a, b in zip(_dimensions(action, ACTION), low, high, strict=True)
        )
        try:
            return Spec(cameras, states, actions, self.info.fps)
        except ValueError as error:
            raise EpisodeError(f"{self.info.path}: {error}") from error

    @cached_property
    def _states(self) -> list[Feature]:
        """The vectors that make up the state, `observation.state` first."""
        others = [
            key for key, f in self.info.features.items()
            if key.startswith("observation.") and f.dtype in ("float32", "float64") and len(f.shape) == 1
        ]  # fmt: skip
        return [self.info.features[key] for key in sorted(others, key=lambda key: key != STATE)]

    def _vector(self, key: str) -> Feature:
        feature = self.info.features.get(key)
        if feature is None or len(feature.shape) != 1:
            raise EpisodeError(f"{self.info.path}: `features` has no vector `{key}`")
        return feature

    def _action_range(self, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
        """(A,) and (A,): of all that was commanded. Not of `stats.json`, which a data set may lack or not have kept."""
        low, high = np.full(feature.shape, np.inf), np.full(feature.shape, -np.inf)
        for path in dict.fromkeys(entry.data for entry in self.entries.values()):
            table = read_table(path, [ACTION])
            values = numbers(table, ACTION, feature.shape, np.float32, path)
            if len(values) and not np.isfinite(values).all():
                raise EpisodeError(f"{path}: column `{ACTION}` holds a value that is not finite")
            low, high = np.minimum(low, values.min(0, initial=np.inf)), np.maximum(high, values.max(0, initial=-np.inf))
        spread = np.maximum(MARGIN, MARGIN * np.abs(low))
        return np.where(high > low, low, low - spread), np.where(high > low, high, high + spread)

    # ---------------------------------------------------------------------------------------------- an episode

    def read(self, name: str, states: bool = True) -> Episode:
        """The episode of this name, its frames decoded now. EpisodeError names the file and the column that is wrong.

        states: with the simulator's states, where there are some.
        """
        entry = self._entry(name)
        self.check_sums(entry)
        table = self._rows(entry)
        images = {_camera(key): self.pictures_of(entry, key, table) for key in self.info.pictures}
        vectors = [numbers(table, f.key, f.shape, np.float32, entry.data) for f in self._states]
        state = np.concatenate(vectors, axis=1) if vectors else np.zeros((len(table), 0), np.float32)
        action = numbers(table, ACTION, self._vector(ACTION).shape, np.float32, entry.data)[:-1]
        fields = self._own_fields(entry, table, states) if entry.own else self._foreign_fields(entry, table)
        views = {camera: frames for camera, frames in images.items()
                 if camera not in [c.name for c in self.spec.cameras]}  # fmt: skip
        try:
            return Episode(
                images={c.name: images[c.name] for c in self.spec.cameras}, views=views, state=state, action=action,
                spec=self.spec, **fields,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError) as error:
            raise EpisodeError(f"{entry.data}: episode {entry.index} is not sound: {error}") from error

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise EpisodeError(f"the LeRobot data set {self.root} has no episode {name}")
        return self.entries[name]

    def _seed(self, entry: Entry) -> int:
        return int(entry.own.get("seed", entry.index))

    def _rows(self, entry: Entry) -> pa.Table:
        """The rows of an episode, in order and all of them."""
        table = read_table(entry.data, episode=entry.index)
        if len(table) != entry.length or not entry.length:
            raise EpisodeError(
                f"{entry.data}: episode {entry.index} has {len(table)} rows, and not {entry.length} as `length` in "
                f"{self.root / 'meta'} says"
            )
        order = numbers(table, "frame_index", (), np.int64, entry.data)
        if (order != np.arange(len(table))).any():
            raise EpisodeError(f"{entry.data}: column `frame_index` of episode {entry.index} does not count from 0")
        times, wanted = numbers(table, "timestamp", (), np.float32, entry.data), order / self.info.fps
        if (far := np.abs(times - wanted) > video.TOLERANCE_S).any():
            row = int(np.argmax(far))
            raise EpisodeError(
                f"{entry.data}: column `timestamp` of episode {entry.index} is {times[row]:.3f} s in row {row}, and "
                f"not {wanted[row]:.3f} s as `fps` {self.info.fps:g} in {self.info.path} says"
            )
        return table

    def pictures_of(self, entry: Entry, key: str, table: pa.Table) -> np.ndarray:
        """(N, h, w, 3) u8 of a camera."""
        feature = self.info.pictures[key]
        size = feature.shape[:2]
        if feature.dtype == "video":
            path, start = entry.videos[key]
            return video.decode(path, entry.length, self.info.fps, start, size, feature.codec)
        if key not in table.column_names:
            raise EpisodeError(f"{entry.data} has no column `{key}`")
        frames = np.empty((len(table), *size, 3), np.uint8)
        for row, cell in enumerate(table.column(key).to_pylist()):
            where = f"{entry.data}: column `{key}`, row {row}"
            try:
                content = cell["bytes"] if cell["bytes"] is not None else (self.root / cell["path"]).read_bytes()
                with Image.open(io.BytesIO(content)) as picture:
                    shown = np.asarray(picture.convert("RGB"))
            except (OSError, TypeError, KeyError, ValueError, SyntaxError) as error:
                raise EpisodeError(f"{where} is no picture ({error})") from error
            if shown.shape[:2] != size:
                raise EpisodeError(
                    f"{where} shows {shown.shape[0]} x {shown.shape[1]} pixels, and not {size[0]} x {size[1]} as its "
                    f"`shape` says"
                )
            frames[row] = shown
        return frames

    def _texts(self, entry: Entry, table: pa.Table) -> tuple[list[str], np.ndarray]:
        """The tasks of an episode in the order in which they come, and for each row which of them it is."""
        index = numbers(table, "task_index", (), np.int64, entry.data)
        if unknown := set(index.tolist()) - set(self.tasks):
            raise EpisodeError(f"{entry.data}: column `task_index` names task {min(unknown)}, which `meta` has not")
        order = list(dict.fromkeys(index.tolist()))
        return [self.tasks[i] for i in order], np.array([order.index(i) for i in index.tolist()])

    def _foreign_fields(self, entry: Entry, table: pa.Table) -> dict:
        steps, features = len(table) - 1, self.info.features
        names, which = self._texts(entry, table)
        success = np.zeros(steps + 1, bool)
        if SUCCESS in features:
            success[1:] = numbers(table, SUCCESS, (), np.bool_, entry.data)[:-1]
        reward = np.zeros(steps, np.float32)
        if REWARD in features:
            reward = numbers(table, REWARD, (), np.float32, entry.data)[:-1]
        return dict(
            expert=np.full((steps, len(self.spec.action)), np.nan, np.float32), reward=reward, success=success,
            progress=np.zeros(steps + 1, np.float32), keypoints=np.zeros((steps + 1, 0, 3), np.float32),
            held=np.full(steps + 1, HELD_UNKNOWN, np.int8), subtask=which[:-1].astype(np.int16),
            subtask_names=tuple(names) if len(names) > 1 else ("",), instruction=names[0], env_id=self.info.robot,
            seed=entry.index, source="robot",
        )  # fmt: skip

    def _own_fields(self, entry: Entry, table: pa.Table, states: bool) -> dict:
        own, spec, rows = entry.own, self.spec, len(table)

        def column(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return numbers(table, name, shape, dtype, entry.data)

        def maybe(name: str, shape: tuple[int, ...]) -> np.ndarray:
            """A column of which some is not known, as NaN."""
            if f"{name}_known" not in self.info.features:
                return np.full((rows, *shape), np.nan, np.float32)
            flat = (int(np.prod(shape)),)
            values, known = (column(n, flat, t) for n, t in ((name, np.float32), (f"{name}_known", np.bool_)))
            return np.where(known, values, np.float32(np.nan)).reshape(rows, *shape)

        try:
            success = np.concatenate([[bool(own["success_at_reset"])], column(SUCCESS, (), np.bool_)[:-1]])
            fields = {name: own[name] for name in KEPT}
            fields |= {"subtask_names": tuple(own["subtask_names"]), "instruction": self._texts(entry, table)[0][0]}
            poses = {name: maybe(f"{OWN}.pose.{name}", (8,)) for name in own["poses"]}
        except (KeyError, TypeError) as error:
            where = self.root / layout.EPISODES
            raise EpisodeError(f"{where}: column `{OWN}` of episode {entry.index} lacks {error}") from error
        keypoints = np.zeros((rows, 0, 3), np.float32)
        if spec.keypoints:
            keypoints = maybe(f"{OWN}.keypoints", (len(spec.keypoints), 3))
        simulated = self.info.features.get(f"{OWN}.sim_state") if states else None
        if simulated:
            fields["sim_state"] = column(simulated.key, simulated.shape, np.float64)
        return fields | dict(
            expert=maybe(f"{OWN}.expert", (len(spec.action),))[:-1], reward=column(REWARD, (), np.float32)[:-1],
            success=success, progress=column(f"{OWN}.progress", (), np.float32), keypoints=keypoints, poses=poses,
            held=column(f"{OWN}.held", (), np.int64).astype(np.int8),
            subtask=column(f"{OWN}.subtask", (), np.int64)[:-1].astype(np.int16),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- content

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _sum(self, path: Path) -> str:
        """sha256 of a file, asked for once."""
        if path not in self._sums:
            try:
                with open(path, "rb") as file:
                    self._sums[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise EpisodeError(f"{path} cannot be read: {error.strerror or error}") from error
        return self._sums[path]

    def check_sums(self, entry: Entry) -> None:
        """What this project wrote is compared with the sums that it kept."""
        for name, kept in entry.own.get("files", {}).items():
            if self._sum(self.root / name) != kept:
                raise EpisodeError(
                    f"{self.root / name} is damaged or was changed (its sha256 is not the one it was written with): "
                    "convert it again, or let `python -m agent.repair` save what can be saved"
                )


def _camera(key: str) -> str:
    return key.removeprefix(CAMERAS).removeprefix("observation.")


def _dimensions(feature: Feature, plain: str) -> list[str]:
    """The names of a vector's dimensions; `plain` is the feature whose names stand for themselves."""
    count, stem = feature.shape[0], feature.key.removeprefix("observation.")
    names = feature.names if feature.names and len(set(feature.names)) == count else None
    names = names or [f"{i}" if feature.key != plain else f"{stem}{i}" for i in range(count)]
    return [name if feature.key == plain else f"{stem}.{name}" for name in names]
