"""Rerun recordings, read back with Rerun's own reader."""

import importlib.util
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent import demo
from agent.agree import AgreeConfig, agree
from agent.build import PolicyConfig, make_envs, make_policy
from agent.demo import DemoConfig
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation import agreement
from agent.launch.command import RunError
from envs.data.store import EpisodeStore
from envs.sim.table import SPEC
from policies.rollout import rollout

CAMERAS, STATES, ACTIONS = ([part.name for part in parts] for parts in (SPEC.cameras, SPEC.state, SPEC.action))
SEEN = {*(f"cameras/{name}" for name in CAMERAS), *(f"state/{name}" for name in STATES)}
SEEN |= {*(f"action/{name}" for name in ACTIONS), "success", "progress"}
IMAGINED = {"value", "uncertainty", *(f"imagined/cameras/{name}" for name in CAMERAS)}
IMAGINED |= {f"imagined/state/{name}" for name in STATES}
CONSIDERED = {"candidates/scores", "candidates/paths", "candidates/chosen"}
DREAM = {f"dream/{name}" for name in (*SEEN, "value", "uncertainty")}


@pytest.fixture(scope="module")
def rerun():
    if importlib.util.find_spec("rerun") is None:
        pytest.skip("no Rerun, which `dev` leaves out for its 70 MB: pip install -c constraints.txt rerun-sdk")
    import rerun
    import rerun.dataframe

    return rerun


@pytest.fixture
def unrecorded(over_the_table, untrained, tmp_path) -> EvaluateConfig:
    """A search on two starts."""
    policy = PolicyConfig(
        name="planner", execute=4, checkpoint=str(untrained), device="cpu",
        planner={"candidates": 3, "iterations": 2, "elites": 2},
    )  # fmt: skip
    return EvaluateConfig(
        env=over_the_table, policy=policy, seed=3, episodes=2, out=str(tmp_path / "run"), workers=0, robots=2,
        keep=True,
    )  # fmt: skip


@pytest.fixture
def config(rerun, unrecorded, tmp_path) -> EvaluateConfig:
    """The same, recorded."""
    return replace(unrecorded, rerun=str(tmp_path / "run.rrd"))


