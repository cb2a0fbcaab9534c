import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from agent.launch.command import STOPPED, claim, claimed, clear_errors, command_line, differences, spelled_out, versions
from envs.data.store import EpisodeError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("error", [ValueError("bad"), EpisodeError("bad"), OSError("bad")])
def test_expected_errors_become_one_line(error, monkeypatch):
    """Catches a traceback for a typo."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as exit, clear_errors():
        raise error
    assert exit.value.code == "error: bad"


def test_a_bad_checkpoint_is_expected(monkeypatch):
    """Catches a damaged checkpoint that shows up as a bug with a traceback."""

    class CheckpointError(RuntimeError):
        pass

    module = type(sys)("world_model.checkpoint")  # as it is where a command has loaded the model
    module.CheckpointError = CheckpointError
    monkeypatch.setitem(sys.modules, "world_model.checkpoint", module)
    with pytest.raises(SystemExit, match="damaged"), clear_errors():
        raise CheckpointError("damaged")


def test_bugs_keep_their_traceback():
    """Catches a bug that hides behind a friendly line."""
    with pytest.raises(ZeroDivisionError), clear_errors():
        1 / 0  # noqa: B018


def test_full_error_on_request(monkeypatch):
    """Catches an expected error whose origin cannot be found."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError), clear_errors():
        raise ValueError("bad")


def test_ctrl_c(capsys):
    """Catches a traceback for Ctrl-C, and an exit status that a Makefile takes for success."""
    with pytest.raises(SystemExit) as exit, clear_errors():
        raise KeyboardInterrupt
    assert exit.value.code == STOPPED and capsys.readouterr().err.startswith("stopped; run the same command")


def test_a_command_can_be_pasted():
    """Catches a report whose command means something else to a shell: words that fall apart, brackets that match."""
    line = command_line("agent.evaluate", ["env=lift", "env.instruction=lift the cube", 'env.state=["a[0:3]",b]'])
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    typed = line.replace("python -m agent.evaluate", f"{sys.executable} -c '{echo}'")
    ended = subprocess.run(typed, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == ["env=lift", "env.instruction=lift the cube", 'env.state=["a[0:3]",b]']
    assert line.startswith("python -m agent.evaluate env=lift ")


COMMAND = """
import hydra
from omegaconf import DictConfig
from agent.launch.command import clear_errors, start

@hydra.main(version_base="1.3", config_path=None, config_name="hydra_test")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        print(cfg.episodes, cfg.policy.execute)
        if cfg.episodes == 5:
            raise ValueError("five is too many")

if __name__ == "__main__":
    start(main)
"""
CONFIG = """
defaults: [{policy: a}, _self_, {override hydra/job_logging: none}, {override hydra/hydra_logging: none}]
episodes: 3
out: ???
hydra: {run: {dir: .}, output_subdir: null}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """A command with settings of its own."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "command.py").write_text(COMMAND.replace("config_path=None", f"config_path={str(folder)!r}"))
    (folder / "hydra_test.yaml").write_text(CONFIG)
    (folder / "policy").mkdir()
    (folder / "policy" / "a.yaml").write_text("execute: 2\n")
    return folder / "command.py"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("episods=2", "there is no setting `episods`, did you mean `episodes`?; this command has episodes, out, "),
        ("policy.exec=2", "there is no setting `policy.exec`, did you mean `execute`?; `policy` has execute"),
        ("policy=b", "In 'hydra_test': Could not find 'policy/b' Available options in 'policy': a"),
        ("episodes=[", "no viable alternative at input '['"),
        ("episodes=${nope}", "Interpolation key 'nope' not found"),
        ("episodes=???", "Missing mandatory value: episodes"),
        ("episodes=5", "five is too many"),
    ],
)
def test_what_hydra_says_is_one_line(command, setting, line):
    """Catches Hydra's seven lines, its advice to add the mistyped setting, and its traceback for a missing value."""
    environment = {name: value for name, value in os.environ.items() if "FULL_ERROR" not in name}
    environment["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run([sys.executable, command, setting], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: {line}")


