import errno
import os

import pytest

from agent.launch.command import append_line, claim, clear_errors, log_run, versions, write_whole
from envs.data.store import EpisodeError


@pytest.mark.parametrize("error", [ValueError("bad"), EpisodeError("bad"), OSError("bad")])
def test_expected_errors_become_one_line(error, monkeypatch):
    """A traceback for a typo."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as exit, clear_errors():
        raise error
    assert exit.value.code == "error: bad"


def test_a_bad_checkpoint_is_expected():
    """A damaged checkpoint that shows up as a bug with a traceback."""
    from world_model.checkpoint import CheckpointError

    with pytest.raises(SystemExit, match="damaged"), clear_errors():
        raise CheckpointError("damaged")


def test_bugs_keep_their_traceback():
    """A bug that hides behind a friendly line."""
    with pytest.raises(ZeroDivisionError), clear_errors():
        1 / 0  # noqa: B018


def test_full_error_on_request(monkeypatch):
    """With HYDRA_FULL_ERROR=1 the origin of an expected error can still be found."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError), clear_errors():
        raise ValueError("bad")


def test_claim(tmp_path):
    """A folder that accepts the results of other settings, or refuses those of the same."""
    path = claim(tmp_path / "run", "recipe.json", {"a": (1, 2)})
    assert claim(tmp_path / "run", "recipe.json", {"a": [1, 2]}) == path
    with pytest.raises(ValueError, match=r"recipe\.json.*choose another `out`"):
        claim(tmp_path / "run", "recipe.json", {"a": [1, 3]})


def test_wandb_mode(tmp_path):
    """A misspelt mode that silently logs nothing, or online."""
    log_run("disabled", "n", str(tmp_path), {}, {})
    with pytest.raises(ValueError, match="wandb must be"):
        log_run("ofline", "n", str(tmp_path), {}, {})


def test_versions():
    """A package that is not installed must not stop a report."""
    found = versions("numpy", "no-such-package")
    assert found["numpy"][0].isdigit() and found["no-such-package"] == "missing"


@pytest.mark.parametrize("write", [write_whole, append_line])
def test_full_disk(tmp_path, monkeypatch, write):
    """A full disk: the message must name the file, and what it held before must still be there."""
    path = tmp_path / "report.json"
    write_whole(path, "before\n")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*report\.json: No space left"):
        write(path, "after")
    assert path.read_text().startswith("before\n")