def read(rerun, path: str | Path) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Recording -> entity -> control step -> what it shows, pictures and numbers flat."""
    found = {}
    for recording in rerun.dataframe.load_archive(str(path)).all_recordings():
        assert [column.name for column in recording.schema().index_columns()] == ["control_step"], "one time line"
        rows = recording.view(index="control_step", contents="/**").select().read_all().to_pylist()
        entities: dict[str, dict[int, np.ndarray]] = {}
        for row in rows:
            for column, value in row.items():
                entity, _, kind = column.rpartition(":")
                if value is not None and kind in ("Scalar", "ImageBuffer", "LineStrip3D"):
                    value = np.array(value[0] if kind == "ImageBuffer" else value)
                    entities.setdefault(entity.strip("/"), {})[row["control_step"]] = value
        found[recording.recording_id()] = entities
    return found


def test_a_search_is_recorded(rerun, config):
    """Catches a recording that lacks something, shows another episode, robot or moment, and one that changes the run:
    a model that is asked for pictures must decide as it does without."""
    evaluate(config, "c")
    plain = replace(config, rerun=None, out=config.out + "_plain")
    evaluate(plain, "c")
    assert all(config.kept.path(n).read_bytes() == plain.kept.path(n).read_bytes() for n in plain.kept.names())
    recordings = read(rerun, config.rerun)
    assert set(recordings) == {"planner 3", "planner 4"}
    for seed in (3, 4):
        entities, episode = recordings[f"planner {seed}"], config.kept.read(config.env.episode_name(seed))
        assert set(entities) == SEEN | IMAGINED | CONSIDERED
        decided = list(range(0, len(episode), 4))
        for camera in CAMERAS:
            shown = entities[f"cameras/{camera}"]
            assert sorted(shown) == list(range(len(episode) + 1))
            assert all(np.array_equal(shown[t], episode.images[camera][t].ravel()) for t in shown)
            assert sorted(entities[f"imagined/cameras/{camera}"]) == [t + 8 for t in decided], "a chunk later"
        for names, values in ((STATES, "state"), (ACTIONS, "action")):
            for i, name in enumerate(names):
                told = entities[f"{values}/{name}"]
                assert [float(told[t][0]) for t in sorted(told)] == getattr(episode, values)[:, i].tolist()
        for name in ("value", "uncertainty", *CONSIDERED):
            assert sorted(entities[name]) == decided
        for t in decided:
            scores, paths = entities["candidates/scores"][t], entities["candidates/paths"][t]
            chosen, hand = entities["candidates/chosen"][t], list(SPEC.positions[0])
            assert len(scores) == len(paths) and paths.shape[1:] == (2, 3)
            assert np.allclose(paths[:, 0], episode.state[t, hand]), "all begin where the hand is"
            later = [entities[f"imagined/state/{STATES[i]}"][t + 8][0] for i in hand]
            assert np.allclose(chosen[0, 1], later, atol=1e-6), "the chosen one leads where it was imagined to"


def test_what_is_imagined_again_is_what_was_imagined(rerun, config):
    """Catches a recorder that asks the model from another history, or of other actions, than the search did."""
    from agent.viz.recording import Recorder, write

    planned = {}
    with closing(make_envs(config.env)) as envs:
        drawing = replace(config.policy, planner={**config.policy.planner, "images": True})
        policy = make_policy(drawing, config.env, envs)
        recorder = Recorder(policy, "planner")

        def watch(step):
            recorder.watch(step)
            if step.decided:
                imagined, row = step.state.plan.imagination_of(step.state.plan.chosen)
                planned[step.index] = float(imagined.value[row, -1]), float(imagined.uncertainty[row, -1])

        (run,) = rollout(envs, policy, [3], on_step=watch)
    write(config.rerun, [recorder.finish(run)])
    (entities,) = read(rerun, config.rerun).values()
    assert len(planned) == 3, "the last decisions read what was done before"
    for t, (value, uncertainty) in planned.items():
        assert entities["value"][t][0] == pytest.approx(value, rel=1e-6)
        assert entities["uncertainty"][t][0] == pytest.approx(uncertainty, rel=1e-6)


def test_both_worlds_are_recorded_as_one(rerun, over_the_table, untrained, tmp_path, monkeypatch):
    """Catches a dream and its real episode in recordings of their own, and a stopped run that forgets what it had."""
    monkeypatch.setattr(agreement, "RESAMPLES", 20)
    model = PolicyConfig(name="model", execute=8, checkpoint=str(untrained), device="cpu")
    policies = {"model": model, "noisy": replace(model, disturb={"noise": 0.3})}
    config = AgreeConfig(
        env=over_the_table, policies=policies, checkpoint=str(untrained), seed=3, episodes=2, out=str(tmp_path / "run"),
        workers=0, robots=2, rerun=str(tmp_path / "both.rrd"),
    )  # fmt: skip
    for _ in range(2):  # the second finds everything done
        agree(config, "c")
        recordings = read(rerun, config.rerun)
        Path(config.rerun).unlink()
        assert set(recordings) == {"model 3", "model 4", "noisy 3", "noisy 4"}
        assert all(set(entities) == SEEN | IMAGINED | DREAM for entities in recordings.values())
        dream = EpisodeStore(tmp_path / "run" / "dream" / "noisy" / "episodes")
        for episode in dream:
            told = recordings[f"noisy {episode.seed}"]
            assert sorted(told["dream/uncertainty"]) == list(range(1, len(episode) + 1))
            value = told["dream/value"][len(episode)][0]
            assert episode.success[-1] or np.clip(value, 0, 1) == pytest.approx(episode.progress[-1], abs=1e-6)
            assert np.array_equal(told[f"dream/cameras/{CAMERAS[0]}"][1], episode.images[CAMERAS[0]][1].ravel())


def test_the_demo_is_recorded(rerun, config, tmp_path):
    """Catches a film without its recording."""
    policy = replace(config.policy, planner={**config.policy.planner, "images": True})
    path = tmp_path / "demo.rrd"
    _, written = demo.run(DemoConfig(config.env, policy, seed=3, out=tmp_path, futures=2, rerun=str(path)), "c")
    assert path in written
    (entities,) = read(rerun, path).values()
    assert set(entities) == SEEN | IMAGINED | CONSIDERED


def test_what_is_left_is_said(rerun, reach, tmp_path, capsys):
    """Catches a resumed run whose recording passes for the whole."""
    config = EvaluateConfig(
        env=replace(reach, split="seen"), policy=PolicyConfig(name="random", execute=2), seed=3, episodes=1,
        out=str(tmp_path / "run"), workers=0, rerun=str(tmp_path / "run.rrd"),
    )  # fmt: skip
    evaluate(config, "c")
    assert "recorded:" not in capsys.readouterr().out
    evaluate(replace(config, episodes=2), "c")
    assert "recorded: the 1 episodes that were left to do" in capsys.readouterr().out
    assert set(read(rerun, config.rerun)) == {"random 4"}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["episodes"] == 2


def test_what_is_missing_is_said(unrecorded, monkeypatch):
    """Catches a traceback, or an hour's run that ends without its recording, where rerun-sdk is not installed."""
    monkeypatch.setitem(sys.modules, "rerun", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "agent.viz.recording", raising=False)
    with pytest.raises(RunError, match=r"^rerun=FILE.rrd needs rerun-sdk: pip install 'nextstate\[rerun\]'$"):
        replace(unrecorded, rerun="run.rrd")
