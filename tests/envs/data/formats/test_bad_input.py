"""LeRobot data sets that are cut, changed, swapped or lie: each is one clear line that names the file and the field."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.data.formats.folder import open_episodes
from envs.data.formats.lerobot_writer import LeRobotWriter
from envs.data.store import EpisodeError
from tests.foreign import mp4, recorded, write_v3, write_v21
from tests.robots import HANDS, made_up

INFO, DATA, META = "meta/info.json", "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
HIGH, LOW = "observation.images.cam_high", "observation.images.cam_low"
VIDEO = f"videos/{HIGH}/chunk-000/file-000.mp4"
LEFT = "videos/observation.images.left/chunk-000/file-000.mp4"
LENGTHS = (6, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One of each kind, with a space and an umlaut in the path: theirs, theirs of v2.1, and ours."""
    root = tmp_path_factory.mktemp("data sets ü")
    write_v3(root / "v3", LENGTHS)
    write_v21(root / "v21", LENGTHS)
    writer = LeRobotWriter(root / "ours")
    with writer.claimed():
        for seed in range(2):
            writer.write(made_up(HANDS, seed, steps=4), f"e{seed}")
    return root


def read_all(root: Path) -> None:
    for _ in open_episodes(root):
        pass


# ---------------------------------------------------------------------------------------------- what can be done to one


def info(**changes):
    """Another value in `info.json`; None takes it out."""

    def change(root: Path) -> None:
        told = json.loads((root / INFO).read_text())
        told = {key: value for key, value in {**told, **changes}.items() if value is not None}
        (root / INFO).write_text(json.dumps(told))

    return change


def feature(key: str, **changes):
    """Another value in a feature of `info.json`; without any, the feature is taken out."""

    def change(root: Path) -> None:
        told = json.loads((root / INFO).read_text())
        told["features"][key] |= changes
        if not changes:
            del told["features"][key]
        (root / INFO).write_text(json.dumps(told))

    return change


def content(file: str, make):
    """Other bytes in a file, made from those that are there."""

    def change(root: Path) -> None:
        (root / file).write_bytes(make((root / file).read_bytes()))

    return change


def gone(file: str):
    return lambda root: (root / file).unlink()


def column(name: str, make, file: str = DATA):
    """Another column in a table, made from the one that is there; None takes it out."""

    def change(root: Path) -> None:
        table = pq.read_table(root / file, partitioning=None)
        at = table.column_names.index(name)
        made = make(table.column(name).to_pylist())
        table = table.remove_column(at) if made is None else table.set_column(at, name, pa.array(made))
        pq.write_table(table, root / file)

    return change


def rows(first: int, last: int | None):
    """Only some rows of the data."""

    def change(root: Path) -> None:
        table = pq.read_table(root / DATA, partitioning=None)
        pq.write_table(table.slice(first, None if last is None else last - first), root / DATA)

    return change


def swapped(one: str, other: str):
    def change(root: Path) -> None:
        a, b = (root / one).read_bytes(), (root / other).read_bytes()
        (root / one).write_bytes(b)
        (root / other).write_bytes(a)

    return change


def filmed(frames: np.ndarray, **settings):
    return content(VIDEO, lambda _: mp4(frames, **settings))


def sound(_: bytes) -> bytes:
    """An mp4 without pictures."""
    import io

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", 16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(at: int):
    """One bit is another."""
    return lambda data: data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def number(change):
    """The same change in the third row of a column of vectors."""
    return lambda values: [change(v) if i == 2 else v for i, v in enumerate(values)]


