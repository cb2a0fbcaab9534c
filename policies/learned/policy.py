"""A learnt policy: its network, what it was trained on, and the folder that it is kept in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from envs.data.files import to_json, write_whole
from envs.types import Observation, Spec
from policies.learned.networks import NETWORKS, NetworkConfig, Sizes
from policies.learned.windows import Normal

WEIGHTS, DESCRIPTION, MANIFEST = "policy.safetensors", "policy.json", "manifest.json"


class PolicyError(RuntimeError):
    """A learnt policy cannot be read. The message names the file and what to do about it."""


@dataclass(frozen=True)
class LearnedState:
    """Of one robot. asked: decisions so far."""

    instruction: int
    seed: int
    asked: int = 0


@dataclass(frozen=True, eq=False)
class LearnedPolicy:
    """Acts by the network. execute: control steps of a chunk that are carried out before it is asked again."""

    network: torch.nn.Module
    spec: Spec
    instructions: tuple[str, ...]
    normal: Normal
    execute: int = 8
    batched = True

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    def init(self, instruction: str, seed: int = 0) -> LearnedState:
        """The state of one robot. ValueError for an instruction that it was never trained on."""
        if instruction not in self.instructions:
            known = ", ".join(map(repr, self.instructions))
            raise ValueError(f"the policy was never trained on {instruction!r}; it knows {known}")
        return LearnedState(self.instructions.index(instruction), seed)

    @torch.no_grad()
    def act(self, observations: Observation, states: Sequence[LearnedState]) -> tuple[np.ndarray, list[LearnedState]]:
        """Chunks (B, M, A) in the robot's units. The robot's seed and how often it was asked decide what is drawn."""
        observations.check(self.spec)
        device = next(self.network.parameters()).device
        seen = (torch.from_numpy(observations.images[camera.name]) for camera in self.spec.cameras)
        images = [image.to(device).float() / 127.5 - 1 for image in seen]
        state = torch.from_numpy(self.normal.state(observations.state)).to(device)
        instruction = torch.tensor([each.instruction for each in states], device=device)
        shape = (self.config.chunk, len(self.spec.action))
        noise = np.stack([np.random.default_rng([each.seed, each.asked, 5]).normal(size=shape) for each in states])
        noise = torch.from_numpy(noise.astype(np.float32)).to(device)
        chunks = self.network.sample(images, state, instruction, noise).float().cpu().numpy()
        return self.normal.commands(chunks, self.spec), [replace(each, asked=each.asked + 1) for each in states]

    def save(self, folder: str | os.PathLike[str], about: dict[str, Any]) -> None:
        """Write the folder's files, each whole or not at all; the manifest, by which they belong together, last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        files = {
            WEIGHTS: safetensors.torch.save(weights),
            DESCRIPTION: to_json({
                "network": asdict(self.config), "spec": self.spec.to_dict(), "instructions": list(self.instructions),
                "normal": {name: value.tolist() for name, value in vars(self.normal).items()}, "about": about,
            }).encode(),
        }  # fmt: skip
        for name, content in files.items():
            write_whole(folder / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        write_whole(folder / MANIFEST, to_json({"sha256": hashes}, sort_keys=True).encode())

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], execute: int | None = None, device: str = "auto", spec: Spec | None = None
    ) -> LearnedPolicy:
        """Read what `save` wrote. execute: None for half of the chunk. spec: of the robot that it is to act for.
        PolicyError names the file and what to do, ValueError what differs between the robots."""
        folder = Path(folder)
        try:
            expected = json.loads((folder / MANIFEST).read_bytes())["sha256"]
            files = {name: (folder / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)}
            wrong = [name for name in files if hashlib.sha256(files[name]).hexdigest() != expected.get(name)]
            if wrong:
                raise ValueError(f"{wrong[0]} is damaged, its sha256 differs")
            raw = json.loads(files[DESCRIPTION])
            own, config = Spec.from_dict(raw["spec"]), NetworkConfig(**raw["network"])
            network = NETWORKS[config.kind](config, sizes(own, len(raw["instructions"])))
            network.load_state_dict(safetensors.torch.load(files[WEIGHTS]))
            normal = Normal(**{name: np.array(value) for name, value in raw["normal"].items()})
        except OSError as error:
            raise PolicyError(f"no learnt policy at {folder} ({error.strerror}): `python -m policies.train`") from error
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise PolicyError(f"the learnt policy at {folder} cannot be read ({error}): train it again") from error
        if spec is not None:
            own.require(spec, f"policy {folder}", "the environment")
        execute = max(1, config.chunk // 2) if execute is None else execute
        if not 1 <= execute <= config.chunk:
            raise ValueError(f"`execute` must lie between 1 and the chunk of {config.chunk}, got {execute}")
        return cls(network.to(device_of(device)).eval(), own, tuple(raw["instructions"]), normal, execute)


def device_of(name: str) -> torch.device:
    """`auto` is a GPU where there is one. ValueError for a name that torch does not know."""
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from error


def sizes(spec: Spec, instructions: int) -> Sizes:
    """What a robot fixes of a network."""
    cameras = tuple((camera.height, camera.width) for camera in spec.cameras)
    return Sizes(cameras, len(spec.state), len(spec.action), instructions)
