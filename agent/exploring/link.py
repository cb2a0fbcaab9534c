"""A moment as text that a link can hold: the start, the actions since, and which checkpoint dreamt."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import asdict, dataclass

import numpy as np

VERSION = 1
MAX_BYTES = 2**20  # of what a link may unpack to


@dataclass(frozen=True)
class Origin:
    """What has to be the same for the same actions to lead to the same pictures. checkpoint: the sha256 of its
    manifest. look: control steps of a model step."""

    env: str
    checkpoint: str
    look: int


@dataclass(frozen=True)
class Link:
    """The way to a moment. actions: (T, A) f32. scene_look: as `Timeline` has it."""

    origin: Origin
    split: str
    seed: int
    instruction: str
    actions: np.ndarray
    scene_look: int = 0

    def to_text(self) -> str:
        """Letters that an address needs not escape."""
        head = {
            "version": VERSION, **asdict(self.origin), "split": self.split, "seed": self.seed,
            "instruction": self.instruction, "scene_look": self.scene_look, "shape": list(self.actions.shape),
        }  # fmt: skip
        data = json.dumps(head).encode() + b"\n" + self.actions.astype("<f4").tobytes()
        return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Link:
        """The inverse of `to_text`. ValueError for what is none."""
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(packed, MAX_BYTES)
            if not unpacker.eof:
                raise ValueError("it is cut off, or far too long")
            head, _, numbers = data.partition(b"\n")
            raw = json.loads(head)
            if raw["version"] != VERSION:
                raise ValueError(f"it is of version {raw['version']}, and this is {VERSION}")
            steps, dimensions = raw["shape"]
            actions = np.frombuffer(numbers, "<f4").reshape(steps, dimensions).astype(np.float32)
            if not np.isfinite(actions).all():
                raise ValueError("it holds actions that are not finite")
            origin = Origin(str(raw["env"]), str(raw["checkpoint"]), int(raw["look"]))
            look = int(raw.get("scene_look", 0))  # links of before had none
            return cls(origin, str(raw["split"]), int(raw["seed"]), str(raw["instruction"]), actions, look)
        except (binascii.Error, zlib.error, KeyError, TypeError, UnicodeError) as error:
            raise ValueError(f"this link is damaged: {error}") from error
        except ValueError as error:
            raise ValueError(f"this link cannot be followed: {error}") from error

    def require(self, here: Origin) -> None:
        """ValueError where the moment would not be the same here."""
        for name, what in (("env", "environment"), ("checkpoint", "checkpoint"), ("look", "length of a model step")):
            theirs, ours = (str(getattr(origin, name))[:12] for origin in (self.origin, here))
            if getattr(self.origin, name) != getattr(here, name):
                raise ValueError(f"this link is of another {what}, {theirs}: here it is {ours}")
