"""What goes over the socket: checked on its way in, packed on its way out.

To the server come JSON texts. From it come binary messages: four bytes with the length of a JSON head, the head, and
the pictures that it lists, one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from envs.types import Spec, check_action

MAX_MESSAGE = 2**18  # bytes; the longest is a link with some thousand actions
MAX_ACTIONS = 16  # of one message
MAX_TEXT = 200  # letters of an instruction
JPEG_QUALITY = 88
Head = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """One picture of a message. of: what it shows, told to the page as it is. image: (h, w, 3) u8. lossless: a picture
    of few pixels, which the page enlarges, and every blemish with it."""

    of: Mapping[str, Any]
    image: np.ndarray
    lossless: bool = False

    def encode(self) -> bytes:
        """As a file that browsers show."""
        kind, options = (".png", []) if self.lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        whole, data = cv2.imencode(kind, np.ascontiguousarray(self.image[..., ::-1]), options)
        if not whole:
            raise ValueError(f"a picture of shape {self.image.shape} cannot be packed")
        return data.tobytes()


def pack(head: Head, pictures: Sequence[Picture] = ()) -> bytes:
    """A message to the page."""
    files = [picture.encode() for picture in pictures]
    listed = [
        {**picture.of, "type": "image/png" if picture.lossless else "image/jpeg", "bytes": len(file)}
        for picture, file in zip(pictures, files, strict=True)
    ]
    text = json.dumps({**head, "pictures": listed}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *files])


def unpack(message: bytes) -> tuple[Head, list[bytes]]:
    """The inverse, for clients in Python: the head, and the files of its pictures."""
    (length,) = struct.unpack_from("<I", message)
    head, rest, files = json.loads(message[4 : 4 + length]), message[4 + length :], []
    for picture in head["pictures"]:
        files.append(rest[: picture["bytes"]])
        rest = rest[picture["bytes"] :]
    return head, files


def parse(text: str) -> Head:
    """A message from the page. ValueError where it is none."""
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(text)} letters is too long: at most {MAX_MESSAGE}")
    try:
        message = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("this message is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"this message is not JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("do"), str):
        raise ValueError("a message must be an object that says what to `do`")
    return message


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def whole(message: Head, name: str, low: int, high: int) -> int:
    """A whole number of a message. ValueError where it is none, or out of range."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"`{name}` must be a whole number from {low} to {high}, got {str(value)[:40]!r}")
    return value


def words(message: Head, name: str, longest: int, default: str | None = None) -> str:
    """A text of a message. ValueError where it is none, or too long."""
    value = message.get(name, default)
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"`{name}` must be a text of at most {longest} letters")
    return value


def actions(message: Head, spec: Spec) -> list[np.ndarray]:
    """The actions of a message, (A,) f32 each, cut to their range. ValueError where they are none."""
    found = message.get("actions")
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_ACTIONS:
        raise ValueError(f"`actions` must be a list of 1 to {MAX_ACTIONS} actions")
    for action in found:
        numbers = isinstance(action, list) and all(
            isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < 1e6 for each in action
        )
        if not numbers or len(action) != len(spec.action):
            raise ValueError(f"an action must be a list of {len(spec.action)} numbers")
    return [check_action(np.array(action, np.float32), spec) for action in found]
