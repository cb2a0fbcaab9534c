"""What viewers share: one thread that owns the simulator, one that dreams and thinks, and what runs in them; and all
the pairs of a task and a checkpoint that a page can choose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from agent.build import EnvConfig, PolicyConfig, make_policy
from agent.exploring.controls import Bound, Control, bind
from agent.exploring.link import Origin
from agent.exploring.records import find_records
from agent.exploring.worlds import ImaginedWorld, Mind, RealWorld
from agent.launch.command import versions
from agent.planning.policies import ModelPolicy, PlanningPolicy
from agent.viz.film import Film, film
from envs.data.store import EpisodeStore
from envs.types import Episode, Spec
from world_model import checkpoint
from world_model.nn.device import choose_device

T = TypeVar("T")
MAX_SAVED = 200  # episodes and films that one run of the server writes
RECORDED_VERSIONS = ("mujoco", "robosuite", "numpy", "gymnasium")


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """configs/explore.yaml says what each of these means."""

    env: EnvConfig
    policy: PolicyConfig
    checkpoint: str
    seed: int
    out: str
    look: int | None = None
    size: int = 320
    speed: float = 0.4
    unsure: float = 0.03
    candidates: int = 8
    viewers: int = 4
    open: tuple[str, ...] = ()
    tasks: tuple[EnvConfig, ...] = ()
    checkpoints: tuple[str, ...] = ()
    controls: tuple[Control, ...] = ()

    def __post_init__(self) -> None:
        if self.policy.name not in ("planner", "model"):
            raise ValueError(f"a person hands over to policy=planner or policy=model, not {self.policy.name}")
        if not 32 <= self.size <= 512:
            raise ValueError(f"size must be from 32 to 512 pixels, got {self.size}")
        if self.seed < 0 or self.viewers < 1 or not 0 < self.speed <= 1:
            raise ValueError(
                "seed must be 0 or more, viewers at least 1 and speed in (0, 1], got "
                f"{self.seed}, {self.viewers} and {self.speed}"
            )


class Studio:
    """The two worlds and their threads. Close it after use."""

    def __init__(self, config: ExploreConfig) -> None:
        """Load the checkpoint and build the simulator. CheckpointError or ValueError where one of them is wrong."""
        self.config = config
        self._simulator = ThreadPoolExecutor(1, thread_name_prefix="simulator")
        self._dreamer = ThreadPoolExecutor(1, thread_name_prefix="dreamer")
        self.turn = asyncio.Lock()  # one viewer's command at a time
        self._saved = 0
        try:
            self.real = self._simulator.submit(RealWorld, config.env, config.size).result()
            self._dreamer.submit(self._wake).result()
            self._simulator.submit(self.real.env.reset, seed=config.seed).result()  # compiles what the first one needs
            self.splits, self.robot, self.has_looks = self.real.splits, self.real.spec, self.real.has_looks
            self.records = [each for path in config.open for each in find_records(path, self.real.env.env_id)]
        except BaseException:
            self.close()
            raise

    def _wake(self) -> None:
        config = self.config
        loaded = checkpoint.load(Path(config.checkpoint), choose_device(config.policy.device))
        loaded.spec.require(self.real.spec, f"checkpoint {config.checkpoint}", "the environment")
        self.dream = ImaginedWorld(loaded, config.look)
        loaded.model.layout.require_strides([self.dream.look])
        policy: ModelPolicy | PlanningPolicy = make_policy(config.policy, config.env, self.real.envs)
        acting = policy.acting if isinstance(policy, PlanningPolicy) else policy
        self.mind = Mind(acting, policy if isinstance(policy, PlanningPolicy) else None, self.dream.look)
        self.origin = Origin(config.env.id, loaded.sha256, self.dream.look)
        self.known = tuple(loaded.meta["instructions"])

    @property
    def spec(self) -> Spec:
        return self.robot

    @property
    def controls(self) -> list[Bound]:
        return bind(self.config.controls, self.spec)

    async def simulate(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something in the simulator's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._simulator, work, *arguments)

    async def think(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do something in the dreamer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._dreamer, work, *arguments)

    def keep(self, episode: Episode) -> str:
        """Write an episode, and return its name."""
        name = self._name(episode.split, episode.seed)
        EpisodeStore(self.config.out).write(episode.with_versions(**versions(*RECORDED_VERSIONS)), name)
        return name

    @contextmanager
    def film(self, split: str, seed: int, fps: int) -> Iterator[tuple[str, Film]]:
        """The name of a film and the film, to which frames are added; it is written when the block ends well."""
        path = Path(self.config.out) / f"{self._name(split, seed)}.mp4"
        with film(path, fps) as opened:
            yield path.name, opened

    def _name(self, split: str, seed: int) -> str:
        """Of something to be written; nobody but this server chooses it."""
        if self._saved >= MAX_SAVED:
            raise ValueError(f"this server has written {MAX_SAVED} files, which is all it will: start it again")
        self._saved += 1
        moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return f"{self.config.env.label}-{split}-{seed:07d}-{moment}-{self._saved:03d}"

    def close(self) -> None:
        """End both threads, after what they are doing, and free the simulator in its own."""
        if hasattr(self, "real"):
            self._simulator.submit(self.real.close).result()
        for thread in (self._simulator, self._dreamer):
            thread.shutdown(wait=True, cancel_futures=True)


class Studios:
    """One for each task and checkpoint that a page can choose, built when it is first asked for. Close it after use."""

    def __init__(self, config: ExploreConfig) -> None:
        """Builds the first; errors as `Studio` has them."""
        self.config = config
        self.tasks = {env.label: env for env in (config.env, *config.tasks)}
        self.checkpoints = {Path(path).name: path for path in (config.checkpoint, *config.checkpoints)}
        self.first = Studio(config)
        self._built = {(config.env.label, Path(config.checkpoint).name): self.first}
        self._building = asyncio.Lock()

    @property
    def choices(self) -> dict[str, list[str]]:
        """Their names."""
        return {"task": list(self.tasks), "checkpoint": list(self.checkpoints)}

    async def get(self, task: str, checkpoint: str) -> Studio:
        """By the names; an empty one is that of the first. ValueError for an unknown one, and errors as in `Studio`."""
        key = (task or self.config.env.label, checkpoint or Path(self.config.checkpoint).name)
        for name, known in zip(key, (self.tasks, self.checkpoints), strict=True):
            if name not in known:
                raise ValueError(f"there is no {name[:40]!r} to choose here: {', '.join(known)}")
        async with self._building:
            if key not in self._built:
                self._built[key] = await asyncio.to_thread(Studio, self._config(*key))
            return self._built[key]

    def _config(self, task: str, checkpoint: str) -> ExploreConfig:
        config, path = self.config, self.checkpoints[checkpoint]
        recorded = config.open if task == config.env.label else ()  # of the first task
        policy = replace(config.policy, checkpoint=path)
        return replace(config, env=self.tasks[task], checkpoint=path, policy=policy, open=recorded)

    def close(self) -> None:
        """All that were built."""
        for studio in self._built.values():
            studio.close()
