"""The laws of the house, read from the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("agent", "world_model", "policies", "envs", "configs")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# envs <- {world_model, policies} <- agent; the two middle rooms take only data types and `envs.data` from envs
MAY_IMPORT = {
    "envs": ("envs",),
    "world_model": ("world_model", "envs.types", "envs.data"),
    "policies": ("policies", "envs.types", "envs.data"),
    "agent": ("agent", "world_model", "policies", "envs"),
    "configs": (),
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, full module name) of every import in a file, those inside functions and TYPE_CHECKING too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            # `from envs import types` imports the module envs.types
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_import_law(path):
    """A room that reaches up or sideways: training would pull in MuJoCo, and cycles would follow."""
    room = path.relative_to(ROOT).parts[0]
    for line, module in imports(path):
        if room == "configs":
            assert not module, f"{path}:{line}: configs is data and imports nothing"
        if module.split(".")[0] in ROOMS:
            assert within(module, MAY_IMPORT[room]), f"{path}:{line}: {room} may not import {module}"
        if room in ("world_model", "policies"):
            simulator = ("mujoco", "robosuite")
            assert not within(module, simulator), f"{path}:{line}: {room} may not import {module}"


def is_verb(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_hydra_stays_in_the_verbs(path):
    """Hydra below an entry point: code that runs only with a config file around it; a verb without its YAML."""
    uses = [line for line, module in imports(path) if within(module, ("hydra", "omegaconf"))]
    if uses:
        assert is_verb(path), f"{path}:{uses[0]}: only entry points read Hydra's configs"
        named = [ROOT / "configs" / f"{path.stem}.yaml", ROOT / "configs" / f"{path.parent.name}_{path.stem}.yaml"]
        assert any(name.is_file() for name in named), f"{path}: the verb `{path.stem}` has no configs/{path.stem}.yaml"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_unpickles(path):
    """A file from elsewhere that can run code when it is loaded."""
    for line, module in imports(path):
        assert not within(module, ("pickle", "dill", "joblib", "shelve")), f"{path}:{line}: no pickle"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}:{node.value.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save"), f"{path}:{node.lineno}: weights are kept in safetensors"


def test_only_the_rooms_stand_at_the_top():
    """A drawer that grows beside the rooms."""
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py")) and not p.name.startswith(".")}
    kept_by_git = folders - {"outputs", "data", "wandb", "build"}
    assert kept_by_git <= {*ROOMS, "tests", "checkpoints"}
    drawers = [n for n in NAMES if Path(n).stem in ("utils", "util", "common", "helpers", "misc")]
    assert not drawers, f"{drawers}: name a module by what it holds"


def test_every_pin_has_its_reason():
    """A pin whose reason nobody knows can never be moved."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin, _, reason = line.partition(" # ")
            assert "==" in pin and reason.strip(), f"constraints.txt: {line!r}"
