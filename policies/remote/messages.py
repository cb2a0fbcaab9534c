"""What a policy server and its clients say to each other: openpi's protocol, msgpack over a websocket.

    server -> client   metadata, once, when the connection stands
    client -> server   {"observation/CAMERA": (h, w, 3) u8, "observation/state": (P,) numbers, "prompt": text}
    server -> client   {"actions": (M, A) f32, "server_timing": {"infer_ms": ...}}, or a text frame: what is wrong

Arrays are maps of `__ndarray__`, `data`, `dtype` and `shape`, as openpi-client packs them (openpi,
packages/openpi-client/src/openpi_client/msgpack_numpy.py and websocket_client_policy.py). Maps within a request may be
nested: {"observation": {"state": ...}} is "observation/state".

What openpi's protocol has no word for, and a server of ours understands: `reset` (true: a new episode begins here) and
`seed` (of that episode) in a request, "observation/CAMERA.pose" where a camera's pose is known, `late` (decisions of
this episode that passed the policy's deadline) in an answer, and `spec`, `execute`, `keys`, `policy` and `checkpoint`
in the metadata.

Whatever arrives is data of strangers: sizes, types and depths are bounded before anything is made of it, and nothing
in it can name code. There is no pickle here, and no array of objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from envs.types import POSE, Observation, Spec, pose_key

API_KEY_VARIABLE = "NEXTSTATE_API_KEY"  # in the environment: a setting would stand in reports and process lists
DTYPE = re.compile(r"[<>|=]?[biuf][1248]")  # numbers and truth values; no objects, text, records or dates
MOST_DIMENSIONS = 8
MOST_TEXT = 4096  # characters of one text in a request
MOST_ENTRIES = 1024  # of one map or list
MOST_CONTAINERS = 256  # maps and lists of one request; an array takes two


def pack(message: Mapping[str, Any]) -> bytes:
    """As openpi-client does, to the byte. ValueError for an array that is not of numbers."""
    return msgpack.packb(message, default=_packed)


def unpack(frame: bytes | str, containers: int = MOST_CONTAINERS) -> dict[str, Any]:
    """The map that a frame holds, its arrays read-only. ValueError for anything else.

    containers: how many maps and lists it may hold.
    """
    if isinstance(frame, str):
        raise ValueError("a message must be a binary frame, got a text frame")
    left = containers

    def counted(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it holds more than {containers} maps and lists")
        return value

    def mapped(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" in value:
            return _array(counted(value))
        return _scalar(counted(value)) if b"__npgeneric__" in value else counted(value)

    try:
        message = msgpack.unpackb(
            frame, object_hook=mapped, list_hook=counted, max_str_len=MOST_TEXT, max_bin_len=len(frame),
            max_array_len=max(MOST_ENTRIES, containers), max_map_len=MOST_ENTRIES, max_ext_len=0,
        )  # fmt: skip
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"this is no message in msgpack: {str(error)[:200] or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise ValueError(f"a message must be a map, got {type(message).__name__}")
    return message


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ValueError(f"a message cannot hold {getattr(value, 'dtype', type(value).__name__)}")


def _array(raw: dict[Any, Any]) -> np.ndarray:
    data, shape = raw.get(b"data"), raw.get(b"shape")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError("an array needs its bytes and a shape")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ValueError("an array's shape must be whole numbers")
    dtype = _dtype(raw)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of {len(data)} bytes cannot be {dtype} {tuple(shape)}")
    return np.ndarray(tuple(shape), dtype, data)


def _scalar(raw: dict[Any, Any]) -> np.generic:
    value = raw.get(b"data")
    if not isinstance(value, bool | int | float):
        raise ValueError("a numpy number needs its value")
    with np.errstate(all="ignore"):
        return np.asarray(value).astype(_dtype(raw))[()]


def _dtype(raw: dict[Any, Any]) -> np.dtype:
    name = raw.get(b"dtype")
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise ValueError(f"an array must be of numbers, got dtype {str(name)[:40]!r}")
    return np.dtype(name)


def flat(message: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as one, with keys joined by `/`. Keys that are no text are left out."""
    found: dict[str, Any] = {}
    for key, value in message.items():
        if isinstance(key, str):
            found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


# -------------------------------------------------------------------------------------------------- observations


@dataclass(frozen=True)
class Keys:
    """Under which key of a request each part of an observation stands.

    renamed: a camera's name, `state` or `prompt` -> the key that it has instead of `observation/CAMERA`,
    `observation/state` and `prompt`.
    """

    spec: Spec
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {*self.images, "state", "prompt"}
        unknown = sorted(set(self.renamed) - known)
        if unknown:
            raise ValueError(f"`keys` renames {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        keys = [*self.images.values(), self.state, self.prompt]
        if len(set(keys)) < len(keys):
            raise ValueError(f"`keys` must differ from each other, got {', '.join(keys)}")

    @property
    def images(self) -> dict[str, str]:
        """Camera -> key."""
        names = (camera.name for camera in self.spec.cameras)
        return {name: self.renamed.get(name, f"observation/{name}") for name in names}

    @property
    def state(self) -> str:
        return self.renamed.get("state", "observation/state")

    @property
    def prompt(self) -> str:
        return self.renamed.get("prompt", "prompt")

    def to_dict(self) -> dict[str, str]:
        """For the metadata: what `renamed` takes."""
        return {**self.images, "state": self.state, "prompt": self.prompt}

    def request(self, observation: Observation, instruction: str) -> dict[str, Any]:
        """One robot's observation as a request."""
        images = {key: observation.images[name] for name, key in self.images.items()}
        poses = {f"observation/{pose_key(name)}": pose for name, pose in observation.poses.items()}
        state = {self.state: observation.state} if self.spec.state else {}
        return {**images, **state, **poses, self.prompt: instruction}

    def holds_observation(self, request: Mapping[str, Any]) -> bool:
        """Whether a flat request holds any part of one."""
        return any(key in request for key in (*self.images.values(), self.state))

    def observation(self, request: Mapping[str, Any]) -> Observation:
        """The observation in a flat request. ValueError names what is missing or wrong."""
        wanted = [*self.images.values(), *([self.state] if self.spec.state else [])]
        missing = [key for key in wanted if key not in request]
        if missing:
            got = ", ".join(sorted(request)[:20])[:400] or "nothing"
            raise ValueError(f"the request has no {', '.join(missing)}; it has {got}")
        images = {name: request[key] for name, key in self.images.items()}
        for name, key in self.images.items():
            if not isinstance(images[name], np.ndarray):
                raise ValueError(f"`{key}` must be an array, got {type(images[name]).__name__}")
        state = _numbers(self.state, request[self.state], len(self.spec.state)) if self.spec.state else _NOTHING
        poses = {}
        for camera in self.spec.cameras:
            if camera.posed:  # one robot tells it and another does not, and both may stand in one batch
                key = f"observation/{pose_key(camera.name)}"
                unknown = np.full(len(POSE), np.nan, np.float32)
                poses[camera.name] = _numbers(key, request[key], len(POSE)) if key in request else unknown
        return Observation(images, state, poses).check(self.spec)


_NOTHING = np.zeros(0, np.float32)


def _numbers(key: str, value: Any, count: int) -> np.ndarray:
    """(count,) f32."""
    plain = isinstance(value, np.ndarray) or (
        isinstance(value, list) and all(isinstance(each, bool | int | float | np.generic) for each in value)
    )
    if not plain or np.shape(value) != (count,):
        got = np.shape(value) if plain else type(value).__name__
        raise ValueError(f"`{key}` must be {count} numbers, got {got}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused for it
        return np.asarray(value).astype(np.float32)
