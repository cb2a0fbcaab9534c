"""Planning by imagination: the cross-entropy method over smooth chunks, seeded by the model itself.

After TD-MPC2 (Hansen et al. 2024): the policy's own proposals and the last plan take part in the search. Two
things differ. Noise lives in the space of DCT coefficients over time, so every candidate stays a smooth motion
that the action code can say; and the model's likeliest chunk is kept unless another beats it by a margin, so
that search on a noisy value does not do worse than no search.

One search serves R robots at once, and each gets the plan that it would get alone. All random numbers are drawn
before it begins (`Draws`); from there on the search is a function of tensors that stay on the model's device.

Shapes: R robots, N candidates, H model steps, M control steps a chunk, A action dimensions, of which G are grippers
and D are not. A model step covers the M control steps of a chunk, or with `imagine` the first few of them.
C = N x iterations, all candidates of a decision; E elites. What candidates are made from, the action space, the random
numbers and the chunks that a search begins with, is in candidates.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agent.planning.candidates import ActionSpace, Draws, Seeds, shift
from envs.types import Spec

if TYPE_CHECKING:
    from world_model.types import Imagination

# (imagination whose fields lead with (R, N, H), control steps a model step) -> scores (R, N) f32, more is better
Score = Callable[[Any, int], Tensor]


class Imagines(Protocol):
    """What the planner needs of a world model. Its cache of R rows is a value that is read and never changed."""

    spec: Spec

    def propose(
        self, cache: Any, n: int, temperature: float, generators: Sequence[torch.Generator], joint: bool
    ) -> Tensor:
        """-> (R, n, M, A) chunks in the robot's units; the first of each robot is the likeliest. joint: the ids of the
        others are drawn one after the other."""

    @property
    def imagines_without_images(self) -> bool:
        """Whether `imagine` can leave out the images."""

    def imagine(
        self, cache: Any, actions: Tensor, decode: str, follow: int, strides: int | None, images: bool
    ) -> Imagination:
        """actions (R, N, H, M, A) -> what each leads to. decode: "parallel", or "autoregressive", the slow reference.
        follow: model steps beyond these in which the model goes on by itself. strides: control steps of each chunk that
        are executed before the next; None for M. images: whether any are wanted. `imagination[r]` is robot r's."""


@dataclass(frozen=True)
class PlannerConfig:
    """The budget of one decision.

    candidates: N, futures imagined an iteration.        iterations: how often elites are refit; 1 = choose only.
    horizon: H, model steps searched.                    elites: candidates that the next iteration is fitted to.
    imagine: control steps that an imagined model step covers, of those that the model was trained with; None for the M
        of a whole chunk. What a plan holds beyond them is neither imagined nor scored.
    follow: model steps looked further ahead, in which the model goes on by its own likeliest chunks.
    proposals: share of the first N that the model proposes (the likeliest and samples of it).
    temperature: of those samples.
    joint: draw their ids one after the other, each knowing those before it, instead of each from its own distribution.
    noise: initial standard deviation of a coefficient, in shares of half the dimension's range.
    noise_floor: what the noise never falls below.       flip: chance that a noisy candidate switches a gripper.
    coefs: DCT coefficients in which a dimension may vary; 0 keeps the dimension as it was. One number for all, one for
        each dimension that is no gripper, or None for those that the model's action tokenizer keeps.
    margin: by how much a future must beat the model's first proposal to replace it, in units of score.
    spread: no further iteration when a robot's scores differ by less than this; 0 always searches.
    deadline_s: seconds after which the best plan so far is taken, and counted as late; None for no deadline.
    decode: how a future's ids are read: "parallel", or "autoregressive" (id by id, the reference).
    images: imagine the images of candidates, too, which no score needs; None: only where the model cannot do without.
    """

    candidates: int = 16
    iterations: int = 2
    horizon: int = 1
    imagine: int | None = None
    follow: int = 0
    elites: int = 4
    proposals: float = 0.5
    temperature: float = 1.0
    joint: bool = False
    noise: float = 0.25
    noise_floor: float = 0.05
    flip: float = 0.05
    coefs: int | tuple[int, ...] | None = None
    margin: float = 0.15
    spread: float = 0.0
    deadline_s: float | None = None
    decode: str = "parallel"
    images: bool | None = None

    def __post_init__(self) -> None:
        for name in ("candidates", "iterations", "horizon", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"planner `{name}` must be at least 1, got {getattr(self, name)}")
        if self.imagine is not None and self.imagine < 1:
            raise ValueError(f"planner `imagine` must be at least 1, or null for a whole chunk, got {self.imagine}")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise ValueError(f"planner `deadline_s` must be positive, or null for none, got {self.deadline_s}")
        if self.decode not in ("parallel", "autoregressive"):
            raise ValueError(f"planner `decode` must be parallel or autoregressive, got {self.decode!r}")


