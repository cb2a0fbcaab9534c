"""A run is told by what it was made from, and what has changed is said in words."""

import json

import numpy as np

from envs.data.fingerprint import Folder, differences, digest, fingerprint

SETTINGS = {"steps": 7, "model": {"width": 32, "layers": None}, "coefs": (4, 4), "rate": np.float32(0.5)}


def made(settings=SETTINGS, start="a" * 64, path="data/x", episodes=None, role="data"):
    return fingerprint(settings, {"start": start}, [Folder(role, path, episodes or {"e0": "0", "e1": "1"})])


def test_a_fingerprint_survives_the_disk():
    """Catches tuples, paths or numpy numbers that differ from themselves once they were written as JSON."""
    kept = json.loads(json.dumps(made()))
    assert differences(kept, made()) == [] and digest(kept) == digest(made())


def test_content_counts_and_not_where_it_lies():
    """Catches a resumed run that goes on though its data changed, and one that stops because a folder was moved."""
    assert differences(made(), made(path="elsewhere/x")) == []
    assert digest(made()) == digest(made(path="elsewhere/x"))
    for other in (made(start="b" * 64), made(episodes={"e0": "0", "e1": "2"}), made({**SETTINGS, "steps": 8})):
        assert differences(made(), other) and digest(made()) != digest(other)


def test_what_changed_is_named():
    """Catches `other settings` as all that a user is told."""
    (text,) = differences(made(), made({**SETTINGS, "model": {"width": 64, "layers": None}}))
    assert text == "`model.width` was 32 and is 64"
    (text,) = differences(made(), made({**SETTINGS, "new": 1}))
    assert text == "`new` was null and is 1"
    grown = {**{f"n{i}": "n" for i in range(5)}, "e1": "2"}
    (text,) = differences(made(), made(episodes=grown))
    assert text == "data/x: 5 episodes (n0, n1, n2, ...) added, 1 episode (e0) removed, 1 episode (e1) changed"
    (text,) = differences(made(), made(start="c" * 64))
    assert "`start`" in text


def test_folders_that_come_or_go_are_named():
    """Catches folders that are compared with each other's episodes because one was put before them."""
    more = fingerprint(SETTINGS, {"start": "a" * 64}, [
        Folder("data", "data/x", {"e0": "0", "e1": "1"}), Folder("data", "data/y", {"e0": "0"}),
    ])  # fmt: skip
    assert differences(made(), more) == ["`data` had data/x and has data/x, data/y"]
    (gone, come) = differences(made(), made(role="unlabelled"))
    assert gone == "`data` had data/x and has no folder" and come == "`unlabelled` had no folder and has data/x"
