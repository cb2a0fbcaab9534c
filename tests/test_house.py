"""The laws of the tree, read from the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("agent", "world_model", "policies", "envs", "configs")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# envs <- {world_model, policies} <- agent; the two in the middle take only data types and `envs.data` from envs
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
    """A package that reaches up or sideways: training would pull in MuJoCo, and cycles would follow."""
    package = path.relative_to(ROOT).parts[0]
    for line, module in imports(path):
        if package == "configs":
            assert not module, f"{path}:{line}: configs is data and imports nothing"
        if module.split(".")[0] in PACKAGES:
            assert within(module, MAY_IMPORT[package]), f"{path}:{line}: {package} may not import {module}"
        if package in ("world_model", "policies"):
            simulator = ("mujoco", "robosuite")
            assert not within(module, simulator), f"{path}:{line}: {package} may not import {module}"


def test_one_place_loads_the_wild_scenes():
    """Training that meets what it is to be judged by: only a reset in that split may load them, and no command that
    records or trains asks for it."""
    for path in FILES:
        if any(within(module, ("envs.sim.wild",)) for _, module in imports(path)):
            assert path == ROOT / "envs" / "sim" / "tabletop.py", f"{path} loads envs.sim.wild"
    at_import = ast.parse((ROOT / "envs" / "sim" / "tabletop.py").read_text()).body
    names = [node.module for node in at_import if isinstance(node, ast.ImportFrom)]
    assert "envs.sim.splits" in names and "envs.sim.wild" not in names


def is_command(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_hydra_stays_in_the_commands(path):
    """Hydra below an entry point: code that runs only with a config file around it; a command without its YAML."""
    uses = [line for line, module in imports(path) if within(module, ("hydra", "omegaconf"))]
    if uses:
        assert is_command(path), f"{path}:{uses[0]}: only entry points read Hydra's configs"
        named = [ROOT / "configs" / f"{path.stem}.yaml", ROOT / "configs" / f"{path.parent.name}_{path.stem}.yaml"]
        assert any(name.is_file() for name in named), f"{path}: the command has no configs/{path.stem}.yaml"


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


def test_only_the_packages_stand_at_the_top():
    """A drawer that grows beside the packages."""
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py")) and not p.name.startswith(".")}
    kept_by_git = folders - {"outputs", "data", "wandb", "build"}
    assert kept_by_git <= {*PACKAGES, "tests", "checkpoints"}
    drawers = [n for n in NAMES if Path(n).stem in ("utils", "util", "common", "helpers", "misc")]
    assert not drawers, f"{drawers}: name a module by what it holds"


def test_every_pin_has_its_reason():
    """A pin whose reason nobody knows can never be moved."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin, _, reason = line.partition(" # ")
            assert "==" in pin and reason.strip(), f"constraints.txt: {line!r}"


OF_ONE_ROBOT = ("MAIN", "WRIST", "ACTION_DIM", "STATE_DIM", "NUM_KEYPOINTS", "CONTROL_HZ", "TABLE_HEIGHT")
FOR_ANY_ROBOT = [
    path for path in FILES
    if path.relative_to(ROOT).parts[0] in ("world_model", "policies", "agent") or path.name == "types.py"
    if "scripted" not in path.parts  # experts are of one task
]  # fmt: skip


@pytest.mark.parametrize("path", FOR_ANY_ROBOT, ids=[str(path.relative_to(ROOT)) for path in FOR_ANY_ROBOT])
def test_nothing_below_the_tasks_knows_one_robot(path):
    """A camera's name, a size or a dimension in code that has to work for any robot: those are a Spec's to say."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value in ("main", "wrist"):
            raise AssertionError(f"{path}:{node.lineno} names the camera {node.value!r}")
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        assert not name.startswith(OF_ONE_ROBOT), f"{path}:{node.lineno} knows {name}"
