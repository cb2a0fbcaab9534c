import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import fields

import numpy as np
import pytest

from envs.data.store import EpisodeError, EpisodeStore, to_bytes
from envs.types import Episode


def test_round_trip(tmp_path, make_episode):
    """A field that is dropped, reordered or changes its type on the way to disk."""
    episode = make_episode(3)
    store = EpisodeStore(tmp_path / "new" / "folder")
    store.write(episode, "b")
    store.write(make_episode(1), "a")
    back = store.read("b")
    for field in fields(Episode):
        expected, got = getattr(episode, field.name), getattr(back, field.name)
        if isinstance(expected, np.ndarray):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
        else:
            assert got == expected, field.name
    assert store.names() == ["a", "b"] and len(store) == 2 and "a" in store and "c" not in store
    assert [e.seed for e in store] == [1, 3]


def test_same_episode_same_bytes(make_episode):
    """A clock or an order of a dict that slips into the file: the same command would not make the same data."""
    assert to_bytes(make_episode(5)) == to_bytes(make_episode(5))
    assert to_bytes(make_episode(5)) != to_bytes(make_episode(6))


def test_nan_expert_is_kept(tmp_path, make_episode):
    """Steps without an expert label must come back as NaN, not as zeros that would be trained on."""
    episode = make_episode(0)
    episode.expert[2:5] = np.nan
    EpisodeStore(tmp_path).write(episode, "e")
    np.testing.assert_array_equal(EpisodeStore(tmp_path).read("e").expert, episode.expert)


@pytest.mark.parametrize("keep", [0, 10, 64, 2000, -1, -65])
def test_truncated(tmp_path, make_episode, keep):
    """A file cut at any place (its head, its digest, its last byte) must be named, not half read."""
    store = EpisodeStore(tmp_path)
    path = store.write(make_episode(0), "cut")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EpisodeError, match=r"cut\.npz is damaged.*[Dd]elete it"):
        store.read("cut")


def test_bit_flip_anywhere(tmp_path, make_episode):
    """A single flipped bit in data, zip headers or digest must be found at reading, not in the results."""
    store = EpisodeStore(tmp_path)
    path = store.write(make_episode(0, steps=4), "flip")
    data = path.read_bytes()
    for place in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1, len(data) - 64, len(data) - 65]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(EpisodeError, match=r"flip\.npz"):
            store.read("flip")


def test_other_format_is_refused(tmp_path, make_episode, monkeypatch):
    """A file of a later layout must be refused by name instead of being misread."""
    store = EpisodeStore(tmp_path)
    monkeypatch.setattr("envs.data.store.FORMAT", 99)
    store.write(make_episode(0), "later")
    monkeypatch.undo()
    with pytest.raises(EpisodeError, match=r"later\.npz.*format 1"):
        store.read("later")


def test_objects_are_never_unpickled(tmp_path):
    """A pickled array in a downloaded episode must not run code, nor be accepted."""
    np.savez(tmp_path / "evil.npz", metadata=np.array([{"a": 1}], dtype=object))
    with pytest.raises(EpisodeError, match=r"evil\.npz"):
        EpisodeStore(tmp_path).read("evil")


def test_missing_file(tmp_path):
    """A wrong name must give the path that was looked for."""
    with pytest.raises(EpisodeError, match=r"nothing\.npz: No such file"):
        EpisodeStore(tmp_path).read("nothing")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_bad_names(tmp_path, name):
    """A name that leaves the folder or hides the file."""
    with pytest.raises(ValueError, match="plain file name"):
        EpisodeStore(tmp_path).path(name)


def test_full_disk(tmp_path, make_episode, monkeypatch):
    """On a full disk: one clear error, no half file, and what was there before is still whole."""
    store = EpisodeStore(tmp_path)
    store.write(make_episode(0), "first")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for name in ("first", "second"):
        with pytest.raises(EpisodeError, match=rf"disk is full: episode .*{name}\.npz"):
            store.write(make_episode(1), name)
    monkeypatch.undo()
    assert store.names() == ["first"] and store.read("first").seed == 0
    assert [p.name for p in tmp_path.iterdir()] == ["first.npz"]


def test_kill_before_the_rename(tmp_path):
    """A kill between writing and renaming must lose only that episode; what it leaves is ignored and cleaned."""
    code = textwrap.dedent("""
        import os, signal, sys
        sys.path.insert(0, "tests")
        from conftest import synthetic_episode
        from envs.data.store import EpisodeStore
        store = EpisodeStore(sys.argv[1])
        store.write(synthetic_episode(0), "whole")
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.write(synthetic_episode(1), "lost")
    """)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    store = EpisodeStore(tmp_path)
    assert store.names() == ["whole"] and store.read("whole").seed == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert store.clean() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["whole.npz"]


def test_split_is_by_seed(tmp_path, make_episode):
    """Catches branches of one state on both sides: what is measured on was then trained on, up to a chunk."""
    store = EpisodeStore(tmp_path)
    for seed in range(4):
        for branch in ("", "-00", "-01"):
            store.write(make_episode(seed), f"a-{seed}{branch}")
    train, held_out = store.split(3)
    assert held_out == ["a-0", "a-0-00", "a-0-01", "a-3", "a-3-00", "a-3-01"] and len(train) == 6
    store.path("a-1").write_bytes(b"not an episode")
    with pytest.raises(EpisodeError, match=r"a-1\.npz is damaged"):
        store.split(3)
