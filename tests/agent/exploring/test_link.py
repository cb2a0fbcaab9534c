"""A moment as text."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from agent.exploring.link import MAX_BYTES, Link, Origin

HERE = Origin("nextstate/Lift-v0", "a" * 64, 8)
LINK = Link(HERE, "seen", 7, "lift the cübe", np.linspace(-1, 1, 21, dtype=np.float32).reshape(3, 7))


def packed(head: dict, numbers: bytes = b"") -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(head).encode() + b"\n" + numbers)).decode()


def test_a_link_says_the_same_when_it_is_read():
    """Catches actions that are rounded on the way, letters that an address changes, and an empty way."""
    text = LINK.to_text()
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    for link in (LINK, replace(LINK, actions=np.zeros((0, 0), np.float32)), replace(LINK, scene_look=3)):
        read = Link.from_text(link.to_text())
        assert replace(read, actions=None) == replace(link, actions=None)
        np.testing.assert_array_equal(read.actions, link.actions)


def test_a_link_of_before_scenes_had_looks():
    """Catches links in people's notes that lead nowhere any more."""
    old = {key: value for key, value in HEAD.items() if key != "scene_look"}
    assert Link.from_text(packed(old, np.zeros(2, "<f4").tobytes())).scene_look == 0


HEAD = {
    "version": 1, "env": "e", "checkpoint": "c", "look": 8, "split": "seen", "seed": 1, "instruction": "",
    "scene_look": 0, "shape": [1, 2],
}  # fmt: skip
BAD = {
    "words": "not a link!", "no text": "", "cut off": LINK.to_text()[:-9], "another": packed({"version": 1}),
    "a list": packed([]), "newer": packed(HEAD | {"version": 2}), "no numbers": packed(HEAD),
    "infinite": packed(HEAD, np.full(2, np.inf, "<f4").tobytes()), "shape": packed(HEAD | {"shape": -1}, b"\0" * 8),
    "seed": packed(HEAD | {"seed": "x"}, b"\0" * 8), "huge": packed(HEAD, b"\0" * (2 * MAX_BYTES)),
}  # fmt: skip


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_link_is_refused(text):
    """Catches a text that ends the server, or that unpacks into all of its memory."""
    with pytest.raises(ValueError, match="this link"):
        Link.from_text(text)


@pytest.mark.parametrize(
    "origin, what",
    [
        (replace(HERE, checkpoint="b" * 64), "another checkpoint, aaaaaaaaaaaa: here it is bbbbbbbbbbbb"),
        (replace(HERE, env="nextstate/FoldHalf-v0"), "another environment"),
        (replace(HERE, look=2), "another length of a model step"),
    ],
)
def test_a_link_of_something_else_is_refused(origin, what):
    """Catches a moment that is shown although here it is another."""
    LINK.require(HERE)
    with pytest.raises(ValueError, match=what):
        LINK.require(origin)
