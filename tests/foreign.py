"""LeRobot data sets that somebody else wrote: made here with pyarrow and PyAV alone, so that a reader and a writer of
ours that are wrong in the same way do not pass for right.

Two arms of seven joints at 50 Hz, two cameras that are no squares, two tasks, nothing of a simulator.
"""

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HZ = 50
JOINTS = [f"{arm}_{joint}" for arm in ("left", "right") for joint in
          ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")]  # fmt: skip
CAMERAS = {"observation.images.cam_high": (96, 128), "observation.images.cam_low": (48, 64)}
TASKS = ["Transfer the cube", "open the drawer — schräg"]
COUNTED = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
           "task_index": "int64"}  # fmt: skip


def recorded(episode: int, rows: int) -> dict[str, np.ndarray]:
    """The columns of an episode, and the frames of its cameras."""
    rng = np.random.default_rng(episode)
    action = np.cumsum(rng.normal(0, 0.1, (rows, len(JOINTS))), axis=0).astype(np.float32)
    state = np.concatenate([action[:1], action[:-1]])
    found = {"observation.state": state, "observation.effort": 0.1 * state[:, :2], "action": action}
    found["next.done"] = np.arange(rows) == rows - 1
    for key, (height, width) in CAMERAS.items():
        rows_, columns = np.mgrid[:height, :width]
        frames = np.empty((rows, height, width, 3), np.uint8)
        for t in range(rows):
            frames[t] = np.stack([rows_ * 2 % 200, columns % 200, np.full_like(rows_, 40 + 3 * episode)], -1)
            place = 4 + (2 * t) % (width - 24)
            frames[t, 8:24, place : place + 16] = (230, 120, 60)
        found[key] = frames
    return found


def mp4(frames: np.ndarray, codec: str = "libx264", hz: int = HZ) -> bytes:
    """A video of frames (T, h, w, 3) u8."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": "10", "g": "10"} if codec == "libx264" else {}
        stream = container.add_stream(codec, Fraction(hz), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def table(episode: int, first: int, columns: dict[str, np.ndarray], task: int) -> pa.Table:
    """The rows of an episode."""
    count = len(columns["action"])
    arrays = {name: pa.array(list(values)) for name, values in columns.items() if name not in CAMERAS}
    return pa.table(arrays | {
        "timestamp": pa.array((np.arange(count) / HZ).astype(np.float32)), "frame_index": pa.array(np.arange(count)),
        "episode_index": pa.array(np.full(count, episode)), "index": pa.array(first + np.arange(count)),
        "task_index": pa.array(np.full(count, task)),
    })  # fmt: skip


def features() -> dict:
    """Of `info.json`, names nested as recordings of ALOHA have them."""
    info = {"video.codec": "h264", "video.fps": float(HZ)}
    names = ["channels", "height", "width"]
    found = {k: {"dtype": "video", "shape": [3, *size], "names": names, "info": info} for k, size in CAMERAS.items()}
    found |= {key: {"dtype": "float32", "shape": [len(JOINTS)], "names": {"motors": JOINTS}}
              for key in ("observation.state", "action")}  # fmt: skip
    found["observation.effort"] = {"dtype": "float32", "shape": [2], "names": None}
    found["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    return found | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in COUNTED.items()}


def write_v3(root: Path, lengths: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """A data set v3.0 with all episodes in one file of rows and one video a camera; what was recorded."""
    episodes = [recorded(i, rows) for i, rows in enumerate(lengths)]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", *(f"videos/{key}/chunk-000" for key in CAMERAS)):
        (root / folder).mkdir(parents=True)
    tables = [table(i, starts[i], columns, i % 2) for i, columns in enumerate(episodes)]
    with pq.ParquetWriter(root / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        for each in tables:
            writer.write_table(each)
    for key in CAMERAS:
        frames = np.concatenate([columns[key] for columns in episodes])
        (root / f"videos/{key}/chunk-000/file-000.mp4").write_bytes(mp4(frames))
    rows = {
        "episode_index": list(range(len(lengths))), "tasks": [[TASKS[i % 2]] for i in range(len(lengths))],
        "length": list(lengths), "data/chunk_index": [0] * len(lengths), "data/file_index": [0] * len(lengths),
        "dataset_from_index": starts[:-1], "dataset_to_index": starts[1:],
    }  # fmt: skip
    for key in CAMERAS:
        rows |= {f"videos/{key}/chunk_index": [0] * len(lengths), f"videos/{key}/file_index": [0] * len(lengths),
                 f"videos/{key}/from_timestamp": [start / HZ for start in starts[:-1]],
                 f"videos/{key}/to_timestamp": [start / HZ for start in starts[1:]]}  # fmt: skip
    pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "task": TASKS}), root / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0", "robot_type": "aloha", "total_episodes": len(lengths), "total_frames": starts[-1],
        "total_tasks": 2, "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 500, "fps": HZ,
        "splits": {"train": f"0:{len(lengths)}"}, "features": features(),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    return episodes


def write_v21(root: Path, lengths: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """The same as v2.1: a file of rows and a video a camera for each episode."""
    episodes, first = [recorded(i, rows) for i, rows in enumerate(lengths)], 0
    for folder in ("meta", "data/chunk-000", *(f"videos/chunk-000/{key}" for key in CAMERAS)):
        (root / folder).mkdir(parents=True)
    lines = []
    for i, columns in enumerate(episodes):
        pq.write_table(table(i, first, columns, i % 2), root / f"data/chunk-000/episode_{i:06d}.parquet")
        for key in CAMERAS:
            (root / f"videos/chunk-000/{key}/episode_{i:06d}.mp4").write_bytes(mp4(columns[key]))
        lines.append({"episode_index": i, "tasks": [TASKS[i % 2]], "length": lengths[i]})
        first += lengths[i]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tasks))
    info = {
        "codebase_version": "v2.1", "robot_type": "aloha", "total_episodes": len(lengths), "total_frames": first,
        "total_tasks": 2, "total_videos": len(CAMERAS) * len(lengths), "total_chunks": 1, "chunks_size": 1000,
        "fps": HZ, "splits": {"train": f"0:{len(lengths)}"}, "features": features(),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    return episodes
