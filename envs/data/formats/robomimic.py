"""A robomimic HDF5 file as episodes of this project.

    data              attributes `total` and `env_args` (JSON: env_name, type, env_kwargs)
    data/demo_0       attributes `num_samples`, `model_file` (the MuJoCo XML) and `ep_meta` (JSON, maybe with `lang`)
      actions (N, A), rewards (N,), dones (N,), states (N, D), obs/<key> (N, ...), next_obs/<key> (N, ...)
    mask/<name>       names of demonstrations, `train` and `valid` among them

After https://robomimic.github.io/docs/datasets/overview.html. What this project wrote itself comes back as it was. Of
other people's files:

- cameras are the observations (N, h, w, 3) of uint8; the state is every other vector, but what begins with `object`,
  which no robot senses. With `next_obs` there are N steps; without, what the last action led to is not there: N - 1.
- actions are normalized to -1 to 1 and stay so; where some leave that, the range is that of the values. Of robosuite
  (`type` 1) the last action of each arm is its gripper, -1 to open, if it is commanded to its ends; of others nobody
  knows, and none is assumed.
- success is a reward of at least 1 where robosuite did not shape it, and unknown, False, elsewhere.
- `mask/train` and `mask/valid` are the two sides of the split where both are there; the seed is the demonstration's
  number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.data.split import split_by_seed
from envs.data.store import EpisodeError
from envs.types import HELD_UNKNOWN, ActionSpec, CameraSpec, Episode, Spec, StateSpec

OWN = "nextstate"  # the attribute, and the group in each demonstration, that only this project reads
IMAGE = "_image"  # robosuite's ending of a camera's observation
STATE = "state"
ROBOSUITE, GYM = 1, 2  # `type` in `env_args`
ROBOSUITE_HZ = 20.0  # of robosuite's environments where `control_freq` is not set
KEPT = ("env_id", "seed", "split", "source", "off_task_steps", "terminated", "truncated", "versions", "subtask_names",
        "instruction")  # fmt: skip
ARRAYS = ("expert", "success", "progress", "keypoints", "held", "subtask")
OSC_POSE = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
GRIPPER_ENDS = 0.99  # share of a gripper's commands that must be one of its ends for it to count as one
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError)  # of h5py, for what is damaged or something else


class RobomimicFile:
    """The demonstrations of a file, read like an `EpisodeStore`. EpisodeError for a file that is damaged or no such."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        try:
            file = h5py.File(self.root, "r", locking=False)
        except UNREADABLE as error:
            raise EpisodeError(f"{self.root} is damaged or no HDF5 file ({error})") from error
        with file:
            if not isinstance(file.get("data"), h5py.Group):
                raise EpisodeError(f"{self.root} has no group `data`: it is not robomimic's")
            yield file

    @cached_property
    def demos(self) -> dict[str, str]:
        """Name -> group within `data`, in the order of their numbers."""
        with self._open() as file:
            groups = [key for key, item in file["data"].items() if isinstance(item, h5py.Group)]
            return {self._own(file["data"][key]).get("name", key): key for key in sorted(groups, key=_number)}

    def names(self) -> list[str]:
        """Of all demonstrations, by their number."""
        return list(self.demos)

    def path(self, name: str) -> Path:
        """The file."""
        return self.root

    def __len__(self) -> int:
        return len(self.demos)

    def __contains__(self, name: str) -> bool:
        return name in self.demos

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(name) for name in self.names())

    def require(self) -> RobomimicFile:
        """Itself. EpisodeError where it holds no demonstration."""
        if not len(self):
            raise EpisodeError(f"{self.root} holds no demonstrations: its group `data` is empty")
        return self

    def split(self, every: int) -> tuple[list[str], list[str]]:
        """By the masks `train` and `valid` where somebody else wrote them, or else as an `EpisodeStore` does."""
        names = {group: name for name, group in self.demos.items()}
        with self._open() as file:
            mask, own = file.get("mask", {}), OWN in file["data"].attrs
            if not own and "train" in mask and "valid" in mask:
                sides = ([text.decode() for text in mask[side][:]] for side in ("train", "valid"))
                chosen = tuple([names[group] for group in side if group in names] for side in sides)
                if both := set(chosen[0]) & set(chosen[1]):
                    raise EpisodeError(f"{self.root}: `mask/train` and `mask/valid` both hold {min(both)}")
                return chosen
            seeds = {name: self._seed(file["data"][group], group) for name, group in self.demos.items()}
        return split_by_seed(seeds, every)

    def digests(self) -> dict[str, str]:
        """Name -> sha256 of everything in the demonstration."""
        found = {}
        with self._open() as file:
            for name, group in self.demos.items():
                found[name] = self._digest(file["data"][group])
        return found

    def _digest(self, group: h5py.Group) -> str:
        parts: dict[str, str] = {}

        def visit(key: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                parts[key] = hashlib.sha256(np.ascontiguousarray(self._values(item))).hexdigest()

        group.visititems(visit)
        about = {key: str(value) for key, value in group.attrs.items()}
        return hashlib.sha256(json.dumps([parts, about], sort_keys=True).encode()).hexdigest()

    # ---------------------------------------------------------------------------------------------- the robot

    @cached_property
    def env_args(self) -> Mapping[str, Any]:
        """What the file says of its environment."""
        with self._open() as file:
            text = file["data"].attrs.get("env_args", "{}")
        try:
            found = json.loads(text)
        except (ValueError, TypeError) as error:
            raise EpisodeError(f"{self.root}: the attribute `env_args` of `data` is no JSON ({error})") from error
        if not isinstance(found, dict) or not isinstance(found.setdefault("env_kwargs", {}), dict):
            raise EpisodeError(f"{self.root}: the attribute `env_args` of `data` must hold settings by name")
        return found

    @cached_property
    def spec(self) -> Spec:
        """What the robot shows and takes."""
        with self._open() as file:
            if OWN in file["data"].attrs:
                try:
                    return Spec.from_dict(json.loads(file["data"].attrs[OWN])["spec"])
                except (KeyError, ValueError) as error:
                    raise EpisodeError(f"{self.root}: the attribute `{OWN}` of `data` is no spec ({error})") from error
            first = file["data"][next(iter(self.demos.values()))]
            obs = self._group(first, "obs")
            cameras = tuple(CameraSpec(key.removesuffix(IMAGE), *obs[key].shape[1:3]) for key in _cameras(obs))
            if not cameras:
                raise EpisodeError(
                    f"{self.root}: `{obs.name}` has no pictures (N, h, w, 3); robomimic's dataset_states_to_obs.py "
                    "draws them"
                )
            states = tuple(part for key in _vectors(obs) for part in self._states(key, obs[key]))
            actions = np.concatenate([self._array(file["data"][group], "actions") for group in self.demos.values()])
        return Spec(cameras, states, self._actions(actions), self._hz())

    @property
    def _robosuite(self) -> bool:
        return self.env_args.get("type") == ROBOSUITE

    def _hz(self) -> float:
        hz = self.env_args["env_kwargs"].get("control_freq", ROBOSUITE_HZ if self._robosuite else None)
        if not isinstance(hz, int | float) or not hz > 0:
            raise EpisodeError(f"{self.root}: `env_args` says no control rate: `env_kwargs.control_freq` is {hz!r}")
        return float(hz)

    def _states(self, key: str, values: h5py.Dataset) -> list[StateSpec]:
        count = int(np.prod(values.shape[1:], dtype=int))
        if self._robosuite and key.endswith("_eef_pos") and count == 3:
            return [StateSpec(f"{key}.{axis}", unit="m") for axis in "xyz"]
        return [StateSpec(key if count == 1 else f"{key}.{i}") for i in range(count)]

    def _actions(self, values: np.ndarray) -> tuple[ActionSpec, ...]:
        """values: (all samples, A)."""
        low, high = np.minimum(-1.0, values.min(0)), np.maximum(1.0, values.max(0))
        count = values.shape[1]
        robots = self.env_args["env_kwargs"].get("robots", [])
        arms = len(robots) if self._robosuite and isinstance(robots, list) else int(self._robosuite)
        each = count // arms if arms and count % arms == 0 else 0
        names = [f"action{i}" for i in range(count)]
        if each == len(OSC_POSE):
            names = [name if arms == 1 else f"robot{arm}.{name}" for arm in range(arms) for name in OSC_POSE]
        ends = (np.abs(np.abs(values) - 1) < 1e-3).mean(0) >= GRIPPER_ENDS
        last = {arm * each + each - 1 for arm in range(arms)} if each else set()
        return tuple(
            ActionSpec(name, float(low[i]), float(high[i]), gripper=bool(i in last and ends[i]))
            for i, name in enumerate(names)
        )

    # ---------------------------------------------------------------------------------------------- an episode

    def read(self, name: str, states: bool = True) -> Episode:
        """The demonstration of this name. EpisodeError names the file and the data set in it that is wrong."""
        if name not in self.demos:
            raise EpisodeError(f"{self.root} has no demonstration {name}")
        spec = self.spec
        with self._open() as file:
            group = file["data"][self.demos[name]]
            actions = self._array(group, "actions").astype(np.float64)
            where, rows = self._where(group), len(actions)
            if actions.shape != (rows, len(spec.action)):
                raise EpisodeError(f"{where}/actions is of {actions.shape}, and not ({rows}, {len(spec.action)})")
            if (told := group.attrs.get("num_samples", rows)) != rows:
                raise EpisodeError(f"{where}: `num_samples` is {told}, but there are {rows} actions")
            own = self._own(group)
            images, state = self._observations(group, spec, own, rows, "next_obs" in group)
            steps = len(state) - 1
            fields = self._own_fields(group, own, states) if own else self._foreign_fields(group, steps, states)
            action = actions[:steps]
            action = from_normalized(action, spec) if own else action.astype(np.float32)
            try:
                return Episode(images=images, state=state, action=action, spec=spec, **fields)
            except (ValueError, TypeError) as error:
                raise EpisodeError(f"{where} is not sound: {error}") from error

    def _observations(
        self, group: h5py.Group, spec: Spec, own: Mapping[str, Any], rows: int, following: bool
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Pictures and states, one more of each than there are actions where the file tells what followed."""
        obs = self._group(group, "obs")

        def both(key: str) -> np.ndarray:
            values = self._array(obs, key)
            if len(values) != rows:
                raise EpisodeError(f"{self._where(obs)}/{key} has {len(values)} rows, but there are {rows} actions")
            if not following or not rows:
                return values
            after = self._array(self._group(group, "next_obs"), key)
            if after.shape != values.shape:
                raise EpisodeError(f"{self._where(group)}/next_obs/{key} is of {after.shape}, and not {values.shape}")
            return np.concatenate([values, after[-1:]])

        images = {}
        for camera in spec.cameras:
            key = next((k for k in (camera.name + IMAGE, camera.name) if k in obs), camera.name + IMAGE)
            images[camera.name] = both(key)
        if own:
            return images, both(STATE) if spec.state else np.zeros((rows + 1, 0), np.float32)
        vectors = [both(key).reshape(rows + following, -1) for key in _vectors(obs)]
        if not vectors:
            return images, np.zeros((rows + following, 0), np.float32)
        return images, np.concatenate(vectors, axis=1).astype(np.float32)

    def _foreign_fields(self, group: h5py.Group, steps: int, states: bool) -> dict[str, Any]:
        reward = np.zeros(steps, np.float32)
        if "rewards" in group:
            reward = self._array(group, "rewards").astype(np.float32)[:steps]
        success = np.zeros(steps + 1, bool)
        if self._robosuite and not self.env_args["env_kwargs"].get("reward_shaping", False):
            success[1:] = reward >= 1
        fields: dict[str, Any] = {}
        if states and "states" in group:
            kept = self._array(group, "states").astype(np.float64)
            if len(kept) == steps + 1 and kept.ndim == 2:  # with `next_obs` the last one is not there
                fields["sim_state"] = kept
        return fields | dict(
            reward=reward, success=success, expert=np.full((steps, len(self.spec.action)), np.nan, np.float32),
            progress=np.zeros(steps + 1, np.float32), keypoints=np.zeros((steps + 1, 0, 3), np.float32),
            held=np.full(steps + 1, HELD_UNKNOWN, np.int8), subtask=np.zeros(steps, np.int16), subtask_names=("",),
            instruction=self._instruction(group), env_id=str(self.env_args.get("env_name", "robomimic")),
            seed=self._seed(group, group.name.rpartition("/")[2]), source="sim" if self._robosuite else "robot",
        )  # fmt: skip

    def _own_fields(self, group: h5py.Group, own: Mapping[str, Any], states: bool) -> dict[str, Any]:
        kept = self._group(group, OWN)
        try:
            fields = {name: own[name] for name in KEPT} | {"subtask_names": tuple(own["subtask_names"])}
            named = {f: {name: self._array(kept[f], name) for name in own[f]} for f in ("poses", "views")}
        except (KeyError, TypeError) as error:
            raise EpisodeError(f"{self._where(group)}: the attribute `{OWN}` lacks {error}") from error
        if states and "sim_state" in kept:
            fields["sim_state"] = self._array(kept, "sim_state")
        return {**fields, **named, **{name: self._array(kept, name) for name in ARRAYS},
                "reward": self._array(group, "rewards").astype(np.float32)}  # fmt: skip

    def _instruction(self, group: h5py.Group) -> str:
        """What was asked for: the episode's own words, or the name of the environment."""
        try:
            told = json.loads(group.attrs.get("ep_meta", "{}")).get("lang")
        except (ValueError, AttributeError):
            told = None
        return told if isinstance(told, str) else str(self.env_args.get("env_name", ""))

    # ---------------------------------------------------------------------------------------------- parts of a file

    def _own(self, group: h5py.Group) -> Mapping[str, Any]:
        try:
            return json.loads(group.attrs.get(OWN, "{}"))
        except (ValueError, TypeError) as error:
            raise EpisodeError(f"{self._where(group)}: the attribute `{OWN}` is no JSON ({error})") from error

    def _seed(self, group: h5py.Group, key: str) -> int:
        return int(self._own(group).get("seed", _number(key)[0]))

    def _group(self, group: h5py.Group, key: str) -> h5py.Group:
        if not isinstance(group.get(key), h5py.Group):
            raise EpisodeError(f"{self._where(group)} has no group `{key}`")
        return group[key]

    def _array(self, group: h5py.Group, key: str) -> np.ndarray:
        found = group.get(key)
        if not isinstance(found, h5py.Dataset):
            raise EpisodeError(f"{self._where(group)} has no data set `{key}`")
        if found.dtype.kind not in "fiub":
            raise EpisodeError(f"{self._where(group)}/{key} is of type {found.dtype}, and not of numbers")
        return self._values(found)

    def _values(self, found: h5py.Dataset) -> np.ndarray:
        try:
            return found[()]
        except UNREADABLE as error:
            raise EpisodeError(f"{self.root}{found.name} is damaged ({error})") from error

    def _where(self, group: h5py.Group) -> str:
        return f"{self.root}{group.name}"


def to_normalized(action: np.ndarray, spec: Spec) -> np.ndarray:
    """Actions (..., A) as robomimic keeps them, -1 to 1 of f64; a gripper's -1 opens it, as our low end does."""
    low, high = (np.array([getattr(part, end) for part in spec.action], np.float64) for end in ("low", "high"))
    same, values = (low == -1) & (high == 1), action.astype(np.float64)
    return np.where(same, values, 2 * (values - low) / (high - low) - 1)


def from_normalized(action: np.ndarray, spec: Spec) -> np.ndarray:
    """The inverse of `to_normalized`, f32."""
    low, high = (np.array([getattr(part, end) for part in spec.action], np.float64) for end in ("low", "high"))
    same, values = (low == -1) & (high == 1), action.astype(np.float64)
    return np.where(same, values, low + (values + 1) / 2 * (high - low)).astype(np.float32)


def _cameras(obs: h5py.Group) -> list[str]:
    return [key for key, v in obs.items() if isinstance(v, h5py.Dataset) and v.ndim == 4 and v.shape[3] == 3
            and v.dtype == np.uint8]  # fmt: skip


def _vectors(obs: h5py.Group) -> list[str]:
    return [key for key, v in obs.items() if isinstance(v, h5py.Dataset) and v.ndim <= 2 and v.dtype.kind == "f"
            and not key.startswith("object")]  # fmt: skip


def _number(key: str) -> tuple[int, str]:
    """`demo_12` -> 12, so that it stands after `demo_2`; and the key itself."""
    tail = key.rpartition("_")[2]
    return (int(tail) if tail.isdigit() else 0), key
