"""Whole or not there: with kills, full disks, and several writers at once."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from envs.data import files
from envs.data.files import (
    append_line,
    create_whole,
    read_lines,
    remove_leftovers,
    temporary_name,
    to_json,
    write_json,
    write_whole,
)


def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("write", [write_whole, append_line])
def test_full_disk(tmp_path, monkeypatch, write):
    """Catches a full disk that costs what was there before, or whose message does not name the file."""
    path = tmp_path / "report.json"
    write_whole(path, "before\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"^cannot write .*report\.json: No space left.*run the same command") as error:
        write(path, "after")
    assert error.value.errno == errno.ENOSPC
    assert path.read_text() == "before\n" and os.listdir(tmp_path) == ["report.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    """Catches the error of the tidying up in place of the one that matters."""
    (tmp_path / "file").write_text("")
    for write in (write_whole, append_line, create_whole):
        with pytest.raises(OSError, match="cannot write .*file/report.json: Not a directory"):
            write(tmp_path / "file" / "report.json", "x")


def test_temporary_names_are_unique(tmp_path):
    """Catches two hosts, processes or calls that write into each other's temporary file."""
    names = {temporary_name(tmp_path / "a.json").name for _ in range(100)}
    assert len(names) == 100
    assert all(f".{socket.gethostname()}.{os.getpid()}." in name and name.startswith(".a.json.") for name in names)


HELD = """
import os, signal, sys
from envs.data import files
os.fsync = lambda handle: (print("writing", flush=True), signal.pause())
files.write_whole(sys.argv[1], "content")
"""


def writer(path: Path) -> subprocess.Popen:
    """Another process in the middle of writing this file."""
    process = subprocess.Popen([sys.executable, "-c", HELD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def test_only_what_dead_writers_left_is_removed(tmp_path):
    """Catches a second run on a folder that deletes what the first one is just writing, and one that never tidies."""
    process = writer(tmp_path / "a.npz")
    try:
        (tmp_path / ".old.123.tmp").write_text("left by an earlier version")
        write_whole(tmp_path / "whole.npz", "whole")
        assert remove_leftovers(tmp_path) == 1
        assert len(list(tmp_path.glob(".a.npz.*.tmp"))) == 1
    finally:
        process.kill()
        process.wait()
    assert remove_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == ["whole.npz"]


def test_folders_of_dead_processes_are_removed(tmp_path):
    """Catches a checkpoint that is just being written, by this process or on another host, taken for a leftover."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = temporary_name(tmp_path / "step-1")
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{ended.pid}."))
    elsewhere = dead.with_name(dead.name.replace(f".{socket.gethostname()}.", ".another-host."))
    odd = tmp_path / ".tmp"
    for folder in (mine, dead, elsewhere, odd):
        (folder / "inner").mkdir(parents=True)
    assert remove_leftovers(tmp_path) == 1
    assert mine.exists() and elsewhere.exists() and not dead.exists()


def test_a_cleaner_between_opening_and_locking(tmp_path, monkeypatch):
    """Catches a file that is written under a name that somebody has just removed."""
    locked = []

    def slow(file, kind):
        if not locked:
            locked.append(remove_leftovers(tmp_path))
        return True

    monkeypatch.setattr(files, "lock", slow)
    write_whole(tmp_path / "a.json", "content")
    assert locked == [1] and (tmp_path / "a.json").read_text() == "content" and os.listdir(tmp_path) == ["a.json"]


def create(path: Path, start, results) -> None:
    start.wait()
    results.put(create_whole(path, f"{os.getpid()}\n"))


def test_one_of_many_creates(tmp_path):
    """Catches two simultaneous starts that both believe to be the first."""
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(8), context.SimpleQueue()
    processes = [context.Process(target=create, args=(tmp_path / "claim", start, results)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(results.get() for _ in processes) == [False] * 7 + [True]
    assert os.listdir(tmp_path) == ["claim"] and (tmp_path / "claim").read_text().endswith("\n")


def test_without_hard_links(tmp_path, monkeypatch):
    """Catches a file system without hard links, on which nothing could be started."""

    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert create_whole(tmp_path / "claim", "a") and not create_whole(tmp_path / "claim", "b")
    assert (tmp_path / "claim").read_text() == "a" and os.listdir(tmp_path) == ["claim"]


def add(path: Path, name: str) -> None:
    for i in range(50):
        append_line(path, f"{name} {i} " + "x" * 200)


def test_lines_of_several_writers(tmp_path):
    """Catches lines that two processes write into each other, or that one of them takes for a cut one and drops."""
    path = tmp_path / "outcomes.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = read_lines(path)
    assert sorted(lines) == sorted(f"{name} {i} " + "x" * 200 for name in "ab" for i in range(50))


@pytest.mark.parametrize("cut", ["half", "h" * 10_000])
def test_a_cut_line_is_dropped(tmp_path, cut):
    """Catches a line that a kill cut short, joined to the next one or read as a result."""
    path = tmp_path / "outcomes.jsonl"
    assert read_lines(path) == []
    path.write_text(cut)
    assert read_lines(path) == []
    append_line(path, "first")
    with open(path, "a") as file:
        file.write(cut)
    assert read_lines(path) == ["first"]
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
    with pytest.raises(ValueError, match="more than one line"):
        append_line(path, "a\nb")


@dataclass(frozen=True)
class Measured:
    score: float
    where: Path


def test_strict_json(tmp_path):
    """Catches a bare NaN, which is not JSON, and a report that fails on numpy's types after hours of work."""
    value = {
        "nan": float("nan"), "inf": [np.inf, -np.inf, (np.float32("nan"), 1.5)], "array": np.array([[1.0, np.nan]]),
        "count": np.int64(3), "yes": np.bool_(True), "path": Path("a/b"), "made": Measured(np.float64(0.5), Path("c")),
        np.int64(7): None, "name": "Größe",
    }  # fmt: skip
    write_json(tmp_path / "report.json", value)
    text = (tmp_path / "report.json").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None, "inf": [None, None, [None, 1.5]], "array": [[1.0, None]], "count": 3, "yes": True, "path": "a/b",
        "made": {"score": 0.5, "where": "c"}, "7": None, "name": "Größe",
    }  # fmt: skip
    assert text.endswith("}\n") and "Größe" in text
    assert to_json({"b": 1, "a": 2}, indent=None, sort_keys=True) == '{"a": 2, "b": 1}'
    with pytest.raises(TypeError):
        to_json({"what": object()})


def test_a_kill_leaves_the_old_file(tmp_path):
    """Catches writing in place: a kill in the middle must not cost what was there."""
    path = tmp_path / "report.json"
    write_whole(path, "old")
    process = writer(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