ALL = np.concatenate([recorded(i, length)[HIGH] for i, length in enumerate(LENGTHS)])
CASES = {
    # file, what it says of itself
    "info gone": ("v3", gone(INFO), INFO, "is missing"),
    "info empty": ("v3", content(INFO, lambda _: b""), INFO, "damaged or no JSON"),
    "info cut": ("v3", content(INFO, half), INFO, "damaged or no JSON"),
    "info is a list": ("v3", content(INFO, lambda _: b"[1]"), INFO, "must hold settings by name"),
    "info is not text": ("v3", content(INFO, lambda _: b"\xff\xfe\x00"), INFO, "damaged or no JSON"),
    "another version": ("v3", info(codebase_version="v1.6"), INFO, "`codebase_version` is v1.6"),
    "v2.1 called v3.0": ("v21", info(codebase_version="v3.0"), "meta/episodes", "holds no parquet file"),
    "v3.0 called v2.1": ("v3", info(codebase_version="v2.1"), "meta/episodes.jsonl", "is missing"),
    "no rate": ("v3", info(fps=0), INFO, "`fps` must be positive"),
    "a rate in words": ("v3", info(fps="50"), INFO, "`fps` must be int or float"),
    "another rate": ("v3", info(fps=30), DATA, "column `timestamp` of episode 0 is 0.020 s in row 1, and not 0.033"),
    "no features": ("v3", info(features=None), INFO, "`features` must be dict"),
    "more episodes": ("v3", info(total_episodes=3), INFO, "`total_episodes` is 3, but .* knows no episode 2"),
    "fewer episodes": ("v3", info(total_episodes=1), INFO, "`total_frames` is 11, but .* have 6"),
    "more frames": ("v3", info(total_frames=12), INFO, "`total_frames` is 12"),
    "negative": ("v3", info(total_episodes=-1), INFO, "`total_episodes` must not be -1"),
    "no episodes": ("v3", info(total_episodes=0, total_frames=0), "", "holds no episodes"),
    "out of the folder": ("v3", info(data_path="../{chunk_index}/{file_index}"), INFO, "`data_path` .* leaves"),
    "a place that is none": ("v3", info(video_path="{camera}.mp4"), INFO, "`video_path` .* names no file"),
    "no action": ("v3", feature("action"), INFO, "no vector `action`"),
    "fewer actions": ("v3", feature("action", shape=[13]), DATA, "column `action` has 14 numbers a row, and not 13"),
    "a shape in words": ("v3", feature("action", shape="14"), INFO, "the `shape` of the feature `action`"),
    "no type": ("v3", feature("action", dtype=None), INFO, "the feature `action` has no `dtype`"),
    "another size": ("v3", feature(HIGH, shape=[3, 64, 64]), VIDEO, "shows 96 x 128 pixels, and not 64 x 64"),
    "five colours": ("v3", feature(HIGH, shape=[5, 96, 128]), INFO, f"camera `{HIGH}`"),
    "another codec": ("v3", feature(HIGH, info={"video.codec": "av1"}), VIDEO, "h264, and not of av1"),
    "a camera more": ("v3", feature(LOW, dtype="image"), DATA, f"has no column `{LOW}`"),
    # rows
    "data gone": ("v3", gone(DATA), DATA, "is missing"),
    "data empty": ("v3", content(DATA, lambda _: b""), DATA, "damaged or no parquet"),
    "data cut": ("v3", content(DATA, half), DATA, "damaged or no parquet"),
    "data is a video": ("v3", swapped(DATA, VIDEO), DATA, "damaged or no parquet"),
    "rows lost": ("v3", rows(0, 10), DATA, "episode 1 has 4 rows, and not 5"),
    "first row lost": ("v3", rows(1, None), DATA, "episode 0 has 5 rows, and not 6"),
    "rows in disorder": ("v3", column("frame_index", lambda v: v[::-1]), DATA, "`frame_index` of episode 0"),
    "actions in words": ("v3", column("action", lambda v: [["a"] * 14] * len(v)), DATA, "`action` is of type .*st"),
    "actions of integers": ("v3", column("action", lambda v: [[1] * 14] * len(v)), DATA, "`action` is of type .*in"),
    "a single action": ("v3", column("action", lambda v: [1.0] * len(v)), DATA, "`action` has 1 numbers a row"),
    "a short action": ("v3", column("action", number(lambda v: v[:-1])), DATA, "`action` has 13.* numbers a row"),
    "a row without action": ("v3", column("action", number(lambda v: None)), DATA, "`action` has 1 rows without"),
    "no number": ("v3", column("action", number(lambda v: [float("nan")] * 14)), DATA, "`action` .* not finite"),
    "no state": ("v3", column("observation.state", lambda v: None), DATA, "no column `observation.state`"),
    "no number in a state": ("v3", column("observation.state", number(lambda v: [float("inf")] * 14)), DATA, "finite"),
    "no times": ("v3", column("timestamp", lambda v: None), DATA, "no column `timestamp`"),
    "another task": ("v3", column("task_index", lambda v: [9] * len(v)), DATA, "`task_index` names task 9"),
    "tasks gone": ("v3", gone("meta/tasks.parquet"), "meta/tasks.parquet", "is missing"),
    "tasks of numbers": ("v3", column("task", lambda v: [1, 2], "meta/tasks.parquet"), "meta/tasks.parquet", "`task`"),
    "episodes gone": ("v3", gone(META), "meta/episodes", "holds no parquet file"),
    "episodes cut": ("v3", content(META, half), META, "damaged or no parquet"),
    "another length": ("v3", column("length", lambda v: [5, 6], META), DATA, "episode 0 has 6 rows, and not 5"),
    "another file": ("v3", column("data/file_index", lambda v: [7, 7], META), "file-007.parquet", "is missing"),
    "another time": ("v3", column(f"videos/{HIGH}/from_timestamp", lambda v: [0.0, 9.0], META), VIDEO, "no frame at 9"),
    "lines of v2.1": ("v21", content("meta/episodes.jsonl", lambda d: d[:-9]), "meta/episodes.jsonl", "line 2"),
    "tasks of v2.1": ("v21", content("meta/tasks.jsonl", lambda _: b"{}\n"), "meta/tasks.jsonl", "`task_index`"),
    # frames
    "video gone": ("v3", gone(VIDEO), VIDEO, "is missing"),
    "video empty": ("v3", content(VIDEO, lambda _: b""), VIDEO, "cannot be"),
    "video cut": ("v3", content(VIDEO, half), VIDEO, "cannot be"),
    "video is text": ("v3", content(VIDEO, lambda _: b"hello" * 99), VIDEO, "cannot be"),
    "video without pictures": ("v3", content(VIDEO, sound), VIDEO, "has no video in it"),
    "video too short": ("v3", filmed(ALL[:9]), VIDEO, "no frame at 0.180 s: 3 of the 5 frames"),
    "video of another rate": ("v3", filmed(ALL, hz=30), VIDEO, "no frame at 0.020 s"),
    "video of another codec": ("v3", filmed(ALL, codec="mpeg4"), VIDEO, "codec mpeg4, and not of h264"),
    "cameras swapped": ("v3", swapped(VIDEO, VIDEO.replace(HIGH, LOW)), VIDEO, "shows 48 x 64 pixels, and not 96 x"),
    "episodes swapped": ("v21", swapped(*(f"data/chunk-000/episode_{i:06d}.parquet" for i in range(2))),
                         "episode_000000.parquet", "episode 0 has 0 rows, and not 6"),
    # ours, whose files are known by their sha256
    "a bit of our video": ("ours", content(LEFT, flipped(600)), LEFT, "damaged or was changed"),
    "a bit of our rows": ("ours", content(DATA, flipped(300)), DATA, "damaged"),
    "a bit of our metadata": ("ours", content(META, lambda d: flipped(d.index(b"env_id"))(d)), META, "damaged"),
    "our videos swapped": ("ours", swapped(LEFT, LEFT.replace("left", "right")), LEFT, "damaged or was changed"),
    "our rows swapped": ("ours", swapped(DATA, DATA.replace("000.parquet", "001.parquet")), DATA, "changed"),
    "our spec lies": ("ours", lambda root: (root / "meta/nextstate.json").write_text(
        json.dumps({"spec": {**HANDS.to_dict(), "control_hz": 10}})), INFO, "`fps` says 30.0, but the spec .* says 10"),
    "our spec is none": ("ours", content("meta/nextstate.json", lambda _: b"{}"), "nextstate.json", "`spec` is none"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_that_names_file_and_field(made, tmp_path, case):
    """Catches a part that is taken for the whole, a lie that is believed, and a traceback of another library."""
    kind, change, file, why = CASES[case]
    root = tmp_path / "a b ü"
    shutil.copytree(made / kind, root)
    read_all(root)
    change(root)
    with pytest.raises(EpisodeError, match=why) as error:
        read_all(root)
    text = str(error.value)
    assert "\n" not in text and str(root) in text and file in text, text


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    """Catches a traceback, or a conversion that seems to work, where a folder is read-only or is none."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as error, LeRobotWriter(tmp_path / "file" / "out").claimed():
        pass
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_can_be_read(made, tmp_path):
    """Catches a reader that leaves a lock or a cache in a folder that is read-only."""
    root = tmp_path / "data"
    shutil.copytree(made / "ours", root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    try:
        read_all(root)
        open_episodes(root).digests()
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    finally:
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
