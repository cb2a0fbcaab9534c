import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from agent import evaluate as command
from agent.build import PolicyConfig
from agent.evaluate import EvaluateConfig, evaluate, read_outcomes, table
from agent.launch.command import RunError
from envs.sim.table import SPEC
from tests.pretrained import find_lookalike, pretrained
from world_model.training.sources import open_sources

FIELDS = {
    "success_rate", "ci95", "episodes", "seeds", "split", "criterion", "outcomes", "seconds_per_decision",
    "late_decisions", "already_done_at_reset", "actions_clipped", "state_outside", "provenance", "checkpoint", "env",
    "policy", "instruction", "command",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    late: int = 0
    speed: float = 1.0


@dataclass
class EvenSeeds:
    """Succeeds on even seeds only, and counts every decision as late."""

    execute: int = 2

    def init(self, instruction, seed=0):
        return State(speed=float(seed % 2 == 0))

    def act(self, observation, state):
        chunk = np.zeros((8, 7), np.float32)
        chunk[:, 0] = state.speed
        return chunk, replace(state, late=state.late + 1)


@pytest.fixture
def config(reach, tmp_path, monkeypatch) -> EvaluateConfig:
    monkeypatch.setattr(command, "make_policy", lambda *_: EvenSeeds())
    env = replace(reach, split="seen")
    policy = PolicyConfig(name="scripted")
    return EvaluateConfig(env=env, policy=policy, seed=10, episodes=4, out=str(tmp_path / "run"), workers=0)


def test_report(config):
    """A field that a reader of reports relies on is missing, renamed or computed from the wrong episodes."""
    report = evaluate(config, "python -m agent.evaluate")
    assert json.loads((Path(config.out) / "report.json").read_text()) == report
    assert set(report) == FIELDS
    assert report["success_rate"] == 0.5 and report["episodes"] == 4 and report["seeds"] == [10, 11, 12, 13]
    assert report["ci95"] == pytest.approx([0.150, 0.850], abs=1e-3)
    assert [o["success"] for o in report["outcomes"]] == [True, False, True, False]
    assert report["outcomes"][1]["steps"] == 12 and report["outcomes"][0]["steps"] == 5
    assert report["outcomes"][1]["score"]["distance"] > 0.2
    assert report["late_decisions"] == sum(-(-o["steps"] // 2) for o in report["outcomes"])
    assert set(report["seconds_per_decision"]) == {"median", "p95"}
    assert (report["split"], report["criterion"], report["instruction"]) == ("seen", "x over 0.5 m", "reach")
    assert report["checkpoint"] is None and report["policy"] == "scripted" and report["provenance"]["versions"]["numpy"]
    text = table(report)
    assert "2 of 4: 50.0%" in text and "failed seeds" in text and "11, 13" in text


def test_resume_keeps_finished_episodes(config, monkeypatch):
    """A second run that evaluates everything again, or stumbles over the line that a kill cut short."""
    first = evaluate(replace(config, episodes=3), "c")
    log = Path(config.out) / "outcomes.jsonl"
    log.write_text(log.read_text() + '{"seed": 13, "succ')
    ran = []
    run = command.rollout

    def counted(envs, policy, seeds, on_step):
        for done in run(envs, policy, seeds, on_step=on_step):
            ran.append(done.episode.seed)
            yield done

    monkeypatch.setattr(command, "rollout", counted)
    report = evaluate(config, "c")
    assert ran == [13] and report["outcomes"][:3] == first["outcomes"]
    assert sorted(read_outcomes(log)) == [10, 11, 12, 13]
    evaluate(config, "c")
    assert ran == [13]


def test_damaged_log(config):
    """A damaged line in the middle must be named, not skipped: the rate would silently change."""
    evaluate(config, "c")
    log = Path(config.out) / "outcomes.jsonl"
    log.write_text("{oops\n" + log.read_text())
    with pytest.raises(RunError, match=r"outcomes\.jsonl is damaged.*[Dd]elete"):
        evaluate(config, "c")


def test_outcomes_of_other_settings_do_not_mix(config):
    """Half of the episodes by one policy, half by another, in one report."""
    evaluate(config, "c")
    with pytest.raises(ValueError, match="other settings"):
        evaluate(replace(config, policy=PolicyConfig(name="random")), "c")


def test_checkpoint_is_named_with_its_hash(config, tmp_path):
    """A report that does not say which weights it is about, and a retrained checkpoint that inherits old outcomes."""
    folder = tmp_path / "weights"
    learned = replace(config, policy=PolicyConfig(name="model", checkpoint=str(folder)))
    with pytest.raises(RunError, match=r"no checkpoint in .*weights.*make train"):
        evaluate(learned, "c")
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    report = evaluate(learned, "c")
    assert report["checkpoint"]["name"] == "weights" and len(report["checkpoint"]["sha256"]) == 64
    assert evaluate(replace(learned, policy=PolicyConfig(name="model", checkpoint=f"{folder}/")), "c") == report
    (folder / "manifest.json").write_text("{ }")
    with pytest.raises(ValueError, match="other settings"):
        evaluate(learned, "c")


def test_bad_split_is_found_before_anything_starts(config):
    """A typo must be one message, and must not leave a folder that refuses the right command."""
    with pytest.raises(ValueError, match="split must be one of"):
        evaluate(replace(config, env=replace(config.env, split="test")), "c")
    evaluate(config, "c")


def test_outcomes_do_not_depend_on_how_many_run_together(config, tmp_path):
    """Catches figures that change with the machine's size."""
    alone = evaluate(config, "c")["outcomes"]
    assert evaluate(replace(config, robots=3, out=str(tmp_path / "three")), "c")["outcomes"] == alone


def test_what_leaves_its_range_is_reported(config):
    """Catches values that are cut in silence: x passes 0.4 m, and the table's height is 0 here."""
    report = evaluate(config, "c")
    assert report["state_outside"]["gripper.z"] > 0 and not report["actions_clipped"]
    assert "gripper.z" in table(report)


def test_kept_episodes_are_those_that_were_counted(config, tmp_path):
    """Catches failures that nobody can look at, outcomes counted without their episode, and `unseen` episodes that a
    training takes."""
    evaluate(config, "c")
    with_episodes = replace(config, keep=True, env=replace(config.env, split="unseen"), out=str(tmp_path / "kept"))
    first = evaluate(replace(with_episodes, keep=False), "c")
    again = evaluate(with_episodes, "c")
    assert again["outcomes"] == first["outcomes"]
    kept = with_episodes.kept
    assert [kept.read(name).seed for name in kept.names()] == again["seeds"]
    assert [bool(kept.read(name).success[-1]) for name in kept.names()] == [o["success"] for o in again["outcomes"]]
    (source,) = open_sources({"data": [str(kept.root)]})
    with pytest.raises(ValueError, match="split=unseen, which is for evaluation alone"):
        next(source.each())


def test_a_policy_of_lerobots(reach, tmp_path, monkeypatch):
    """Catches robots that share a policy's memory, a report that does not say which policy it was, and one that has to
    begin anew because a folder was moved."""
    pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")
    folder, python = pretrained(tmp_path / "mine", SPEC), find_lookalike(monkeypatch)
    policy = PolicyConfig(name="lerobot", folder=folder, python=python, execute=None)
    config = EvaluateConfig(env=reach, policy=policy, seed=10, episodes=4, out=str(tmp_path / "run"), workers=0)
    report = evaluate(config, "c")
    together = evaluate(replace(config, robots=3, out=str(tmp_path / "three")), "c")
    assert together["outcomes"] == report["outcomes"]
    assert len({o["progress"] for o in report["outcomes"]}) == 4 and report["checkpoint"]["name"] == "mine"
    moved = replace(policy, folder=shutil.move(folder, tmp_path / "moved"), python="/no/python")
    assert evaluate(replace(config, policy=moved), "c")["outcomes"] == report["outcomes"]
