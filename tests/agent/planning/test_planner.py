"""The search on a toy model whose best chunk is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning.candidates import ActionSpace, dct_basis, shift
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from envs.types import ActionSpec, CameraSpec, Spec
from tests.robots import UNEVEN, aim

M = 8
POSE = tuple(ActionSpec(name) for name in ("dx", "dy", "dz", "drx", "dry", "drz"))
CAMERA = CameraSpec("camera", 8, 8)
ARM = Spec((CAMERA,), (), (*POSE, ActionSpec("gripper", gripper=True)), control_hz=20)
A = len(ARM.action)
NO_HAND = Spec((CAMERA,), (), POSE[:3], control_hz=5)


@dataclass(frozen=True)
class Imagined:
    """What an objective reads of an Imagination."""

    value: torch.Tensor
    success: torch.Tensor
    uncertainty: torch.Tensor
    actions: torch.Tensor

    def __getitem__(self, robot: int) -> Imagined:
        return Imagined(self.value[robot], self.success[robot], self.uncertainty[robot], self.actions[robot])


class Toy:
    """A future is worth more the nearer its first chunk is to `target`, (M, A) or one for each robot; the proposals
    start from rest with grippers open."""

    def __init__(
        self, target: torch.Tensor, scale: float | torch.Tensor = 1.0, spec: Spec = ARM,
        coefs: tuple[int, ...] = (4, 4, 4, 0, 0, 2), robots: int = 1,
    ) -> None:  # fmt: skip
        self.target, self.scale, self.spec, self.robots = target, torch.as_tensor(scale), spec, robots
        self.actions = SimpleNamespace(coefs=coefs)
        self.rest = torch.from_numpy(spec.rest)
        self.caches: list[object] = []

    def propose(self, cache, n, temperature, generators, joint=False):
        chunks = self.rest.expand(self.robots, n, M, -1).clone()
        for robot, generator in enumerate(generators):
            chunks[robot, 1:, :, :3] += 0.1 * temperature * torch.randn(n - 1, 1, 3, generator=generator)
        return chunks

    def imagine(self, cache, actions, decode="parallel", follow=0, strides=None):
        self.caches.append(cache)
        target = self.target if self.target.ndim == 2 else self.target[:, None]
        distance = (actions[:, :, 0] - target).square().mean((-2, -1)).sqrt()  # (R, N)
        value = (-self.scale.reshape(-1, 1) * distance)[..., None].expand(-1, -1, actions.shape[2])
        return Imagined(value, torch.zeros_like(value), torch.zeros_like(value), actions)


def target(sign: float = 1.0) -> torch.Tensor:
    coefs = torch.zeros(M, A)
    coefs[:3, :3] = sign * torch.tensor([[0.9, -0.6, 0.3], [0.2, 0.3, -0.4], [0.0, 0.1, 0.2]])
    chunk = dct_basis(M).T @ coefs
    chunk[:, -1] = -1.0
    return chunk


def planner(clock=lambda: 0.0, **changes) -> Planner:
    return Planner(PlannerConfig(**{"margin": 0.0, **changes}), Objective(0.997), clock)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan_one(planner, model, seed: int = 0, last=None, execute: int = 2, cache=None):
    """The plan of a single robot."""
    (plan,) = planner.plan(model, cache, [seeded(seed)], [last], execute)
    return plan


def test_search_finds_the_optimum():
    """Catches refitting to the worst candidates, or throwing away what was found."""
    plan = plan_one(planner(candidates=64, iterations=8, elites=8), Toy(target()))
    first, last = plan.scores[0], plan.scores[plan.chosen]
    assert plan.value == pytest.approx(last) and plan.iterations == 8
    assert last > 0.35 * first  # values are negative distances: at most 35 % of the way is left
    assert np.abs(plan.chunk).max() <= 1.0


def test_more_iterations_do_not_hurt():
    """Catches a plan taken from the last iteration instead of from everything seen."""
    values = [plan_one(planner(iterations=i), Toy(target())).value for i in (1, 2, 4)]
    assert values == sorted(values)


def test_the_plan_names_what_was_considered():
    """Catches scores and imaginations that are not in the order of the candidates."""
    plan = plan_one(planner(iterations=3, horizon=2), Toy(target()))
    assert plan.actions.shape == (48, 2, M, A) and plan.scores.shape == (48,)
    np.testing.assert_array_equal(plan.chunk, plan.actions[plan.chosen, 0])
    imagined, row = plan.imagination_of(plan.chosen)
    np.testing.assert_array_equal(imagined.actions[row, 0].numpy(), plan.chunk)
    with pytest.raises(IndexError):
        plan.imagination_of(48)


def test_same_seed_same_plan():
    """Catches randomness from the global generator."""
    first = plan_one(planner(), Toy(target()), 3)
    torch.randn(5)
    again, other = (plan_one(planner(), Toy(target()), seed) for seed in (3, 4))
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


SETTINGS = [
    {"iterations": 3, "horizon": 2},
    {"proposals": 1.0},
    {"iterations": 4, "spread": 0.05},
    {"candidates": 1, "iterations": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("lasts", [(0, 0, 0), (1, 0, 1), (1, 1, 1)], ids=str)
def test_who_else_is_planned_for_does_not_matter(settings, lasts):
    """Catches elites, noise, early ends or a warm start that leak from one robot to the next."""
    targets = torch.stack([target(), target(-1.0), 0.3 * target()])
    scales = torch.tensor([1.0, 1e-4, 3.0])  # the second robot has nothing to choose
    search = planner(**settings)
    before = [plan_one(search, Toy(goal), 20) if warm else None for goal, warm in zip(targets, lasts, strict=True)]
    alone = [
        plan_one(search, Toy(goal, scale), seed, last)
        for seed, (goal, scale, last) in enumerate(zip(targets, scales, before, strict=True))
    ]
    together = search.plan(Toy(targets, scales, robots=3), None, [seeded(i) for i in range(3)], before, 2)
    for one, other in zip(alone, together, strict=True):
        for name in ("chunk", "future", "actions", "scores", "value", "chosen", "iterations", "late"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        for a, b in zip(one.imagined, other.imagined, strict=True):
            assert torch.equal(a.value, b.value)


def test_generators_and_last_plans_are_of_the_same_robots():
    """Catches a robot that is forgotten."""
    with pytest.raises(ValueError, match="2 generators .* 1 robots"):
        planner().plan(Toy(target()), None, [seeded(), seeded()], [None], 2)


def test_the_prefix_is_shared():
    """Catches a prefix that is recomputed or copied for each iteration."""
    toy, cache = Toy(target()), object()
    plan_one(planner(iterations=3), toy, cache=cache)
    assert len(toy.caches) == 3 and all(c is cache for c in toy.caches)


def test_margin_keeps_the_models_own_chunk():
    """Catches a planner that trades the model's chunk for noise in the value."""
    flat = Toy(target(), scale=1e-3)
    kept = plan_one(planner(margin=0.02), flat)
    assert kept.chosen == 0 and not kept.chunk[:, :3].any() and kept.scores.max() > kept.scores[0]
    assert plan_one(planner(margin=0.0), flat).chosen != 0