def test_hydras_full_error_on_request(command):
    """Catches `start` that takes its own HYDRA_FULL_ERROR for the user's, or the user's for its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"}
    ended = subprocess.run([sys.executable, command, "episodes=5"], env=environment, capture_output=True, text=True)
    assert "Traceback" in ended.stderr and "ValueError: five is too many" in ended.stderr
    ended = subprocess.run([sys.executable, command], env=environment, capture_output=True, text=True)
    assert ended.stdout == "3 2\n" and ended.returncode == 0


def test_claim(tmp_path):
    """Catches a folder that accepts the results of other settings, or refuses those of the same."""
    path = claim(tmp_path / "run", "claim.json", {"a": (1, 2), "policy": {"execute": 2}})
    assert claim(f"{tmp_path}/run/", "claim.json", {"policy": {"execute": 2}, "a": [1, 2]}) == path
    with pytest.raises(ValueError, match=r"claim\.json.*\(a: \[1, 2\] against \[1, 3\]\); choose another `out`"):
        claim(tmp_path / "run", "claim.json", {"a": [1, 3], "policy": {"execute": 2}})
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        claim(tmp_path / "run", "claim.json", {})
    assert os.listdir(tmp_path / "run") == ["claim.json"]


def test_differences():
    """Catches a message that says that something differs and not what."""
    found = differences({"a": 1, "policy": {"name": "b", "x": 1}}, {"policy": {"name": "c", "x": 1}, "z": None})
    assert found == ["a: 1 against null", 'policy.name: "b" against "c"']


def test_a_setting_that_is_added_later():
    """Catches a run that cannot be gone on with, because this version knows a setting more, which says nothing."""
    assert not differences({"policy": {"name": "b"}}, {"policy": {"name": "b", "folder": "", "keys": {}, "of": None}})
    assert differences({"a": 1}, {"a": 1, "n": 0, "on": False}) == ["n: null against 0", "on: null against false"]


@pytest.mark.parametrize("folder", ["outputs/act", "12", "a=b:c, {d}", "it's $mine", "/tmp/with space/[1]"])
def test_a_policy_of_lerobots_in_short(folder):
    """Catches a folder's name that Hydra reads as something else, and other settings that are changed."""
    parsed = OverridesParser.create().parse_overrides(spelled_out(f"policy=lerobot:{folder}"))
    assert [(o.key_or_group, o.value()) for o in parsed] == [("policy", "lerobot"), ("policy.folder", folder)]
    for other in ("policy=model", "policy.name=lerobot:x", "out=lerobot:x", "policy=lerobot"):
        assert spelled_out(other) == [other]


def start_with(folder: Path, value: int, barrier, results) -> None:
    barrier.wait()
    try:
        claim(folder, "claim.json", {"value": value})
        results.put((value, "goes on"))
    except ValueError:
        results.put((value, "refused"))


def test_simultaneous_starts(tmp_path):
    """Catches two starts at once whose settings differ and that both go on, or of equal ones, of which one fails."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.SimpleQueue()
    processes = [
        context.Process(target=start_with, args=(tmp_path / "new", i % 2, barrier, results)) for i in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    outcomes = [results.get() for _ in processes]
    winner = next(value for value, what in outcomes if what == "goes on")
    assert sorted(outcomes) == sorted((i % 2, "goes on" if i % 2 == winner else "refused") for i in range(8))
    assert os.listdir(tmp_path / "new") == ["claim.json"]


def test_a_claim_that_came_to_nothing_is_withdrawn(tmp_path):
    """Catches wrong settings that keep a folder, and a failed start that takes the claim of another that goes on."""
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, "claim.json", {"a": 1}, used=lambda: False) as path:
        raise ZeroDivisionError
    assert not path.exists()
    with claimed(tmp_path, "claim.json", {"a": 2}, used=lambda: False) as path:
        with claimed(tmp_path, "claim.json", {"a": 2}, used=lambda: False):
            pass
        assert path.exists()
    assert not path.exists()
    with claimed(tmp_path, "claim.json", {"a": 3}, used=lambda: True) as path:
        pass
    assert path.exists()


def test_versions():
    """Catches a report that a package stops which is not installed."""
    found = versions("numpy", "no-such-package")
    assert found["numpy"][0].isdigit() and found["no-such-package"] == "missing"
