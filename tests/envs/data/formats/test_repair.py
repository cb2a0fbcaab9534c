"""LeRobot data sets that are made whole again."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.repair import RepairConfig
from agent.repair import repair as command
from envs.data.formats.folder import open_episodes
from envs.data.formats.repair import Repaired, repair
from envs.data.store import EpisodeError, EpisodeStore
from tests.envs.data.formats.test_bad_input import (
    DATA,
    HIGH,
    INFO,
    LEFT,
    META,
    VIDEO,
    column,
    content,
    feature,
    filmed,
    flipped,
    gone,
    half,
    info,
)
from tests.envs.data.formats.test_lerobot import require_equal, write
from tests.foreign import TASKS, mp4, recorded, write_v3, write_v21
from tests.robots import HANDS, made_up

LENGTHS = (8, 6, 7)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_v3(root / "v3", LENGTHS)
    write_v21(root / "v21", LENGTHS)
    write(root / "ours", *(made_up(HANDS, seed, steps=4, instruction=f"{seed}") for seed in range(3)), images="video")
    return root


def repaired(made: Path, tmp_path: Path, kind: str, *changes) -> tuple[Repaired, Path]:
    shutil.copytree(made / kind, tmp_path / "data")
    for change in changes:
        change(tmp_path / "data")
    return repair(tmp_path / "data", tmp_path / "out"), tmp_path / "out"


@pytest.mark.parametrize("kind", ["v3", "v21", "ours"])
def test_a_sound_data_set_stays_what_it_is(made, tmp_path, kind):
    """Catches a repair that changes what needs none, and one whose result is not a LeRobot data set."""
    report, out = repaired(made, tmp_path, kind)
    assert (report.saved, report.mended, report.lost) == (3, [], [])
    before, after = open_episodes(made / kind), open_episodes(out)
    assert after.names() == before.names() and after.info.version == "v3.0"
    for name in before.names():
        require_equal(after.read(name), before.read(name))
    for path in (out / "videos").rglob("*.mp4"):
        assert path.stat().st_size in {p.stat().st_size for p in (made / kind / "videos").rglob("*.mp4")}


def last_rows(count: int):
    """The data set was killed while these rows of its last episode were being written, after its metadata."""

    def change(root: Path) -> None:
        table = pq.read_table(root / DATA, partitioning=None)
        pq.write_table(table.slice(0, len(table) - count), root / DATA)

    return change


def one_row_less(root: Path) -> None:
    """The fourth row of episode 1 is missing."""
    table = pq.read_table(root / DATA, partitioning=None)
    keep = np.arange(len(table)) != LENGTHS[0] + 3
    pq.write_table(table.filter(pa.array(keep)), root / DATA)


ALL = np.concatenate([recorded(i, length)[HIGH] for i, length in enumerate(LENGTHS)])


@pytest.mark.parametrize("changes, lengths, said", [
    ([info(total_episodes=9, total_frames=5)], [8, 6, 7], "counted 9 episodes and 5 frames; there are 3 and 21"),
    ([last_rows(3)], [8, 6, 4], "episode 2 is cut to its first 4 of 7 rows"),
    ([last_rows(6)], [8, 6], "episode 2: only 1 of its 7 rows are sound"),
    ([last_rows(7)], [8, 6], "episode 2: no rows of it can be read"),
    ([one_row_less], [8, 3, 7], "episode 1 is cut to its first 3 of 6 rows"),
    ([filmed(ALL[:18])], [8, 6, 4], "episode 2 is cut to its first 4 of 7 rows"),
    ([filmed(ALL[:11])], [8, 3], "episode 2: only 0 of its 7 rows are sound"),
    ([column("timestamp", lambda v: [0.0] * len(v))], [8, 6, 7], "episode 1: its times are those of 50 Hz now"),
    ([column("index", lambda v: [7] * len(v))], [8, 6, 7], ""),
    ([column("frame_index", lambda v: [*v[:8][::-1], *v[8:]])], [8, 6, 7], "episode 0: its rows were out of order"),
    ([column("action", lambda v: [[float("nan")] * 14 if i == 11 else a for i, a in enumerate(v)])], [8, 3, 7],
     "episode 1 is cut to its first 3"),
    ([gone("meta/tasks.parquet")], [8, 6, 7], "tasks.parquet is missing: the texts of tasks are taken"),
    ([column("task_index", lambda v: [5] * len(v))], [8, 6, 7], ""),
    ([feature(HIGH, info={"video.codec": "av1"})], [8, 6, 7], "`video.codec` .* is h264, and not av1"),
    ([column("length", lambda v: [1, 2, 3], META)], [8, 6, 7], ""),
])  # fmt: skip
def test_what_can_be_saved_is_saved_and_the_rest_is_named(made, tmp_path, changes, lengths, said):
    """Catches an episode that is lost with its neighbour, one that is saved misaligned, a change that is not told."""
    report, out = repaired(made, tmp_path, "v3", *changes)
    found = open_episodes(out)
    assert [len(found.read(name)) + 1 for name in found.names()] == lengths and report.saved == len(lengths)
    lines = report.mended + report.lost
    assert any(re.search(said, line) for line in lines) or not said, lines
    shutil.rmtree(tmp_path / "data")  # nothing rests on it
    for name in found.names():
        episode = found.read(name)
        assert episode.images["cam_high"].shape[1:3] == (96, 128) and episode.instruction == TASKS[episode.seed % 2]


def test_actions_stay_with_their_frames(made, tmp_path):
    """Catches a repair that closes a gap and shifts what follows."""
    _, out = repaired(made, tmp_path, "v3", one_row_less)
    episode, before = open_episodes(out).read("episode_000001"), recorded(1, LENGTHS[1])
    np.testing.assert_array_equal(episode.action, before["action"][:2])
    assert np.abs(episode.images["cam_high"].astype(float) - before[HIGH][:3]).mean((1, 2, 3)).max() < 3


def test_a_damaged_file_costs_its_own_episodes(made, tmp_path):
    """Catches one bad file for which everything is given up."""
    second = DATA.replace("000.parquet", "001.parquet")
    report, out = repaired(made, tmp_path, "ours", content(LEFT, flipped(600)), content(second, half))
    assert open_episodes(out).names() == ["c"] and report.saved == 1
    require_equal(open_episodes(out).read("c"), open_episodes(made / "ours").read("c"))
    lines = "\n".join(report.lost)
    assert f"episode 0: {tmp_path / 'data' / LEFT} is damaged" in lines and "file-001.parquet is damaged" in lines
    assert repair(tmp_path / "data", tmp_path / "again", changed=True).saved == 2, "asked for, it is taken as it is"
    shutil.rmtree(tmp_path / "data")
    report, out = repaired(made, tmp_path / "other", "v21", gone("data/chunk-000/episode_000001.parquet"),
                           content(f"videos/chunk-000/{HIGH}/episode_000002.mp4", lambda _: mp4(ALL[:5])))  # fmt: skip
    assert [len(e) + 1 for e in open_episodes(out)] == [8, 5] and "episode 1: no rows" in report.lost[0]


def test_an_interrupted_run_is_saved_as_far_as_it_came(made, tmp_path):
    """Catches a repair that takes for finished what was being written when the run was killed."""
    def stop(root: Path) -> None:
        info(total_episodes=2, total_frames=10)(root)
        (root / META.replace("000.parquet", "002.parquet")).unlink()

    report, out = repaired(made, tmp_path, "ours", stop)
    assert open_episodes(out).names() == ["a", "b"] and "does not tell of it" in report.lost[0]


def test_nothing_is_overwritten_or_made_up(made, tmp_path):
    """Catches a repair that ends well with nothing in it."""
    with pytest.raises(EpisodeError, match="holds a data set already"):
        repair(made / "v3", made / "ours")
    with pytest.raises(EpisodeError, match="nothing in .* can be saved: .*file-000.parquet is damaged"):
        repaired(made, tmp_path, "v3", content(DATA, half))
    assert not (tmp_path / "out" / INFO).exists()
    with pytest.raises(ValueError, match="never overwritten"):
        RepairConfig("a", "a/")
    EpisodeStore(tmp_path / "own").write(made_up(HANDS, 0, steps=3), "a")
    with pytest.raises(ValueError, match="is no LeRobot data set.*skip=true"):
        command(RepairConfig(str(tmp_path / "own"), str(tmp_path / "x")))


def test_the_command_says_what_it_did(made, tmp_path):
    """Catches a loss that nobody is told of."""
    shutil.copytree(made / "v3", tmp_path / "data")
    content(VIDEO, lambda _: mp4(ALL[:12]))(tmp_path / "data")
    lines = command(RepairConfig(str(tmp_path / "data"), str(tmp_path / "out")))
    assert any(line.startswith("lost: episode 2") for line in lines) and lines[-1].startswith("2 episodes in")
    assert json.loads((tmp_path / "out" / INFO).read_text())["splits"] == {"train": "0:2"}