def test_a_passed_deadline_returns_the_best_so_far():
    """Catches a deadline that is ignored, or one that throws the work away."""
    ticks = iter(np.arange(0.0, 100.0, 1.0))
    plan = plan_one(planner(clock=lambda: next(ticks), iterations=9, deadline_s=3.5), Toy(target()))
    assert plan.late and plan.iterations == 3 and len(plan.actions) == 48
    assert plan.value == plan.scores.max() > plan.scores[0]


def test_a_deadline_passed_before_any_scoring_returns_the_first_proposal():
    """Catches a crash on an empty search."""
    ticks = iter(np.arange(0.0, 100.0, 1.0))
    toy = Toy(target())
    plan = plan_one(planner(clock=lambda: next(ticks), deadline_s=0.5), toy)
    assert plan.late and plan.iterations == 0 and not toy.caches and np.isnan(plan.value)
    assert not plan.chunk[:, :3].any() and plan.actions.shape == (1, 1, M, A)


def test_in_time_is_not_late():
    """Catches counting every decision."""
    assert not plan_one(planner(deadline_s=60.0), Toy(target())).late


def test_without_a_deadline_the_clock_is_not_looked_at_in_between():
    """Catches a search that waits for the device after every iteration."""
    ticks = iter([0.0, 7.0])  # the beginning and the end
    plan = plan_one(planner(clock=lambda: next(ticks), iterations=4), Toy(target()))
    assert plan.seconds == 7.0 and not plan.late and plan.iterations == 4


