"""Planning by imagination: the cross-entropy method over smooth chunks, seeded by the model itself.

After TD-MPC2 (Hansen et al. 2024): the policy's own proposals and the last plan take part in the search. Two
things differ. Noise lives in the space of DCT coefficients over time, so every candidate stays a smooth motion
that the action code can say; and the model's likeliest chunk is kept unless another beats it by a margin, so
that search on a noisy value does not do worse than no search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from agent.planning.objective import Objective
    from world_model.model import Imagination


class Imagines(Protocol):
    """What the planner needs of a world model. Its cache is a value that is read and never changed."""

    def propose(self, cache: Any, n: int, temperature: float, generator: torch.Generator | None) -> Tensor:
        """-> (n, M, A) chunks in [-1, 1]; the first is the likeliest."""

    def imagine(self, cache: Any, actions: Tensor, decode: str, follow: int) -> Imagination:
        """actions (N, H, M, A) -> what each leads to. decode: "parallel", or "causal" for the slow reference.
        follow: model steps beyond these in which the model goes on by itself."""


@dataclass(frozen=True)
class PlannerConfig:
    """The budget of one decision.

    candidates: N, futures imagined an iteration.        iterations: how often elites are refit; 1 = choose only.
    horizon: H, model steps searched.                    elites: candidates that the next iteration is fitted to.
    follow: model steps looked further ahead, in which the model goes on by its own likeliest chunks.
    proposals: share of the first N that the model proposes (the likeliest and samples of it).
    temperature: of those samples.                       noise: initial standard deviation a coefficient.
    noise_floor: what the noise never falls below.       flip: chance that a noisy candidate switches its gripper.
    coefs: DCT coefficients a pose dimension may vary in; 0 keeps the dimension as it was.
    margin: by how much a future must beat the model's first proposal to replace it, in units of score.
    spread: no further iteration when the scores differ by less than this; 0 always searches.
    deadline_s: seconds after which the best plan so far is taken, and counted as late.
    decode: how a future's ids are read: "parallel", or "causal" (token by token, the reference).
    """

    candidates: int = 16
    iterations: int = 2
    horizon: int = 1
    follow: int = 0
    elites: int = 4
    proposals: float = 0.5
    temperature: float = 1.0
    noise: float = 0.25
    noise_floor: float = 0.05
    flip: float = 0.05
    coefs: tuple[int, ...] = (4, 4, 4, 0, 0, 2)
    margin: float = 0.15
    spread: float = 0.0
    deadline_s: float = 1.5
    decode: str = "parallel"

    def __post_init__(self) -> None:
        for name in ("candidates", "iterations", "horizon", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"planner `{name}` must be at least 1, got {getattr(self, name)}")
        if self.deadline_s <= 0:
            raise ValueError(f"planner `deadline_s` must be positive, got {self.deadline_s}")
        if self.decode not in ("parallel", "causal"):
            raise ValueError(f"planner `decode` must be parallel or causal, got {self.decode!r}")


@dataclass(frozen=True)
class Plan:
    """A decision and everything that was considered for it.

    chunk: (M, A) f32, what to do now.              value: its score; NaN when nothing was scored in time.
    future: (H, M, A) f32, the whole chosen plan, from which the next search starts.
    actions: (C, H, M, A) f32, all C candidates over the iterations; row 0 is the model's likeliest chunk.
    scores: (C,) f32.                               chosen: row of the chosen one.
    imagined: one Imagination an iteration; joined along N they are the rows of `actions`.
    iterations: those done.                         late: the deadline was passed.
    seconds: what the search took, by the planner's clock.
    """

    chunk: np.ndarray
    value: float
    future: np.ndarray
    actions: np.ndarray
    scores: np.ndarray
    chosen: int
    imagined: tuple[Imagination, ...]
    iterations: int
    late: bool
    seconds: float

    def imagination_of(self, row: int) -> tuple[Imagination, int]:
        """The imagination that holds candidate `row`, and its index within it; IndexError when there is none."""
        for imagined in self.imagined:
            if row < len(imagined.value):
                return imagined, row
            row -= len(imagined.value)
        raise IndexError("this candidate was not imagined")


def dct_basis(steps: int) -> Tensor:
    """(steps, steps) f32, rows the orthonormal DCT-II basis: coefficients = basis @ signal, signal = basis.T @ c."""
    n, k = torch.arange(steps), torch.arange(steps)[:, None]
    basis = torch.cos(math.pi / steps * (n + 0.5) * k) * math.sqrt(2 / steps)
    basis[0] /= math.sqrt(2)
    return basis


def shift(future: Tensor, steps: int) -> Tensor:
    """The rest of a plan (H, M, A) once `steps` of it are done; its last action is repeated to fill the end."""
    flat = future.flatten(0, 1)  # (H * M, A)
    rest = torch.cat([flat[steps:], flat[-1:].expand(min(steps, len(flat)), -1)])
    return rest.reshape(future.shape)


def hold(chunks: Tensor, horizon: int) -> Tensor:
    """(N, M, A) -> (N, H, M, A): after the chunk the arm rests and the gripper keeps its last command."""
    rest = torch.zeros_like(chunks)
    rest[..., -1] = chunks[:, -1:, -1]
    return torch.stack([chunks] + [rest] * (horizon - 1), dim=1)


@dataclass(frozen=True)
class Planner:
    """Searches for the best chunk. Holds only settings, so one planner serves any number of robots.

    clock: seconds, monotonic; a test hands in its own.
    """

    config: PlannerConfig
    objective: Objective
    clock: Callable[[], float] = time.perf_counter

    def plan(
        self, model: Imagines, cache: Any, generator: torch.Generator, last: Plan | None = None, execute: int = 2
    ) -> Plan:
        """Choose a chunk for the situation in `cache`.

        cache: from `model.prefill`, shared by every candidate and never written.
        generator: the only source of randomness (a CPU one); the same seed gives the same plan.
        last: the plan whose first `execute` control steps were just executed, or None.
        """
        cfg, start = self.config, self.clock()
        num_proposed = max(1, min(cfg.candidates, round(cfg.proposals * cfg.candidates)))
        proposed = hold(
            torch.as_tensor(model.propose(cache, num_proposed, cfg.temperature, generator)).float().cpu(), cfg.horizon
        )  # (Np, H, M, A); row 0 is the model's likeliest
        chunk = proposed.shape[2]
        basis, free = dct_basis(chunk), self._free(chunk, proposed.shape[-1])

        # The first candidates: the model's own, what is left of the last plan, and noise around these.
        seeds = proposed
        if last is not None and last.future.shape == proposed.shape[1:]:
            seeds = torch.cat([proposed[: cfg.candidates - 1], shift(torch.from_numpy(last.future), execute)[None]])
            seeds = seeds[: cfg.candidates] if cfg.candidates > 1 else proposed[:1]
        centres = torch.cat([seeds[:1], seeds[len(proposed) :]])  # the likeliest, and the last plan where there is one
        num_noisy = cfg.candidates - len(seeds)
        centre = centres[torch.arange(num_noisy) % len(centres)]
        candidates = torch.cat([seeds, self._perturb(centre, cfg.noise * free, basis, generator)])

        actions, scores, imagined = [], [], []
        late = self.clock() - start > cfg.deadline_s
        while not late and len(imagined) < cfg.iterations:
            future = model.imagine(cache, candidates, cfg.decode, cfg.follow)
            score = self.objective(future, chunk).cpu()  # (N,)
            if not torch.isfinite(score).all():
                raise ValueError("the model imagined a value that is not finite; check the checkpoint")
            actions.append(candidates)
            scores.append(score)
            imagined.append(future)
            late = self.clock() - start > cfg.deadline_s
            if len(imagined) == cfg.iterations or score.max() - score.min() < cfg.spread:
                break

            # Refit: elites over everything seen; their mean and spread in coefficient space; a gripper of one of them.
            seen, worth = torch.cat(actions), torch.cat(scores)
            elite = seen[worth.topk(min(cfg.elites, len(worth))).indices]  # (E, H, M, A)
            coefs = basis @ elite[..., :-1]  # (E, H, M, A - 1)
            std = coefs.std(0, correction=0).clamp_min(cfg.noise_floor) * free
            mean = elite.mean(0)
            grippers = elite[torch.randint(len(elite), (cfg.candidates,), generator=generator), ..., -1:]
            centre = torch.cat([mean[..., :-1].expand(cfg.candidates, -1, -1, -1), grippers], dim=-1)
            candidates = self._perturb(centre, std, basis, generator)
            candidates[0, ..., :-1], candidates[0, ..., -1] = mean[..., :-1], elite[0, ..., -1]  # the mean itself

        if not imagined:  # nothing was scored in time: the model's likeliest chunk is the best plan so far
            seen, worth, chosen, value = proposed[:1], torch.full((1,), math.nan), 0, math.nan
        else:
            seen, worth = torch.cat(actions), torch.cat(scores)
            chosen = int(worth.argmax())
            if worth[chosen] - worth[0] <= cfg.margin:
                chosen = 0
            value = float(worth[chosen])
        return Plan(
            chunk=seen[chosen, 0].numpy().copy(),
            value=value,
            future=seen[chosen].numpy().copy(),
            actions=seen.numpy(),
            scores=worth.numpy(),
            chosen=chosen,
            imagined=tuple(imagined),
            iterations=len(imagined),
            late=late,
            seconds=self.clock() - start,
        )

    def _free(self, chunk: int, action_dim: int) -> Tensor:
        """(M, A - 1) f32: 1 for the coefficients that noise may change, rows by frequency."""
        if len(self.config.coefs) != action_dim - 1:
            raise ValueError(f"planner `coefs` must name {action_dim - 1} pose dimensions, got {self.config.coefs}")
        return (torch.arange(chunk)[:, None] < torch.tensor(self.config.coefs)).float()

    def _perturb(self, centre: Tensor, std: Tensor, basis: Tensor, generator: torch.Generator) -> Tensor:
        """Candidates around centre (N, H, M, A): Gaussian in coefficients, std broadcast to (H, M, A - 1)."""
        noise = torch.randn(centre[..., :-1].shape, generator=generator) * std
        pose = (centre[..., :-1] + basis.T @ noise).clamp(-1, 1)
        # Now and then the gripper does the opposite from some step of the first chunk on.
        flips = torch.rand(len(centre), generator=generator) < self.config.flip
        switch = torch.randint(centre.shape[2], (len(centre),), generator=generator)
        after = torch.arange(centre.shape[1] * centre.shape[2]).reshape(1, *centre.shape[1:3]) >= switch[:, None, None]
        sign = torch.where(flips[:, None, None] & after, -1.0, 1.0)
        return torch.cat([pose, (centre[..., -1] * sign)[..., None]], dim=-1)
