"""The search on a toy model whose best chunk is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig, dct_basis, shift

M, A = 8, 7


class Toy:
    """A future is worth more the nearer its first chunk is to `target`; the proposals start from zero."""

    def __init__(self, target: torch.Tensor, scale: float = 1.0) -> None:
        self.target, self.scale = target, scale
        self.caches: list[object] = []

    def propose(self, cache, n, temperature, generator):
        chunks = torch.zeros(n, M, A)
        chunks[..., -1] = -1.0
        chunks[1:, :, :3] += 0.1 * temperature * torch.randn(n - 1, 1, 3, generator=generator)
        return chunks

    def imagine(self, cache, actions, decode="parallel", follow=0):
        self.caches.append(cache)
        distance = (actions[:, 0] - self.target).square().mean((1, 2)).sqrt()  # (N,)
        value = (-self.scale * distance)[:, None].expand(-1, actions.shape[1])
        return SimpleNamespace(
            value=value, success=torch.zeros_like(value), uncertainty=torch.zeros_like(value), actions=actions
        )


def target() -> torch.Tensor:
    coefs = torch.zeros(M, A)
    coefs[:3, :3] = torch.tensor([[0.9, -0.6, 0.3], [0.2, 0.3, -0.4], [0.0, 0.1, 0.2]])
    chunk = dct_basis(M).T @ coefs
    chunk[:, -1] = -1.0
    return chunk


def planner(clock=lambda: 0.0, **changes) -> Planner:
    return Planner(PlannerConfig(**{"margin": 0.0, **changes}), Objective(), clock)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dct_is_orthonormal():
    """Catches a basis that changes the size of the noise with frequency."""
    basis = dct_basis(M)
    torch.testing.assert_close(basis @ basis.T, torch.eye(M), atol=1e-5, rtol=0)


def test_search_finds_the_optimum():
    """Catches refitting to the worst candidates, or throwing away what was found."""
    toy = Toy(target())
    plan = planner(candidates=64, iterations=8, elites=8).plan(toy, None, seeded())
    first, last = plan.scores[0], plan.scores[plan.chosen]
    assert plan.value == pytest.approx(last) and plan.iterations == 8
    assert last > 0.35 * first  # values are negative distances: at most 35 % of the way is left
    assert np.abs(plan.chunk).max() <= 1.0


def test_more_iterations_do_not_hurt():
    """Catches a plan taken from the last iteration instead of from everything seen."""
    values = [planner(iterations=i).plan(Toy(target()), None, seeded()).value for i in (1, 2, 4)]
    assert values == sorted(values)


def test_the_plan_names_what_was_considered():
    """Catches scores and imaginations that are not in the order of the candidates."""
    plan = planner(iterations=3, horizon=2).plan(Toy(target()), None, seeded())
    assert plan.actions.shape == (48, 2, M, A) and plan.scores.shape == (48,)
    np.testing.assert_array_equal(plan.chunk, plan.actions[plan.chosen, 0])
    imagined, row = plan.imagination_of(plan.chosen)
    np.testing.assert_array_equal(imagined.actions[row, 0].numpy(), plan.chunk)
    with pytest.raises(IndexError):
        plan.imagination_of(48)


def test_same_seed_same_plan():
    """Catches randomness from the global generator."""
    first = planner().plan(Toy(target()), None, seeded(3))
    torch.randn(5)
    again = planner().plan(Toy(target()), None, seeded(3))
    other = planner().plan(Toy(target()), None, seeded(4))
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


def test_the_prefix_is_shared():
    """Catches a prefix that is recomputed or copied for each iteration."""
    toy, cache = Toy(target()), object()
    planner(iterations=3).plan(toy, cache, seeded())
    assert len(toy.caches) == 3 and all(c is cache for c in toy.caches)


def test_margin_keeps_the_models_own_chunk():
    """Catches a planner that trades the model's chunk for noise in the value."""
    flat = Toy(target(), scale=1e-3)
    kept = planner(margin=0.02).plan(flat, None, seeded())
    assert kept.chosen == 0 and not kept.chunk[:, :3].any() and kept.scores.max() > kept.scores[0]
    assert planner(margin=0.0).plan(flat, None, seeded()).chosen != 0


