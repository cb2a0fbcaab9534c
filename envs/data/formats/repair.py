"""An interrupted, damaged or misaligned LeRobot data set made whole again, in another folder, as v3.0.

What `meta/info.json` counts, the lengths and times in `meta`, and the columns that only count are not believed but made
again from the rows and the frames that are there. Where a video ends early, a picture is damaged, a row is missing or a
number is not finite, the episode is cut before it. What cannot be saved is named. Rows are written anew and videos are
copied as they are, so nothing is encoded twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from envs.data.files import temporary_name
from envs.data.formats import lerobot_layout as layout
from envs.data.formats import statistics, video
from envs.data.formats.lerobot import LeRobotFolder
from envs.data.formats.lerobot_layout import Entry, Feature
from envs.data.formats.lerobot_writer import COUNTED, Written, place_of, row_of, write_meta
from envs.data.formats.tables import numbers, read_json, read_table, write_table
from envs.data.store import EpisodeError

LEAST = 2  # rows: one control step
KINDS = {"float32": np.float32, "float64": np.float64, "bool": np.bool_}  # every other one counts something


@dataclass
class Repaired:
    """saved: episodes that are in the new data set. mended: what was changed, a line each. lost: what could not be
    saved, a line each."""

    saved: int = 0
    mended: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Whole:
    """An episode that can be saved. rows: its table, cut. stats: of all its features."""

    rows: pa.Table
    tasks: list[str]
    stats: Mapping[str, statistics.Stats]


def repair(root: Path, out: Path, changed: bool = False) -> Repaired:
    """Write what can be saved of the data set under `root` into `out`, which must be empty or left by a repair that was
    stopped. changed: also take files of which this project kept another sha256. EpisodeError where nothing can be read.
    """
    if (out / layout.INFO).is_file():
        raise EpisodeError(f"{out} holds a data set already: choose another `out`")
    return _Repair(root, out, changed).run()


class _Repair:
    def __init__(self, root: Path, out: Path, changed: bool) -> None:
        self.root, self.out, self.changed, self.report = root, out, changed, Repaired()
        self.source = LeRobotFolder(root)
        self.info = self.source.info
        self.own = (root / layout.OWN_META).is_file()
        self.codecs: dict[str, str] = {}
        self.videos: dict[Path, dict[str, int]] = {}  # where each video that was copied lies now

    def run(self) -> Repaired:
        try:
            self.tasks = layout.read_tasks(self.root, self.info)
        except EpisodeError as error:
            self.tasks = {}
            self.report.mended.append(f"{error}: the texts of tasks are taken from `meta/episodes`")
        written = Written(spec=self.source.spec if self.own else None, fps=self.info.fps, robot=self.info.robot)
        for entry, table in self._candidates():
            try:
                whole = self._whole(entry, table)
                written = self._write(written, entry, whole)
                self.report.saved += 1
            except EpisodeError as error:
                self.report.lost.append(f"episode {entry.index}: {error}")
        if not self.report.saved:
            why = "; ".join(self.report.lost[:3]) or "it is empty"
            raise EpisodeError(f"nothing in {self.root} can be saved: {why}")
        features = dict(read_json(self.root / layout.INFO)["features"])
        for key, codec in self.codecs.items():
            about = features[key].get("info") or {}
            if codec != video.CANONICAL.get(about.get("video.codec"), about.get("video.codec")):
                self.report.mended.append(f"`video.codec` of {key} is {codec}, and not {about.get('video.codec')}")
                features[key] = {**features[key], "info": {**about, "video.codec": codec}}
        if (self.info.episodes, self.info.frames) != (len(written.names), written.frames):
            self.report.mended.append(
                f"{self.info.path} counted {self.info.episodes} episodes and {self.info.frames} frames; there are "
                f"{len(written.names)} and {written.frames}"
            )
        written = Written(
            written.names, written.frames, written.tasks, features, written.stats, written.spec, written.fps,
            written.robot,
        )  # fmt: skip
        write_meta(self.out, written)
        return self.report

    # ---------------------------------------------------------------------------------------------- what is there

    def _candidates(self) -> Iterator[tuple[Entry, pa.Table]]:
        """Every episode of which there are rows and of which it is known where they and its frames lie."""
        entries = {entry.index: entry for entry in self._entries()}
        seen: set[int] = set()
        for path in sorted(p for p in (self.root / "data").glob("*/*.parquet") if not p.name.startswith(".")):
            try:
                table = read_table(path)
                index = numbers(table, "episode_index", (), np.int64, path)
            except EpisodeError as error:
                self.report.lost.append(str(error))
                continue
            for episode in dict.fromkeys(index.tolist()):
                entry = entries.get(episode)
                if entry is None or entry.data != path or episode in seen:
                    self.report.lost.append(
                        f"episode {episode} in {path}: "
                        + ("it has rows elsewhere too" if entry else f"{self.root / 'meta'} does not tell of it")
                    )
                    continue
                seen.add(episode)
                yield entry, table.filter(pa.array(index == episode))
        for episode in sorted(set(entries) - seen):
            self.report.lost.append(f"episode {episode}: no rows of it can be read from {entries[episode].data}")

    def _entries(self) -> Iterator[Entry]:
        if self.info.version != layout.V3:
            yield from layout.entries_v2(self.root, self.info)
            return
        for path in layout.episode_files(self.root):
            try:
                yield from layout.entries_in(path, self.root, self.info)
            except EpisodeError as error:
                self.report.lost.append(str(error))

    # ---------------------------------------------------------------------------------------------- an episode

    def _whole(self, entry: Entry, table: pa.Table) -> Whole:
        """The longest beginning of an episode that is sound. EpisodeError where that is too short."""
        if not self.changed:
            self.source.check_sums(entry)
        features, where = self.info.features, f"episode {entry.index}"
        order = numbers(table, "frame_index", (), np.int64, entry.data)
        if (np.diff(order) < 0).any():
            table = table.take(pa.array(np.argsort(order, kind="stable")))
            order = np.sort(order, kind="stable")
            self.report.mended.append(f"{where}: its rows were out of order")
        count = _agreeing(order == np.arange(len(order)))
        columns = {}
        for key, feature in features.items():
            if key in COUNTED or feature.dtype not in (*KINDS, "int64", "int32", "int16", "int8", "uint8"):
                continue
            shape = () if feature.shape == (1,) else feature.shape
            columns[key] = numbers(table, key, shape, KINDS.get(feature.dtype, np.int64), entry.data)
            count = min(count, _agreeing(np.isfinite(columns[key].reshape(len(table), -1)).all(1)))
        frames = {}
        for key, feature in self.info.pictures.items():
            frames[key] = self._beginning(entry, key, feature, table, count)
            count = min(count, len(frames[key]))
        if count < LEAST:
            raise EpisodeError(f"only {count} of its {max(entry.length, len(table))} rows are sound")
        if count < max(entry.length, len(table)):
            self.report.mended.append(f"{where} is cut to its first {count} of {max(entry.length, len(table))} rows")
        index = numbers(table, "task_index", (), np.int64, entry.data)[:count].tolist()
        texts = dict(self.tasks)
        for unknown in set(index) - set(texts):
            alone = len(set(index)) == len(entry.tasks) == 1  # of several nobody says which is which
            texts[unknown] = entry.tasks[0] if alone else ""
            if not alone:
                self.report.mended.append(f"{where}: the text of its task {unknown} is lost; it is empty now")
        stats = {key: statistics.of_numbers(values[:count]) for key, values in columns.items()}
        stats |= {key: statistics.of_pictures(shown[:count]) for key, shown in frames.items()}
        kept = [key for key, feature in features.items() if feature.dtype != "video" and key in table.column_names]
        return Whole(table.slice(0, count).select(kept), [texts[i] for i in index], stats)

    def _beginning(self, entry: Entry, key: str, feature: Feature, table: pa.Table, count: int) -> np.ndarray:
        """The frames of a camera up to the first that is not there."""
        size = feature.shape[:2]
        if feature.dtype == "video":
            path, start = entry.videos[key]
            shown, self.codecs[key] = video.decode_beginning(path, count, self.info.fps, start, size)
            return shown
        frames = []
        for row in range(count):
            try:
                frames.append(self.source.pictures_of(entry, key, table.slice(row, 1))[0])
            except EpisodeError as error:
                self.report.mended.append(f"episode {entry.index}: {error}")
                break
        return np.stack(frames) if frames else np.empty((0, *size, 3), np.uint8)

    # ---------------------------------------------------------------------------------------------- writing

    def _write(self, written: Written, entry: Entry, whole: Whole) -> Written:
        index, rows, place = len(written.names), len(whole.rows), place_of(len(written.names))
        tasks = dict(written.tasks)
        for text in whole.tasks:
            tasks.setdefault(text, len(tasks))
        counted = {
            "timestamp": (np.arange(rows) / self.info.fps).astype(np.float32), "frame_index": np.arange(rows),
            "episode_index": np.full(rows, index), "index": written.frames + np.arange(rows),
            "task_index": np.array([tasks[text] for text in whole.tasks]),
        }  # fmt: skip
        table = whole.rows
        for key, values in counted.items():
            told = numbers(table, key, (), np.float32 if key == "timestamp" else np.int64, entry.data)
            if key == "timestamp" and (np.abs(told - values) > video.TOLERANCE_S).any():
                self.report.mended.append(f"episode {entry.index}: its times are those of {self.info.fps:g} Hz now")
            table = table.set_column(table.column_names.index(key), key, pa.array(values))
        stats = {**whole.stats, **{key: statistics.of_numbers(values) for key, values in counted.items()}}
        videos, files = {}, {}
        for key, (path, start) in entry.videos.items():
            at = self._copied(key, path, index)
            videos[key] = {**at, "from_timestamp": start, "to_timestamp": start + rows / self.info.fps}
            relative = layout.VIDEO_PATH.format(video_key=key, **at)
            files[relative] = _sum((self.out / relative).read_bytes())
        path = layout.DATA_PATH.format(**place)
        files[path] = _sum(write_table(self.out / path, table))
        own: dict[str, Any] = {**entry.own, "files": files} if entry.own else {}
        row = row_of(index, written.frames, rows, list(dict.fromkeys(whole.tasks)), place, videos, stats, own)
        write_table(self.out / layout.EPISODES_PATH.format(**place), row)
        return Written(
            (*written.names, str(entry.index)), written.frames + rows, tasks, {},
            statistics.together([written.stats, stats]) if written.stats else stats, written.spec, written.fps,
            written.robot,
        )  # fmt: skip

    def _copied(self, key: str, path: Path, episode: int) -> dict[str, int]:
        """Where a video lies in the new data set; it is copied there for the first of its episodes that is saved."""
        if path not in self.videos:
            self.videos[path] = place_of(episode)
            target = self.out / layout.VIDEO_PATH.format(video_key=key, **self.videos[path])
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_name(target)
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        return self.videos[path]


def _agreeing(good: np.ndarray) -> int:
    """How many are good from the beginning on."""
    return len(good) if good.all() else int(np.argmin(good))


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
