"""The demo on a small made-up world, and the pictures that it draws."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import av
import gymnasium as gym
import hydra
import numpy as np
import pytest
import torch

from agent import demo
from agent.build import EnvConfig, PolicyConfig
from agent.planning.objective import Objective
from agent.planning.planner import Planner, PlannerConfig
from agent.planning.policies import ModelPolicy, PlanningPolicy
from agent.viz.film import CHOSEN, HEADER, OWN, VIEW, Future, Moment, draw, film, sheet
from envs.adapter import Adapter, AdapterConfig, vector
from envs.data.settings import from_settings
from envs.sim.table import SPEC

M, A, STEPS = 8, 7, 12


class World(gym.Env):
    """Counts control steps; its camera's brightness is the count. Ends with success after STEPS."""

    robot_spec = SPEC
    instruction, criterion, render_mode = "fold the cloth in half", "twelve steps", "rgb_array"
    observation_space = gym.spaces.Dict(
        {c.name: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in SPEC.cameras},
        state=gym.spaces.Box(-np.inf, np.inf, (7,), np.float32),
    )
    action_space = gym.spaces.Box(-1, 1, (7,), np.float32)

    def __init__(self) -> None:
        self.count, self.loads = 0, 0

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.observe(), self.info()

    def step(self, action):
        told = self.advance(action)
        return self.observe(), *told

    def advance(self, action):
        self.count += 1
        return 0.0, self.count >= STEPS, False, self.info()

    def observe(self):
        state = np.array([self.count, 0, 0, 0, 0, 0, 0.08], np.float32)
        return {"main": np.zeros((64, 64, 3), np.uint8), "wrist": np.zeros((32, 32, 3), np.uint8), "state": state}

    def info(self):
        done = self.count >= STEPS
        return {
            "success": done, "progress": min(self.count / STEPS, 1.0),
            "subtask": "count", "score": {"softgym": 0.9},
        }  # fmt: skip

    def render_main(self, size):
        return np.full((size, size, 3), self.count, np.uint8)

    def save_state(self):
        return self.count

    def load_state(self, state):
        self.count, self.loads = state, self.loads + 1


@dataclass(frozen=True)
class Futures:
    """What is read of an imagination, (R, N, H) each."""

    value: torch.Tensor
    success: torch.Tensor
    uncertainty: torch.Tensor
    ids: torch.Tensor
    strides: tuple[int, ...]

    def __getitem__(self, robot):
        read = {f.name: getattr(self, f.name)[robot] for f in fields(self) if f.name != "strides"}
        return replace(self, **read)


class Model:
    """Imagines frames whose brightness is 100 + the control step at which they were imagined."""

    spec = SPEC
    actions = SimpleNamespace(coefs=(4, 4, 4, 0, 0, 2))
    strides = (4, M)
    layout = SimpleNamespace(require_strides=lambda strides: None)

    def prefill(self, histories):
        return [int(history.steps[-1][0].state[0]) for history in histories]

    def propose(self, cache, n, temperature, generators, joint=False):
        return torch.zeros(len(cache), n, M, A)

    def imagine(self, cache, actions, decode="parallel", follow=0, strides=None):
        value = actions[..., 0].mean(-1) + 0.5  # (R, N, H)
        ids = 100 + torch.tensor(cache)[:, None, None].expand(value.shape)
        return Futures(value, torch.zeros_like(value), torch.zeros_like(value), ids, (strides or M,))

    def decode_frames(self, imagined, rows):
        brightness = imagined.ids[rows].to(torch.uint8)[..., None, None, None]  # (n, H, 1, 1, 1)
        return {"main": brightness.expand(*brightness.shape[:2], 64, 64, 3)}


class Text:
    def encode(self, text):
        return [1]


def policy(execute: int = 2, **budget) -> PlanningPolicy:
    acting = ModelPolicy(Model(), Text(), (World.instruction,), execute)
    budget = PlannerConfig(candidates=6, margin=0.0, deadline_s=60, **budget)
    return PlanningPolicy(acting, Planner(budget, Objective(0.997)))


def config(tmp_path: Path, name: str = "planner") -> demo.DemoConfig:
    (tmp_path / "manifest.json").write_text("{}")
    env = EnvConfig(name="fold_half", id="nextstate/FoldHalf-v0", split="seen")
    policy = PolicyConfig(name=name, checkpoint=str(tmp_path))
    return demo.DemoConfig(env, policy, 0, tmp_path / "out", futures=5)


@pytest.fixture
def world(monkeypatch) -> World:
    world = World()
    monkeypatch.setattr(
        demo, "make_envs", lambda config: vector([lambda: Adapter(world, "seen", AdapterConfig(max_steps=20))])
    )
    monkeypatch.setattr(demo, "make_policy", lambda config, env, envs: policy())
    return world


