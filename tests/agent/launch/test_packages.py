import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in a folder that comes first on its path, as a user's working directory does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["envs", "policies", "world_model"])
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_a_package_of_the_user_with_our_name(tmp_path, name, file):
    """Catches `namespace not found` or a missing module where a folder of the user hides one of ours."""
    path = tmp_path / file.format(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    ended = run(tmp_path, "-m", "agent.compare", "first=a", "second=b")
    shadow = path.parent if path.name == "__init__.py" else path
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr == (
        f"error: the package `{name}` in {shadow} hides nextstate's own in {ROOT / name}: rename that one, or run from "
        "a folder that holds none of that name\n"
    )
    ended = run(tmp_path, "-c", "import agent")
    assert "ImportError: the package" in ended.stderr


def test_a_folder_that_is_no_package_hides_nothing(tmp_path):
    """Catches a refusal of folders of data, and of a user's own configs, which our commands do not import."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    assert run(tmp_path, "-c", "import agent").returncode == 0
