"""What is timed: ways to decode the same futures, the simulator, decisions of many robots, and training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agent.benchmark.timing import Contestant
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.policies import AgentState, ModelPolicy, PlanningPolicy
from envs.types import Observation
from world_model.metrics.images import psnr
from world_model.metrics.states import error_name, state_error
from world_model.metrics.windows import context, spread_by_episode
from world_model.model import CPU_ROWS, WorldModel
from world_model.nn.transformer import join
from world_model.tokens.layout import CAUSAL
from world_model.training.dataset import Batch, EpisodeDataset
from world_model.training.loss import batch_losses
from world_model.types import Cache

FRAMES = "imagined frames"  # one is a model step of one candidate, with the images of all cameras
PARALLEL = "parallel"
WITHOUT_IMAGES = "parallel, without images: what a search asks for"
AUTOREGRESSIVE = "autoregressive, preallocated cache, prefix held once"
AUTOREGRESSIVE_COPIES = "autoregressive, preallocated cache, prefix in every row"
REREADING = "autoregressive, re-reading everything (from 3 of all lengths)"
READ = (0.0, 0.5, 1.0)  # shares of an observation that is already written, at which re-reading is timed


def decoders(model: WorldModel, cache: Cache, actions: Tensor, rereading: bool = True) -> dict[str, Contestant]:
    """Ways to imagine one model step of N candidates of one robot: cache of one row, actions (1, N, 1, M, A)."""
    candidates = actions.shape[1]

    def copied() -> Cache:
        """A robot for each candidate, which shares nothing."""
        state = (x.repeat(candidates, *[1] * (x.ndim - 1)) for x in (cache.step, cache.image, cache.state, cache.pose))
        return Cache(join([cache.kv], candidates), *state)

    alone = actions.transpose(0, 1)  # (N, 1, 1, M, A)
    ways: dict[str, Callable[[], Any]] = {
        PARALLEL: lambda: model.imagine(cache, actions),
        WITHOUT_IMAGES: lambda: model.imagine(cache, actions, images=False),
        AUTOREGRESSIVE: lambda: model.imagine(cache, actions, "autoregressive"),
        AUTOREGRESSIVE_COPIES: lambda: model.imagine(copied(), alone, "autoregressive"),
    }
    if not model.imagines_without_images:
        del ways[WITHOUT_IMAGES]
    found = {name: Contestant(run, candidates, FRAMES, counted=True) for name, run in ways.items()}
    if rereading:
        times = model.layout.obs / len(READ)
        found[REREADING] = Contestant(
            lambda: _reread(model, len(cache.kv), candidates), candidates, FRAMES, times, counted=True
        )
    return found


def fewer(model: WorldModel, cache: Cache, actions: Tensor, counts: Sequence[int]) -> dict[str, Contestant]:
    """The two ways to decode with other numbers of candidates: arithmetic is alike, and what is left is overhead."""
    return {
        f"{decode}, candidates: {count}": Contestant(
            lambda n=count, how=decode: model.imagine(cache, actions[:, :n], how), min(count, actions.shape[1]), FRAMES
        )
        for count in counts
        for decode in ("parallel", "autoregressive")
    }


@torch.no_grad()
def _reread(model: WorldModel, length: int, rows: int) -> None:
    """What some of the ids of an observation cost without a cache: everything before each is read again."""
    at = model.layout
    for share in READ:
        ids = length + at.chunk + 1 + round(share * (at.obs - 1))
        places = torch.arange(ids, device=model.device)
        slots = torch.where(places < at.instruction, -1, (places - at.instruction) % at.step)
        for block in torch.full((rows, ids), model.vocab.marks.pad, device=model.device).split(CPU_ROWS):
            hidden, _ = model.run(block, slots, CAUSAL, places)
            model.codes(hidden[:, -1:]).best()


def horizons(model: WorldModel, cache: Cache, actions: Tensor) -> dict[str, Contestant]:
    """One model step and two: actions (1, N, 2, M, A)."""
    candidates = actions.shape[1]
    return {
        f"horizon {steps}": Contestant(
            lambda steps=steps: model.imagine(cache, actions[:, :, :steps]), candidates * steps, FRAMES
        )
        for steps in (1, 2)
    }


def simulators(env: gym.Env, actions: np.ndarray, name: str) -> dict[str, Contestant]:
    """One model step of each of some candidates, (N, M, A), in a task that was reset; images drawn once at its end."""
    world = env.unwrapped
    saved = world.save_state()

    def simulate(draw: bool) -> None:
        for chunk in actions:
            world.load_state(saved)
            for action in chunk:
                world.advance(action)
            if draw:
                world.observe()

    return {
        f"simulate {name}, drawn": Contestant(lambda: simulate(True), len(actions), "simulated frames"),
        f"simulate {name}, not drawn": Contestant(lambda: simulate(False), len(actions), "simulated frames"),
    }


def decisions(acting: ModelPolicy, seen: Sequence[Observation], robots: Sequence[int]) -> dict[str, Contestant]:
    """Decisions of R robots in one call, without search and with the planner's default budget.

    seen: what one robot saw, one observation a decision, as many as its history holds.
    """
    planning = PlanningPolicy(acting, Planner(PlannerConfig(), Objective(acting.discount)))
    found = {}
    for count in robots:
        states: Sequence[AgentState] = [acting.init(acting.known[0], seed) for seed in range(count)]
        for observation in seen:
            observations = Observation.stack([observation] * count)
            _, states = acting.act(observations, states)
        for name, policy in (("without search", acting), ("with search", planning)):
            title = f"{name}, {count} robot{'s' if count > 1 else ''} together"
            run = lambda p=policy, o=observations, s=states: p.act(o, s)  # noqa: E731
            found[title] = Contestant(run, count, "decisions")
    return found


# ------------------------------------------------------------------------------------------------ quality


@torch.no_grad()
def quality(model: WorldModel, dataset: EpisodeDataset, windows: int, ahead: int) -> dict[str, dict[str, float]]:
    """How far each decoding is from what was recorded, `ahead` model steps later: name of a decoding -> figures."""
    starts = spread_by_episode(dataset, windows, ahead + 1)
    batch = dataset.batch(starts, ahead + 1).to(model.device)
    actions = model.actions.decode(batch.action[:, 1:])[:, None]  # (B, 1, H, M, A), executed
    true = model.layout.from_bins(batch.state[:, -1])  # (B, P)
    name, scale = error_name(model.spec)
    at_end = starts + (ahead + 1) * model.layout.chunk_steps
    found = {}
    for decode in ("parallel", "autoregressive"):
        imagined = model.imagine(context(model, batch), actions, decode)[:, 0]  # (B, H, ...)
        figures = {name: scale * state_error(model.spec, imagined.state[:, -1], true).mean().item()}
        images = model.decode_frames(imagined)
        for camera, recorded in dataset.images.items():
            figures[f"psnr_{camera}_db"] = float(psnr(recorded[at_end], images[camera][:, -1].cpu().numpy()).mean())
        found[decode] = {**figures, "model_steps_ahead": ahead, "windows": len(starts)}
    return found


# ------------------------------------------------------------------------------------------------ training


class Products(TorchDispatchMode):
    """Notes the matrix products of what runs under it: the operation, and shape, strides and dtype of its inputs."""

    KINDS = ("mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__.removeprefix("aten.") in self.KINDS:
            inputs = [x for x in args if isinstance(x, Tensor)]
            like = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") for x in inputs]
            self.calls.append((func, like))
        return func(*args, **(kwargs or {}))


def training(model: WorldModel, batch: Batch) -> dict[str, Contestant]:
    """A step's losses and gradients, and a bare loop of the same matrix products over random numbers."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        batch_losses(model, batch).total.backward()

    model.train()
    with Products() as products:
        step()
    pool: dict[Any, Tensor] = {}  # one tensor for all inputs alike: what is multiplied does not matter

    def alike(x: Tensor) -> Tensor:
        key = (tuple(x.shape), x.stride(), x.dtype)
        if key not in pool:
            pool[key] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=model.device).normal_()
        return pool[key]

    loop = [(func, [alike(x) for x in like]) for func, like in products.calls]

    @torch.no_grad()
    def bare() -> None:
        for func, inputs in loop:
            func(*inputs)

    rows, steps = batch.action.shape[:2]
    at = model.layout
    tokens = rows * (at.instruction + steps * (at.step + at.act + at.next))
    return {
        "training": Contestant(step, tokens, "tokens"),
        "training, the bare matrix products": Contestant(bare, tokens, "tokens"),
    }