def test_warm_start_takes_part_and_helps():
    """Catches a last plan that is not among the candidates."""
    toy = Toy(target())
    cold = plan_one(planner(candidates=64, iterations=6), toy)
    warm = plan_one(planner(iterations=1), toy, last=cold, execute=0)
    assert warm.value >= cold.value
    moved = shift(torch.from_numpy(cold.future)[None], 2, M)[0].numpy()
    plan = plan_one(planner(iterations=1), toy, last=cold, execute=2)
    assert any(np.array_equal(candidate, moved) for candidate in plan.actions)


def test_a_last_plan_of_another_horizon_is_left_out():
    """Catches a crash where the settings change within an episode."""
    last = plan_one(planner(horizon=2), Toy(target()))
    plan, cold = (plan_one(planner(horizon=1), Toy(target()), last=before) for before in (last, None))
    np.testing.assert_array_equal(plan.actions, cold.actions)


def test_equal_scores_need_no_search():
    """Catches time spent where there is nothing to choose."""
    assert plan_one(planner(iterations=4, spread=0.01), Toy(target(), scale=0.0)).iterations == 1


def test_gripper_is_mostly_kept():
    """Catches noise that opens the hand and drops the cloth."""
    plan = plan_one(planner(candidates=64, iterations=4, flip=0.05), Toy(target()))
    kept = (plan.actions[:, 0, :, -1] == -1.0).all(1).mean()
    assert 0.85 < kept < 1.0 and set(np.unique(plan.actions[..., -1])) == {-1.0, 1.0}


def test_uncoded_dimensions_stay():
    """Catches noise in dimensions that the action code cannot say."""
    assert not plan_one(planner(), Toy(target())).actions[..., 3:5].any()


def test_two_grippers_anywhere_and_ranges_of_their_own():
    """Catches noise in a gripper, one that goes anywhere but to its ends, hands that only ever switch together, and
    noise that is as large in a narrow dimension as in a wide one."""
    toy = Toy(aim(UNEVEN, M), spec=UNEVEN, coefs=(4, 4))
    toy.propose = lambda cache, n, temperature, generators, joint: toy.rest.expand(1, n, M, -1)
    plan = plan_one(planner(candidates=64, iterations=3, flip=0.3), toy)
    low, high = UNEVEN.action_low, UNEVEN.action_high
    assert (plan.actions >= low).all() and (plan.actions <= high).all()
    for hand in (0, 3):
        assert set(np.unique(plan.actions[..., hand])) == {low[hand], high[hand]}
    switched = plan.actions[:64, 0, -1][:, [0, 3]] == high[[0, 3]]
    assert (switched[:, 0] != switched[:, 1]).any()
    x, y = (plan.actions[33:64, 0, :, dim].std(0).mean() / (high - low)[dim] for dim in (1, 2))
    assert 0.3 < y / x < 1.1  # half of y is clamped: it rests at the end of its range
    assert plan.value > plan.scores[0]


def test_no_gripper():
    """Catches a last dimension that is taken for a gripper."""
    plan = plan_one(planner(iterations=3), Toy(aim(NO_HAND, M), spec=NO_HAND, coefs=(4, 4, 4)))
    assert len(np.unique(plan.actions[..., -1])) > 10 and plan.value > plan.scores[0]


@pytest.mark.parametrize("coefs", [4, (4, 4), None], ids=str)
def test_coefficients_are_one_number_a_list_or_the_tokenizers(coefs):
    """Catches a list that is counted off over the grippers too."""
    space = planner(coefs=coefs, candidates=8)._coefs(Toy(aim(UNEVEN, M), spec=UNEVEN, coefs=(4, 4)))
    free = ActionSpace.of(UNEVEN, space, M).free
    assert free.shape == (M, 2) and free.sum(0).tolist() == [4, 4] and free[:4].all()


@pytest.mark.parametrize("coefs", [(4, 4, 4, 0, 0, 2, 0), (4,), -1], ids=str)
def test_coefficients_that_do_not_fit_are_named(coefs):
    """Catches noise in the wrong dimensions."""
    with pytest.raises(ValueError, match=r"`coefs`.*6 action dimensions that are no grippers \(dx, .*drz\)"):
        plan_one(planner(coefs=coefs), Toy(target()))


def test_a_dimension_without_a_range_is_named():
    """Catches noise of infinite size."""
    endless = replace(ARM, action=(ActionSpec("torque", -np.inf, np.inf), *ARM.action[1:]))
    with pytest.raises(ValueError, match="finite range .* torque"):
        plan_one(planner(), Toy(target(), spec=endless))


def test_values_that_are_not_finite_are_refused():
    """Catches a NaN that wins every comparison or none."""
    with pytest.raises(ValueError, match="not finite"):
        plan_one(planner(), Toy(target(), scale=float("nan")))


