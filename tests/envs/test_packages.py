"""A user's own package with a name of ours, beside their work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARE = ("agent.compare", "first=a", "second=b")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in a folder that comes first on its path, as a user's working directory does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def make_package(folder: Path, file: str) -> Path:
    """An empty package or module; what Python takes it from."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    return path.parent if path.name == "__init__.py" else path


@pytest.mark.parametrize(
    "name, command",
    [
        ("envs", COMPARE), ("policies", COMPARE), ("world_model", COMPARE), ("envs", ("world_model.train",)),
        ("envs", ("world_model.train_tokenizer",)), ("envs", ("world_model.fit_value",)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_a_command_names_what_hides_ours(tmp_path, name, command, file):
    """Catches `namespace not found` or a missing module where a folder of the user hides one of ours."""
    place = make_package(tmp_path, file.format(name))
    ended = run(tmp_path, "-m", *command)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr == (
        f"error: the package `{name}` in {place} hides nextstate's own in {ROOT / name}: rename that one, or run from "
        "a folder that holds none of that name\n"
    )


@pytest.mark.parametrize("package", ["agent", "world_model"])
def test_an_import_names_what_hides_ours(tmp_path, package):
    """Catches a notebook that ends without a word of what clashes."""
    make_package(tmp_path, "envs/__init__.py")
    ended = run(tmp_path, "-c", f"import {package}")
    assert "ImportError: the package `envs` in " in ended.stderr


def test_what_hides_nothing_is_let_alone(tmp_path):
    """Catches a refusal of folders of data, of a user's own configs, which our commands do not import, and of packages
    that world_model does not need."""
    (tmp_path / "envs").mkdir()
    make_package(tmp_path, "configs/__init__.py")
    assert run(tmp_path, "-c", "import agent").returncode == 0
    make_package(tmp_path, "agent/__init__.py")
    make_package(tmp_path, "policies/__init__.py")
    assert run(tmp_path, "-c", "import world_model").returncode == 0
