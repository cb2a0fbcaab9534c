import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from agent.build import PolicyConfig
from agent.evaluation.provenance import by_content, checkpoint_identity, commit, cpu_name, identity, provenance
from agent.launch.command import RunError


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def code(tmp_path):
    """A repository that holds a package `agent`."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "agent")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v1")
    return tmp_path


def test_commit(code):
    """Catches a report that names a tag or a shortened commit, or a clean one where the code was changed."""
    head = git(code, "rev-parse", "HEAD").strip()
    assert commit(code) == {"commit": head, "dirty": False}
    (code / "report.json").write_text("")  # results are not code
    assert commit(code) == {"commit": head, "dirty": False}
    (code / "agent" / "__init__.py").write_text("changed = True\n")
    assert commit(code) == {"commit": head, "dirty": True}


def test_an_installed_package_has_no_commit(code, monkeypatch):
    """Catches the commit of the user's own repository, in whose virtual environment the package is installed."""
    installed = code / ".venv" / "site-packages"
    shutil.copytree(code / "agent", installed / "agent")
    assert commit(installed) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")  # no git at all
    assert commit(code) == {"commit": None, "dirty": None}


def test_provenance(tmp_path, monkeypatch):
    """Catches a report that is not JSON, or one that fails on a machine that hides what it asks for."""
    found = provenance(torch.device("cpu"), torch.bfloat16)
    assert json.loads(json.dumps(found)) == found
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "bfloat16", torch.get_num_threads())
    assert found["cores"] >= 1 and found["cpu"] and found["versions"]["torch"] == torch.__version__
    monkeypatch.setenv("PATH", "")
    found = provenance("cuda:77")
    assert found["device"] == "cuda:77" and found["accelerator"] is found["precision"] is found["commit"] is None
    assert provenance()["device"] is None


def test_cpu_name(tmp_path):
    """Catches a machine without a model name (many ARM ones) on which a report fails."""
    (tmp_path / "named").write_text("processor\t: 0\nmodel name\t: Chip 3000 @ 2GHz\n")
    (tmp_path / "nameless").write_text("processor\t: 0\n")
    assert cpu_name(tmp_path / "named") == "Chip 3000 @ 2GHz"
    assert cpu_name(tmp_path / "nameless") == cpu_name(tmp_path / "none") != ""


def test_a_checkpoint_is_what_it_holds(tmp_path, monkeypatch):
    """Catches a checkpoint that counts as another one for a trailing slash, or as the same after it was replaced."""
    folder = tmp_path / "a" / "model"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"sha256": {}}')
    shutil.copytree(folder, tmp_path / "b")
    monkeypatch.chdir(folder)
    first = checkpoint_identity(folder)
    for same in (f"{folder}/", os.path.relpath(folder), ".", folder / ".." / "model"):
        assert checkpoint_identity(same) == first
    assert first["name"] == "model" and checkpoint_identity(tmp_path / "b")["sha256"] == first["sha256"]
    (folder / "manifest.json").write_text('{"sha256": {"model.safetensors": "0"}}')
    assert checkpoint_identity(folder)["sha256"] != first["sha256"]
    with pytest.raises(RunError, match=r"there is no checkpoint in .*none.*Give checkpoint=FOLDER"):
        checkpoint_identity(tmp_path / "none")


def test_a_folder_without_a_manifest_is_what_it_holds(tmp_path):
    """Catches outcomes of two policies under one name, or of one that was moved or has got a card under two."""
    folder = tmp_path / "a" / "act"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    shutil.copytree(folder, tmp_path / "b")
    policy = PolicyConfig(name="lerobot", folder=str(folder), execute=None, python="/one/python")
    first = identity(policy)
    (tmp_path / "b" / "README.md").write_text("a card")
    moved = replace(policy, folder=str(tmp_path / "b"), python="/other/python")
    assert first["name"] == "act" and identity(moved)["sha256"] == first["sha256"]
    assert by_content(policy, first) == by_content(moved, identity(moved))
    assert by_content(policy, first)["checkpoint"] == first["sha256"]
    (folder / "model.safetensors").write_text("others")
    assert identity(policy)["sha256"] != first["sha256"]
    (tmp_path / "empty").mkdir()
    for none in ("none", "empty"):
        with pytest.raises(RunError, match=f"there is no policy in .*{none}"):
            identity(replace(policy, folder=str(tmp_path / none)))
