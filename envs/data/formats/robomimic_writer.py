"""Episodes as a robomimic HDF5 file, written beside its place and moved there whole.

Actions are normalized to -1 to 1 as robomimic wants them, a gripper's -1 opens it. `mask/valid` are the episodes that
this project's split holds out of about ten. What robomimic has no name for stands in `data/demo_i/nextstate`.
Every data set carries a checksum of each of its blocks (HDF5's fletcher32), so that a flipped bit is found.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.data.files import remove_leftovers, sync_folder, temporary_name
from envs.data.formats.robomimic import ARRAYS, GYM, IMAGE, KEPT, OWN, STATE, RobomimicFile, to_normalized
from envs.data.split import is_held_out
from envs.data.store import EpisodeError
from envs.types import Episode, Spec

HELD_OUT = 10  # one in so many seeds is in `mask/valid`


@dataclass(frozen=True)
class Simulation:
    """What robomimic needs to make the simulator of an episode again. env_args: as in its files. model: MuJoCo's XML.
    states: (T + 1, 1 + nq + nv) f64, time, positions and velocities."""

    env_args: dict[str, Any]
    model: str
    states: np.ndarray


class RobomimicWriter:
    """Adds episodes to a file that this project wrote, or begins one; `root` is the file.

    simulation: what is known of an episode's simulator, None where nothing is. Use it within `with writer.claimed():`,
    at the end of which the file takes its place.
    """

    def __init__(self, root: Path, simulation: Callable[[Episode], Simulation | None] = lambda episode: None) -> None:
        self.root, self.simulation = root, simulation
        self._file: h5py.File | None = None
        self._there: list[str] = []
        self._spec: Spec | None = None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """For as long as episodes are written. Nothing changes under `root` unless all of it comes to a good end."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.root.parent)
        if self.root.is_dir() or self.root.suffix not in (".hdf5", ".h5"):
            raise ValueError(f"robomimic keeps a data set in one file: `out` must end in .hdf5, got {self.root}")
        temporary = temporary_name(self.root)
        if self.root.exists():
            before = RobomimicFile(self.root)
            self._there, self._spec = before.names(), before.spec
            with h5py.File(self.root, "r") as file:
                if OWN not in file["data"].attrs:
                    raise EpisodeError(f"{self.root} was written by somebody else: choose another `out`")
        began = len(self._there)
        try:
            if self.root.exists():
                shutil.copyfile(self.root, temporary)
            with h5py.File(temporary, "a") as self._file:
                self._file.require_group("data")
                yield
                if len(self._there) > began:
                    self._finish()
            self._file = None
            if len(self._there) > began:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.root)
                sync_folder(self.root.parent)
        finally:
            self._file = None
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Of the episodes that are there."""
        return self._there

    def write(self, episode: Episode, name: str) -> None:
        """Add an episode. ValueError where it is of another robot than those that are there."""
        if self._spec:
            self._spec.require(episode.spec, f"the episodes in {self.root}", f"episode {name}")
        data, known = self._file["data"], self.simulation(episode)
        if self._spec is None:
            self._spec = episode.spec
            data.attrs[OWN] = json.dumps({"format": 1, "spec": episode.spec.to_dict()}, allow_nan=False)
            args = known.env_args if known else {
                "env_name": episode.env_id, "type": GYM, "env_kwargs": {"control_freq": episode.spec.control_hz}}
            data.attrs["env_args"] = json.dumps(args, indent=4)
        group = data.create_group(f"demo_{len(self._there)}")
        steps = len(episode)
        group.attrs["num_samples"] = steps
        group.attrs["ep_meta"] = json.dumps({"lang": episode.instruction}, ensure_ascii=False)
        own = {field: getattr(episode, field) for field in KEPT}
        own |= {"name": name, "poses": list(episode.poses), "views": list(episode.views)}
        group.attrs[OWN] = json.dumps(own, ensure_ascii=False, allow_nan=False)
        if known:
            group.attrs["model_file"] = known.model
        _write(group, "states", known.states[:-1] if known else np.zeros((steps, 0)))
        _write(group, "actions", to_normalized(episode.action, episode.spec))
        _write(group, "rewards", episode.reward.astype(np.float64))
        _write(group, "dones", (np.arange(steps) == steps - 1) | episode.success[1:])
        for key, part in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
            for camera, frames in episode.images.items():
                _write(group, f"{key}/{camera}{IMAGE}", frames[part])
            if episode.spec.state:
                _write(group, f"{key}/{STATE}", episode.state[part])
        for field in ARRAYS:
            _write(group, f"{OWN}/{field}", getattr(episode, field))
        for field in ("poses", "views"):
            for each, values in getattr(episode, field).items():
                _write(group, f"{OWN}/{field}/{each}", values)
        if episode.sim_state.size:
            _write(group, f"{OWN}/sim_state", episode.sim_state)
        self._there = [*self._there, name]

    def _finish(self) -> None:
        """What is said of all demonstrations together."""
        data = self._file["data"]
        data.attrs["total"] = sum(int(group.attrs["num_samples"]) for group in data.values())
        seeds = {key: json.loads(group.attrs[OWN])["seed"] for key, group in data.items()}
        held = {key: is_held_out(seed, HELD_OUT) for key, seed in seeds.items()}
        if "mask" in self._file:
            del self._file["mask"]
        for side in (False, True):
            keys = [key for key in held if held[key] is side]
            self._file.create_dataset(f"mask/{'valid' if side else 'train'}", data=np.array(keys, dtype="S"))


def _write(group: h5py.Group, key: str, values: np.ndarray) -> None:
    if values.size:
        squeezed = {"compression": "gzip", "compression_opts": 4} if values.dtype == np.uint8 else {}
        group.create_dataset(key, data=values, fletcher32=True, **squeezed)
    else:
        group.create_dataset(key, data=values)
