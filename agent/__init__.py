"""The mind, and the commands that a person runs: collect, evaluate, compare, bench, fidelity and demo."""

import runpy
from pathlib import Path

_packages = runpy.run_path(str(Path(__file__).parents[1] / "envs" / "packages.py"))  # `envs` may be the user's
_packages["check_packages"]("envs", "policies", "world_model")