@dataclass(frozen=True)
class Plan:
    """A decision of one robot and everything that was considered for it.

    chunk: (M, A) f32, what to do now.              value: its score; NaN when nothing was scored in time.
    future: (H, M, A) f32, the whole chosen plan, from which the next search starts.
    actions: (C, H, M, A) f32, all C candidates over the iterations; row 0 is the model's likeliest chunk.
    scores: (C,) f32.                               chosen: row of the chosen one.
    imagined: one Imagination (N, H, ...) an iteration; joined along N they are the rows of `actions`.
    iterations: those done.                         late: the deadline was passed.
    seconds: what the search took, by the planner's clock, for all robots that were planned together.
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


@dataclass(frozen=True)
class Round:
    """One iteration: actions (R, N, H, M, A), what they lead to, and scores (R, N)."""

    actions: Tensor
    imagined: Any
    scores: Tensor


@dataclass(frozen=True)
class Planner:
    """Searches for the best chunk. Holds only settings, so one planner serves any number of robots.

    objective: (imagination, control steps a model step) -> scores.
    clock: seconds, monotonic; a test hands in its own.
    """

    config: PlannerConfig
    objective: Score
    clock: Callable[[], float] = time.perf_counter

    def plan(
        self, model: Imagines, cache: Any, generators: Sequence[torch.Generator], last: Sequence[Plan | None],
        execute: int,
    ) -> list[Plan]:  # fmt: skip
        """Choose a chunk for each of the R situations in `cache`.

        cache: from `model.prefill`, shared by every candidate and never written.
        generators: one a robot, the only source of its randomness (on the CPU); the same seed gives the same plan,
            whoever is planned with it.
        last: for each robot the plan whose first `execute` control steps were just executed, or None.
        """
        cfg, start = self.config, self.clock()
        if len(generators) != len(last):
            raise ValueError(f"{len(generators)} generators do not fit the last plans of {len(last)} robots")
        num_proposed = max(1, min(cfg.candidates, round(cfg.proposals * cfg.candidates)))
        chunks = model.propose(cache, num_proposed, cfg.temperature, generators, cfg.joint).float()  # (R, Np, M, A)
        space = ActionSpace.of(model.spec, self._coefs(model), chunks.shape[-2], chunks.device)
        seeds = self._seeds(space.hold(chunks, cfg.horizon, self._stride(chunks)), last, execute)
        draws = self._draw(generators, seeds, space).to(chunks.device)

        # Without a deadline or a spread nothing looks at the search before it is over.
        watch = _Watch(self, start, len(last)) if cfg.deadline_s is not None or cfg.spread else None
        rounds = self.search(model, cache, seeds, space, draws, watch)
        if not rounds:  # nothing was scored in time: the model's likeliest chunk is the best plan so far
            rounds = [Round(seeds.proposed[:, :1], None, torch.full_like(seeds.proposed[:, :1, 0, 0, 0], math.nan))]
        actions = torch.cat([one.actions for one in rounds], dim=1)  # (R, C, H, M, A)
        scores = torch.cat([one.scores for one in rounds], dim=1)  # (R, C)
        done = watch.iterations if watch else np.full(len(last), len(rounds))
        counted = torch.from_numpy(np.maximum(done, 1) * rounds[0].scores.shape[1]).to(scores.device)  # (R,)
        chosen = self.choose(scores, counted)
        actions, scores, chosen, counted = (found.cpu().numpy() for found in (actions, scores, chosen, counted))
        seconds = self.clock() - start

        plans = []
        for robot, (count, row) in enumerate(zip(counted, chosen, strict=True)):
            worth = scores[robot, :count]
            if done[robot] and not np.isfinite(worth).all():
                raise ValueError("a future's score is not finite; check the checkpoint and the objective")
            plans.append(Plan(
                chunk=actions[robot, row, 0].copy(),
                value=float(worth[row]),
                future=actions[robot, row].copy(),
                actions=actions[robot, :count],
                scores=worth,
                chosen=int(row),
                imagined=tuple(one.imagined[robot] for one in rounds[: done[robot]]),
                iterations=int(done[robot]),
                late=bool(watch and watch.late[robot]),
                seconds=seconds,
            ))  # fmt: skip
        return plans

    # The search itself: functions of tensors, which `torch.compile` takes as one graph where nothing watches.

    def search(
        self, model: Imagines, cache: Any, seeds: Seeds, space: ActionSpace, draws: Draws,
        stop: Callable[[list[Round]], bool] | None = None,
    ) -> list[Round]:  # fmt: skip
        """All iterations, or those until `stop` says of the ones done that they are enough."""
        rounds: list[Round] = []
        while not (stop and stop(rounds)) and len(rounds) < self.config.iterations:
            rounds.append(self.search_step(model, cache, rounds, seeds, space, draws))
        return rounds

    def search_step(
        self, model: Imagines, cache: Any, rounds: list[Round], seeds: Seeds, space: ActionSpace, draws: Draws
    ) -> Round:
        """The iteration that follows `rounds`. ValueError where the objective's scores are not (R, N)."""
        cfg, number = self.config, len(rounds)
        drawn = Draws(draws.noise[number], draws.flips[number], draws.switches[number], draws.elites[number])
        actions = self._refit(rounds, space, drawn) if rounds else self._first(seeds, space, drawn)
        images = not model.imagines_without_images if cfg.images is None else cfg.images
        imagined = model.imagine(cache, actions, cfg.decode, cfg.follow, cfg.imagine, images)
        scores = self.objective(imagined, self._stride(actions))
        if scores.shape != actions.shape[:2]:
            wanted, got = tuple(actions.shape[:2]), tuple(scores.shape)
            raise ValueError(f"an objective must give one score for each robot and candidate, {wanted}, got {got}")
        return Round(actions, imagined, scores)

    def choose(self, scores: Tensor, counted: Tensor) -> Tensor:
        """scores (R, C), of which the first counted (R,) of a robot's take part -> (R,) i64, the row to execute."""
        rows = torch.arange(scores.shape[1], device=scores.device)
        scores = scores.masked_fill(rows >= counted[:, None], -math.inf)
        best = scores.argmax(1)
        gain = scores.gather(1, best[:, None])[:, 0] - scores[:, 0]
        return torch.where(gain <= self.config.margin, torch.zeros_like(best), best)

    def _first(self, seeds: Seeds, space: ActionSpace, drawn: Draws) -> Tensor:
        """(R, N, H, M, A): the model's own, what is left of the last plan, and noise around the best of these."""
        num, proposed = self.config.candidates, seeds.proposed.shape[1]
        row = torch.arange(num, device=seeds.proposed.device)
        has_rest = seeds.has_rest[:, None]  # (R, 1)
        is_rest = has_rest & (row == min(proposed, num - 1))  # (R, N)
        likeliest, rest = seeds.proposed[:, :1], seeds.rest[:, None]  # (R, 1, H, M, A)
        # Noise goes around the likeliest, and around the last plan in turn where there is one.
        odd = has_rest & ((row - proposed - 1) % 2 == 1)
        centre = torch.where(_wide(odd), rest, likeliest)
        noisy = self._perturb(centre, self.config.noise * space.free * space.half, space, drawn)
        first = torch.cat([seeds.proposed, noisy[:, proposed:]], dim=1)
        return torch.where(_wide(is_rest), rest, first)

    def _refit(self, rounds: list[Round], space: ActionSpace, drawn: Draws) -> Tensor:
        """(R, N, H, M, A) around the elites of everything seen: their mean and spread in coefficients, the grippers of
        one of them."""
        cfg = self.config
        seen = torch.cat([one.actions for one in rounds], dim=1)
        worth = torch.cat([one.scores for one in rounds], dim=1)
        best = worth.topk(min(cfg.elites, worth.shape[1]), dim=1).indices
        elite = torch.take_along_dim(seen, _wide(best), dim=1)  # (R, E, H, M, A)
        coefs = space.basis @ elite[..., space.poses]  # (R, E, H, M, D)
        std = torch.maximum(coefs.std(1, correction=0), cfg.noise_floor * space.half) * space.free  # (R, H, M, D)
        mean = elite.mean(1)[:, None, ..., space.poses]  # (R, 1, H, M, D)
        grippers = torch.take_along_dim(elite, _wide(drawn.elites), dim=1)[..., space.grippers]  # (R, N, H, M, G)
        centre = space.join(mean.expand(-1, cfg.candidates, -1, -1, -1), grippers)
        noisy = self._perturb(centre, std[:, None], space, drawn)
        itself = space.join(mean, elite[:, :1][..., space.grippers])  # the mean, without noise
        return torch.cat([itself, noisy[:, 1:]], dim=1)

    def _perturb(self, centre: Tensor, std: Tensor, space: ActionSpace, drawn: Draws) -> Tensor:
        """Candidates around centre (R, N, H, M, A): Gaussian in coefficients, std broadcast to (R, N, H, M, D)."""
        pose = space.clamp(centre[..., space.poses] + space.basis.T @ (drawn.noise * std))
        # Now and then a gripper does the opposite from some step of the first model step on.
        horizon, chunk = centre.shape[2:4]
        begins = self._stride(centre) * torch.arange(horizon, device=centre.device)
        step = (begins[:, None] + torch.arange(chunk, device=centre.device))[..., None]  # (H, M, 1)
        flips = (drawn.flips < self.config.flip)[:, :, None, None] & (step >= drawn.switches[:, :, None, None])
        gripper = centre[..., space.grippers]
        return space.join(pose, torch.where(flips, space.switch(gripper), gripper))

    # What goes into it.

    def _stride(self, actions: Tensor) -> int:
        """Control steps of each chunk (..., M, A) that are executed before the next."""
        return self.config.imagine or actions.shape[-2]

    def _coefs(self, model: Imagines) -> int | Sequence[int]:
        """One number, or one for each dimension that is no gripper."""
        if self.config.coefs is not None:
            return self.config.coefs
        return model.actions.coefs

    def _seeds(self, proposed: Tensor, last: Sequence[Plan | None], execute: int) -> Seeds:
        """proposed (R, Np, H, M, A). A last plan of another shape is left out, and any in a budget of one candidate,
        which is the model's own."""
        shape = tuple(proposed.shape[2:])
        usable = [plan is not None and plan.future.shape == shape and self.config.candidates > 1 for plan in last]
        none = np.zeros(shape, np.float32)
        futures = np.stack([plan.future if fits else none for plan, fits in zip(last, usable, strict=True)])
        rest = shift(torch.from_numpy(futures).to(proposed.device), execute, self._stride(proposed))
        return Seeds(proposed, rest, torch.tensor(usable, device=proposed.device))

    def _draw(self, generators: Sequence[torch.Generator], seeds: Seeds, space: ActionSpace) -> Draws:
        """Draw from each robot's generator what its search needs. A robot with a last plan has one noisy candidate less
        in the first iteration, and draws for one less; rows that need nothing hold zeros."""
        cfg, (horizon, chunk) = self.config, seeds.proposed.shape[2:4]
        poses, grippers = len(space.poses), len(space.grippers)
        robots = []
        for generator, has_rest in zip(generators, seeds.has_rest.tolist(), strict=True):
            rows = []
            for iteration in range(cfg.iterations):
                noisy = max(cfg.candidates - seeds.proposed.shape[1] - has_rest, 0) if not iteration else cfg.candidates
                elites = torch.zeros(cfg.candidates, dtype=torch.int64)
                if iteration:
                    num_elites = min(cfg.elites, iteration * cfg.candidates)
                    elites = torch.randint(num_elites, (cfg.candidates,), generator=generator)
                drawn = (
                    torch.randn(noisy, horizon, chunk, poses, generator=generator),
                    torch.rand(noisy, grippers, generator=generator),
                    torch.randint(self._stride(seeds.proposed), (noisy, grippers), generator=generator),
                )
                padded = (torch.cat([one.new_zeros(cfg.candidates - noisy, *one.shape[1:]), one]) for one in drawn)
                rows.append(Draws(*padded, elites))
            robots.append(Draws.of(rows, dim=0))
        return Draws.of(robots, dim=1)


class _Watch:
    """Looks at the clock and at the scores between iterations.

    iterations: (R,), those that count for each robot: one whose scores lie close together is done before the others.
    late: (R,), whether the deadline was passed when its last iteration was over.
    """

    def __init__(self, planner: Planner, start: float, robots: int) -> None:
        self.planner, self.start = planner, start
        self.iterations, self.late = np.zeros(robots, int), np.zeros(robots, bool)
        self._done = np.zeros(robots, bool)

    def __call__(self, rounds: list[Round]) -> bool:
        """Whether the search is over."""
        cfg = self.planner.config
        passed = cfg.deadline_s is not None and self.planner.clock() - self.start > cfg.deadline_s
        self.late[~self._done] = passed
        self.iterations[~self._done] = len(rounds)
        if rounds and cfg.spread:
            scores = rounds[-1].scores
            self._done |= (scores.amax(1) - scores.amin(1) < cfg.spread).cpu().numpy()
        return passed or bool(self._done.all())


def _wide(rows: Tensor) -> Tensor:
    """(R, N) -> (R, N, 1, 1, 1), to be used with candidates."""
    return rows[:, :, None, None, None]
