"""LeRobot data sets, read and written."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from envs.data.files import write_whole
from envs.data.formats.folder import format_of, open_episodes
from envs.data.formats.lerobot_writer import LeRobotWriter
from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Episode
from tests.foreign import CAMERAS, HZ, JOINTS, TASKS, write_v3, write_v21
from tests.robots import ARM, HANDS, made_up
from tests.viewed import viewed

LENGTHS = (12, 9, 15)


def write(root: Path, *episodes: Episode, images: str = "png") -> LeRobotWriter:
    """A data set of these episodes, named a, b and so on."""
    writer = LeRobotWriter(root, images)
    with writer.claimed():
        for name, episode in zip("abcdefgh", episodes, strict=False):
            if name not in writer.names():
                writer.write(episode, name)
    return writer


def require_equal(ours: Episode, other: Episode, pixels: float = 0.0) -> None:
    """Every field, the pictures within `pixels` grey levels on average."""
    for name, value in vars(other).items():
        got = getattr(ours, name)
        if name in ("images", "views"):
            assert list(got) == list(value)
            for camera, frames in value.items():
                assert got[camera].shape == frames.shape
                assert np.abs(got[camera].astype(float) - frames).mean() <= pixels, camera
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got, value, err_msg=name)
            assert got.dtype == value.dtype, name
        elif name == "poses":
            assert list(got) == list(value)
            for camera, pose in value.items():
                np.testing.assert_array_equal(got[camera], pose)
        else:
            assert got == value, name


@pytest.mark.parametrize("images, pixels", [("png", 0.0), ("video", 5.0)])
def test_what_is_written_comes_back(tmp_path, images, pixels):
    """Catches a field that is lost, shifted by a step or rounded; pictures are exact, or within what the codec loses
    (chroma at half the resolution, around a red square of 6 pixels)."""
    labelled = made_up(HANDS, 1, steps=6, expert=True, instruction="äöü go")
    labelled = replace(
        labelled, keypoints=np.where(np.arange(2)[:, None] == 0, labelled.keypoints, np.float32(np.nan)),
        subtask=(np.arange(6) // 3).astype(np.int16), subtask_names=("reach", "hold"), truncated=True,
        off_task_steps=2, versions={"numpy": "1"}, sim_state=np.random.default_rng(0).normal(size=(7, 5)),
    )  # fmt: skip
    plain = replace(made_up(HANDS, 2, steps=4, instruction="b"), sim_state=np.ones((5, 5)))
    write(tmp_path / "a b", labelled, plain, images=images)
    found = open_episodes(tmp_path / "a b")
    assert found.names() == ["a", "b"] and len(found) == 2 and "a" in found and "c" not in found
    for name, episode in (("a", labelled), ("b", plain)):
        require_equal(found.read(name), episode, pixels)
    assert found.read("a", states=False).sim_state.size == 0


def test_poses_and_views_come_back(tmp_path):
    """Catches a view from elsewhere that becomes a camera of the robot."""
    episode = viewed(3)
    write(tmp_path / "data", episode)
    require_equal(open_episodes(tmp_path / "data").read("a"), episode)


def test_an_episode_without_a_step_or_a_state_comes_back(tmp_path):
    """Catches a special case of the last row, which repeats an action that there is not."""
    write(tmp_path / "data", replace(made_up(ARM, 0, steps=1)))
    require_equal(open_episodes(tmp_path / "data").read("a"), made_up(ARM, 0, steps=1))


@pytest.mark.parametrize("write_it", [write_v3, write_v21])
def test_somebody_elses_is_read(tmp_path, write_it):
    """Catches episodes that lie in one file being mixed up, frames of the neighbour, and a robot that is assumed."""
    recorded = write_it(tmp_path / "data", LENGTHS)
    found = open_episodes(tmp_path / "data")
    spec = found.spec
    assert spec.control_hz == HZ and [part.name for part in spec.action] == JOINTS and not spec.grippers
    assert [(c.name, c.height, c.width) for c in spec.cameras] == [("cam_high", 96, 128), ("cam_low", 48, 64)]
    assert [part.name for part in spec.state] == [*JOINTS, "effort.0", "effort.1"] and not spec.keypoints
    assert found.names() == [f"episode_{i:06d}" for i in range(3)]
    for i in (2, 0, 1):
        episode, columns = found.read(f"episode_{i:06d}"), recorded[i]
        assert len(episode) == LENGTHS[i] - 1 and episode.instruction == TASKS[i % 2] and episode.seed == i
        np.testing.assert_array_equal(episode.action, columns["action"][:-1])
        np.testing.assert_array_equal(episode.state[:, :14], columns["observation.state"])
        for key in CAMERAS:
            shown = episode.images[key.removeprefix("observation.images.")].astype(float)
            far = np.abs(shown - columns[key]).mean((1, 2, 3))
            assert far.max() < 3, "the frame of another moment is 5 and more away"
        assert np.isnan(episode.expert).all() and not episode.success.any()


def test_every_command_looks_at_what_is_there(tmp_path):
    """Catches a folder of one format that is opened as another."""
    write(tmp_path / "le", made_up(ARM, 0, steps=4))
    EpisodeStore(tmp_path / "own").write(made_up(ARM, 0, steps=4), "a")
    assert [format_of(tmp_path / name) for name in ("le", "own", "none")] == ["lerobot", "native", "native"]
    with pytest.raises(EpisodeError, match="none does not exist"):
        open_episodes(tmp_path / "none")


def test_the_split_and_the_content_are_told_without_reading(tmp_path):
    """Catches held-out episodes that depend on the format, and a changed episode that goes unnoticed."""
    episodes = [made_up(ARM, seed, steps=3) for seed in range(6)]
    write(tmp_path / "le", *episodes)
    native = EpisodeStore(tmp_path / "own")
    for name, episode in zip("abcdef", episodes, strict=True):
        native.write(episode, name)
    found = open_episodes(tmp_path / "le")
    assert found.split(3) == native.split(3)
    before = found.digests()
    assert len(set(before.values())) == 6 and open_episodes(tmp_path / "le").digests() == before
    write_v3(tmp_path / "theirs", LENGTHS)
    before = open_episodes(tmp_path / "theirs").digests()
    video = next((tmp_path / "theirs").glob("videos/*/*/*.mp4"))
    video.write_bytes(video.read_bytes() + b"0")
    assert not set(before.values()) & set(open_episodes(tmp_path / "theirs").digests().values())


def test_statistics_are_those_of_the_numbers(tmp_path):
    """Catches statistics that are of one episode, or that LeRobot cannot take: a shape, a missing quantile, a NaN."""
    episodes = [made_up(HANDS, seed, steps=5 + seed) for seed in range(3)]
    write(tmp_path / "data", *episodes[:2])
    write(tmp_path / "data", *episodes)  # the last one by another run
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())
    assert "NaN" not in (tmp_path / "data/meta/stats.json").read_text()
    state = np.concatenate([episode.state for episode in episodes])
    for name, value in (("min", state.min(0)), ("max", state.max(0)), ("mean", state.mean(0)), ("std", state.std(0))):
        np.testing.assert_allclose(stats["observation.state"][name], value, rtol=1e-5, atol=1e-7)
    assert stats["observation.state"]["count"] == [len(state)]
    for feature, of in stats.items():
        assert set(of) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}, feature
    pixels = np.concatenate([episode.images["left"] for episode in episodes]) / 255
    picture = stats["observation.images.left"]
    assert np.shape(picture["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(picture["mean"]), pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(picture["std"]), pixels.std((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize("images", ["video", "png"])
def test_somebody_elses_validator_finds_no_fault(tmp_path, images):
    """Catches what our own reader would forgive: columns, types, paths, times, videos, statistics."""
    dataset = pytest.importorskip("lerobot_doctor.dataset_loader")
    runner = pytest.importorskip("lerobot_doctor.runner")
    write(tmp_path / "data", *(made_up(HANDS, seed, steps=60, instruction="go") for seed in range(3)), images=images)
    report = runner.run_checks(dataset.load_dataset(str(tmp_path / "data")))
    assert report.overall_severity.value != "FAIL", report


def test_tasks_are_read_by_pandas_with_their_texts_as_index(tmp_path):
    """Catches tasks that LeRobot cannot look up: it reads them with pandas, whose index stands in the schema."""
    write(tmp_path / "data", made_up(ARM, 0, steps=3, instruction="x"), made_up(ARM, 1, steps=3, instruction="y"))
    schema = pq.read_schema(tmp_path / "data/meta/tasks.parquet")
    assert schema.names == ["task_index", "task"] and schema.pandas_metadata["index_columns"] == ["task"]


@pytest.mark.parametrize("images", ["video", "png"])
def test_columns_stand_in_the_order_of_the_features(tmp_path, images):
    """Catches rows that LeRobot refuses: it casts a table to its features without looking at names."""
    write(tmp_path / "data", viewed(0, steps=3), images=images)
    features = json.loads((tmp_path / "data/meta/info.json").read_text())["features"]
    wanted = [key for key, feature in features.items() if feature["dtype"] != "video"]
    assert pq.read_schema(tmp_path / "data/data/chunk-000/file-000.parquet").names == wanted


def test_another_robot_or_other_columns_are_refused(tmp_path):
    """Catches a data set whose files have different columns, which LeRobot cannot read at all."""
    writer = write(tmp_path / "data", made_up(ARM, 0, steps=3))
    for episode, why in ((made_up(HANDS, 1, steps=3), "different robots"),
                         (replace(made_up(ARM, 1, steps=3), sim_state=np.zeros((4, 2))), "nextstate.sim_state"),
                         ):  # fmt: skip
        with writer.claimed(), pytest.raises(ValueError, match=why):
            writer.write(episode, "b")
    assert open_episodes(tmp_path / "data").names() == ["a"]
    with writer.claimed(), pytest.raises(EpisodeError, match="another command is writing"):
        with LeRobotWriter(tmp_path / "data").claimed():
            pass
    write_v3(tmp_path / "theirs", LENGTHS)
    with pytest.raises(EpisodeError, match="somebody else: choose another"):
        write(tmp_path / "theirs", made_up(ARM, 0, steps=3))


def test_a_stop_between_any_two_files_leaves_what_is_finished(tmp_path, monkeypatch):
    """Catches a count that runs ahead of the files, and a run that does not go on where it was stopped."""
    first, second = (made_up(HANDS, seed, steps=3, instruction=str(seed)) for seed in range(2))
    write(tmp_path / "begun", first, images="video")
    files, stop_at = [], [0]

    def stopping(path, content):
        files.append(path)
        if len(files) > stop_at[0]:
            raise KeyboardInterrupt
        write_whole(path, content)

    for module in ("files", "formats.tables", "formats.lerobot_writer"):
        monkeypatch.setattr(f"envs.data.{module}.write_whole", stopping)
    while True:
        root = tmp_path / f"stopped {stop_at[0]}"
        shutil.copytree(tmp_path / "begun", root)
        files.clear()
        try:
            write(root, first, second, images="video")
            break
        except KeyboardInterrupt:
            pass
        found = open_episodes(root)
        assert found.names() == ["a"] and found.read("a").instruction == "0", files[-1]
        rows = [pq.read_table(path)["episode_index"][0].as_py() for path in sorted(root.glob("data/*/*.parquet"))]
        assert rows in ([0], [0, 1]), "LeRobot reads all files: what is not counted must stand at the end"
        stop_at[0], done = 99, stop_at[0] + 1
        write(root, first, second, images="video")
        assert [e.instruction for e in open_episodes(root)] == ["0", "1"]
        stop_at[0] = done
    assert stop_at[0] == 7, "two videos, rows, metadata, tasks, statistics, and the count, which comes last"


WRITER = """
import sys
from pathlib import Path
from envs.data.formats.lerobot_writer import LeRobotWriter
from tests.robots import ARM, made_up
writer = LeRobotWriter(Path(sys.argv[1]))
with writer.claimed():
    for seed in range(1000):
        writer.write(made_up(ARM, seed, steps=8, instruction=str(seed)), str(seed))
"""


def test_a_kill_leaves_every_finished_episode(tmp_path):
    """Catches a file that is written in place: half of it is there after a kill."""
    root = tmp_path / "data"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(root)], cwd=Path(__file__).parents[4])
    last = time.monotonic() + 120
    while time.monotonic() < last and not list(root.glob("data/*/file-003.parquet")):
        time.sleep(0.003)
    process.kill()
    process.wait()
    found = open_episodes(root)
    assert len(found) >= 3 and [e.instruction for e in found] == found.names() == [str(i) for i in range(len(found))]
