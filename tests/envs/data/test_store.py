import errno
import hashlib
import io
import os
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest

from envs.data.store import DIGEST_CHARS, EpisodeError, EpisodeStore, to_bytes
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
        elif field.name == "images":
            assert list(got) == list(expected)
            for camera, frames in expected.items():
                np.testing.assert_array_equal(got[camera], frames)
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
    with pytest.raises(EpisodeError, match=r"later\.npz.*format 99.*format 2 or 3"):
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
    for seed in range(8):
        for branch in ("", "-00", "-01"):
            store.write(make_episode(seed, steps=4), f"a-{seed}{branch}")
    train, held_out = store.split(3)
    sides = [{name.split("-")[1] for name in side} for side in (train, held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and len(train) + len(held_out) == 24
    store.path("b-0").write_bytes(to_bytes(make_episode(100, steps=4)))
    assert set(held_out) <= set(store.split(3)[1]), "an episode changed sides when another was added"
    store.path("a-1").write_bytes(b"not an episode")
    with pytest.raises(EpisodeError, match=r"a-1\.npz is damaged"):
        store.split(3)


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"PK"])
def test_an_empty_file_is_an_episode_error(tmp_path, content):
    """Catches EOFError and IndexError from a file that a full disk left empty, also where only its seed is read."""
    (tmp_path / "empty.npz").write_bytes(content)
    for use in (lambda store: store.read("empty"), lambda store: store.split(3)):
        with pytest.raises(EpisodeError, match=r"empty\.npz is damaged"):
            use(EpisodeStore(tmp_path))


def test_a_flipped_bit_in_the_metadata_is_an_episode_error(tmp_path, make_episode):
    """Catches zlib.error and UnicodeDecodeError from `split`, which reads the metadata alone."""
    store = EpisodeStore(tmp_path)
    path = store.write(make_episode(0, steps=4), "flip")
    data = path.read_bytes()
    start = data.index(b"metadata.npy")
    for place in range(start, len(data) - 64, max(1, (len(data) - start) // 40)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            store.split(3)  # what is not read is not noticed
        except EpisodeError as error:
            assert "flip.npz" in str(error)


def test_an_array_in_place_of_an_archive(tmp_path):
    """Catches TypeError from a plain .npy file under an episode's name."""
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.arange(100))
    for use in (lambda store: store.read("array"), lambda store: store.split(3)):
        with pytest.raises(EpisodeError, match=r"array\.npz"):
            use(EpisodeStore(tmp_path))


def test_metadata_that_json_cannot_hold_is_named(make_episode):
    """Catches a bare NaN in the file, which is no JSON, and a TypeError that does not say which field it was."""
    for wrong in (float("nan"), np.float32(1)):
        with pytest.raises(ValueError, match="`versions` cannot be kept as JSON"):
            to_bytes(replace(make_episode(0), versions={"wrong": wrong}))


def test_digests_tell_contents(tmp_path, make_episode):
    """Catches two data sets of the same names that are taken for the same data."""
    store = EpisodeStore(tmp_path)
    store.write(make_episode(0), "a")
    before = store.digests()
    assert list(before) == ["a"] and len(before["a"]) == 64 and store.digests() == before
    store.write(make_episode(1), "a")
    assert store.digests() != before


def test_a_folder_without_episodes_is_named(tmp_path):
    """Catches a misspelt folder among several that is skipped in silence."""
    with pytest.raises(EpisodeError, match="fold_hafl does not exist"):
        EpisodeStore(tmp_path / "fold_hafl").require()
    with pytest.raises(EpisodeError, match="holds no episodes"):
        EpisodeStore(tmp_path).require()


def test_what_a_simulator_adds_survives(tmp_path, make_episode):
    """Poses, views and simulator states come back bit for bit; a float32 state would replay another episode."""
    plain = make_episode(0)
    count, rng = len(plain) + 1, np.random.default_rng(0)
    pose = np.tile(np.float32([0.5, 0, 1.4, 1, 0, 0, 0, 0.66]), (count, 1))
    view = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    sim_state = rng.normal(size=(count, 7))
    main = plain.spec.cameras[0].name
    episode = replace(plain, poses={main: pose, "top": pose}, views={"top": view}, sim_state=sim_state)
    store = EpisodeStore(tmp_path)
    store.write(episode, "a")
    back = store.read("a")
    assert np.array_equal(back.sim_state, sim_state) and np.array_equal(back.views["top"], view)
    assert list(back.poses) == [main, "top"] and np.array_equal(back.poses[main], pose)
    assert np.array_equal(back.obs(1).poses[main], pose[1]) and "top" not in back.obs(1).poses
    without = store.read("a", states=False)  # which training reads
    assert without.sim_state.size == 0 and np.array_equal(without.views["top"], view)


def test_episodes_of_the_format_before_are_read(tmp_path, make_episode, monkeypatch):
    """A folder that was collected before poses and simulator states were kept must stay usable."""
    monkeypatch.setattr("envs.data.store.FORMAT", 2)
    data = to_bytes(make_episode(0))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as new, zipfile.ZipFile(buffer, "w") as old:
        for name in new.namelist():
            if name != "sim_state.npy":
                old.writestr(name, new.read(name))
        old.comment = new.comment
    body = buffer.getvalue()[:-DIGEST_CHARS]
    (tmp_path / "before.npz").write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    back = EpisodeStore(tmp_path).read("before")
    assert len(back) == len(make_episode(0)) and back.poses == {} and back.sim_state.size == 0