def test_any_callable_is_an_objective():
    """Catches a planner that knows its own objective only, and scores of a wrong shape that are broadcast."""
    upwards = Planner(PlannerConfig(margin=0.0), lambda imagined, chunk: imagined.actions[:, :, 0, :, 2].mean(-1))
    plan = plan_one(upwards, Toy(target()))
    assert plan.chunk[:, 2].mean() > 0.1 and plan.value == pytest.approx(plan.chunk[:, 2].mean())
    with pytest.raises(ValueError, match=r"\(1, 16\), got \(1, 16, 1\)"):
        plan_one(Planner(PlannerConfig(), lambda imagined, chunk: imagined.value), Toy(target()))


@pytest.mark.parametrize("bad", [{"candidates": 0}, {"iterations": 0}, {"deadline_s": 0.0}, {"decode": "causal"}])
def test_settings_are_checked(bad):
    """Catches a budget that does nothing."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        PlannerConfig(**bad)


def test_one_candidate_is_the_model_itself():
    """Catches a warm start that pushes the model's own chunk out of a budget of one."""
    toy = Toy(target())
    last = plan_one(planner(), toy)
    plan = plan_one(planner(candidates=1, iterations=1), toy, last=last)
    assert plan.chosen == 0 and not plan.chunk[:, :3].any()


class Paced(Toy):
    """Keeps what it is asked to imagine."""

    def imagine(self, cache, actions, decode="parallel", follow=0, strides=None):
        self.asked = strides, actions
        return super().imagine(cache, actions, decode, follow, strides)


def test_a_plan_is_imagined_and_scored_at_its_own_pace():
    """Catches a short model step that is discounted as a whole chunk, a gripper that flips where nobody looks, and
    model steps that begin elsewhere than where the last one ended."""
    toy, steps = Paced(target()), []
    search = Planner(PlannerConfig(imagine=2, horizon=3, flip=1.0, noise=0.0, proposals=0.1, iterations=1),
                     lambda imagined, stride: steps.append(stride) or imagined.value[..., 0])  # fmt: skip
    plan = plan_one(search, toy)
    strides, actions = toy.asked
    assert strides == 2 and steps == [2] and plan.chunk.shape == (M, A)
    flipped = (actions[0, 2:, 0, :2, -1] > -1).any(-1)  # within what the first model step covers
    assert flipped.all(), "every noisy candidate flips within what is imagined"
    torch.testing.assert_close(actions[:, :, 0, 2:], actions[:, :, 1, :-2])
    short, whole = (plan_one(planner(imagine=n), Toy(target()), seed=1).value for n in (2, None))
    assert short == pytest.approx(whole * 0.997 ** (2 - M)), "the toy values both alike"
    with pytest.raises(ValueError, match="`imagine` must be at least 1"):
        PlannerConfig(imagine=0)


class Network(torch.nn.Module):
    """A toy model with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(M * A, 3)

    def imagine(self, cache, actions, decode="parallel", follow=0, strides=None):
        value, success, uncertainty = self.layer(actions.flatten(-2) + cache).sigmoid().unbind(-1)
        return Imagined(value, success, uncertainty, actions)


def test_the_search_is_one_graph():
    """Catches a value that is looked at within the search: on a GPU each look waits for everything before it."""
    search, robots, cache = planner(iterations=3, horizon=2), 2, torch.zeros(())
    torch.manual_seed(0)
    network, toy = Network().eval(), Toy(target(), robots=robots)
    generators = [seeded(i) for i in range(robots)]
    last = [plan_one(search, Toy(target())), None]
    space = ActionSpace.of(ARM, 4, M)
    seeds = search._seeds(space.hold(toy.propose(None, 8, 1.0, generators), 2, M), last, 2)
    draws = search._draw(generators, seeds, space)

    def decide(cache, seeds, space, draws):
        rounds = search.search(network, cache, seeds, space, draws)
        scores = torch.cat([one.scores for one in rounds], dim=1)
        return scores, search.choose(scores, torch.full((robots,), scores.shape[1]))

    with torch.no_grad():
        scores, chosen = decide(cache, seeds, space, draws)
        compiled = torch.compile(decide, fullgraph=True, backend="aot_eager")
        one_graph, same = compiled(cache, seeds, space, draws)
    assert scores.shape == (robots, 48)
    torch.testing.assert_close(one_graph, scores)
    assert torch.equal(same, chosen)
