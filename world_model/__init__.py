"""What we believe: tokens, transformer, imagination, checkpoints and their training."""

import runpy
from pathlib import Path

_packages = runpy.run_path(str(Path(__file__).parents[1] / "envs" / "packages.py"))  # `envs` may be the user's
_packages["check_packages"]("envs")
