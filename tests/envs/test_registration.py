"""What `import envs` and gymnasium's own ways of making environments do, in interpreters of their own."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  (registers the ids)

ROOT = Path(__file__).parents[2]


def run(program: str, folder: Path, **settings: str) -> subprocess.CompletedProcess:
    """A program with no environment variable but these."""
    env = {"PYTHONPATH": str(ROOT), **settings}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


def test_importing_is_cheap(tmp_path):
    """Whoever only reads episodes must not need, or wait for, a simulator."""
    done = run("import sys, envs; assert not {'mujoco', 'robosuite', 'OpenGL'} & set(sys.modules)", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_notebooks_first_cell(tmp_path):
    """Without MUJOCO_GL, MuJoCo chooses a window when it is imported, which a headless machine cannot open."""
    program = (
        "import mujoco, envs, gymnasium, os; env = gymnasium.make('nextstate/Lift-v0'); obs, _ = env.reset(seed=0); "
        "env.close(); print(obs['main'].std() > 10, os.environ['LP_NUM_THREADS'])"
    )
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "1"] and not done.stderr and not list(tmp_path.iterdir())


def test_a_missing_robosuite_is_one_line(tmp_path):
    """`pip install` cannot bring robosuite: "No module named robosuite" sends people to the wrong installation."""
    program = """
import sys, envs, gymnasium
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "robosuite":
            raise ModuleNotFoundError("No module named 'robosuite'", name="robosuite")
sys.meta_path.insert(0, Missing())
gymnasium.make("nextstate/{}-v0")
"""
    for task in ("Lift", "FoldHalf"):
        done = run(program.format(task), tmp_path)
        assert done.returncode == 1
        assert "pip install --no-deps robosuite==" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.timeout(240)
def test_several_at_once():
    """`make_vec` in one process, and in processes of their own after this one has drawn, shows the same; by fork, which
    gymnasium takes where nothing is said, workers would hang and must say what to do."""
    alone = gym.make_vec("nextstate/Lift-v0", num_envs=2)
    apart = gym.make_vec(
        "nextstate/Lift-v0", num_envs=1, vectorization_mode="async", vector_kwargs={"context": "spawn"}
    )
    action = np.full((2, 7), 0.3, np.float32)
    try:
        first, _ = alone.reset(seed=[5, 6])
        other, _ = apart.reset(seed=[6])
        assert np.array_equal(first["main"][1:], other["main"]) and np.ptp(first["main"]) > 0
        first, *_, info = alone.step(action)
        other, *_ = apart.step(action[1:])
        assert np.array_equal(first["wrist"][1:], other["wrist"]) and info["split"].tolist() == ["train", "train"]
        _, info = alone.reset(seed=[7, 8], options={"reset_mask": np.array([True, False]), "split": "unseen"})
        assert info["split"][0] == "unseen"
    finally:
        alone.close()
        apart.close()


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium prints the worker's traceback too
def test_a_forked_worker_says_what_to_do():
    """gymnasium's asynchronous vector forks where nothing is said; a worker that hangs never answers."""
    env = gym.make("nextstate/Lift-v0")
    env.reset(seed=0)
    forked = gym.make_vec(env.spec, num_envs=1, vectorization_mode="async", vector_kwargs={"context": "fork"})
    try:
        forked.reset_async(seed=[0])
        with pytest.raises(RuntimeError, match="'spawn'"):
            forked.reset_wait(timeout=60)
    finally:
        env.close()
        forked.close(terminate=True)


def test_gl_settings_are_kept():
    """A default that overrules what the user said."""
    program = "import envs.sim.rendering as r; r.open_context().free(); import os; print(os.environ['LP_NUM_THREADS'])"
    done = run(program, ROOT, LP_NUM_THREADS="3", HOME=os.environ.get("HOME", "/"))
    assert done.stdout.split() == ["3"], done.stderr
