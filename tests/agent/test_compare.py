import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.compare import CompareConfig, compare, read, table
from agent.launch.command import RunError


def report(successes: dict[int, bool], **other) -> dict:
    outcomes = [{"seed": seed, "success": success} for seed, success in successes.items()]
    return {"outcomes": outcomes, "env": {"id": "A-v0"}, "split": "seen", "criterion": "x", "command": "run", **other}


def test_only_seeds_in_both_count():
    """Catches outcomes that are paired by their place instead of their seed, and a difference with the wrong sign."""
    first = report({3: True, 4: True, 5: True, 6: False, 7: True})
    second = report({7: False, 6: False, 5: True, 4: False, 9: True})
    found = compare(first, second)
    assert (found["episodes"], found["first"], found["second"]) == (4, 3, 1)
    assert (found["only_first"], found["only_second"], found["points"], found["p"]) == (2, 0, 50.0, 0.5)
    assert found["ci95"][0] < 50 < found["ci95"][1]
    assert "+50.0 points" in table(found, first, second) and "2 only the first" in table(found, first, second)


def test_what_cannot_be_compared():
    """Catches a comparison of two tasks, or of nothing."""
    first = report({3: True})
    with pytest.raises(RunError, match="differ in `split`"):
        compare(first, {**copy.deepcopy(first), "split": "unseen"})
    with pytest.raises(RunError, match="no seed in common"):
        compare(first, report({4: True}))


def test_a_folder_without_a_report(tmp_path):
    """Catches a traceback where one line would do, also for a file that is cut short."""
    with pytest.raises(RunError, match=r"report\.json.*python -m agent\.evaluate"):
        read(str(tmp_path))
    with pytest.raises(ValueError, match="first=FOLDER second=FOLDER"):
        CompareConfig("a", None)
    (tmp_path / "report.json").write_text(json.dumps(report({3: True}))[:-5])
    with pytest.raises(RunError, match=r"cannot read .*report\.json"):
        read(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"env": {"id": "A-v0"}}'])
def test_a_file_that_is_no_report(tmp_path, content):
    """Catches the KeyError or TypeError of another command's report.json."""
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError, match=r"cannot read .*report\.json.*python -m agent\.evaluate"):
        read(str(tmp_path))


def test_what_was_made_differently_is_said():
    """Catches two precisions or two versions of the code compared as if only the policy differed."""
    first, second = report({3: True}), report({3: False})
    assert "made differently" not in table(compare(first, second), first, second)
    first["provenance"] = {"commit": "a", "precision": "bfloat16", "device": "cpu"}
    second["provenance"] = {"commit": "a", "precision": "float32", "cpu": "x"}
    assert "made differently  precision bfloat16 against float32" in table(compare(first, second), first, second)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["first=20240501", "second=b"], "error: cannot read 20240501/report.json"),
        (["first=[a]", "second=b"], "error: `first` must be text or null, got ['a']"),
        ([], "error: name the folders of two evaluations: first=FOLDER second=FOLDER"),
        (["frist=a"], "error: there is no setting `frist`, did you mean `first`?; this command has first, second"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, settings, line):
    """Catches a traceback where one line would do: the command as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if "FULL_ERROR" not in name}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "agent.compare", *settings]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and ended.stderr.startswith(line)
