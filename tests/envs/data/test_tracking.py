"""wandb, of which the tests see only what it is called with."""

import builtins
import json
import shutil
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from envs.data.tracking import check_mode, log_run, readable, run_id, start_run


@dataclass(frozen=True)
class Settings:
    steps: int
    data: tuple[str, ...]


class FakeRun:
    def __init__(self) -> None:
        self.logged, self.summary, self.ended = [], {}, None

    def log(self, figures, step):
        self.logged.append((figures, step))

    def finish(self, exit_code=None):
        self.ended = exit_code


@pytest.fixture
def inits(monkeypatch) -> list[dict]:
    """What wandb.init was called with, and the run that it gave as `run`."""
    calls = []

    def init(**arguments):
        calls.append({**arguments, "run": FakeRun()})
        return calls[-1]["run"]

    class Error(Exception):
        pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=Error)))
    return calls


def test_two_folders_of_one_name_are_two_runs(tmp_path, inits):
    """Catches runs of `A/train` and `B/train` that merge, and a continued folder that begins a new run."""
    for folder in ("A/train", "B/train", "A/train", "A/../A/train/"):
        start_run("offline", "train", f"{tmp_path}/{folder}", Settings(3, ("a",))).finish()
    a, b, again, other_path = (call["id"] for call in inits)
    assert a != b and a == again == other_path and a.startswith("train-")
    assert {call["resume"] for call in inits} == {"allow"} and inits[0]["config"] == {"steps": 3, "data": ["a"]}


def test_a_copy_or_a_new_folder_is_another_run(tmp_path, inits):
    """Catches a folder that was copied, or deleted and begun anew, and goes on with the figures of the old one."""
    (tmp_path / "a").mkdir()
    first = run_id("train", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = run_id("train", tmp_path / "b")
    assert copied != first and run_id("train", tmp_path / "b") == copied and run_id("train", tmp_path / "a") == first
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    assert run_id("train", tmp_path / "a") != first
    (tmp_path / "a" / "wandb.json").write_text("[]")
    with pytest.raises(ValueError, match="wandb.json does not name a run"):
        run_id("train", tmp_path / "a")


@pytest.mark.parametrize("name", ["what?", "a:b/c\\d#e%f", "größe\n", "x" * 300, "", "///"])
def test_strange_names(tmp_path, inits, name):
    """Catches a name that wandb refuses after hours of work, or even when it is disabled."""
    log_run("disabled", name, tmp_path, {}, {})
    assert not inits and not list(tmp_path.iterdir())
    log_run("offline", name, tmp_path, {}, {"nan": float("nan"), "rate": 0.5})
    called = inits[0]
    for value in (called["id"], called["name"]):
        assert 0 < len(value) <= 128 and not set(value) & set("/\\#?%: \n")
    assert called["run"].summary == {"nan": None, "rate": 0.5} and called["run"].ended == 0
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == called["id"]


def test_a_wrong_mode_is_an_error(tmp_path):
    """Catches a misspelt mode that silently logs nothing, or online."""
    for ask in (check_mode, lambda mode: log_run(mode, "n", tmp_path, {}, {})):
        with pytest.raises(ValueError, match="wandb must be disabled, offline or online, got 'ofline'"):
            ask("ofline")
    assert check_mode("online") == "online" and readable("collect lift") == "collect-lift"


def test_disabled_needs_no_wandb(tmp_path, monkeypatch):
    """Catches a second of start-up for everybody, and a command that needs wandb though nobody asked for it."""

    def refuse(name, *arguments, **settings):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return imported(name, *arguments, **settings)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with start_run("disabled", "n", tmp_path, {}) as run:
        run.log({"loss": 1.0}, step=3)
        run.summarize({"loss": 1.0})
    run.finish()
    with pytest.raises(ValueError, match="wandb=offline needs the package wandb"):
        start_run("offline", "n", tmp_path, {})


def test_a_failed_run_is_marked_and_refusals_are_one_line(tmp_path, inits):
    """Catches a run that is shown as finished where the training failed, and a traceback for a missing login."""
    with pytest.raises(ZeroDivisionError), start_run("offline", "train", tmp_path, {}) as run:
        run.log({"loss": 1.0}, step=2)
        raise ZeroDivisionError
    assert inits[0]["run"].ended == 1 and inits[0]["run"].logged == [({"loss": 1.0}, 2)]

    def refuse(**arguments):
        raise sys.modules["wandb"].errors.Error("api_key not configured\n(no-tty)")

    sys.modules["wandb"].init = refuse
    with pytest.raises(ConnectionError, match=r"^wandb refuses: api_key not configured \(no-tty\)\. Use wandb=offline"):
        start_run("online", "train", tmp_path, {})