def test_everything_is_written(tmp_path, world):
    """Catches a film that players refuse, a missing picture, or a report that is not JSON."""
    report, written = demo.run(config(tmp_path), "python -m agent.demo")
    assert [path.name for path in written] == ["fold.mp4", "plan.png", "report.json"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in written}
    assert json.loads(written[2].read_text()) == report
    with av.open(str(written[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, int(stream.average_rate)) == ("h264", "yuv420p", 20)
        assert stream.height >= 256 and sum(1 for _ in container.decode(stream)) == STEPS
    assert written[1].stat().st_size > 5000


def test_the_report_tells_what_happened(tmp_path, world):
    """Catches fields that evaluation has and the demo lacks."""
    report, _ = demo.run(config(tmp_path), "python -m agent.demo")
    assert report["success"] is True and report["steps"] == STEPS and report["decisions"] == STEPS // 2
    assert report["late_decisions"] == 0 and report["seconds_per_decision"]["median"] > 0
    assert len(report["checkpoint"]["sha256"]) == 64 and report["provenance"]["versions"]["torch"] == torch.__version__
    assert report["score"] == {"softgym": 0.9} and report["seeds"] == [0] and report["criterion"] == World.criterion


@pytest.mark.parametrize("stride", [None, 4])
def test_imagined_frames_are_shown_when_they_are_due(tmp_path, world, monkeypatch, stride):
    """Catches a film whose two halves show different moments, or that says another time between them."""
    shown, ahead = [], stride or M
    monkeypatch.setattr(demo, "make_policy", lambda config, env, envs: policy(imagine=stride))
    monkeypatch.setattr(demo, "draw", lambda moment: shown.append(moment) or draw(moment))
    demo.run(config(tmp_path), "python -m agent.demo")
    for moment in shown:
        assert moment.real[0, 0, 0] == moment.step  # the camera after the step
        assert moment.imagined_label == f"imagined {ahead / 20:.1f} s ago"
        if moment.step < ahead:
            assert moment.imagined is None
        else:
            decided = (moment.step - ahead) // 2 * 2  # decisions fall on even steps
            assert moment.imagined[0, 0, 0] == 100 + decided


@pytest.mark.parametrize("stride", [None, 4])
def test_the_picture_runs_each_future_from_the_decision(tmp_path, world, monkeypatch, stride):
    """Catches true frames that start from where the last future ended, or from the episode's end, or that lie further
    ahead than what was imagined."""
    drawn = []
    monkeypatch.setattr(demo, "make_policy", lambda config, env, envs: policy(imagine=stride))
    monkeypatch.setattr(demo, "sheet", lambda path, now, futures, title: drawn.append((now, futures)) or path.touch())
    demo.run(config(tmp_path), "python -m agent.demo")
    ((now, futures),) = drawn
    start = int(now[0, 0, 0])
    assert 0 < start < STEPS and len(futures) == 5
    ahead = stride or M
    assert all(future.true[0, 0, 0] == start + ahead and future.imagined[0, 0, 0] == 100 + start for future in futures)
    assert sum(future.chosen for future in futures) == 1


def test_without_search_there_is_still_a_film(tmp_path, world, monkeypatch):
    """Catches a demo that needs a plan."""
    monkeypatch.setattr(demo, "make_policy", lambda config, env, envs: policy().acting)
    _, written = demo.run(config(tmp_path, "model"), "python -m agent.demo")
    assert [path.name for path in written] == ["fold.mp4", "report.json"]


def test_only_what_imagines_can_be_shown(tmp_path):
    """Catches a crash in the middle of the film."""
    with pytest.raises(ValueError, match="not scripted"):
        config(tmp_path, "scripted")


def test_a_film_that_fails_leaves_nothing(tmp_path):
    """Catches half a film that looks like a whole one."""
    with pytest.raises(RuntimeError), film(tmp_path / "a.mp4") as open_film:
        open_film.add(np.zeros((64, 64, 3), np.uint8))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_bars_mark_the_chosen_future_and_the_models_own():
    """Catches a highlight on the wrong bar: the best must stand first."""
    view = np.zeros((8, 8, 3), np.uint8)
    scores = np.array([0.2, 0.9, 0.5])
    frame = draw(Moment(view, view, "fold", "grasp", 3, 0.15, scores, chosen=1))
    assert frame.shape[0] % 2 == 0 == frame.shape[1] % 2
    row = frame[HEADER + VIEW + 80, VIEW:]  # low enough to cut every bar
    chosen, own = ((row == colour).all(-1).nonzero()[0] for colour in (CHOSEN, OWN))
    assert len(chosen) and len(own) and chosen.max() < own.min()
    assert not (draw(Moment(view, None, "fold", "grasp", 3, 0.15))[HEADER + VIEW + 80, VIEW:] == CHOSEN).all(-1).any()


def test_a_sheet_holds_any_number_of_futures(tmp_path):
    """Catches a grid that drops the last row, or a future without a true frame."""
    image = np.zeros((64, 64, 3), np.uint8)
    for count in (1, 4, 15):
        futures = [Future(0.1 * i, image, None if i == 0 else np.zeros((128, 128, 3), np.uint8)) for i in range(count)]
        sheet(tmp_path / f"{count}.png", image, futures, "title")
        assert (tmp_path / f"{count}.png").stat().st_size > 0


def compose(*overrides: str):
    with hydra.initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base="1.3"):
        return demo.from_hydra(hydra.compose("demo", list(overrides)))


def test_the_budget_in_the_yaml_is_the_default():
    """Catches figures that differ between a command and the library, and a budget that cannot be overridden."""
    policy = compose("policy.decode=autoregressive", "policy.planner.candidates=9").policy
    assert from_settings(PlannerConfig, policy.planner) == PlannerConfig(decode="autoregressive", candidates=9)
    assert from_settings(Objective, policy.objective) == Objective()


@pytest.mark.parametrize("name", ["fold_half", "lift"])
def test_settings_compose(name):
    """Catches a group or a key that the command and its YAML do not agree on."""
    cfg = compose(f"env={name}", "policy.execute=4", "seed=7", "split=unseen")
    assert (cfg.env.name, cfg.env.split, cfg.policy.execute, cfg.seed) == (name, "unseen", 4, 7)
