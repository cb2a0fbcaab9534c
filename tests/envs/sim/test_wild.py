import subprocess
import sys

import numpy as np
import pytest

from envs.sim import wild
from envs.sim.patterns import SIZE
from envs.sim.rendering import Renderer
from envs.sim.table import TABLE_HEIGHT
from envs.tasks.fold_half import FoldHalf
from envs.tasks.lift import Lift
from policies.scripted.lift import LiftExpert

TAKEN = (np.array([0.02, -0.03]), 0.17, 0.4)  # what a cloth needs


def test_nothing_stands_where_the_task_is_done():
    """An object in the cube, under the cloth or in another one: the scene would burst at the first step, or the task
    could not be done."""
    counts = set()
    for seed in range(200):
        placed = wild.draw_distractors(np.random.default_rng(seed), TAKEN)
        counts.add(len(placed))
        centre, half, yaw = TAKEN
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        for i, one in enumerate(placed):
            around = one.position + one.radius * np.stack([np.cos(a := np.linspace(0, 6.3, 60)), np.sin(a)], -1)
            assert (np.abs((around - centre) @ turn.T).max(-1) > half).all()
            assert np.abs(one.position).max() < 0.36 and 0 < one.height <= wild.MAX_HEIGHT / 2
            for other in placed[:i]:
                assert np.linalg.norm(one.position - other.position) >= one.radius + other.radius + wild.GAP - 1e-9
    assert counts == {2, 3, 4, 5}


def test_table_and_cloth_can_be_told_apart():
    """A cloth that nobody can see on its table measures nothing."""
    for seed in range(12):
        drawn = wild.WildLook.draw(np.random.default_rng(seed), np.random.default_rng([seed, 1]), TAKEN)
        table = drawn.look.surfaces["tex-ceramic"]
        assert table.shape == drawn.cloth.shape == (SIZE, SIZE, 3)
        assert np.linalg.norm(table.mean((0, 1)) - drawn.cloth.mean((0, 1))) > wild.CONTRAST
        sideways = np.linalg.norm(drawn.look.light_direction[:2]) / -drawn.look.light_direction[2]
        assert sideways > 0.8 * np.sqrt(2), "light from where training has it too"
        assert drawn.look.light.min() < 0.8 * drawn.look.light.max(), "white light"
        assert drawn.look.camera_fovy != 38 and drawn.look.wrist_fovy != 75


@pytest.mark.parametrize("make", [Lift, FoldHalf])
def test_objects_lie_still_and_are_the_same_under_every_look(make, monkeypatch):
    """Objects that fall, roll off or move with the look: states of one look would not be states of another."""
    monkeypatch.setattr(Renderer, "load", lambda *_: None)
    monkeypatch.setattr(make, "observe", lambda _: {})
    env, ends = make(split="wild"), []
    for look in (0, 1):
        env.reset(seed=2, options={"look": look})
        bodies = [i for i in range(env._model.nbody) if env._model.body(i).name.startswith("distractor")]
        before = env._data.xpos[bodies].copy()
        assert 2 <= len(bodies) <= 5 and (before[:, 2] > TABLE_HEIGHT).all()
        for _ in range(20):
            env.advance(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
        np.testing.assert_allclose(env._data.xpos[bodies], before, atol=0.002)
        ends.append(env.save_state())
    np.testing.assert_array_equal(ends[0].physics, ends[1].physics)
    env.load_state(ends[0])


def test_the_task_can_be_done(monkeypatch):
    """Objects in the way of the hand: not even the expert would succeed."""
    monkeypatch.setattr(Renderer, "load", lambda *_: None)
    monkeypatch.setattr(Lift, "observe", lambda _: {})
    env = Lift(split="wild")
    _, info = env.reset(seed=0)
    for _ in range(120):
        *_, info = env.advance(LiftExpert().act(None, None, info["scene"])[0][0])
        if info["success"]:
            return
    raise AssertionError("the expert did not lift the cube")


def test_only_that_split_loads_it():
    """What training is judged by, in the memory of a process that trains or collects."""
    program = (
        "import sys, gymnasium, envs, agent.collect, agent.build, world_model.train\n"
        "env = gymnasium.make('nextstate/Lift-v0', looks='wide').unwrapped\n"
        "for split in ('train', 'seen', 'unseen'): env.reset(seed=0, options={'split': split})\n"
        "assert 'envs.sim.wild' not in sys.modules\n"
        "env.reset(seed=0, options={'split': 'wild'})\n"
        "assert 'envs.sim.wild' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
