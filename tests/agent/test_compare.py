import copy
import json

import pytest

from agent.compare import compare, read, table
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
    with pytest.raises(RunError, match="first=FOLDER second=FOLDER"):
        read(None)
    (tmp_path / "report.json").write_text(json.dumps(report({3: True}))[:-5])
    with pytest.raises(RunError, match=r"cannot read .*report\.json"):
        read(str(tmp_path))