def test_a_passed_deadline_returns_the_best_so_far():
    """Catches a deadline that is ignored, or one that throws the work away."""
    ticks = iter(np.arange(0.0, 100.0, 1.0))
    plan = planner(clock=lambda: next(ticks), iterations=9, deadline_s=3.5).plan(Toy(target()), None, seeded())
    assert plan.late and plan.iterations == 3
    assert plan.value == plan.scores.max() > plan.scores[0]


def test_a_deadline_passed_before_any_scoring_returns_the_first_proposal():
    """Catches a crash on an empty search."""
    ticks = iter(np.arange(0.0, 100.0, 1.0))
    toy = Toy(target())
    plan = planner(clock=lambda: next(ticks), deadline_s=0.5).plan(toy, None, seeded())
    assert plan.late and plan.iterations == 0 and not toy.caches and np.isnan(plan.value)
    assert not plan.chunk[:, :3].any()


def test_in_time_is_not_late():
    """Catches counting every decision."""
    assert not planner().plan(Toy(target()), None, seeded()).late


def test_shift_moves_the_plan_on():
    """Catches a warm start that repeats what was already done."""
    future = torch.arange(2 * M).float()[:, None].expand(-1, A).reshape(2, M, A)
    moved = shift(future, 2)
    assert moved.flatten(0, 1)[:, 0].tolist() == [*range(2, 16), 15, 15]


def test_warm_start_takes_part_and_helps():
    """Catches a last plan that is not among the candidates."""
    toy = Toy(target())
    cold = planner(candidates=64, iterations=6).plan(toy, None, seeded())
    warm = planner(iterations=1).plan(toy, None, seeded(), last=cold, execute=0)
    assert warm.value >= cold.value
    moved = shift(torch.from_numpy(cold.future), 2).numpy()
    plan = planner(iterations=1).plan(toy, None, seeded(), last=cold, execute=2)
    assert any(np.array_equal(candidate, moved) for candidate in plan.actions)


def test_equal_scores_need_no_search():
    """Catches time spent where there is nothing to choose."""
    assert planner(iterations=4, spread=0.01).plan(Toy(target(), scale=0.0), None, seeded()).iterations == 1


def test_gripper_is_mostly_kept():
    """Catches noise that opens the hand and drops the cloth."""
    plan = planner(candidates=64, iterations=4, flip=0.05).plan(Toy(target()), None, seeded())
    kept = (plan.actions[:, 0, :, -1] == -1.0).all(1).mean()
    assert 0.85 < kept < 1.0 and set(np.unique(plan.actions[..., -1])) == {-1.0, 1.0}


def test_uncoded_dimensions_stay():
    """Catches noise in dimensions that the action code cannot say."""
    assert not planner().plan(Toy(target()), None, seeded()).actions[..., 3:5].any()


def test_values_that_are_not_finite_are_refused():
    """Catches a NaN that wins every comparison or none."""
    with pytest.raises(ValueError, match="not finite"):
        planner().plan(Toy(target(), scale=float("nan")), None, seeded())


@pytest.mark.parametrize("bad", [{"candidates": 0}, {"iterations": 0}, {"deadline_s": 0.0}, {"decode": "magic"}])
def test_settings_are_checked(bad):
    """Catches a budget that does nothing."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        PlannerConfig(**bad)


def test_one_candidate_is_the_model_itself():
    """Catches a warm start that pushes the model's own chunk out of a budget of one."""
    toy = Toy(target())
    last = planner().plan(toy, None, seeded())
    plan = planner(candidates=1, iterations=1).plan(toy, None, seeded(), last=last)
    assert plan.chosen == 0 and not plan.chunk[:, :3].any()
