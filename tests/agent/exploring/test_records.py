"""Recorded episodes and reports that a page opens."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent import evaluate as command
from agent.agree import AgreeConfig, agree
from agent.build import PolicyConfig
from agent.evaluate import EvaluateConfig, evaluate
from agent.evaluation import agreement
from agent.exploring.records import find_records, titles
from envs.data.files import write_json
from envs.data.store import EpisodeError, EpisodeStore
from tests.agent.exploring.conftest import serving, settings


class OddSeeds:
    """Stands still where the seed is even."""

    execute = 2

    def init(self, instruction, seed=0):
        return seed

    def act(self, observation, state):
        return np.full((8, 7), 0.5 * (state % 2), np.float32), state


@pytest.fixture
def kept(untrained, tmp_path, monkeypatch):
    """The settings of a page, and the folder of an evaluation whose even seeds fail."""
    monkeypatch.setattr(command, "make_policy", lambda *_: OddSeeds())
    page = settings(untrained, tmp_path / "saved")
    random = PolicyConfig(name="random")
    evaluate(EvaluateConfig(
        env=replace(page.env, max_steps=16), policy=random, seed=10, episodes=4, out=str(tmp_path / "run"), workers=0,
        keep=True,
    ), "")  # fmt: skip
    return page, tmp_path / "run"


def test_an_evaluation_is_opened_where_it_failed(kept):
    """Catches a report whose failures have to be looked for, and an episode that is shown as another one."""
    page, folder = kept
    episodes = {episode.seed: episode for episode in EpisodeStore(folder / "episodes")}
    found = find_records(folder / "report.json", page.env.id)
    assert [record.seed for record in found] == [12, 10, 11, 13], "12 began farther from where it should go than 10"
    with serving(replace(page, open=(str(folder), str(folder / "episodes")))) as server, server.client() as client:
        listed = client.hello["records"]
        assert listed[1] == f"seed 10: failed after {len(episodes[10])} steps" and len(listed) == 8
        assert listed[2].startswith("seed 11: done") and "0000010: failed" in listed[4]
        for record, seed in ((2, 11), (4, 10)):
            told = client.moments("open", record=record)
            assert [head["by"] for head, _ in told] == ["start"] + ["recorded"] * len(episodes[seed])
            actions = np.array([head["action"] for head, _ in told[1:]], np.float32)
            np.testing.assert_array_equal(actions, episodes[seed].action)
            assert told[-1][0]["real"]["success"] == (seed == 11)
        assert "from 0 to 7" in client.complaint("open", record=8)


def test_a_recorded_way_that_is_gone_is_said(kept):
    """Catches an old episode that is shown as if today's simulator went that way, and one of another environment."""
    page, folder = kept
    store = EpisodeStore(folder / "episodes")
    first = store.names()[0]
    episode = store.read(first)
    store.write(replace(episode, state=episode.state + 0.1), first)
    for path in folder.glob("episodes/*11.npz"):
        path.unlink()
    with serving(replace(page, open=(str(folder),))) as server, server.client() as client:
        assert "went another way than was recorded" in client.complaint("open", record=1)
        assert [title.endswith("(its start alone)") for title in client.hello["records"]] == [False, False, True, False]
        (start,) = client.moments("open", record=2)
        assert start[0]["step"] == 0
    with pytest.raises(ValueError, match="set `env` to open it"):
        find_records(str(folder), "nextstate/Lift-v0")
    (folder / "report.json").write_text("{")
    with pytest.raises(EpisodeError, match="cannot read"):
        find_records(str(folder), page.env.id)
    with pytest.raises(EpisodeError, match="does not exist"):
        find_records(str(folder / "none"), page.env.id)


def test_a_comparison_is_opened_where_the_dream_is_wrong(untrained, tmp_path, monkeypatch):
    """Catches worst cases that stand among all others."""
    monkeypatch.setattr(agreement, "RESAMPLES", 20)
    page, out = settings(untrained, tmp_path), tmp_path / "agree"
    random = PolicyConfig(name="random", execute=8)
    policies = {"a": random, "b": replace(random, disturb={"speed": 0.5})}
    agree(AgreeConfig(
        env=page.env, policies=policies, checkpoint=str(untrained), seed=3, episodes=3, out=str(out), workers=0,
        robots=2,
    ), "")  # fmt: skip
    wrong = out / "dream" / "b" / "report.json"
    report = json.loads(wrong.read_text())
    told = json.loads((out / "real" / "b" / "report.json").read_text())["outcomes"]
    for mine, theirs in zip(report["outcomes"], told, strict=True):
        mine["success"] = theirs["success"] != (theirs["seed"] == 4)
    write_json(wrong, report)
    records = find_records(str(out), page.env.id)
    assert len(records) == 6 and records[0].seed == 4 and titles(records)[0].startswith("b, seed 4: ")
    assert "in the dream" in records[0].title and records[0].read().seed == 4
    assert Path(records[0].folder) == out / "real" / "b" / "episodes"
